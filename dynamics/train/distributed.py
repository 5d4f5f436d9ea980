"""Several processes that train one run together: how they meet, agree, stop and end.

    start()                  before the first use of a device; nothing to do where there is one process
    is_lead(), agree(value)  one process decides (files, claims, what was restored), the others follow
    stop_agreed()            SIGTERM reached one of them: all leave their loop after the same step
    fail() / finish()        an error of one ends all with its exit code; an orderly end waits for all

Every process runs the same program on the same settings. What they say to each other here goes over the coordination
service of jax.distributed and needs no device, so it may be said from any thread. A process that dies without a word
is noticed by its missing heartbeats within `HEARTBEAT` seconds, and jax then aborts the others (exit code 134): a run
of several processes goes on by starting all of them again.
"""

import atexit
import contextlib
import itertools
import json
import os
import socket
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import jax
from jax._src import cloud_tpu_init  # the only place that says whether this machine has TPU chips
from jax._src.distributed import global_state  # the client of the coordination service has no public name
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from dynamics.errors import UserError
from dynamics.model.sharding import ROW_AXES, num_row_shards

T = TypeVar("T")

HEARTBEAT = 10  # seconds without a sign of life after which a process counts as dead
INITIALIZATION = 60  # seconds in which all processes must have come
EXIT_INFRASTRUCTURE = 134  # what a process ends with that jax aborts because another one died: start all again
_PATIENCE = 24 * 3600  # seconds; waiting ends earlier by the heartbeat when whoever is waited for has died
_LOOK = 0.5  # seconds between two looks for the failure of another process
_FAILED = "dynamics/failed"

_numbers: "defaultdict[str, Iterator[int]]" = defaultdict(itertools.count)  # how often each name was used
_stop_calls = itertools.count(1)
_ending = threading.Event()


class Terminated(KeyboardInterrupt):
    """SIGTERM, taken as Ctrl-C is: workers are ended and what is finished stays."""

    exit_code = 75  # try again: schedulers requeue on it

    def __init__(self) -> None:
        super().__init__("stopped by SIGTERM; everything finished is saved: run the same command again to go on")


class Unreachable(Exception):
    """The other processes did not come: to be tried again, by exit code `EXIT_INFRASTRUCTURE`."""


def start(*, coordinator: str | None = None, num_processes: int | None = None, process_id: int | None = None) -> None:
    """Join the other processes of this run; call it before anything asks for devices.

    The three values are given together, or found: in the environment of a SLURM step (JAX_COORDINATOR_ADDRESS
    overrides the address) or in the metadata of a TPU VM. One process, and `num_processes=1`, needs no start.
    Raises UserError for values that cannot be, Unreachable when the others are not there in `INITIALIZATION` seconds.
    """
    given = {"--coordinator": coordinator, "--num-processes": num_processes, "--process-id": process_id}
    settings = (
        {} if num_processes == 1 else _explicit(given) if any(v is not None for v in given.values()) else _found()
    )
    if not settings:
        return
    address = settings.get("coordinator_address")
    if address is not None:
        _check_address(address)
        if settings["process_id"] != 0:
            _wait_for_coordinator(address)
    with _explained_wait(settings):
        jax.distributed.initialize(
            **settings,
            initialization_timeout=INITIALIZATION,
            heartbeat_timeout_seconds=HEARTBEAT,
            shutdown_timeout_seconds=HEARTBEAT,  # `finish` waits before; whoever leaves by an error waits no longer
        )
    told = agree(global_state.num_processes)
    if told != global_state.num_processes:
        raise UserError(
            f"process {global_state.process_id} was started as one of {global_state.num_processes} processes, the "
            f"lead as one of {told}; give all of them the same --num-processes"
        )
    threading.Thread(target=_watch, name="failures", daemon=True).start()
    jax.devices()  # all processes find the devices together: one that came to it later would keep the others waiting


def _explicit(given: dict[str, Any]) -> dict[str, Any]:
    missing = [name for name, value in given.items() if value is None]
    if missing:
        raise UserError(
            f"{', '.join(missing)} not given; a process of several needs --coordinator HOST:PORT, --num-processes N "
            "and --process-id I together (none of them on SLURM and on TPU VMs, which tell)"
        )
    address, count, number = given["--coordinator"], given["--num-processes"], given["--process-id"]
    if count < 1 or not 0 <= number < count:
        raise UserError(f"--process-id {number} of --num-processes {count}: ids go from 0 to {max(0, count - 1)}")
    settings = {"coordinator_address": address, "num_processes": count, "process_id": number}
    if address.rpartition(":")[0] in ("127.0.0.1", "localhost"):  # nobody else needs to reach it
        settings["coordinator_bind_address"] = address
    return settings | {"cluster_detection_method": "deactivate"}


