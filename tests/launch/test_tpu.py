"""A TPU slice from request to deletion, against a stand-in for gcloud that records what it is sent.

No cloud is at hand: this tests the script, not the cloud. The stand-in takes its answers from files, one line a call,
and where a file has run out, the ordinary answer.
"""

import shutil
import signal
import subprocess
import tarfile
import time
from pathlib import Path

import pytest
from scripts import LAUNCH, ROOT, TRAIN, program, run, start

pytestmark = pytest.mark.skipif(
    not (ROOT / ".git").exists() or shutil.which("git") is None,
    reason="no git repository here: launch/tpu.sh sends the hosts what git tracks",
)

OUTPUT = "/bucket/results"
WORDS = (
    "--name", "first", "--type", "v5litepod-16", "--zone", "us-west4-a", "--project", "mine", "--runtime", "v2",
    "--spot", "--poll", "1",
)  # fmt: skip
COMMAND = ("--", *TRAIN, "--output", OUTPUT)

# answer NAME ORDINARY: the next line of the file NAME.
GCLOUD = r"""
answer() {
  line=$(sed -n 1p "$FAKE/$1" 2>/dev/null)
  sed -i 1d "$FAKE/$1" 2>/dev/null
  echo "${line:-$2}"
}
printf '%s\0' "$@" >>"$FAKE/calls"
printf '\n' >>"$FAKE/calls"
case "$*" in
  *queued-resources\ list*) cat "$FAKE/names" 2>/dev/null; exit 0 ;;
  *queued-resources\ create*) exit $(answer create 0) ;;
  *queued-resources\ describe*) answer states ACTIVE ;;
  *queued-resources\ delete*) exit $(answer delete 0) ;;
  *tpu-vm\ scp*) cp "$5" "$FAKE/archive" || exit 1; exit $(answer scp 0) ;;
  *pip\ install*) exit $(answer install 0) ;;
  *.launched*) exit $(answer shared 0) ;;
  *launch/job.sh*)
    answer output "job.sh: exit 0 on host: done"
    [ ! -e "$FAKE/long" ] || { echo running; exec sleep 600; }
    exit $(answer job 0)
    ;;
esac
"""


class Cloud:
    def __init__(self, folder: Path, repository: Path) -> None:
        self.folder = folder
        self.script = repository / "launch" / "tpu.sh"
        (folder / "bin").mkdir()
        program(folder / "bin" / "gcloud", GCLOUD)
        self.env = {
            "FAKE": str(folder),
            "PATH": f"{folder}/bin:/usr/bin:/bin",
            "XDG_CACHE_HOME": str(folder / "cache"),
            "TMPDIR": str(folder),
        }

    def answers(self, **files: str) -> None:
        """What the stand-in says: one word a call, for each kind of call."""
        for name, words in files.items():
            (self.folder / name).write_text(words.replace(", ", "\n") + "\n")

    def run(self, *words: str) -> tuple[int, str, str]:
        return run(self.script, *words, env=self.env)

    @property
    def calls(self) -> list[list[str]]:
        text = (self.folder / "calls").read_text() if (self.folder / "calls").exists() else ""
        return [line.split("\0")[:-1] for line in text.split("\n")[:-1]]

    @property
    def verbs(self) -> list[str]:
        """The calls in short: list, create, describe, scp, ssh, delete."""
        return [call[3] for call in self.calls]


