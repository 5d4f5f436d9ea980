"""The benchmark of the peers: all train on the same documents, and its report holds what the page shows."""

import importlib
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from dynamics.data.packing import plan

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def peers(monkeypatch: pytest.MonkeyPatch) -> dict[str, ModuleType]:
    """Modules of the benchmark that need no peer's environment, by the names their programs import them by."""
    monkeypatch.syspath_prepend(str(BENCHMARKS / "peers"))
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    names = ("workload", "peer", "run", "ours", "ablations", "train_step")
    yield {name: importlib.import_module(name) for name in names}
    for name in (*names, "peers", "peers.workload"):
        sys.modules.pop(name, None)


@pytest.fixture
def workload(peers: dict[str, ModuleType], tmp_path: Path):
    """A few documents and two steps of packed rows, as `ours.py --write` stores them."""
    path = tmp_path / "workload.npz"
    peers["ours"].packed_workload(steps=2).save(path)
    return peers["workload"].Workload.load(path)


def of_documents(rows: dict[str, np.ndarray]) -> list[tuple[list[int], list[int]]]:
    """(tokens, trained tokens) of the documents that lie in rows, row after row."""
    found = []
    for row in range(len(rows["tokens"])):
        for segment in range(1, rows["segments"][row].max() + 1):
            here = rows["segments"][row] == segment
            trained = rows["targets"][row][here][rows["weights"][row][here] > 0]
            assert rows["positions"][row][here].tolist() == list(range(here.sum()))
            found.append((rows["tokens"][row][here].tolist(), trained.tolist()))
    return found


def test_packed_and_padded_rows_hold_the_documents_that_the_trainers_get(workload):
    given = [(tokens.tolist(), tokens[trained].tolist()) for tokens, trained in workload.documents]
    first = of_documents(workload.rows(0))
    assert sorted(first) == sorted(given[: len(first)])  # the first batch holds the first documents
    assert of_documents(workload.padded_rows(0)) == given[:8]
    assert of_documents(workload.padded_rows(1)) == given[8:16]


def test_the_benchmark_of_the_step_has_the_same_documents_and_model(peers, workload):
    pairs = peers["train_step"].encoded(len(workload.documents), vocab_size=32_000, longest=512)
    for (tokens, trained), (_, document) in zip(workload.documents, pairs, strict=True):
        np.testing.assert_array_equal(tokens, document.tokens)
        np.testing.assert_array_equal(trained, document.trained)
    assert peers["ours"].config() == peers["train_step"].REFERENCE


def test_the_cap_of_trained_rows_holds_every_step(peers, workload):
    cap = peers["ours"].trained_cap(workload)
    trained = (workload.packed["weights"] > 0).sum(axis=(1, 2))
    assert trained.max() <= cap <= 8 * 512
    lengths = np.array([len(tokens) for tokens, _ in workload.documents])
    num_trained = np.array([trained[1:].sum() for _, trained in workload.documents])
    assert plan(lengths, num_trained, rows=8, length=512).num_batches >= workload.num_steps


def test_the_head_everywhere_trains_on_the_same_targets(peers, workload):
    rows = workload.rows(0)
    everywhere = peers["ablations"].all_positions(rows)
    weights, targets = (everywhere[f"trained_{name}"].ravel() for name in ("weights", "targets"))
    trained = rows["weights"].ravel() > 0
    np.testing.assert_array_equal(weights > 0, trained)
    np.testing.assert_array_equal(targets[trained], rows["targets"].ravel()[trained])


def test_the_report_has_medians_ratios_and_goals(peers, tmp_path):
    run = peers["run"]
    cheap = [{"cpu_s": 2.0, "wall_s": 1.0, "tokens": 1000, "loss": 9.0, "peak_memory_mb": 10.0}] * 3
    dear = [sample | {"cpu_s": 8.0} for sample in cheap]
    tunix = next(peer for peer in run.PEERS if peer.name == "Tunix, packed outside")
    results = {
        peer.name: run.summary(peer, {"start_s": 1.0, "loss": loss}, samples)
        for peer, loss, samples in ((run.OURS, 9.0, cheap), (run.PEERS[0], 9.01, cheap), (tunix, 9.5, dear))
    }
    run.ratios(results)
    assert results[tunix.name]["ours_over_this"] == 0.25
    assert results[tunix.name]["goal_met"]
    results = run.merged([results, results])
    assert results["dynamics"]["cpu_s_per_1000_tokens"] == 2.0
    assert len(results["dynamics"]["samples"]) == 6
    anchor = run.same_loss(results)
    assert set(anchor["losses"]) == {"dynamics", run.PEERS[0].name}  # Tunix turns its positions by another base
    assert not anchor["agree"]
    report = {"peers": results}
    assert "| Tunix, packed outside | 8.00 (8.00-8.00) | 0.25 (0.25-0.25) | <= 0.55, met |" in run.table(report)
    run.plot(report, tmp_path / "peers.png")
    assert (tmp_path / "peers.png").stat().st_size > 0


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_every_ablation_computes_the_same_loss(peers, workload, monkeypatch):
    small = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2}
    for name, value in (small | {"head_dim": 16, "intermediate_size": 64}).items():
        monkeypatch.setitem(peers["workload"].SHAPE, name, value)
    ablations, ours = peers["ablations"], peers["ours"]
    # A state for each, because a step consumes its own; the losses are of one batch and one set of weights.
    losses = {}
    for variant in ablations.VARIANTS:
        if not variant.padded:  # other rows, so another loss
            program = ablations.Program(variant, workload, steps=1)
            losses[variant.name] = program.step(ablations.first_leaves(), 0)[1]["loss"]
            assert program.counts()["flops"] > 0
    expected = losses[ablations.WHOLE]
    assert losses == pytest.approx(dict.fromkeys(losses, expected), abs=1e-5)
    assert ours.config().d_model == 32
