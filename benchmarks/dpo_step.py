"""Times steps of direct preference optimisation: ours, TRL's trainer and Tunix's, in turns, on the same pairs.

    python benchmarks/dpo_step.py --json benchmarks/results/dpo_step.json --plot benchmarks/results/dpo_step.png
    python benchmarks/dpo_step.py --table benchmarks/results/dpo_step.json      the tables of docs/performance.md

The 58 M LLaMA of benchmarks/peers, float32, AdamW, 8 pairs a step of random tokens (benchmarks/peers/pairs.py says how
long). Run it with the Python that has `dynamics`; the peers' environments are made at first use. What counts is
CPU-seconds for a pair: user and system time from the command to the answer, over all rounds, by the pairs trained on.
The pass over the reference, which ours and one of TRL's modes make once for all epochs, is timed apart.
"""

import argparse
import json
import os
import platform
import statistics
import sys
from pathlib import Path
from typing import Any

PEERS = Path(__file__).resolve().parent / "peers"
sys.path.insert(0, str(PEERS))

from run import BUILD, Peer, Process, prepare  # noqa: E402

CACHE = ("--cache", str(BUILD / "programs"))
OURS = Peer("dynamics", None, ("dpo_ours.py", "--rows", "2", "--length", "1024", *CACHE))
APART = Peer(
    "dynamics, prompts apart", None, ("dpo_ours.py", "--apart", "--rows", "2", "--length", "1280", *CACHE)
)  # fmt: skip
TRL = Peer("TRL, reference in the step", "trl", ("dpo_trl.py",), 0.22)
TRL_ONCE = Peer("TRL, reference once", "trl", ("dpo_trl.py", "--precompute"), 0.6)
TUNIX = Peer("Tunix", "tunix", ("dpo_tunix.py",), 0.15)
# Each group is timed in turns with ours. All at once would not fit into 24 GB.
GROUPS = ((APART, TRL, TRL_ONCE), (TUNIX,))
COMPARED = ("chosen_logprob", "rejected_logprob")

# Prompt length: rows and their length, shared and apart. The least length that holds two pairs in most rows.
CURVE = {64: ((4, 512), (4, 640)), 256: ((4, 1024), (4, 1536)), 1024: ((4, 2560), (4, 2560))}

Samples = list[dict[str, Any]]


def write_pairs(path: Path, *, num: int, prompt: int | None = None) -> Path:
    import pairs

    pairs.save(pairs.draw(num=num, prompt=prompt), path)
    return path


def in_turns(peers: list[Peer], *, rounds: int, workload: Path, weights: Path) -> dict[str, Any]:
    """Start these, make one step that is not counted, then `rounds` steps of each in turns."""
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
    return {
        peer.name: summary(peer, first, mine) for peer, first, mine in zip(peers, firsts, samples, strict=True)
    }  # fmt: skip


def summary(peer: Peer, first: dict[str, Any], samples: Samples) -> dict[str, Any]:
    """Totals over the rounds of one peer, with the samples behind them."""
    pairs = sum(sample["pairs"] for sample in samples)
    each = [sample["cpu_s"] / sample["pairs"] for sample in samples]
    return {
        "command": [part.replace(str(BUILD), "build/peers") for part in peer.command],
        "cpu_s_per_pair": sum(sample["cpu_s"] for sample in samples) / pairs,
        "cpu_s_per_pair_range": [min(each), max(each)],
        "pairs_per_s": pairs / sum(sample["wall_s"] for sample in samples),
        "tokens_per_pair": sum(sample["tokens"] for sample in samples) / pairs,
        "pairs_per_step": pairs / len(samples),
        "step_wall_s": statistics.median(sample["wall_s"] for sample in samples),
        "peak_memory_mb": max(sample["peak_memory_mb"] for sample in samples),
        "first_step_s": first["start_s"],
        "first_loss": first["loss"],
        **{name: value for name, value in first.items() if name.startswith("reference") or name in COMPARED},
        "goal": peer.goal,
        "samples": samples,
    }


def compare(groups: list[dict[str, Any]]) -> dict[str, Any]:
    """The results of all groups; each peer's cost beside ours of the same group, whose neighbours were the same."""
    results: dict[str, Any] = {}
    for group in groups:
        ours = group[OURS.name]["cpu_s_per_pair"]
        for name, result in group.items():
            result["ours_over_this"] = ours / result["cpu_s_per_pair"]
            result["goal_met"] = None if result["goal"] is None else result["ours_over_this"] <= result["goal"]
            results.setdefault(name, result)
    costs = [group[OURS.name]["cpu_s_per_pair"] for group in groups]
    results[OURS.name]["cpu_s_per_pair_of_groups"] = costs
    return results


