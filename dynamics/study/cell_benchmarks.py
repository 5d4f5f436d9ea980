"""Benchmarks in a study: tests of other authors put to a cell's model on its way, prepared once a process."""

from typing import Any

from jax.sharding import Mesh

from dynamics import config
from dynamics.eval.benchmark_eval import PreparedTest, prepare_benchmark, score_benchmarks
from dynamics.study.identity import benchmark_identity
from dynamics.study.prepare import Workspace
from dynamics.study.run import Run, benchmarks_of


def prepared_tests(run: Run, workspace: Workspace) -> tuple[PreparedTest, ...]:
    """The run's benchmarks, written and encoded: cells with one tokenizer and template share them."""
    tokenizer = workspace.tokenizer(run)
    benchmarks = benchmarks_of(run)
    key = config.fingerprint(
        {
            "benchmarks": [benchmark_identity(one) for one in benchmarks],
            "tokenizer": tokenizer.fingerprint,
            "template": run.template,
        }
    )
    if key not in workspace.memory:
        tests = (prepare_benchmark(one, tokenizer=tokenizer, template=run.template) for one in benchmarks)
        workspace.memory[key] = tuple(test for of_one in tests for test in of_one)
    return workspace.memory[key]


def read_benchmarks(model: Any, run: Run, workspace: Workspace, mesh: Mesh | None) -> list[dict[str, Any]]:
    """One entry for each benchmark and number of shots; all processes that train together call it alike."""
    tokenizer = workspace.tokenizer(run)
    return score_benchmarks(
        model, prepared_tests(run, workspace), tokenizer=tokenizer, template=run.template, mesh=mesh
    )  # fmt: skip
