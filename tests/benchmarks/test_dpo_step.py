"""The benchmark of preference steps: all peers train on the same pairs, and its report holds what the page shows."""

import importlib
import json
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from dynamics.data.pair_batches import PairBatches

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def modules(monkeypatch: pytest.MonkeyPatch) -> dict[str, ModuleType]:
    """Modules of the benchmark that need no peer's environment, by the names their programs import them by."""
    monkeypatch.syspath_prepend(str(BENCHMARKS / "peers"))
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    names = ("workload", "peer", "run", "pairs", "ours", "dpo_ours", "dpo_step")
    path = list(sys.path)
    yield {name: importlib.import_module(name) for name in names}
    sys.path[:] = path  # the script adds its own folder
    for name in (*names, "peers", "peers.workload"):
        sys.modules.pop(name, None)


def test_pairs_come_back_from_the_file_and_are_as_long_as_the_page_says(modules, tmp_path):
    pairs = modules["pairs"]
    drawn = pairs.draw(num=40)
    pairs.save(drawn, tmp_path / "pairs.npz")
    for before, after in zip(drawn, pairs.load(tmp_path / "pairs.npz"), strict=True):
        for part in ("prompt", "chosen", "rejected"):
            np.testing.assert_array_equal(getattr(before, part), getattr(after, part))
    steps = [pairs.of_step(drawn, step) for step in range(5)]
    assert [pair for step in steps for pair in step] == drawn
    assert pairs.of_step(drawn, 5) == steps[0]
    assert np.mean([sum(pair.num_tokens for pair in step) for step in steps]) == pytest.approx(2300, rel=0.05)
    for pair in drawn:
        assert len(pair.prompt) + max(map(len, pair.replies)) <= 512
        for reply in pair.replies:
            assert (reply == pairs.EOS).tolist() == [False] * (len(reply) - 1) + [True]


def test_prompts_of_the_curve_have_one_length_and_the_same_number_of_replies(modules):
    draw = modules["pairs"].draw
    for pair, other in zip(draw(num=8), draw(num=8, prompt=100), strict=True):
        assert len(other.prompt) == 100
        assert [len(reply) for reply in pair.replies] == [len(reply) for reply in other.replies]


def test_our_batches_hold_the_pairs_in_their_order(modules, tmp_path):
    drawn = modules["pairs"].draw(num=8)
    store = modules["dpo_ours"].store_of(drawn, tmp_path)
    batches = PairBatches.build(store, [list(store.keys)], rows=2, length=1024)
    batch = batches.batch(0)
    for place, row, segment in zip(range(8), batches.plan.row, batches.plan.segment, strict=True):
        here = batch["segments"][row] == segment
        for branch, part in enumerate(("prompt", "chosen", "rejected")):
            tokens = batch["tokens"][row][here & (batch["branches"][row] == branch)]
            np.testing.assert_array_equal(tokens, getattr(drawn[place], part))


def test_the_report_has_costs_of_pairs_goals_and_the_curve(modules, tmp_path):
    step = modules["dpo_step"]
    sample = {"wall_s": 1.0, "tokens": 1000, "loss": 0.69, "peak_memory_mb": 1024.0}
    first = {"start_s": 1.0, "loss": 0.693, "chosen_logprob": -10.0, "rejected_logprob": -20.0}
    first |= {"reference": [[-10.0], [-20.0]], "reference_cpu_s": 0.5, "reference_wall_s": 0.25}

    def result(peer, *, cpu: float, pairs: int):
        return step.summary(peer, first, [sample | {"cpu_s": cpu, "pairs": pairs}] * 2)

    groups = [
        {step.OURS.name: result(step.OURS, cpu=2.0, pairs=4), step.TRL.name: result(step.TRL, cpu=16.0, pairs=8)},
        {step.OURS.name: result(step.OURS, cpu=4.0, pairs=4), step.TUNIX.name: result(step.TUNIX, cpu=32.0, pairs=8)},
    ]
    results = step.compare(groups)
    assert results[step.OURS.name]["cpu_s_per_pair"] == 0.5
    assert results[step.TRL.name]["ours_over_this"] == 0.25  # by the pair, not by the step
    assert not results[step.TRL.name]["goal_met"]
    assert results[step.TUNIX.name]["ours_over_this"] == 0.25  # against ours of its own group
    assert step.same_model(results)["largest_relative_difference_of_all_sums"] == dict.fromkeys(
        (step.TRL.name, step.TUNIX.name), 0.0
    )
    layouts = {
        name: result(step.OURS, cpu=cpu, pairs=4) for (name, _), cpu in zip(step.LAYOUTS, (1.0, 3.0), strict=True)
    }
    report = {"peers": results, "curve": {"64": {"apart_over_shared": 3.0, "peers": layouts}}}
    shown = step.table(json.loads(json.dumps(report)))
    assert f"| {step.TRL.name} | 2.00 (2.00-2.00) | 0.25 | <= 0.22, **missed** | 8.00 | 8.0 | 1 | 1.0 |" in shown
    assert f"| {step.OURS.name} | 0.50 | 4.00 |" in shown
    assert "| 64 | 0.25 | 0.75 | 3.00 | 1.34 |" in shown
    step.plot(report, tmp_path / "dpo.png")
    assert (tmp_path / "dpo.png").stat().st_size > 0
