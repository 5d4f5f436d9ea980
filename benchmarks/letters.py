"""What sharing a prefix saves: CPU-seconds per 1,000 questions of CMMLU, by three ways of computing the same logits.

    python benchmarks/letters.py weights/smollm2 --template smollm2 --data data/cmmlu --questions 48 --rounds 3 \\
        --compute float32 bfloat16 --json benchmarks/results/letters_smollm2.json --plot benchmarks/results/letters.png

one at a time: every prompt through the model by itself, padded to a few lengths (the oracle). packed: whole prompts in
batches of rows. shared: the beginning that prompts share is computed once. The ways take turns in each round; programs
are compiled before the first. Every way must give the oracle's logits, and the largest difference is written down.
"""

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from dynamics.eval.benchmark_eval import PreparedTest, prepare_benchmark
from dynamics.eval.benchmarks import Cmmlu
from dynamics.eval.letters import letter_logits, one_by_one
from dynamics.model.sharding import MeshShape
from dynamics.study.prepare import Workspace, cache_folder
from dynamics.study.score import Scoring, Subject, open_subject

ORACLE, PACKED, SHARED = "one at a time", "packed", "shared"


def opened(arguments: argparse.Namespace, compute: str) -> Subject:
    scoring = Scoring(file="", kind="records", template=arguments.template, mesh=MeshShape())
    return open_subject(arguments.model, scoring, Workspace(cache_folder()), compute=compute)


def collected(model: Any, test: PreparedTest, *, share: bool) -> np.ndarray:
    logits = np.zeros((len(test.prompts), len(test.letter_ids)), np.float32)
    for places, values in letter_logits(model, test.prompts, test.letter_ids.tolist(), share=share):
        logits[places] = values
    return logits


def ways(arguments: argparse.Namespace) -> dict[tuple[str, int, str], Callable[[], np.ndarray]]:
    """{(way, shots, type of the products): its logits}."""
    benchmark = Cmmlu(data_dir=arguments.data, tasks=tuple(arguments.tasks), limit=arguments.questions)
    found: dict[tuple[str, int, str], Callable[[], np.ndarray]] = {}
    for compute in arguments.compute:
        subject = opened(arguments, compute)
        model = subject.load(None)
        tests = prepare_benchmark(benchmark, tokenizer=subject.tokenizer, template=subject.template)
        for test in tests:
            if compute == arguments.compute[0]:
                ids = test.letter_ids.tolist()
                found[ORACLE, test.shots, compute] = lambda test=test, ids=ids, m=model: one_by_one(
                    m, test.prompts, ids
                )
                found[PACKED, test.shots, compute] = lambda test=test, m=model: collected(m, test, share=False)
            found[SHARED, test.shots, compute] = lambda test=test, m=model: collected(m, test, share=True)
        arguments.sizes = {test.shots: (len(test.prompts), sum(map(len, test.prompts))) for test in tests}
    return found


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    found = ways(arguments)
    logits = {key: run() for key, run in found.items()}  # compiles
    spent: dict[tuple[str, int, str], list[float]] = {key: [] for key in found}
    for _ in range(arguments.rounds):
        for key, run in found.items():
            began = time.process_time()
            run()
            spent[key].append(time.process_time() - began)
    results = []
    for (way, shots, compute), seconds in spent.items():
        count, tokens = arguments.sizes[shots]
        oracle = logits[ORACLE, shots, arguments.compute[0]]
        mine = logits[way, shots, compute]
        results.append(
            {
                "way": way, "shots": shots, "compute": compute, "questions": count, "prompt_tokens": tokens,
                "cpu_seconds_per_1000": round(1000 * statistics.median(seconds) / count, 3),
                "range": [round(1000 * limit(seconds) / count, 3) for limit in (min, max)],
                "largest_difference": float(np.abs(mine - oracle).max()),
                "largest_logit": float(np.abs(oracle).max()),
                "same_answers": float((mine.argmax(axis=1) == oracle.argmax(axis=1)).mean()),
            }
        )  # fmt: skip
    return {
        "model": Path(arguments.model).name,
        "tasks": arguments.tasks,
        "machine": f"{os.cpu_count()} x {platform.machine()}, {platform.system()}",
        "jax": jax.__version__,
        "load_average": os.getloadavg()[0],
        "rounds": arguments.rounds,
        "results": results,
    }


def plot(reports: list[dict[str, Any]], path: Path) -> None:
    """CPU-seconds of each way, with the range of the rounds; one panel a model."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(
        1, len(reports), figsize=(4.6 * len(reports) + 1, 3.6), layout="constrained", squeeze=False
    )
    for report, axis in zip(reports, panels[0], strict=True):
        rows = [one for one in report["results"] if one["compute"] == report["results"][0]["compute"]]
        for place, one in enumerate(reversed(rows)):
            value, (low, high) = one["cpu_seconds_per_1000"], one["range"]
            axis.barh(place, value, color="tab:blue" if one["way"] == SHARED else "lightgray")
            axis.errorbar(value, place, xerr=[[value - low], [high - value]], color="black", capsize=3)
            axis.annotate(f" {value:,.3g}", (high, place), xytext=(3, 0), textcoords="offset points", va="center")
        axis.set_yticks(range(len(rows)), [f"{one['way']}, {one['shots']} shots" for one in reversed(rows)])
        axis.set(xlabel="CPU-seconds per 1,000 questions", title=report["model"])
        axis.margins(x=0.2)
    figure.savefig(path, dpi=150, metadata={"Software": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a model folder or the folder of a finished run; with --replot, a report")
    parser.add_argument("--template")
    parser.add_argument("--data", help="the folder of CMMLU")
    parser.add_argument("--tasks", nargs="+", default=["anatomy"])
    parser.add_argument("--questions", type=int, default=48, help="of each task")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--compute", nargs="+", default=["float32"])
    parser.add_argument("--name", help="what the model is called in the report")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--replot", nargs="+", type=Path, help="draw these reports side by side and measure nothing")
    parser.add_argument("--plot", type=Path)
    arguments = parser.parse_args()
    reports = [json.loads(path.read_text()) for path in arguments.replot or ()]
    if not reports:
        reports = [measure(arguments) | ({"model": arguments.name} if arguments.name else {})]
        if arguments.json:
            arguments.json.write_text(json.dumps(reports[0], indent=1) + "\n")
    if arguments.plot:
        plot(reports, arguments.plot)
    for report in reports:
        for one in report["results"]:
            print(
                f"{report['model']} {one['way']:14} {one['shots']} shots {one['compute']:9} "
                f"{one['cpu_seconds_per_1000']:10.2f} CPU-s per 1,000 {one['range']}, largest difference "
                f"{one['largest_difference']:.2g}, same answers {one['same_answers']:.1%}"
            )


if __name__ == "__main__":
    main()
