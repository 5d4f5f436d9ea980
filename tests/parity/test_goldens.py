"""Our logits are those of transformers, kept in goldens.npz; make_goldens.py makes them anew."""

from pathlib import Path

import numpy as np
import pytest

from parity.ours import FLOAT32, check_bfloat16, distance, logits
from parity.toys import CONFIGS, tokens, write_toy

GOLDENS = Path(__file__).parent / "goldens.npz"


@pytest.fixture(scope="module")
def goldens():
    with np.load(GOLDENS) as file:
        return dict(file)


@pytest.mark.parametrize("name", CONFIGS)
def test_logits_in_float32_equal_those_of_transformers(name, goldens, tmp_path):
    config = CONFIGS[name]
    folder = write_toy(tmp_path / name, config)
    found = logits(folder, tokens(config), compute_dtype="float32")
    assert distance(found, goldens[f"{name}/float32"]) < FLOAT32


@pytest.mark.parametrize("name", [name for name in CONFIGS if CONFIGS[name]["torch_dtype"] == "bfloat16"])
def test_logits_in_bfloat16_are_as_near_as_its_precision_allows(name, goldens, tmp_path):
    config = CONFIGS[name]
    folder = write_toy(tmp_path / name, config)
    found = logits(folder, tokens(config), compute_dtype="bfloat16")
    check_bfloat16(found, goldens[f"{name}/bfloat16"], goldens[f"{name}/float32"])


def test_every_config_has_its_goldens_and_no_other(goldens):
    assert {name.partition("/")[0] for name in goldens} == set(CONFIGS)
    assert GOLDENS.stat().st_size < 300_000
