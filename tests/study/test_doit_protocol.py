"""The protocol of the DoIT paper in a study: steps of 64 conversations, the choice, recipes, benchmarks, unions."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from dynamics import config
from dynamics.data.recipes import Maximum, Reconstruct
from dynamics.data.rehearsal import DoitRehearsal
from dynamics.data.store import TokenStore
from dynamics.data.template import Encoded
from dynamics.errors import UserError
from dynamics.eval.benchmarks import AgiEval, Cmmlu
from dynamics.study.cell import Training, choose, plan_run
from dynamics.study.choice import rule_text
from dynamics.study.coordinator import keep_programs
from dynamics.study.course import plan_course
from dynamics.study.execution import run_study
from dynamics.study.folder import CellFolder, read_json
from dynamics.study.grid import Cell, Study, coordinates
from dynamics.study.identity import cell_id
from dynamics.study.jobs import run_cell
from dynamics.study.prepare import Workspace
from dynamics.study.results import load_results
from dynamics.study.run import Batch, Budget, benchmarks_of, volumes
from dynamics.study.status import study_status
from dynamics.train.loop import Interrupted

from .tiny import RUN, changed

STEPS = {10: 15, 40: 15, 160: 45, 640: 150, 2560: 600, 10_000: 2355}  # in 15 epochs, as the published run counts them

SOURCE = DoitRehearsal(scale=500, valid_items=1, test_items=1, corpus_documents=160)
FEW = {"few": 1, "capped": (("creative_writing", 2),)}
DOIT_RUN = changed(
    RUN, source=SOURCE, vocab_size=700, volume=2, batch=Batch(documents=8, rows=8, length=128), over_long="truncate",
    budget=Budget(epochs=3), evaluate_at=(), choose_after=1.0, base=None, checkpoint_every=1,
    evaluation=dataclasses.replace(RUN.evaluation, max_new_tokens=2, max_length=256, row_length=256, batch_tokens=4096),
)  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    """The cache folder, which is also where the rehearsal data are written."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DYNAMICS_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="module")
def workspace(cache):
    keep_programs(cache)  # each cell builds its step anew
    return Workspace(cache)


def part_of(part, **fields):
    return changed(DOIT_RUN, source=dataclasses.replace(SOURCE, part=part, name=part), **fields)


def as_cell(run):
    return Cell(id=cell_id(run), coords=coordinates(run), run=run)


def finished(run, workspace, path):
    cell = as_cell(run)
    folder = CellFolder(path / cell.id)
    end = run_cell(cell, folder, workspace, lambda fraction: None)
    assert end["state"] == "done", end
    return folder.scores()


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """10,000 conversations of 2 to 40 tokens."""
    sizes = np.random.default_rng(0).integers(2, 41, 10_000)
    documents = [
        (f"math/{i}", Encoded(tokens=np.ones(n, np.int32), trained=np.ones(n, np.bool_))) for i, n in enumerate(sizes)
    ]
    return TokenStore.build(tmp_path_factory.mktemp("store") / "s", documents, manifest={})


