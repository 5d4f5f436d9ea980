"""Times training steps of `dynamics` and its peers in turns: A, B, C, A, B, C, each in an environment of its own.

    python benchmarks/peers/run.py --rounds 4 --json benchmarks/results/peers.json --plot benchmarks/results/peers.png
    python benchmarks/peers/run.py --table benchmarks/results/peers.json      the table of docs/performance.md

Needs the standard library only (matplotlib for --plot). Run it with the Python that has `dynamics`; the peers'
environments are made under build/peers at first use, from requirements/*.txt. Every peer is a process that stays and
makes one step when it is told to, so that all see the same neighbours on a busy machine. What counts is CPU-seconds for
1,000 tokens that are no padding; wall time is reported beside it.

The best hand-written loop found, bare torch with the head at completion positions, comes three times: as torch is, with
matrix products by oneDNN (on AMD processors twice as fast as the MKL that torch takes by itself), and also with glibc
told to keep freed memory, as `dynamics` does.
"""

import argparse
import dataclasses
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
BUILD = HERE.parents[1] / "build" / "peers"
Samples = list[dict[str, float]]


@dataclasses.dataclass(frozen=True)
class Peer:
    """A program of this folder, the environment it runs in (None: the one of this process) and what we aim at."""

    name: str
    environment: str | None
    command: tuple[str, ...]
    goal: float | None = None  # our CPU-seconds at most this share of the peer's

    def python(self) -> str:
        return sys.executable if self.environment is None else str(BUILD / self.environment / "bin" / "python")


BARE = ("torch_loop.py", "--attention", "documents", "--head")
OURS = Peer("dynamics", None, ("ours.py", "--cache", str(BUILD / "programs")))
# Each group is timed in turns with ours. All at once would not fit into 24 GB.
LOOPS = (
    Peer("bare torch, completion head", "torch", (*BARE, "completion"), 1.0),
    Peer("bare torch, oneDNN products", "torch", (*BARE, "completion", "--products", "onednn"), 1.0),
    Peer(
        "bare torch, oneDNN, memory kept", "torch", (*BARE, "completion", "--products", "onednn", "--keep-memory"), 1.0
    ),
    Peer("bare torch, full logits", "torch", (*BARE, "full")),
)
FRAMEWORKS = (
    Peer("TRL wrapped", "trl", ("trl_trainer.py", "--packing", "wrapped"), 0.55),
    Peer("TRL bfd", "trl", ("trl_trainer.py", "--packing", "bfd"), 0.33),
    Peer("TRL padded", "trl", ("trl_trainer.py", "--packing", "padded")),
    Peer("Tunix, packed outside", "tunix", ("tunix_trainer.py", "--input", "packed"), 0.55),
    Peer("Tunix padded", "tunix", ("tunix_trainer.py", "--input", "padded"), 0.2),
)
PEERS = (*LOOPS, *FRAMEWORKS)


