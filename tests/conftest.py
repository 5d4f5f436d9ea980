"""Settings of the whole suite: eight virtual CPU devices, one compilation cache, shapes checked at every boundary."""

import os
from pathlib import Path

CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "dynamics" / "jax-tests"

# Before anything imports jax: the values are read once.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_NUM_CPU_DEVICES", "8")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(CACHE))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import hypothesis  # noqa: E402
import pytest  # noqa: E402
from jaxtyping import install_import_hook  # noqa: E402

# Every array boundary of these floors is checked while the tests run.
install_import_hook(["dynamics.losses", "dynamics.model", "dynamics.data", "dynamics.train"], "beartype.beartype")

hypothesis.settings.register_profile("suite", deadline=None, max_examples=50, derandomize=True)
hypothesis.settings.load_profile("suite")

ROOT = Path(__file__).resolve().parent.parent


def shared_data_folder() -> Path | None:
    folder = Path(os.environ.get("DYNAMICS_SHARED_DATA", ROOT.parent / "shared" / "data"))
    return folder if folder.is_dir() else None


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real sample data; tests that need it are skipped, with a count, where it is missing."""
    folder = shared_data_folder()
    if folder is None:
        pytest.skip("no folder of real sample data: set DYNAMICS_SHARED_DATA to it")
    return folder


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    skipped = [r for r in terminalreporter.stats.get("skipped", []) if "real sample data" in str(r.longrepr)]
    if skipped:
        terminalreporter.write_line(
            f"{len(skipped)} tests skipped: no folder of real sample data (DYNAMICS_SHARED_DATA)"
        )
