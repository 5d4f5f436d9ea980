"""Conifer's configs say what the paper and its anchors say, and the rehearsal's path runs from SFT to preferences."""

import dataclasses
import json
from pathlib import Path

from dynamics import config
from dynamics.cli import main
from dynamics.data.template import LLAMA2
from dynamics.losses.dpo import DPO
from dynamics.losses.sft import SFT
from dynamics.study.run import After, Budget, is_preference

FOLDER = Path(__file__).resolve().parent.parent.parent / "configs" / "conifer"


def study(name):
    return config.load(FOLDER / f"{name}.py", function="study")


def test_the_first_stage_is_the_anchors():
    found = study("sft")
    assert [size.name for size in found.sizes] == ["mistral-7b", "llama2-13b"]
    assert [run.seed for run in found.runs() if run.trains] == [0, 1, 2] * 2
    run = found.run
    assert (run.optimizer.peak_lr, run.optimizer.schedule, run.optimizer.warmup_share) == (2e-5, "cosine", 0.1)
    assert (run.batch.documents, run.batch.length, run.budget) == (512, 2048, Budget(epochs=3))
    assert run.template == LLAMA2
    assert run.source.arrangement == "easy_to_hard"
    assert run.recipe.name == "all-and-53000-sharegpt"


def test_mistral_has_its_published_number_of_parameters():
    size = study("sft").run.size
    attention = size.d_model * size.head_dim * (2 * size.num_heads + 2 * size.num_kv_heads)
    layer = attention + 3 * size.d_model * size.d_ff + 2 * size.d_model
    assert size.num_layers * layer + size.d_model * (2 * size.vocab_size + 1) == 7_241_732_096


def test_the_second_stage_is_the_handbooks_and_starts_after_the_first_of_its_seed():
    found = study("dpo")
    run = found.run
    assert run.objective == DPO(beta=0.01)
    assert (run.optimizer.peak_lr, run.optimizer.schedule, run.optimizer.warmup_share) == (5e-7, "cosine", 0.1)
    assert (run.replies.max_prompt, run.replies.max_length, run.budget) == (512, 1024, Budget(epochs=1))
    assert run.source.paired() == ("ultrafeedback",)
    first = study("sft").run
    for one in found.runs():
        assert isinstance(one.base, After)
        assert one.base.run == dataclasses.replace(first, seed=one.base.run.seed)
        assert one.seed == one.base.run.seed or not one.trains


def test_the_ablation_changes_the_arrangement_and_nothing_else():
    found = study("ablation")
    runs = found.runs()
    assert len(runs) == 4 * 3
    assert [run.source.arrangement for run in runs[::3]] == ["easy_to_hard", "shuffled", "hard_to_easy", "hard_only"]
    first = study("sft").run
    plain = {dataclasses.replace(run, source=first.source, seed=0) for run in runs}
    assert plain == {first}


def planned(name, tmp_path, monkeypatch, capsys, *options):
    monkeypatch.setenv("DYNAMICS_CACHE", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    path = str(FOLDER / f"{name}.py")
    assert main(["plan", path, "--topology", "v5p:2x4x4", "--estimate", "--json", *options]) == 0
    return json.loads(capsys.readouterr().out)


def test_both_stages_are_planned_without_their_data(tmp_path, monkeypatch, capsys):
    found = planned("dpo", tmp_path, monkeypatch, capsys, "--set", "run.volume=58000")
    steps = {cell["steps"] for cell in found["machines"][0]["cells"]}
    # 65,926 conversations in steps of 512, three times; 58,000 pairs in steps of 128, once.
    assert steps == {0, 3 * 129, 454}


def test_the_rehearsal_is_the_ablation_and_both_stages():
    found = study("rehearsal")
    cells = found.cells()
    assert len({cell.id for cell in cells}) == len(cells) == 4 * 3 + 3
    tuned = [cell.run for cell in cells if not is_preference(cell.run)]
    preferred = [cell.run for cell in cells if is_preference(cell.run)]
    assert all(run.objective == SFT() for run in tuned)
    # The second stage adopts the study's own easy-to-hard cells.
    easy = {run for run in tuned if run.source.arrangement == "easy_to_hard"}
    assert {run.base.run for run in preferred if isinstance(run.base, After)} == easy
    assert {cell.coords["abilities"] for cell in cells} == {"all"}
