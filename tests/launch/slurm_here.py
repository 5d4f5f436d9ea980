"""A real SLURM of two nodes on loopback, for the time of a test: no munge, no name service, no root service."""

import contextlib
import getpass
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil

DAEMONS = ("slurmctld", "slurmd", "sbatch", "srun", "scontrol", "squeue", "scancel", "sinfo")
FOLDERS = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"

# cred_expire is also how long a requeued job waits: 120 s by default, 5 at least.
CONF = """
ClusterName=loopback
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort={controller}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/none
AuthInfo=cred_expire=5
CredType=cred/none
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/builtin
SchedulerParameters=sched_interval=1,sched_min_interval=100000,batch_sched_delay=0
SlurmdParameters=config_overrides
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ReturnToService=2
KillWait=5
NodeName=n1 NodeAddr=127.0.0.1 NodeHostname=localhost Port={first} CPUs=2 State=UNKNOWN
NodeName=n2 NodeAddr=127.0.0.1 NodeHostname=localhost Port={second} CPUs=2 State=UNKNOWN
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
PartitionName=spot Nodes=n1,n2 Default=YES MaxTime=INFINITE State=UP PriorityTier=1 PreemptMode=REQUEUE GraceTime=20
PartitionName=prod Nodes=n1,n2 MaxTime=INFINITE State=UP PriorityTier=10 PreemptMode=OFF
"""


def missing() -> list[str]:
    """The programs of SLURM that are not installed here."""
    return [name for name in DAEMONS if shutil.which(name, path=FOLDERS) is None]


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


class Slurm:
    """Two nodes that run; `environment` makes SLURM's commands find them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        controller, first, second = free_ports(3)
        self.conf = folder / "slurm.conf"
        (folder / "state").mkdir(parents=True)
        self.conf.write_text(
            CONF.format(controller=controller, first=first, second=second, folder=folder, user=getpass.getuser())
        )
        self.environment = {**os.environ, "PATH": FOLDERS, "SLURM_CONF": str(self.conf)}
        self._daemons: list[subprocess.Popen[bytes]] = []

    def start(self) -> None:
        self._daemon("slurmctld")
        self._daemon("slurmd", "-N", "n1")
        self._daemon("slurmd", "-N", "n2")
        nodes = ("sinfo", "--noheader", "--partition", "spot", "--format", "%T %D")
        self.until(lambda: self(*nodes).split() == ["idle", "2"], "two idle nodes")

    def _daemon(self, name: str, *words: str) -> None:
        command = [name, "-D", "-f", str(self.conf), *words]
        with (self.folder / f"{name}{''.join(words)}.out").open("wb") as out:
            self._daemons.append(
                subprocess.Popen(command, env=self.environment, stdout=out, stderr=out, start_new_session=True)
            )

    def __call__(self, *words: str) -> str:
        """A command of SLURM, its output; empty while the controller does not answer."""
        return subprocess.run(words, env=self.environment, capture_output=True, text=True, timeout=60).stdout.strip()

    def job(self, number: str) -> dict[str, str]:
        """JobState, Restarts, ExitCode, ... of a job; empty while the controller does not answer."""
        told = self("scontrol", "--oneliner", "show", "job", number)
        return dict(word.split("=", 1) for word in told.split() if "=" in word)

    def until(
        self, happened: Callable[[], bool], what: str, *, seconds: float = 60, log: Callable[[], str] = str
    ) -> None:
        end = time.monotonic() + seconds
        while not happened():
            assert time.monotonic() < end, f"no {what} within {seconds:.0f} s; SLURM's logs: {self.folder}\n{log()}"
            time.sleep(0.3)

    def processes(self, job: str, process: int, program: str) -> list[psutil.Process]:
        """The processes of one task of a job that run a program."""
        wanted = {"SLURM_CONF": str(self.conf), "SLURM_JOB_ID": job, "SLURM_PROCID": str(process)}
        found = []
        for one in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if wanted.items() <= one.environ().items() and program in one.cmdline():
                    found.append(one)
        return found

    def stop(self) -> None:
        """End the daemons and whatever they started; nothing of this SLURM is left."""
        self("scancel", "--signal=KILL", "--full", *self("squeue", "--noheader", "--format", "%i").split())
        for daemon in self._daemons:  # orderly, because slurmctld has a helper process
            daemon.terminate()
        for daemon in self._daemons:
            with contextlib.suppress(subprocess.TimeoutExpired):
                daemon.wait(timeout=10)
            daemon.kill()
            daemon.wait()
        for process in psutil.process_iter():  # what outlived them: steps and their tasks
            with contextlib.suppress(psutil.Error):
                if process.environ().get("SLURM_CONF") == str(self.conf):
                    process.kill()

    def leftovers(self) -> list[str]:
        """Command lines of processes that belong to this SLURM."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                ours = process.environ().get("SLURM_CONF") == str(self.conf)
                if ours and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(" ".join(process.cmdline()))
        return found


@contextlib.contextmanager
def slurm_of_two_nodes(folder: Path) -> Iterator[Slurm]:
    slurm = Slurm(folder)
    try:
        slurm.start()
        yield slurm
    finally:
        slurm.stop()
