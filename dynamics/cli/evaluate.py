"""`dynamics eval`: a finished run's abilities, or published benchmarks on any model."""

import argparse
import json
import sys
import time
from typing import TYPE_CHECKING, Any

from dynamics.cli.options import mesh_shape
from dynamics.cli.stopping import orderly_on_sigterm
from dynamics.errors import UserError

if TYPE_CHECKING:
    from dynamics.study.benchmark import BenchmarkPass

_OF_BENCHMARKS = (
    "data_dir", "shots", "tasks", "limit", "letters", "template", "published", "output", "max_length", "batch_tokens",
    "compute",
)  # fmt: skip
_SHOWN_COUNTS = {
    "too_long": "too long, counted as wrong",
    "shots_dropped": "asked with fewer examples, so that they fit",
    "ties": "answered by a tie, as its first letter",
    "unparsed": "not read off the answer",
    "truncated": "cut short",
    "left_out": "left out of the test",
    "missing_tasks": "tasks without a file",
}


def evaluate(options: argparse.Namespace) -> int:
    """Score a finished run's model on each ability, or with --benchmark any model on published tests."""
    if options.benchmark:
        return _benchmarks(options)
    for name in _OF_BENCHMARKS:
        if getattr(options, name) not in (None, False):
            option = "--" + name.replace("_", "-")
            raise UserError(f"{option} is for benchmarks: name them with --benchmark, or leave the option out")
    from dynamics.cli import train

    return train.evaluate(options)


def _benchmarks(options: argparse.Namespace) -> int:
    from dynamics.record import ability_name
    from dynamics.study.benchmark import DOIT, doit_tests, find_benchmarks, plan_benchmarks, run_benchmarks
    from dynamics.study.coordinator import keep_programs
    from dynamics.study.prepare import Workspace, cache_folder

    _check(options)
    keep_programs(cache_folder())
    by_letters = [name for name in dict.fromkeys(options.benchmark) if name != DOIT]
    given = {name: getattr(options, name) for name in ("limit", "letters", "max_length")}
    given["shots"] = None if options.shots is None else tuple(options.shots)
    with orderly_on_sigterm():
        tasks = options.tasks or ()
        doit = None
        if DOIT in options.benchmark:
            doit = doit_tests(options.data_dir, tasks, published=options.published, limit=options.limit)
            tasks = [task for task in tasks if ability_name(task) not in {test.ability for test in doit[0]}]
        chosen = {name: value for name, value in given.items() if value is not None}
        planned = plan_benchmarks(
            options.model,
            find_benchmarks(by_letters, options.data_dir, tasks, **chosen) if tasks or not options.tasks else (),
            Workspace(cache_folder()),
            mesh=mesh_shape(options.mesh or "data=-1"),
            template=options.template,
            doit=doit,
            batch_tokens=options.batch_tokens,
            compute=options.compute,
        )
        _tell_plan(planned)
        try:
            entries = run_benchmarks(planned, options.output, Progress())
        except KeyboardInterrupt as stop:
            if options.output is None and not stop.args:
                stop.args = ("stopped; with --output DIR the next call would go on from there",)
            raise
    if options.json:
        print(json.dumps({"output": options.output, "scores": entries}))
    else:
        _print_table(entries)
        if options.output is not None:
            print(f"{options.output}: scores.json, scores.csv, items.jsonl and a figure of each test's tasks")
    return 0


def _check(options: argparse.Namespace) -> None:
    if options.data_dir is None:
        raise UserError("--benchmark reads files: give the folder that holds them (cmmlu/, agieval/, ...), --data-dir")
    if options.records or options.split != "test":
        raise UserError("--records and --split are for a run's own abilities; leave them out with --benchmark")
    if options.published and options.letters == "answer":
        raise UserError("--published compares the bare letter pieces; leave out one of it and --letters answer")
    if options.published and options.letters is None:
        options.letters = "bare"


def _tell_plan(planned: "BenchmarkPass") -> None:
    for note in planned.subject.notes:
        print(f"note: {note}", file=sys.stderr)
    for test in planned.tests:
        tokens = sum(map(len, test.prompts))
        print(
            f"{test.benchmark}, {test.shots} shots: {len(test.questions):,} questions in "
            f"{len({question.task for question in test.questions})} tasks, {tokens:,} tokens of prompts (longest "
            f"{test.longest:,}); letters are the pieces {' '.join(test.pieces)}",
            file=sys.stderr,
        )
    for test in planned.doit:
        print(f"doit, {test.ability}: {len(test.records):,} questions", file=sys.stderr)


def _print_table(entries: list[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    shown = Table(box=None, pad_edge=False, header_style="bold")
    shown.add_column("benchmark")
    for name in ("shots", "tasks", "items", "mean of tasks", "chance", "mean of items", "chance", "seconds"):
        shown.add_column(name, justify="right")
    for one in entries:
        shown.add_row(
            one["benchmark"], "-" if one["shots"] is None else str(one["shots"]), str(len(one["tasks"])),
            f"{one['num_items']:,}", _with_error(one["macro"], one["macro_se"]), f"{one['chance_macro']:.1%}",
            _with_error(one["micro"], one["micro_se"]), f"{one['chance_micro']:.1%}", f"{one['seconds']:.0f}",
        )  # fmt: skip
    Console(highlight=False, width=120).print(shown)
    for one in entries:
        if "published_average" in one:
            print(f"{one['benchmark']}: {one['published_average']:.2f} is the average that the published scorer prints")
        for name, meaning in _SHOWN_COUNTS.items():
            if one["counts"].get(name):
                shots = "" if one["shots"] is None else f", {one['shots']} shots"
                print(f"{one['benchmark']}{shots}: {one['counts'][name]:,} {meaning}")


def _with_error(mean: float, error: float | None) -> str:
    return f"{mean:.1%}" if error is None else f"{mean:.1%} ± {error:.1%}"


class Progress:
    """How far a pass is, a line now and then on standard error."""

    def __init__(self, *, interval: float = 10.0) -> None:
        self._interval = interval
        self._began: tuple[float, int] | None = None
        self._last = time.monotonic()

    def __call__(self, done: int, total: int) -> None:
        now = time.monotonic()
        if self._began is None:
            self._began = (now, done)
        if now - self._last < self._interval:
            return
        self._last = now
        spent, fresh = now - self._began[0], done - self._began[1]
        left = f", about {spent / fresh * (total - done):,.0f} s left" if fresh else ""
        print(f"{done:,} of {total:,} questions{left}", file=sys.stderr, flush=True)