def _found() -> dict[str, Any]:
    """Settings from the surroundings; empty where this is the only process."""
    environment = os.environ
    if "SLURM_STEP_NODELIST" in environment and "SLURM_PROCID" in environment:
        tasks = int(environment.get("SLURM_STEP_NUM_TASKS") or environment.get("SLURM_NTASKS", "1"))
        if tasks == 1:
            return {}
        settings: dict[str, Any] = {"num_processes": tasks, "process_id": int(environment["SLURM_PROCID"])}
        if address := environment.get("JAX_COORDINATOR_ADDRESS"):
            settings["coordinator_address"] = address
        gpus = environment.get("SLURM_GPUS_ON_NODE")
        if gpus and tasks == int(environment.get("SLURM_STEP_NUM_NODES", "0")):
            # One task a node has all its GPUs; jax would give every task of SLURM a single one.
            settings["local_device_ids"] = list(range(int(gpus)))
        return settings
    if cloud_tpu_init.running_in_cloud_tpu_vm and jax.config.values.get("jax_platforms") != "cpu":
        hosts = environment.get("TPU_PROCESS_ADDRESSES") or environment.get("TPU_WORKER_HOSTNAMES")
        slices = int(environment.get("MEGASCALE_NUM_SLICES") or 1)
        alone = hosts is not None and len(hosts.split(",")) * slices == 1
        return {} if alone else {"cluster_detection_method": None}
    return {}


def _check_address(address: str) -> None:
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 2**16:
        raise UserError(f"coordinator {address!r} is not HOST:PORT; give the host of process 0 and a free port of it")


def _wait_for_coordinator(address: str) -> None:
    """Until something listens there: jax itself would end the process without a word that a person understands."""
    host, _, port = address.rpartition(":")
    until = time.monotonic() + INITIALIZATION
    while True:
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
            return
        except OSError as error:
            if time.monotonic() > until:
                raise Unreachable(
                    f"nothing answers at the coordinator {address} after {INITIALIZATION} s ({error}); is process 0 "
                    "running, and is its address right?"
                ) from error
        time.sleep(_LOOK)


@contextlib.contextmanager
def _explained_wait(settings: dict[str, Any]) -> Iterator[None]:
    """Around initialize: what is being waited for, where jax would say nothing for a minute and then abort."""
    who = f"process {settings['process_id']} of {settings['num_processes']}" if "process_id" in settings else "process"
    where = f" at {settings['coordinator_address']}" if "coordinator_address" in settings else ""
    words = f"dynamics: {who} waits for the others{where}, {INITIALIZATION} s at most"
    hint = threading.Timer(5, lambda: print(words, file=sys.stderr, flush=True))
    hint.daemon = True
    hint.start()
    try:
        yield
    except UserError:
        raise
    except (RuntimeError, ValueError, OSError) as error:
        said = str(error).strip().split("\n")[0]
        raise Unreachable(f"{who} could not join the others{where}: {said}; is the port free?") from error
    finally:
        hint.cancel()


def several() -> bool:
    """Whether this process is one of several."""
    return global_state.client is not None and global_state.num_processes > 1


def is_lead() -> bool:
    """Whether this process writes the files and decides: process 0, or the only one."""
    return not several() or global_state.process_id == 0


def _name(name: str) -> str:
    """The name with the number of its use: the processes use each name equally often, in the same order."""
    return f"dynamics/{name}/{next(_numbers[name])}"


def agree(value: T) -> T:
    """The lead's value, in every process; it must be JSON. The others' own values are not looked at."""
    return everyone(value, of=(0,))[0]


def everyone(value: T, *, of: Sequence[int] | None = None) -> list[T]:
    """The value of every process (or of those named), in their order, in every process."""
    if not several():
        return [value]
    name = _name("values")
    members = range(global_state.num_processes) if of is None else of
    if global_state.process_id in members:
        _client().key_value_set(f"{name}/{global_state.process_id}", json.dumps(value))
    return [json.loads(_client().blocking_key_value_get(f"{name}/{member}", _PATIENCE * 1000)) for member in members]


def barrier(name: str) -> None:
    """Wait until every process has come here; the name is used by one thread of each process."""
    if several():
        _client().wait_at_barrier(_name(name), _PATIENCE * 1000)


