"""A study as a value: its axes, its cells, and running them."""

import dataclasses

import pytest

from dynamics import config
from dynamics.data.mixture import Blocked, Interleaved
from dynamics.data.practice import Practice
from dynamics.data.practice.world import world
from dynamics.data.recipes import Maximum
from dynamics.data.rehearsal.benchmark_files import write_benchmarks
from dynamics.errors import UserError
from dynamics.eval.benchmarks import AgiEval, Cmmlu
from dynamics.model.llama import SIZES
from dynamics.model.sharding import MeshShape
from dynamics.study.execution import run_study
from dynamics.study.folder import StudyFolder
from dynamics.study.grid import Study, coordinates
from dynamics.study.results import load_results
from dynamics.study.run import Budget
from dynamics.study.status import study_status
from dynamics.study.ways import choose_way

from .tiny import RUN, SIZE, STUDY, changed


def test_the_cells_are_the_product_of_the_axes_and_one_base_cell_for_each_source_and_size():
    other = dataclasses.replace(SIZE, name="wider", d_ff=48)
    study = dataclasses.replace(
        STUDY, sizes=(SIZE, other), ability_sets=((), ("math",)), orders=(Interleaved(), Blocked())
    )
    cells = study.cells()
    assert len(cells) == 2 * 2 * 2 * 2 * 2 + 2
    assert len({cell.id for cell in cells}) == len(cells)
    assert [cell.coords["volume"] for cell in cells].count(0) == 2
    assert {cell.coords["abilities"] for cell in cells} == {"all", "math"}
    assert {cell.coords["order"] for cell in cells} == {"interleaved", "blocked"}


def test_a_budget_axis_is_a_coordinate_of_its_own():
    study = dataclasses.replace(STUDY, budgets=(Budget(epochs=2, min_updates=5), Budget(updates=9)), volumes=(1,))
    assert [cell.coords["budget"] for cell in study.cells()[1:]] == ["epochs 2 at least 5"] * 2 + ["updates 9"] * 2
    assert all("budget" not in cell.coords for cell in STUDY.cells())


def test_an_axis_left_empty_stays_as_the_run_has_it():
    (cell,) = Study(name="one", run=RUN, base_cells=False).cells()
    assert cell.run == RUN
    assert cell.coords == coordinates(RUN)


def test_equal_points_are_one_cell():
    named = dataclasses.replace(STUDY, sizes=("0.2m", SIZES["0.2m"]), volumes=(2,), seeds=(0,), base_cells=False)
    assert len(named.cells()) == 1


def test_a_point_written_twice_is_refused():
    with pytest.raises(UserError, match="the axis volumes holds 2 twice"):
        dataclasses.replace(STUDY, volumes=(2, 2))


def test_growing_an_axis_keeps_every_cell_there_was():
    grown = dataclasses.replace(STUDY, volumes=(1, 2, 4), seeds=(0, 1, 2))
    assert {cell.id for cell in STUDY.cells()} <= {cell.id for cell in grown.cells()}


def test_a_study_survives_json():
    study = dataclasses.replace(STUDY, sources=(Practice(seed=3),), orders=(Blocked(first=("math",)),))
    assert config.from_json(config.to_json(study)) == study


def test_a_union_of_grids_is_one_study_whose_cells_come_once():
    other = Practice(seed=1, pool=8, num_valid=2, num_test=2, corpus_documents=120, name="other")
    more = dataclasses.replace(STUDY, volumes=(2, 4))
    elsewhere = dataclasses.replace(STUDY, run=changed(RUN, source=other), seeds=(0,), base_cells=False)
    study = dataclasses.replace(STUDY, plus=(more, dataclasses.replace(elsewhere, plus=(STUDY,))))
    cells = study.cells()
    assert [cell.id for cell in cells[:5]] == [cell.id for cell in STUDY.cells()]
    assert len(cells) == 5 + 2 + 2, "more of volumes brings 4 alone, the other source its own two"
    assert {cell.coords["source"] for cell in cells} == {"practice", "other"}
    assert config.from_json(config.to_json(study)) == study
    moved = study.map_runs(lambda run: changed(run, batch=dataclasses.replace(run.batch, rows=4)))
    assert {run.batch.rows for run in moved.runs()} == {4}


