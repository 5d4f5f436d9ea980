"""Runs that learn from pairs: what they read, how it becomes batches, and what is refused before training."""

import argparse
import dataclasses

import numpy as np
import pytest

from dynamics import config
from dynamics.cli.options import load_run, load_study
from dynamics.data.pair_batches import PairBatches, pair_caps
from dynamics.data.pair_files import PairFiles
from dynamics.data.replies import Replies
from dynamics.errors import UserError
from dynamics.losses.dpo import DPO
from dynamics.losses.kto import KTO
from dynamics.losses.sft import SFT
from dynamics.losses.simpo import SimPO
from dynamics.pair import Pair
from dynamics.record import Turn
from dynamics.study.checks import check_volumes
from dynamics.study.course import device_batches, plan_run, pool_counts
from dynamics.study.grid import Study, objective_name
from dynamics.study.identity import cell_id
from dynamics.study.plan import plan
from dynamics.study.plan_jobs import Assumptions, jobs_of
from dynamics.study.populations import groups
from dynamics.study.prepare import Workspace
from dynamics.study.preview import preview
from dynamics.study.program import _batch as abstract_batch
from dynamics.study.run import After, Batch, Budget, is_preference
from dynamics.study.single import train_run
from dynamics.study.speedup import of_records
from dynamics.study.topologies import parse_topology
from dynamics.study.workload import load_of

from .tiny import RUN, changed

BATCH = Batch(rows=2, length=512)
DPO_RUN = changed(RUN, objective=DPO(beta=0.1), base=After(run=RUN), batch=BATCH, over_long="truncate")


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    return Workspace(tmp_path_factory.mktemp("cache"), workers=1)


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """A file of pairs of one's own: one of weight 2, one of them a judgement, no split of its own."""
    folder = tmp_path_factory.mktemp("own")
    pairs = [
        Pair(prompt=(Turn(role="user", content=f"Say {n}."),), chosen=f"{n}", rejected="no", weight=1.0 + (n == 3))
        for n in range(20)
    ]
    with (folder / "pairs.jsonl").open("w") as file:
        for pair in pairs:
            file.write(config.to_json(pair.to_dict()) + "\n")
    return folder


def study_of(run, **axes):
    return Study(name="pairs", run=run, measure_speedup=False, **axes)


def test_the_course_of_a_preference_run_is_of_pairs(workspace):
    assert is_preference(DPO_RUN)
    course, slices = plan_run(DPO_RUN, workspace)
    assert isinstance(course.batches, PairBatches)
    assert course.documents == len(course.batches.documents)
    assert slices.num_records == RUN.volume * len(RUN.source.paired())
    pool = workspace.pool(DPO_RUN)
    assert pool.of_pairs
    assert set(pool.ids) == set(RUN.source.paired())
    assert set(pool.ids["math"]) == {pair.id for pair in RUN.source.pairs("math", "train").pairs}
    counts = pool_counts(pool, slices)
    assert (counts["judgements"], counts["weighted"]) == (0, 0)
    assert counts.keys() > pool_counts(workspace.pool(RUN), slices).keys()


def test_device_batches_hold_the_reference_and_the_weights(workspace):
    course, _ = plan_run(DPO_RUN, workspace)
    store = workspace.pool(DPO_RUN).store
    reference = np.arange(2 * len(store), dtype=np.float32).reshape(-1, 2) + 1
    weights = np.full(len(store), 0.5, np.float32)
    given = course.with_values(reference, weights)
    (batch,) = device_batches(given, groups=2, micro=1, prefetch=0)(0, 1)
    cap, pairs = pair_caps(course.batches, groups=2)
    assert batch["reference"].shape == (1, 2, pairs, 2)
    assert batch["trained_reply"].shape == (1, 2, cap)
    assert batch["branches"].shape == batch["tokens"].shape == (1, 2, BATCH.length)
    first = course.batches.documents[: int(course.batches.plan.starts[1])]
    assert set(batch["reference"][batch["pair_weights"] > 0].ravel()) == set(reference[first].ravel())
    assert set(batch["pair_weights"].ravel()) == {0.0, 0.5}


@pytest.mark.parametrize("groups", [2, 4])
def test_hosts_make_their_own_groups_of_the_same_batch(workspace, groups):
    course, _ = plan_run(changed(DPO_RUN, batch=Batch(rows=4, length=512)), workspace)
    (whole,) = device_batches(course, groups=groups, micro=1, prefetch=0)(0, 1)
    for mine in ([0], [1]) if groups == 2 else ([0, 1], [2, 3]):
        (part,) = device_batches(course, groups=groups, micro=1, prefetch=0, mine=mine)(0, 1)
        for name, array in part.items():
            share = whole[name].shape[1] // groups
            rows = np.concatenate([whole[name][:, group * share : (group + 1) * share] for group in mine], axis=1)
            np.testing.assert_array_equal(array, rows, err_msg=name)