def same_model(results: dict[str, Any]) -> dict[str, Any]:
    """Is it one model, on the same tokens? All losses start at ln 2, and sums of log-probabilities agree.

    Tunix's rotary base is another, so that its sums are its own.
    """
    losses = {name: result["first_loss"] for name, result in results.items()}
    sums = {
        name: {side: result[side] for side in COMPARED} for name, result in results.items() if COMPARED[0] in result
    }  # fmt: skip
    lists = {name: [x for side in r["reference"] for x in side] for name, r in results.items() if "reference" in r}
    ours = lists.get(OURS.name)
    apart = {
        name: max(abs(a - b) / abs(b) for a, b in zip(ours, theirs, strict=True))
        for name, theirs in lists.items()
        if ours is not None and name != OURS.name
    }
    return {"first_loss": losses, "first_pairs": sums, "largest_relative_difference_of_all_sums": apart}


def curve(*, rounds: int, weights: Path) -> dict[str, Any]:
    """What sharing prompts is worth by their length: the replies stay the same."""
    found = {}
    for prompt, layouts in CURVE.items():
        workload = write_pairs(BUILD / f"pairs_{prompt}.npz", num=16, prompt=prompt)
        peers = [
            Peer(name, None, ("dpo_ours.py", *flags, "--rows", str(rows), "--length", str(length), *ONLY_STEPS))
            for (name, flags), (rows, length) in zip(LAYOUTS, layouts, strict=True)
        ]
        results = in_turns(peers, rounds=rounds, workload=workload, weights=weights)
        shared, apart = (results[name]["cpu_s_per_pair"] for name, _ in LAYOUTS)
        found[str(prompt)] = {"apart_over_shared": apart / shared, "peers": results}
    return found


LAYOUTS = (("shared", ()), ("apart", ("--apart",)))
ONLY_STEPS = ("--without-reference", *CACHE)