def test_a_budget_axis_of_one_grid_is_a_coordinate_of_all():
    study = dataclasses.replace(STUDY, plus=(dataclasses.replace(STUDY, budgets=(Budget(updates=9),)),))
    assert all("budget" in cell.coords for cell in study.cells())


def test_a_run_with_benchmarks_in_several_grids_is_one_cell_that_reads_them_all(tmp_path):
    write_benchmarks(tmp_path, world(0))
    cmmlu, agieval = Cmmlu(data_dir=str(tmp_path / "cmmlu")), AgiEval(data_dir=str(tmp_path / "agieval"))
    plain = Study(name="plain", run=RUN, base_cells=False)
    one = dataclasses.replace(plain, run=changed(RUN, benchmarks=(cmmlu,)))
    other = dataclasses.replace(plain, run=changed(RUN, benchmarks=(agieval,), benchmark_at=(0.5, 1.0)))
    (cell,) = dataclasses.replace(plain, plus=(one, other)).cells()
    assert cell.run.benchmarks == (cmmlu, agieval)
    assert cell.run.benchmark_at == (0.5, 1.0)


def test_runs_that_no_coordinate_tells_apart_are_refused_before_anything_is_trained():
    other = Study(name="other", run=changed(RUN, choose="last"), base_cells=False)
    with pytest.raises(UserError, match=r"two runs at size tiny, volume 2.* differ in choose; .* two studies"):
        Study(name="one", run=RUN, base_cells=False, plus=(other,)).cells()


def test_budgets_of_several_grids_are_a_coordinate():
    longer = Study(name="other", run=changed(RUN, budget=Budget(updates=9)), base_cells=False)
    cells = Study(name="one", run=RUN, base_cells=False, plus=(longer,)).cells()
    assert [cell.coords["budget"] for cell in cells] == ["updates 4", "updates 9"]


def test_base_cells_follow_no_recipe():
    study = dataclasses.replace(STUDY, run=changed(RUN, recipe=Maximum(few=2, capped=(("creative_writing", 3),))))
    base, *rest = dataclasses.replace(study, volumes=()).cells()
    assert base.id == STUDY.cells()[0].id
    assert (base.coords["volume"], base.coords["mixture"]) == (0, "even")
    assert {(cell.coords["volume"], cell.coords["mixture"]) for cell in rest} == {("maximum", "maximum")}


def test_changing_every_run_changes_the_sources_axis_too():
    study = dataclasses.replace(STUDY, sources=(Practice(seed=1), Practice(seed=2)))
    more = study.map_runs(lambda run: changed(run, source=dataclasses.replace(run.source, num_test=3)))
    assert {source.num_test for source in (more.run.source, *more.sources)} == {3}


def test_a_name_that_is_no_folder_is_refused():
    with pytest.raises(UserError, match="it names a folder"):
        Study(name="a/b", run=RUN)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def folder(tmp_path_factory, cache):
    """A study run cell after cell."""
    folder = tmp_path_factory.mktemp("study")
    views = []
    done = run_study(STUDY, folder, way="singles", cache=cache, on_progress=views.append)
    assert (done.cells, done.ran, done.skipped, done.failed) == (5, 5, 0, {})
    assert views[-1].done == views[-1].total == 5
    return folder


def test_a_second_run_runs_nothing(folder, cache):
    done = run_study(STUDY, folder, way="singles", cache=cache)
    assert (done.ran, done.skipped) == (0, 5)


def test_only_what_is_missing_is_run(folder, cache):
    results = {scores["cell"]: scores for scores in load_results(folder)}
    lost = StudyFolder(folder).cell(STUDY.cells()[1].id)
    lost.scores_file.write_text(lost.scores_file.read_text()[:-5])  # cut short: not done
    assert study_status(folder).count("to do") == 1
    done = run_study(STUDY, folder, way="singles", cache=cache)
    assert (done.ran, done.skipped) == (1, 4)
    again = {scores["cell"]: scores for scores in load_results(folder)}
    assert all(again[cell]["test"] == results[cell]["test"] for cell in results)