def _client() -> Any:
    return global_state.client


def stop_agreed() -> bool:
    """Whether all processes stop here because one of them got SIGTERM: the same answer in all.

    Called equally often by all, as after every step. jax takes the signal (a handler of ours would displace its), and
    names a coming call; False where there is one process, which has its own handler.
    """
    return several() and multihost_utils.reached_preemption_sync_point(next(_stop_calls))


def check_shared(folder: str | Path) -> None:
    """UserError unless all processes see one folder at this path: checkpoints are written by all of them together."""
    if not several():
        return
    folder = Path(folder).absolute()
    mark = folder / f".seen-by-all-{agree(os.urandom(8).hex())}"
    if is_lead():
        folder.mkdir(parents=True, exist_ok=True)
        mark.touch()
    barrier("shared")
    seen = everyone(mark.exists())
    if is_lead():
        mark.unlink()
    if not all(seen):
        blind = [number for number, sees in enumerate(seen) if not sees]
        raise UserError(
            f"process {blind[0]} does not see {folder} as the lead does ({len(blind)} of {len(seen)} do not); several "
            "processes need the run's folder, and the cache of its base model, on a file system that all of them share"
        )


def check_mesh(mesh: Mesh) -> None:
    """UserError when the mesh leaves out devices of some process: it would have nothing to do and block the others."""
    if mesh.size != len(jax.devices()) and several():
        raise UserError(
            f"the mesh takes {mesh.size} of the {len(jax.devices())} devices of {jax.process_count()} processes; "
            "several processes need a mesh of all devices (a size of -1 takes what is left)"
        )


def row_shards_here(mesh: Mesh) -> tuple[int, ...]:
    """Which of the row shards of a batch lie on devices of this process, ascending; all of them in one process."""
    shards = num_row_shards(mesh)
    indices = NamedSharding(mesh, PartitionSpec(ROW_AXES)).addressable_devices_indices_map((shards,)).values()
    return tuple(sorted({index[0].indices(shards)[0] for index in indices if index is not None}))


def placed(tree: Any, shardings: Any) -> Any:
    """Host arrays, the same in every process, laid out on a mesh that may span processes."""

    def one(leaf: Any, sharding: Any) -> jax.Array:
        return jax.make_array_from_callback(leaf.shape, sharding, lambda index: leaf[index], dtype=leaf.dtype)

    return jax.tree.map(one, tree, shardings)


def fail(code: int, reason: str) -> None:
    """Tell the others that this process ends with an error, so that they end with the same code and not in a hang.

    The process itself ends with `code` when the interpreter does, without waiting for anybody.
    """
    if not several():
        return
    _ending.set()
    told = json.dumps({"code": code, "reason": reason, "process": global_state.process_id})
    with contextlib.suppress(Exception):  # another process was first, or the lead is gone
        _client().key_value_set(_FAILED, told)
    if is_lead():
        time.sleep(4 * _LOOK)  # the service that tells them lives in this process
    atexit.register(_exit, code)


def failed_everywhere() -> bool:
    """Whether every process says within a short while that it has failed: an error of the work, which all have met.

    Otherwise the error is of this process, and the others still wait for it somewhere.
    """
    if not several():
        return True
    name = _name("error")
    _client().key_value_set(f"{name}/{global_state.process_id}", "")
    try:
        for member in range(global_state.num_processes):
            _client().blocking_key_value_get(f"{name}/{member}", (HEARTBEAT + 5) * 1000)
    except jax.errors.JaxRuntimeError:
        return False
    return True


def wait_for_the_dead() -> None:
    """Give jax the time to notice that a peer has died, and to end this process, before an error counts as its own.

    The first sign of a death is an error of whatever talked to the dead process, which looks like a fault of ours.
    """
    if several():
        time.sleep(HEARTBEAT + 3)


def finish() -> None:
    """The orderly end: waits for all processes. Nothing of jax is used afterwards."""
    if several():
        barrier("finish")
        _ending.set()
        jax.distributed.shutdown()


def _watch() -> None:
    """End this process when another one has told of its failure. jax ends it when another one dies in silence."""
    while not _ending.wait(_LOOK):
        try:
            told = json.loads(_client().key_value_try_get(_FAILED))
        except Exception:  # nobody has failed
            continue
        if _ending.is_set():
            return
        print(f"dynamics: process {told['process']} failed: {told['reason']}", file=sys.stderr)
        _exit(told["code"])


def _exit(code: int) -> None:
    """End now: an ordinary end would wait for processes that will not come."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
    os._exit(code)