def git(folder: Path, *words: str) -> str:
    who = ("-c", "user.name=test", "-c", "user.email=test@localhost")
    return subprocess.run(["git", "-C", folder, *who, *words], capture_output=True, text=True, check=True).stdout


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clone of this repository with the launch scripts as they are now, and nothing left to commit."""
    folder = tmp_path_factory.mktemp("clone") / "dynamics"
    subprocess.run(["git", "clone", "--quiet", "--shared", ROOT, folder], check=True)
    shutil.copytree(LAUNCH, folder / "launch", dirs_exist_ok=True)
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--allow-empty", "--message", "as it is now")
    return folder


@pytest.fixture
def cloud(tmp_path: Path, repository: Path) -> Cloud:
    return Cloud(tmp_path, repository)


ONCE = ["create", "describe", "scp", "ssh", "ssh", "ssh", "ssh"]


def test_a_run_sends_exactly_what_the_dry_run_shows(cloud: Cloud):
    shown = cloud.run(*WORDS, "--dry-run", *COMMAND)[1]
    assert cloud.calls == []
    assert not (cloud.folder / "cache").exists()
    code, _, err = cloud.run(*WORDS, *COMMAND)
    assert code == 0, err
    lines = [line for line in shown.splitlines() if line.startswith("gcloud")]
    # A shell reads the lines back as the words that were sent.
    read = [subprocess.run(["bash", "-c", f"printf '%s\\0' {line}"], capture_output=True, text=True) for line in lines]
    assert [words.stdout.split("\0")[1:-1] for words in read] == cloud.calls
    assert cloud.verbs == ["list", *ONCE, "delete"]
    assert "first is deleted" in err


def test_hosts_get_the_tracked_files_and_nothing_stays_here(cloud: Cloud):
    cloud.run(*WORDS, *COMMAND)
    with tarfile.open(cloud.folder / "archive") as archive:
        names = archive.getnames()
    assert {"dynamics/cli/__init__.py", "constraints.txt", TRAIN[1]} <= set(names)
    assert not [name for name in names if name.startswith((".venv", "results", ".git/"))]
    assert not list((cloud.folder / "cache").rglob("*.tar.gz"))


def test_changes_that_are_not_committed_travel_and_other_files_are_counted(cloud: Cloud, repository: Path):
    config = repository / TRAIN[1]
    before = config.read_text()
    config.write_text(before + "# changed\n")
    (repository / "left.txt").write_text("not added")
    assert "$(git stash create)" in cloud.run(*WORDS, "--dry-run", *COMMAND)[1]
    code, _, err = cloud.run(*WORDS, *COMMAND)
    assert code == 0
    assert "1 files that git does not track are not copied" in err
    with tarfile.open(cloud.folder / "archive") as archive:
        sent = archive.extractfile(TRAIN[1])
        assert sent is not None
        assert sent.read().decode().endswith("# changed\n")
        assert "left.txt" not in archive.getnames()
    assert git(repository, "stash", "list") == ""  # nothing is left in the repository but an object
    config.write_text(before)
    (repository / "left.txt").unlink()


def test_it_waits_for_the_slice(cloud: Cloud):
    cloud.answers(states="WAITING_FOR_RESOURCES, PROVISIONING, ACTIVE")
    code, _, err = cloud.run(*WORDS, *COMMAND)
    assert code == 0
    assert cloud.verbs.count("describe") == 3
    assert err.index("WAITING_FOR_RESOURCES") < err.index("PROVISIONING") < err.index("ACTIVE")


@pytest.mark.parametrize(
    "answers",
    [
        {"job": "75", "output": "job.sh: exit 75 on host: saved"},  # saved
        {"job": "255", "output": "no word", "states": "ACTIVE, SUSPENDING"},  # the hosts went away under ssh
        {"job": "137", "output": "job.sh: exit 137 on host: killed"},  # one host failed
        {"job": "1", "output": "job.sh: exit 134 on host: peer"},  # so does one whose peer failed, whatever is first
        {"states": "PROVISIONING, SUSPENDED, ACTIVE"},  # taken away before it was there
        {"install": "1", "states": "ACTIVE, SUSPENDED"},
    ],
)
def test_a_slice_that_was_lost_is_deleted_and_another_one_goes_on(cloud: Cloud, answers: dict[str, str]):
    cloud.answers(**answers)
    code, _, err = cloud.run(*WORDS, *COMMAND)
    assert code == 0, err
    assert [verb for verb in cloud.verbs if verb in ("create", "delete")] == ["create", "delete"] * 2


def test_preemptions_are_bounded(cloud: Cloud):
    cloud.answers(job="75, 75, 75, 75, 75", output=", ".join(["job.sh: exit 75 on host: saved"] * 5))
    code, _, err = cloud.run(*WORDS, "--max-preemptions", "2", *COMMAND)
    assert code == 75
    assert cloud.verbs.count("create") == cloud.verbs.count("delete") == 3
    assert "--max-preemptions is 2: not started again" in err


@pytest.mark.parametrize(("code", "meaning"), [(78, "config"), (1, "bug")])
def test_what_another_slice_does_not_mend_ends_the_run_and_deletes_the_slice(cloud: Cloud, code: int, meaning: str):
    cloud.answers(job=str(code), output=f"job.sh: exit {code} on host: {meaning}")
    assert cloud.run(*WORDS, *COMMAND)[0] == code
    assert cloud.verbs == ["list", *ONCE, "delete"]


def test_an_output_that_hosts_do_not_share_is_refused_before_anything_runs(cloud: Cloud):
    cloud.answers(shared="0, 1")
    code, _, err = cloud.run(*WORDS, *COMMAND)
    assert code == 78
    assert f"--output {OUTPUT} is not shared" in err
    assert not any("launch/job.sh" in word for call in cloud.calls for word in call)
    assert cloud.verbs[-1] == "delete"


def test_a_name_that_is_taken_is_left_alone(cloud: Cloud):
    cloud.answers(names="first")
    code, _, err = cloud.run(*WORDS, *COMMAND)
    assert code == 2
    assert "'first' exists" in err
    assert cloud.verbs == ["list"]


@pytest.mark.parametrize("answers", [{"create": "1"}, {"states": "FAILED"}])
def test_a_request_that_fails_ends_the_run_and_leaves_nothing(cloud: Cloud, answers: dict[str, str]):
    cloud.answers(**answers)
    assert cloud.run(*WORDS, *COMMAND)[0] == 1
    assert cloud.verbs.count("create") == 1
    assert cloud.verbs[-1] == "delete"


def test_a_slice_that_cannot_be_deleted_is_told_loudly(cloud: Cloud):
    cloud.answers(delete="1, 1, 1")
    code, _, err = cloud.run(*WORDS, *COMMAND)
    assert code == 1
    assert cloud.verbs.count("delete") == 3
    assert "COULD NOT DELETE THE SLICE" in err
    assert "gcloud compute tpus queued-resources delete first --force --project mine --zone us-west4-a" in err


def test_keep_leaves_the_slice_and_says_how_to_delete_it(cloud: Cloud):
    code, _, err = cloud.run(*WORDS, "--keep", *COMMAND)
    assert code == 0
    assert "delete" not in cloud.verbs
    assert "costs money" in err
    assert "queued-resources delete first" in err


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 143)])
def test_a_signal_deletes_the_slice_at_once_while_the_command_runs(cloud: Cloud, number: signal.Signals, code: int):
    (cloud.folder / "long").touch()
    began = time.monotonic()
    job = start(cloud.script, *WORDS, *COMMAND, env=cloud.env)
    assert job.stdout is not None
    while job.stdout.readline() != "running\n":
        assert job.poll() is None
    job.send_signal(number)
    _, err = job.communicate(timeout=30)
    assert job.returncode == code
    assert time.monotonic() - began < 30
    assert cloud.verbs[-1] == "delete"
    assert "first is deleted" in err