def test_a_population_gives_what_the_cells_give_alone(folder, cache, tmp_path):
    done = run_study(STUDY, tmp_path, way="vmap", cache=cache)
    assert (done.ran, done.failed) == (5, {})
    for alone, together in zip(load_results(folder), load_results(tmp_path), strict=True):
        assert alone["coords"] == together["coords"]
        for ability, scored in alone["test"].items():
            assert scored["loss_sums"] == pytest.approx(together["test"][ability]["loss_sums"], rel=2e-4)
        if alone["coords"]["volume"]:
            assert alone["run"]["final_loss"] == pytest.approx(together["run"]["final_loss"], rel=1e-4)


def test_a_failed_cell_says_why_does_not_stop_the_others_and_is_tried_again(cache, tmp_path):
    study = dataclasses.replace(STUDY, volumes=(1, 2), seeds=(0,))
    blocked = StudyFolder(tmp_path).cell(study.cells()[-1].id)
    (blocked.path / "metrics.jsonl").mkdir(parents=True)  # where its log should be
    done = run_study(study, tmp_path, way="singles", cache=cache)
    assert (done.ran, len(done.failed)) == (2, 1)
    status = study_status(tmp_path)
    assert (status.count("done"), status.count("failed")) == (2, 1)
    assert status.failed[0].id == blocked.id
    assert "cannot write the log" in status.failed[0].reason
    assert "Traceback" in blocked.failure()["traceback"]
    again = run_study(study, tmp_path, way="singles", cache=cache)
    assert (again.ran, again.skipped, len(again.failed)) == (0, 2, 1)
    (blocked.path / "metrics.jsonl").rmdir()
    assert run_study(study, tmp_path, way="singles", cache=cache).ran == 1
    assert study_status(tmp_path).count("done") == 3


def test_a_volume_that_an_ability_cannot_fill_is_named_before_anything_is_trained(cache, tmp_path):
    study = dataclasses.replace(STUDY, volumes=(1, 50))  # the pool holds 8
    with pytest.raises(UserError, match=r"volume 50 is more than .*'practice' has.* 8.*largest volume to \d,"):
        run_study(study, tmp_path, way="singles", cache=cache)
    assert not list((tmp_path / "cells").iterdir())


def test_a_base_model_that_fails_fails_the_cells_that_need_it_and_says_so(cache, tmp_path):
    run = changed(RUN, base=dataclasses.replace(RUN.base, optimizer=dataclasses.replace(RUN.optimizer, peak_lr=1e30)))
    done = run_study(dataclasses.replace(STUDY, run=run, volumes=(1,)), tmp_path, way="singles", cache=cache)
    assert done.ran == 0
    assert all("base model failed: the loss of step" in reason for reason in done.failed.values())
    assert study_status(tmp_path).count("failed") == 3


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        run_study(STUDY, tmp_path / "file")


def test_wrong_ways_and_worker_counts_are_named(tmp_path):
    with pytest.raises(UserError, match="workers=0; give at least 1"):
        run_study(STUDY, tmp_path, workers=0)
    with pytest.raises(UserError, match="allowed: auto, workers, vmap, singles"):
        run_study(STUDY, tmp_path, way="fast")


def test_runs_on_a_mesh_or_with_checkpoints_are_given_a_way_that_can_do_it(tmp_path):
    meshed = dataclasses.replace(STUDY, run=changed(RUN, mesh=MeshShape(data=2)))
    saving = dataclasses.replace(STUDY, run=changed(RUN, checkpoint_every=5))
    assert choose_way("auto", STUDY) == choose_way("auto", saving) == "workers"
    assert choose_way("auto", meshed) == "singles"
    for way in ("workers", "vmap"):
        with pytest.raises(UserError, match=r"gives every run one device.*use singles"):
            run_study(meshed, tmp_path, way=way)
    with pytest.raises(UserError, match="writes no checkpoints inside a run, and checkpoint_every=5"):
        run_study(saving, tmp_path, way="vmap")