def test_documents_are_pairs_a_step(workspace):
    run = changed(DPO_RUN, batch=dataclasses.replace(BATCH, rows=16, documents=8), budget=Budget(epochs=1), volume=2)
    course, slices = plan_run(run, workspace)
    assert course.steps == -(-slices.num_records // 8)
    assert course.batches.plan.rows <= 16


def test_prompts_that_are_not_shared_take_more_tokens(workspace):
    run = changed(DPO_RUN, budget=Budget(epochs=1), batch=Batch(rows=2, length=1024))
    apart = changed(run, replies=Replies(shared_prompt=False))
    shared = changed(apart, replies=Replies())
    assert cell_id(apart) != cell_id(shared)
    tokens = [plan_run(run, workspace)[0].batches.plan.num_tokens.sum() for run in (apart, shared)]
    assert tokens[0] > tokens[1]
    (batch,) = device_batches(plan_run(apart, workspace)[0], groups=1, micro=1, prefetch=0)(0, 1)
    assert "branches" not in batch


def test_settings_of_replies_name_only_runs_that_read_pairs():
    assert cell_id(RUN) == cell_id(changed(RUN, replies=Replies(max_prompt=9)))
    assert cell_id(DPO_RUN) != cell_id(changed(DPO_RUN, replies=Replies(max_prompt=9)))


def test_valid_and_test_pairs_are_stores_of_their_own(workspace):
    stores = {split: workspace.pair_store(DPO_RUN, split) for split in ("train", "valid", "test")}
    assert stores["train"] is workspace.pool(DPO_RUN).store
    assert len(set.union(*(set(store.keys) for store in stores.values()))) == sum(map(len, stores.values()))
    assert workspace.pair_weights(DPO_RUN, "valid") is None
    again = workspace.pair_store(changed(DPO_RUN, objective=DPO(beta=0.5)), "valid")
    assert again is stores["valid"], "settings of the loss make no other store"


def test_kto_gets_a_reply_to_another_prompt(workspace):
    course, _ = plan_run(changed(DPO_RUN, objective=KTO()), workspace)
    assert course.batches.sides == 3


def test_pairs_of_ones_own_need_no_records(workspace, own):
    source = PairFiles(data_dir=str(own), files=(("mine", "pairs.jsonl"),))
    run = changed(DPO_RUN, source=source, volume="full", tokenizer=None)
    assert source.evaluated() == ()
    prepared, rejected = workspace.evaluation(run, "valid", row_shards=1)
    assert (len(prepared.prompts), prepared.packed, rejected) == (0, prepared.packed, 0)
    for _ in range(2):  # also where this process has it prepared for a run that may do without
        with pytest.raises(UserError, match=r"has no valid records; .*asked=True"):
            workspace.evaluation(changed(run, objective=SFT()), "valid", row_shards=1)
    train = workspace.pair_store(run, "train")
    stores = [workspace.pair_store(run, split) for split in ("train", "valid", "test")]
    assert sum(0 if store is None else len(store) for store in stores) == 20
    found = [workspace.pair_weights(run, split) for split in ("train", "valid", "test")]
    weights = np.concatenate([one for one in found if one is not None])
    assert sorted(weights)[-2:] == [1.0, 2.0]
    course, _ = plan_run(run, workspace)
    assert course.documents_per_epoch == len(train)


def test_a_source_without_pairs_is_refused(tmp_path):
    (tmp_path / "math").mkdir()
    (tmp_path / "math" / "train.jsonl").write_text('{"prompt": "1 + 1?", "response": "2"}\n')
    from dynamics.data.sources import Files

    run = changed(DPO_RUN, source=Files(data_dir=str(tmp_path)))
    with pytest.raises(UserError, match=r"objective 'dpo' learns from pairs of replies, and source 'files' has none"):
        study_of(run).cells()


def test_judgements_are_refused_where_replies_are_compared(workspace, tmp_path):
    lines = [f'{{"prompt": "Say {n}.", "completion": "{n}", "label": {str(n % 2 == 0).lower()}}}' for n in range(30)]
    (tmp_path / "judged.jsonl").write_text("\n".join(lines))
    source = PairFiles(data_dir=str(tmp_path), files=(("mine", "judged.jsonl"),))
    run = changed(DPO_RUN, source=source, volume="full")
    with pytest.raises(
        UserError, match=r"'dpo' compares two replies to a prompt, and source 'pairs' has some with one"
    ):
        check_volumes(study_of(run, base_cells=False).cells(), workspace)
    check_volumes(study_of(changed(run, objective=KTO()), base_cells=False).cells(), workspace)
    last = changed(DPO_RUN, base=After(run=run))  # `dynamics train` says it too, of an earlier stage as well
    for one in (run, last):
        with pytest.raises(UserError, match="'dpo' compares two replies to a prompt"):
            train_run(one, tmp_path / "runs", workspace, lambda fraction: None)
    with pytest.raises(UserError, match=r"volume 10,000 is more than source 'practice'"):
        train_run(changed(DPO_RUN, volume=10_000), tmp_path / "runs", workspace, lambda fraction: None)
    assert not (tmp_path / "runs").exists()


def test_more_pairs_than_there_are_is_said_in_pairs(workspace):
    cells = study_of(changed(DPO_RUN, volume=10_000)).cells()
    with pytest.raises(UserError, match=r"volume 10,000 is more than source 'practice' .* pairs; lower"):
        check_volumes(cells, workspace)


def test_objectives_are_an_axis_with_names_in_the_report():
    study = study_of(DPO_RUN, objectives=(SFT(), DPO(beta=0.1), DPO(beta=0.5)), seeds=(0, 1))
    cells = study.cells()
    names = [cell.coords["objective"] for cell in cells]
    assert names == ["sft"] * 4 + [objective_name(DPO(beta=0.1))] * 2 + [objective_name(DPO(beta=0.5))] * 2
    assert len(set(names)) == 3
    assert config.from_json(config.to_json(study)) == study


def test_a_plan_counts_the_first_stage_and_the_reference_pass_apart(workspace):
    jobs = jobs_of(study_of(DPO_RUN, seeds=(0, 1)), workspace, Assumptions(tokens_per_record=64))
    machine = plan(jobs, [parse_topology("v5e:2x2")], None, prices={})["machines"][0]
    rows = [(cell["objective"], cell["after"] is not None, cell["volume"]) for cell in machine["cells"]]
    first = [("sft", False, "base"), ("sft", False, 2), ("sft", False, 2)]
    assert rows == [*first, ("dpo", True, 0), ("dpo", True, 0), ("dpo", True, 2), ("dpo", True, 2)]
    passed = [cell["reference"] for cell in machine["cells"]]
    assert passed[:5] == [None] * 5
    held_out = sum(len(workspace.pair_store(DPO_RUN, split)) for split in ("valid", "test"))
    assert passed[5]["pairs"] == DPO_RUN.volume * len(DPO_RUN.source.paired()) + held_out
    assert machine["reference_hours"] == sum(one["hours"] for one in passed[5:])
    free = jobs_of(changed(DPO_RUN, objective=SimPO()), workspace, Assumptions(tokens_per_record=64))
    assert all(job.load is None or job.load.reference is None for job in free.jobs)


def test_the_planned_batch_has_the_arrays_of_a_real_one(workspace):
    (*_, job) = jobs_of(DPO_RUN, workspace, Assumptions(tokens_per_record=64)).jobs
    planned = abstract_batch(job.program(parse_topology("v5e:2x2")))
    (real,) = device_batches(plan_run(DPO_RUN, workspace)[0], groups=1, micro=1, prefetch=0)(0, 1)
    assert {name: (array.shape, array.dtype) for name, array in planned.items()} == {
        name: (array.shape, array.dtype) for name, array in real.items()
    }


def test_assumed_pairs_take_a_reply_more_than_records(workspace):
    load = load_of(DPO_RUN, workspace, counted=False, tokens_per_record=64)
    apart = load_of(changed(DPO_RUN, replies=Replies(shared_prompt=False)), workspace, counted=False,
                    tokens_per_record=64)  # fmt: skip
    assert load.num_reference == 20
    assert load.reference.tokens == 20 * 96, "a prompt of 32 once, and two replies of 32"
    assert apart.reference.tokens == 20 * 128


def test_the_preview_shows_prompt_chosen_and_rejected(workspace):
    shown = preview(study_of(changed(DPO_RUN, abilities=("math",))), workspace, rows=1)
    (sample,) = shown["samples"]
    assert [part["reply"] for part in sample["parts"]] == ["prompt", "chosen", "rejected"]
    assert [part["trained"] for part in sample["parts"]] == [False, True, True]
    assert shown["counts"]["pairs of one reply (judgements)"] == 0
    assert [(part["name"], part["objective"]) for part in shown["plus"]] == [("pairs-before", "sft")]


def test_preferences_are_no_members_of_a_population_and_the_speed_is_timed_on_records(workspace):
    cells = study_of(DPO_RUN, objectives=(SFT(), DPO(beta=0.1)), seeds=(0, 1), base_cells=False).cells()
    sizes = {tuple(cell.coords["objective"] for cell in group) for group in groups(cells, workspace)}
    assert sizes == {("sft", "sft"), ("dpo",)}
    assert list(of_records((DPO(beta=0.1), SFT()))) == [SFT()]


def test_a_data_folder_of_the_command_line_is_that_of_the_runs_own_source(tmp_path, own):
    config_file = tmp_path / "two.py"
    config_file.write_text(
        "from dataclasses import replace\n"
        "from dynamics.data.pair_files import PairFiles\n"
        "from dynamics.study.grid import Study\n"
        "from tests.study.test_preference_runs import DPO_RUN\n"
        "def run(): return replace(DPO_RUN, source=PairFiles(data_dir='nowhere'))\n"
        "def study(): return Study(name='two', run=run())\n"
    )
    options = argparse.Namespace(config=str(config_file), set=[], data_dir=str(own), on_bad_record=None)
    for run in (load_run(options), load_study(options).run):
        assert (run.source.data_dir, run.base.run.source) == (str(own), DPO_RUN.source)