@pytest.mark.parametrize(("records", "steps"), STEPS.items())
def test_fifteen_epochs_take_the_published_number_of_steps(store, records, steps):
    keys = [f"math/{number}" for number in range(records)]
    course = plan_course(
        store, lambda epoch: keys, budget=Budget(epochs=15), batch=Batch(documents=64, rows=64, length=64)
    )  # fmt: skip
    assert course.steps == len(course.batches) == steps
    ends = course.evaluation_steps(())
    assert [course.epoch_at(step) for step in ends] == [*range(1, 16)], "an epoch ends with a step"
    read = np.diff(course.batches.plan.starts)
    assert set(read[: steps // 15 - 1]) <= {64}
    assert read[steps // 15 - 1] == (records - 1) % 64 + 1, "the last step of an epoch reads what is left"
    thirds = course.nearest_evaluations((1 / 3, 2 / 3, 1), ends)
    assert [course.epoch_at(step) for step in thirds] == [5, 10, 15]


@pytest.mark.parametrize(
    ("budget", "steps"),
    [(Budget(updates=7), 7), (Budget(epochs=1, min_updates=8), 8), (Budget(epochs=0.5), 1), (Budget(tokens=10_000), 8)],
)
def test_other_budgets_count_the_same_steps(store, budget, steps):
    keys = [f"math/{number}" for number in range(100)]
    course = plan_course(store, lambda epoch: keys, budget=budget, batch=Batch(documents=64, rows=64, length=64))
    assert course.steps == len(course.batches)
    assert course.steps == steps or budget.tokens


def test_too_few_rows_are_told_with_the_number_needed_and_no_smaller_batch_is_made(store):
    keys = [f"math/{number}" for number in range(1000)]
    with pytest.raises(UserError, match=r"64 documents a step do not fit into 9 rows .* give \d+ rows or more") as told:
        plan_course(store, lambda epoch: keys, budget=Budget(epochs=2), batch=Batch(documents=64, rows=9, length=64))
    needed = int(str(told.value).split("give ")[1].split()[0])
    for rows, fits in ((needed, True), (needed - 1, False)):
        batch = Batch(documents=64, rows=rows, length=64)
        if fits:
            assert plan_course(store, lambda epoch: keys, budget=Budget(epochs=2), batch=batch).steps == 32
        else:
            with pytest.raises(UserError):
                plan_course(store, lambda epoch: keys, budget=Budget(epochs=2), batch=batch)


def point(step, score, epoch):
    return {"step": step, "epoch": epoch, "ability": "math", "score": score, "loss": 1.0}


def test_the_best_is_looked_for_after_the_fifth_epoch_and_is_the_last_where_none_comes_after():
    curve = [point(epoch, score, float(epoch)) for epoch, score in ((4, 0.9), (5, 0.9), (6, 0.2), (7, 0.4), (8, 0.3))]
    assert choose(curve, "best_valid", after=5) == 7
    assert choose(curve, "best_valid") == 4
    assert choose(curve[:2], "best_valid", after=5) == 5
    assert rule_text("best_valid", 5, reached=15) == "highest mean valid score after epoch 5"
    assert rule_text("best_valid", 5, reached=4).endswith("there was none, so the last step")
    assert rule_text("last", 5, reached=15) == "last step"


TASKS = ("world_history",)
BENCHMARKS = (
    Cmmlu(data_dir="{data_dir}/cmmlu", shots=(0, 1), tasks=TASKS, limit=3, letters="answer"),
    AgiEval(data_dir="{data_dir}/agieval", shots=(0,), limit=1, letters="answer"),
)
TESTED = changed(DOIT_RUN, benchmarks=BENCHMARKS, benchmark_at=(1 / 3, 1.0))
TESTS = [("cmmlu", 0), ("cmmlu", 1), ("agieval", 0)]


def without_time(entries):
    return [{key: value for key, value in entry.items() if key != "seconds"} for entry in entries]


@pytest.fixture(scope="module")
def unbroken(workspace, tmp_path_factory):
    return finished(TESTED, workspace, tmp_path_factory.mktemp("whole"))


def test_a_cell_reads_the_test_set_once_after_the_choice_and_benchmarks_at_their_epochs(unbroken):
    assert unbroken["run"]["steps"] == 9, "20 records are 3 steps of at most 8, in 3 epochs"
    assert {(p["step"], p["epoch"]) for p in unbroken["curve"]} == {(3, 1.0), (6, 2.0), (9, 3.0)}
    assert unbroken["chosen"]["rule"] == "highest mean valid score after epoch 1"
    assert unbroken["chosen"]["step"] in (6, 9)
    found = [(e["step"], e["epoch"], e["benchmark"], e["shots"]) for e in unbroken["benchmarks"]]
    assert found == [(step, epoch, *test) for step, epoch in ((3, 1.0), (9, 3.0)) for test in TESTS]
    assert all(e["num_items"] == sum(len(t["correct"]) for t in e["tasks"].values()) for e in unbroken["benchmarks"])
    assert unbroken["coords"] | {"mixture": "even", "records": 20, "volume": 2} == unbroken["coords"]


def test_a_resumed_cell_loses_no_benchmark(workspace, unbroken, tmp_path):
    evaluate = Training.evaluate

    def stop_at_6(self, step, model):
        evaluate(self, step, model)
        if step == 6:
            raise Interrupted(2, step, True)

    cell = as_cell(TESTED)
    folder = CellFolder(tmp_path / cell.id)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Training, "evaluate", stop_at_6)
        with pytest.raises(KeyboardInterrupt):
            run_cell(cell, folder, workspace, lambda fraction: None)
    assert not list((folder.path / "best").glob("00000003")), "nothing is kept before the choice begins"
    resumed = finished(TESTED, workspace, tmp_path)
    assert all(resumed[field] == unbroken[field] for field in ("chosen", "curve", "test", "valid"))
    assert without_time(resumed["benchmarks"]) == without_time(unbroken["benchmarks"])


def test_the_base_model_reads_the_benchmarks_once(workspace, tmp_path):
    scores = finished(changed(TESTED, volume=0), workspace, tmp_path)
    assert [(e["step"], e["benchmark"], e["shots"]) for e in scores["benchmarks"]] == [(0, *test) for test in TESTS]


def test_a_benchmark_counts_by_its_content_and_not_by_its_place(tmp_path):
    for folder, answer in (("a", "A"), ("b", "A"), ("c", "B")):
        for split in ("dev", "test"):
            (tmp_path / folder / split).mkdir(parents=True)
            lines = [",Question,A,B,C,D,Answer", *(f"{n},1 + {n}?,1,2,3,4,{answer}" for n in range(5))]
            (tmp_path / folder / split / "agronomy.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    ids = {folder: cell_id(changed(DOIT_RUN, benchmarks=(Cmmlu(data_dir=str(tmp_path / folder)),))) for folder in "abc"}
    assert ids["a"] == ids["b"] != ids["c"]
    assert cell_id(TESTED) not in (cell_id(DOIT_RUN), cell_id(changed(TESTED, benchmark_at=(1.0,))))
    assert all("{data_dir}" not in one.data_dir and Path(one.data_dir).is_dir() for one in benchmarks_of(TESTED))
    assert config.from_json(config.to_json(TESTED)) == TESTED
    with pytest.raises(UserError, match=r"cmmlu.*'practice' has no folder"):
        benchmarks_of(changed(RUN, benchmarks=BENCHMARKS))


def test_a_recipe_gives_volumes_from_the_counts_and_heads_that_no_seed_changes(workspace):
    run = part_of("mixed", recipe=Maximum(**FEW, synthetic=7))
    pool = workspace.pool(run)
    counts = {ability: len(set(ids)) for ability, ids in pool.ids.items()}
    assert volumes(run, counts) == dict(run.recipe(counts))
    slices = [plan_run(changed(run, seed=seed), workspace)[1].groups for seed in (0, 1)]
    assert {ability: len(ids) for ability, ids in slices[0].items()} == dict(run.recipe(counts))
    changed_by_seed = {ability for ability in slices[0] if slices[0][ability] != slices[1][ability]}
    assert changed_by_seed == {"synthetic"}
    assert slices[0]["math"] == list(dict.fromkeys(pool.ids["math"]))
    assert cell_id(run) == cell_id(changed(run, volume=99)), "the volume is not used"
    assert cell_id(run) != cell_id(changed(run, recipe=Maximum(**FEW)))


@pytest.mark.slow
def test_members_of_a_population_whose_steps_take_different_rows_give_what_they_give_alone(cache, tmp_path):
    run = changed(DOIT_RUN, budget=Budget(epochs=1), evaluate_at=(1.0,), choose_after=0.0, checkpoint_every=0)
    study = Study(name="rows", run=run, volumes=(1, 2), ability_sets=((), ("math",)), measure_speedup=False)
    rows = {plan_run(run, Workspace(cache))[0].batches.plan.rows for run in study.runs()}
    assert len(rows) > 1
    for way in ("singles", "vmap"):
        assert run_study(study, tmp_path / way, way=way, cache=cache).failed == {}
    alone, together = (load_results(tmp_path / way) for way in ("singles", "vmap"))
    for one, other in zip(alone, together, strict=True):
        assert one["run"]["final_loss"] == pytest.approx(other["run"]["final_loss"], rel=1e-4)
        assert one["run"]["steps"] == other["run"]["steps"]


@pytest.mark.parametrize("way", ["singles", pytest.param("workers", marks=pytest.mark.slow)])
def test_a_union_of_parts_and_recipes_is_one_study_on_one_tokenizer(cache, tmp_path, way):
    quick = {"evaluate_at": (1.0,), "choose_after": 0.0, "budget": Budget(epochs=1), "checkpoint_every": 0}
    study = Study(
        name="union",
        run=changed(DOIT_RUN, **quick),
        volumes=(1, 2),
        measure_speedup=False,
        plus=(
            Study(name="synthetic", run=part_of("synthetic", **quick), volumes=(5,)),
            Study(name="reconstruct", run=part_of("full", recipe=Reconstruct(total=40, **FEW), **quick)),
            Study(name="maximum", run=part_of("mixed", recipe=Maximum(**FEW, synthetic=9), **quick)),
        ),
    )
    done = run_study(study, tmp_path, way=way, workers=1, cache=cache)
    assert (done.cells, done.ran, done.failed) == (5, 5, {})
    assert study_status(tmp_path).count("done") == 5
    coords = [scores["coords"] for scores in load_results(tmp_path)]
    seen = [(one["source"], one["mixture"], one["records"]) for one in coords]
    assert seen[:3] == [("curated", "even", 10), ("curated", "even", 20), ("synthetic", "even", 5)]
    assert seen[3] == ("full", "reconstruct", 40)
    assert seen[4][:2] == ("mixed", "mix-9")
    assert [one["volume"] for one in coords] == [1, 2, 5, 4, round(seen[4][2] / 11)]
    assert len({one["params"] for one in coords}) == 1, "one tokenizer for all parts: they share the corpus"
    plan = read_json(tmp_path / "study.json")
    assert config.from_plain(plan["study"]) == study
    described = json.loads((tmp_path / "cells" / plan["cells"][3]["id"] / "run.json").read_text())
    assert described["counts"]["records"] == 40