class Process:
    """A started peer. Its noise goes to a file that is shown when it dies."""

    def __init__(
        self,
        peer: Peer,
        workload: Path,
        weights: Path,
        *,
        extra: tuple[str, ...] = (),
        environment: Mapping[str, str] = types.MappingProxyType({}),
    ) -> None:
        self.peer = peer
        self.log = tempfile.TemporaryFile("w+")  # noqa: SIM115
        files = ("--workload", str(workload), "--weights", str(weights))
        self.started = time.perf_counter()
        self.process = subprocess.Popen(
            [peer.python(), str(HERE / peer.command[0]), *peer.command[1:], *extra, *files],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log, text=True,
            env=os.environ | {"JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": "", **environment},
        )  # fmt: skip

    def step(self) -> dict[str, float]:
        """One training step, from the word to the answer."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write("step\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            self.log.seek(0)
            raise SystemExit(f"{self.peer.name} died; the end of what it said:\n{self.log.read()[-3000:]}")
        return json.loads(answer)

    def first_step(self) -> dict[str, float]:
        """The first step, and the seconds since the command was given."""
        return self.step() | {"start_s": time.perf_counter() - self.started}

    def stop(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(timeout=60)


def prepare(peers: list[Peer]) -> tuple[Path, Path]:
    """Make what is missing: environments, the workload, the weights. Returns the two files."""
    BUILD.mkdir(parents=True, exist_ok=True)
    for name in sorted({peer.environment for peer in peers if peer.environment}):
        folder, done = BUILD / name, BUILD / f"{name}.installed"
        wanted = (HERE / "requirements" / f"{name}.txt").read_text()
        if done.is_file() and done.read_text() == wanted:
            continue
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, "-r", str(HERE / "requirements" / f"{name}.txt")], check=True)
        done.write_text(wanted)
    workload, weights = BUILD / "workload.npz", BUILD / "weights.npz"
    if not (workload.is_file() and weights.is_file()):
        files = ["--workload", str(workload), "--weights", str(weights)]
        command = [sys.executable, str(HERE / "ours.py"), "--write", *files]
        subprocess.run(command, check=True, env=os.environ | {"JAX_PLATFORMS": "cpu"})
    return workload, weights


def start_up(workload: Path, weights: Path) -> dict[str, float]:
    """Seconds from command to the end of the first step of ours: nothing compiled before, and all of it."""
    cache = BUILD / "programs_cold"
    shutil.rmtree(cache, ignore_errors=True)
    seconds = {}
    for name in ("cold", "warm"):
        process = Process(OURS, workload, weights, extra=("--cache", str(cache)))
        seconds[f"{name}_s"] = process.first_step()["start_s"]
        process.stop()
    shutil.rmtree(cache)
    return seconds


def measure(peers: list[Peer], *, rounds: int, workload: Path, weights: Path) -> dict[str, Any]:
    """Start ours and these, make one step that is not counted, then `rounds` steps of each in turns."""
    peers = [OURS, *peers]
    processes, firsts = [], []
    for peer in peers:  # one after another: a start must not be timed beside another's
        processes.append(Process(peer, workload, weights))
        firsts.append(processes[-1].first_step())
        print(f"{peer.name}: first step {firsts[-1]['start_s']:.1f} s after the command", file=sys.stderr)
    samples: list[Samples] = [[] for _ in peers]
    for number in range(rounds):
        for process, mine in zip(processes, samples, strict=True):
            mine.append(process.step())
        print(f"round {number + 1} of {rounds}", file=sys.stderr)
    for process in processes:
        process.stop()
    results = {
        peer.name: summary(peer, first, mine) for peer, first, mine in zip(peers, firsts, samples, strict=True)
    }  # fmt: skip
    ratios(results)
    return results


def merged(groups: list[dict[str, Any]]) -> dict[str, Any]:
    """The results of all groups; ours, which is in each, with the samples of all."""
    ours = [group[OURS.name] for group in groups]
    first = {"start_s": ours[0]["first_step_s"], "loss": ours[0]["first_loss"]}
    everywhere = summary(OURS, first, [sample for result in ours for sample in result["samples"]])
    return {OURS.name: everywhere} | {
        name: result for group in groups for name, result in group.items() if name != OURS.name
    }  # fmt: skip


def summary(peer: Peer, first: dict[str, float], samples: Samples) -> dict[str, Any]:
    """Medians over the rounds of one peer, with the samples behind them."""
    per_1000 = [1000 * sample["cpu_s"] / sample["tokens"] for sample in samples]
    return {
        "command": [part.replace(str(BUILD), "build/peers") for part in peer.command],
        "cpu_s_per_1000_tokens": statistics.median(per_1000),
        "cpu_s_per_1000_tokens_range": [min(per_1000), max(per_1000)],
        "tokens_per_s": statistics.median(sample["tokens"] / sample["wall_s"] for sample in samples),
        "wall_s": statistics.median(sample["wall_s"] for sample in samples),
        "cpu_s": statistics.median(sample["cpu_s"] for sample in samples),
        "tokens": statistics.median(sample["tokens"] for sample in samples),
        "peak_memory_mb": max(sample["peak_memory_mb"] for sample in samples),
        "first_step_s": first["start_s"],
        "first_loss": first["loss"],
        "goal": peer.goal,
        "samples": samples,
    }


def ratios(results: dict[str, Any]) -> None:
    """Our cost over each peer's: the median of the rounds' ratios, whose two sides had the same neighbours."""
    ours = results[OURS.name]["samples"]
    for result in results.values():
        pairs = zip(ours, result["samples"], strict=True)
        each = [(a["cpu_s"] / a["tokens"]) / (b["cpu_s"] / b["tokens"]) for a, b in pairs]
        result["ours_over_this"] = statistics.median(each)
        result["ours_over_this_range"] = [min(each), max(each)]
        result["goal_met"] = None if result["goal"] is None else result["ours_over_this"] <= result["goal"]


def same_loss(results: dict[str, Any]) -> dict[str, Any]:
    """Bare torch and ours see the same first batch with the same weights: is it one model?"""
    ours_and_bare = ("ours.py", "torch_loop.py")
    losses = {name: r["first_loss"] for name, r in results.items() if r["command"][0] in ours_and_bare}
    spread = max(losses.values()) - min(losses.values())
    return {"losses": losses, "spread": spread, "allowed": 1e-4, "agree": spread <= 1e-4}


def table(report: dict[str, Any]) -> str:
    """The results as Markdown, cheapest first."""
    lines = [
        "| | CPU-s per 1,000 tokens (range) | ours / this (range) | goal | tokens/s | first step, s | peak, GB |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, r in sorted(report["peers"].items(), key=lambda item: item[1]["cpu_s_per_1000_tokens"]):
        low, high = r["cpu_s_per_1000_tokens_range"]
        share = goal = ""
        if name != OURS.name:
            bottom, top = r["ours_over_this_range"]
            share = f"{r['ours_over_this']:.2f} ({bottom:.2f}-{top:.2f})"
        if r["goal"] is not None:
            goal = f"<= {r['goal']:.2f}, {'met' if r['goal_met'] else '**missed**'}"
        lines.append(
            f"| {name} | {r['cpu_s_per_1000_tokens']:.2f} ({low:.2f}-{high:.2f}) | {share} | {goal} "
            f"| {r['tokens_per_s']:.0f} | {r['first_step_s']:.0f} | {r['peak_memory_mb'] / 1024:.1f} |"
        )
    return "\n".join(lines)


def plot(report: dict[str, Any], path: Path) -> None:
    """Horizontal bars of the medians with the range of the rounds; a mark is the cost at which a goal is just met."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    peers = sorted(report["peers"].items(), key=lambda item: -item[1]["cpu_s_per_1000_tokens"])
    ours = report["peers"][OURS.name]["cpu_s_per_1000_tokens"]
    figure, axis = pyplot.subplots(figsize=(9, 0.45 * len(peers) + 1.2), layout="constrained")
    for place, (name, result) in enumerate(peers):
        middle = result["cpu_s_per_1000_tokens"]
        low, high = result["cpu_s_per_1000_tokens_range"]
        axis.barh(place, middle, color="tab:blue" if name == OURS.name else "lightgray")
        axis.errorbar(middle, place, xerr=[[middle - low], [high - middle]], color="black", capsize=3)
        axis.annotate(f" {middle:.2f}", (high, place), xytext=(4, 0), textcoords="offset points", va="center")
        if result["goal"]:
            label = "goal: ours at most this share of the peer" if place == 0 else None
            axis.plot([result["goal"] * middle], [place], "d", color="tab:red", label=label)
    axis.axvline(
        ours, color="tab:blue", linestyle="--", linewidth=1, label=f"{OURS.name}: marks right of it are met goals"
    )
    axis.set_yticks(range(len(peers)), [name for name, _ in peers])
    axis.set(xlabel="CPU-seconds per 1,000 tokens that are no padding", xlim=(0, None))
    axis.margins(x=0.1)
    axis.legend(frameon=False, loc="upper right")
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=4, help="timed steps of each peer, after one that compiles")
    parser.add_argument("--peers", nargs="+", choices=[peer.name for peer in PEERS], help="ours and these only")
    parser.add_argument("--json", type=Path, help="write the result here")
    parser.add_argument("--plot", type=Path, help="write a figure here")
    parser.add_argument("--table", type=Path, metavar="JSON", help="print the table of an earlier result, and leave")
    arguments = parser.parse_args()
    if arguments.table:
        print(table(json.loads(arguments.table.read_text())))
        return
    chosen = [[p for p in group if not arguments.peers or p.name in arguments.peers] for group in (LOOPS, FRAMEWORKS)]
    workload, weights = prepare([peer for group in chosen for peer in group])
    measured = [
        measure(group, rounds=arguments.rounds, workload=workload, weights=weights) for group in chosen if group
    ]
    results = merged(measured)
    report = {
        "machine": f"{os.cpu_count()} x {platform.machine()}, {platform.system()}",
        "load_average": os.getloadavg()[0],
        "rounds": arguments.rounds,
        "start_up": start_up(workload, weights),
        "same_loss": same_loss(results),
        "peers": results,
    }
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=2) + "\n")
    if arguments.plot:
        plot(report, arguments.plot)
    print(table(report))
    print(json.dumps({name: report[name] for name in ("start_up", "same_loss")}, indent=2))


if __name__ == "__main__":
    main()