def table(report: dict[str, Any]) -> str:
    """The results as Markdown, cheapest first; then the passes over the reference, and the curve."""
    lines = [
        "| | CPU-s a pair (range) | ours / this | goal | pairs/s | pairs a step | first step, s | peak, GB |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, r in sorted(report["peers"].items(), key=lambda item: item[1]["cpu_s_per_pair"]):
        low, high = r["cpu_s_per_pair_range"]
        share = "" if name == OURS.name else f"{r['ours_over_this']:.2f}"
        met = "met" if r["goal_met"] else "**missed**"
        goal = "" if r["goal"] is None else f"<= {r['goal']:.2f}, {met}"
        lines.append(
            f"| {name} | {r['cpu_s_per_pair']:.2f} ({low:.2f}-{high:.2f}) | {share} | {goal} | {r['pairs_per_s']:.2f} "
            f"| {r['pairs_per_step']:.1f} | {r['first_step_s']:.0f} | {r['peak_memory_mb'] / 1024:.1f} |"
        )
    lines += ["", "| pass over the reference, once | CPU-s a pair | pairs/s |", "|---|---|---|"]
    for name, r in report["peers"].items():
        if "reference" in r:
            num = len(r["reference"][0])
            lines.append(f"| {name} | {r['reference_cpu_s'] / num:.2f} | {num / r['reference_wall_s']:.2f} |")
    points = report.get("curve", {})
    if points:
        lines += ["", "| prompt, tokens | CPU-s a pair, shared | apart | apart / shared | tokens apart / shared |"]
        lines.append("|---|---|---|---|---|")
    for prompt, point in points.items():
        shared, apart = (point["peers"][name] for name, _ in LAYOUTS)
        tokens = shared["tokens_per_pair"]
        lines.append(
            f"| {prompt} | {shared['cpu_s_per_pair']:.2f} | {apart['cpu_s_per_pair']:.2f} "
            f"| {point['apart_over_shared']:.2f} | {tokens / (tokens - int(prompt)):.2f} |"
        )
    return "\n".join(lines)


def plot(report: dict[str, Any], path: Path) -> None:
    """Left: costs of all with their ranges; a mark is the cost at which a goal is just met. Right: the curve."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, (bars, gains) = pyplot.subplots(1, 2, figsize=(11, 3.2), width_ratios=(2, 1), layout="constrained")
    peers = sorted(report["peers"].items(), key=lambda item: -item[1]["cpu_s_per_pair"])
    for place, (name, result) in enumerate(peers):
        middle = result["cpu_s_per_pair"]
        low, high = result["cpu_s_per_pair_range"]
        bars.barh(place, middle, color="tab:blue" if name.startswith(OURS.name) else "lightgray")
        bars.errorbar(middle, place, xerr=[[middle - low], [high - middle]], color="black", capsize=3)
        bars.annotate(f" {middle:.2f}", (high, place), xytext=(4, 0), textcoords="offset points", va="center")
        if result["goal"]:
            label = "goal: ours at most this" if place == 0 else None
            bars.plot([result["goal"] * middle], [place], "d", color="tab:red", label=label)
    bars.set_yticks(range(len(peers)), [name for name, _ in peers])
    longest = max(result["cpu_s_per_pair_range"][1] for _, result in peers)
    bars.set(xlabel="CPU-seconds a pair", xlim=(0, 1.15 * longest))
    bars.axvline(report["peers"][OURS.name]["cpu_s_per_pair"], color="tab:blue", linestyle="--", linewidth=1)
    bars.legend(frameon=False)
    points = report.get("curve", {})
    gains.set(xlabel="tokens of a prompt", ylabel="prompts apart / shared", visible=bool(points))
    gains.plot([int(p) for p in points], [point["apart_over_shared"] for point in points.values()], "o-", label="cost")
    tokens = [point["peers"]["shared"]["tokens_per_pair"] for point in points.values()]
    ideal = [count / (count - int(prompt)) for prompt, count in zip(points, tokens, strict=True)]
    gains.plot([int(p) for p in points], ideal, ":", color="gray", label="tokens")
    gains.set_xscale("log", base=2)
    gains.set_xticks([int(p) for p in points], list(points))
    gains.set_ylim(1, None)
    gains.legend(frameon=False)
    figure.savefig(path, dpi=120)


def described(measured: list[dict[str, Any]], *, rounds: int) -> dict[str, Any]:
    results = compare(measured)
    return {
        "machine": f"{os.cpu_count()} x {platform.machine()}, {platform.system()}",
        "load_average": os.getloadavg()[0],
        "rounds": rounds,
        "same_model": same_model(results),
        "peers": results,
    }


def save(report: dict[str, Any], path: Path | None) -> None:
    """What there is so far: a run that is broken off keeps the groups that it measured."""
    if path is not None:
        path.write_text(json.dumps(report, indent=2) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="timed steps of each peer; 5 see every pair once")
    parser.add_argument("--pairs", type=int, default=40, help="pairs in all, in eights")
    parser.add_argument("--curve-rounds", type=int, default=3, help="timed steps at each prompt length; 0: no curve")
    names = [peer.name for group in GROUPS for peer in group]
    parser.add_argument("--peers", nargs="+", choices=names, help="ours and these only")
    parser.add_argument("--json", type=Path, help="write the result here")
    parser.add_argument("--plot", type=Path, help="write a figure here")
    parser.add_argument("--table", type=Path, metavar="JSON", help="print the tables of an earlier result, and leave")
    arguments = parser.parse_args()
    if arguments.table:
        print(table(json.loads(arguments.table.read_text())))
        return
    chosen = [[peer for peer in group if not arguments.peers or peer.name in arguments.peers] for group in GROUPS]
    _, weights = prepare([peer for group in chosen for peer in group])
    workload = write_pairs(BUILD / "pairs.npz", num=arguments.pairs)
    measured: list[dict[str, Any]] = []
    report: dict[str, Any] = {}
    for group in chosen:
        if group:
            rounds = arguments.rounds
            measured.append(in_turns([OURS, *group], rounds=rounds, workload=workload, weights=weights))
            report = described(measured, rounds=rounds)
            save(report, arguments.json)
    if arguments.curve_rounds:
        report["curve"] = curve(rounds=arguments.curve_rounds, weights=weights)
        save(report, arguments.json)
    if arguments.plot:
        plot(report, arguments.plot)
    print(table(report))
    print(json.dumps(report["same_model"], indent=2))


if __name__ == "__main__":
    main()
