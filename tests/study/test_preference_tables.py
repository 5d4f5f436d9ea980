"""What the report says of held-out pairs: a known truth is found, what is not there is not made up."""

import argparse
from pathlib import Path

import numpy as np
import pytest

from dynamics.cli import train as train_command
from dynamics.errors import UserError
from dynamics.study.points import OVERALL, Bootstrap
from dynamics.study.preference_figures import lane_curve, preference_figures
from dynamics.study.preference_tables import preference_findings, preference_lanes, preference_rows, rows_of

FEW = Bootstrap(draws=200)
NUM = 60


def side(chosen, rejected, margin):
    return {
        "count": [1.0] * NUM, "loss": np.logaddexp(0, -margin).tolist(), "margin": margin.tolist(),
        "accuracy": (0.5 + 0.5 * np.sign(margin)).tolist(), "kl": [0.5] * NUM,
        "chosen_logprob": chosen.tolist(), "rejected_logprob": rejected.tolist(),
    }  # fmt: skip


def result(objective, seed, *, chosen_change, rejected_change, abilities=("en", "zh"), volume=64):
    """A cell whose replies changed by so many nats on average; the pairs are the same in every cell."""
    test, curve = {}, []
    for ability in abilities:
        pairs = np.random.default_rng(len(ability) + ord(ability[0]))
        chosen, rejected = pairs.uniform(-60, -20, (2, NUM))
        noise = np.random.default_rng((seed, ord(ability[0]))).normal(0, 2, (2, NUM))
        after = chosen + chosen_change + noise[0], rejected + rejected_change + noise[1]
        margin = 0.1 * ((after[0] - chosen) - (after[1] - rejected))
        test[ability] = {
            "ids": [f"{ability}{index}" for index in range(NUM)], "weight": [1.0] * NUM, "tokens": [[9, 9]] * NUM,
            "before": side(chosen, rejected, np.zeros(NUM)), "after": side(*after, margin),
        }  # fmt: skip
        for share in (0.0, 0.5, 1.0):
            curve.append(
                {
                    "step": int(10 * share), "epoch": share, "ability": ability, "n": NUM, "loss": 0.7,
                    "accuracy": 0.5 + share / 4, "margin": share * float(margin.mean()),
                    "chosen_logprob": -40.0 - share, "rejected_logprob": -40.0 - 2 * share, "kl": share,
                }
            )  # fmt: skip
    coords = {
        "size": "0.2m", "params": 250_000, "volume": volume, "records": volume * len(abilities), "abilities": "all",
        "seed": seed, "source": "pairs", "objective": objective,
    }  # fmt: skip
    return {
        "cell": f"{objective}-{volume}-{seed}", "coords": coords, "test": {},
        "preferences": {"objective": objective, "curve": curve, "test": test},
    }  # fmt: skip


@pytest.fixture(scope="module")
def results():
    falling = [result("dpo", seed, chosen_change=-3.0, rejected_change=-9.0) for seed in range(3)]
    rising = [result("cpo", seed, chosen_change=4.0, rejected_change=-2.0) for seed in range(3)]
    return [*falling, *rising]


def test_the_intervals_hold_the_truth_for_each_objective_and_ability(results):
    rows = preference_rows(results, bootstrap=FEW)
    assert [(row.lane.objective, row.ability) for row in rows] == [
        (objective, ability) for objective in ("dpo", "cpo") for ability in ("en", "zh", OVERALL)
    ]
    for row in rows:
        truth = (-3.0, -9.0) if row.lane.objective == "dpo" else (4.0, -2.0)
        assert row["chosen_change"].low - 0.2 < truth[0] < row["chosen_change"].high + 0.2
        assert row["rejected_change"].low - 0.2 < truth[1] < row["rejected_change"].high + 0.2
        assert row["margin"].positive
        assert row["loss_change"].negative
        assert row["loss"].value < row["loss_before"].value == pytest.approx(np.log(2))
        assert row["accuracy_before"].value == 0.5
        assert (row.num_seeds, row.num_pairs) == (3, 2 * NUM if row.ability == OVERALL else NUM)
        assert row["ranking_change"].value > 0
    assert {row["variant"] for row in rows_of(rows)} == {"dpo", "cpo"}


def test_chosen_replies_that_grow_less_likely_are_said_to(results):
    (finding,) = preference_findings(preference_rows(results, bootstrap=FEW))
    dpo_loss, dpo_replies, cpo_loss, cpo_replies = finding.lines
    assert dpo_loss.startswith("dpo, size 0.2m, 128 pairs: on 120 held-out pairs the loss falls, from 0.693 to")
    assert "Both replies became less likely, the rejected one more so" in dpo_replies
    assert "the loss falls" in cpo_loss
    assert "The chosen reply became likelier, the rejected one did not" in cpo_replies


def test_replies_that_fall_alike_are_not_said_to_differ():
    """A point value below another is no finding: the interval of the difference decides."""
    falling = [result("dpo", seed, chosen_change=-3.0, rejected_change=-3.1) for seed in range(3)]
    (row,) = (row for row in preference_rows(falling, bootstrap=FEW) if row.ability == OVERALL)
    assert row["chosen_change"].negative
    assert row["rejected_change"].negative
    assert row["rejected_change"].value < row["chosen_change"].value
    assert row["gap_change"].low < 0 < row["gap_change"].high
    (finding,) = preference_findings([row])
    assert "Both replies became less likely, neither clearly more so than the other" in finding.lines[1]
    assert "pushing down" not in finding.lines[1]


def test_judgements_of_one_reply_have_no_margin(results):
    alone = result("kto", 0, chosen_change=1.0, rejected_change=0.0, abilities=("en",))
    for when in ("before", "after"):
        for name in ("margin", "accuracy", "rejected_logprob"):
            alone["preferences"]["test"]["en"][when][name] = [None] * NUM
    (row,) = preference_rows([alone], bootstrap=FEW)
    assert np.isnan(row["margin"].value)
    assert np.isnan(row["ranking"].value)
    assert np.isfinite(row["loss"].value)
    (finding,) = preference_findings([row])
    assert len(finding.lines) == 1
    assert "reward" not in finding.lines[0]


def test_two_cells_at_one_place_are_refused(results):
    twin = results[0] | {"cell": "twin"}
    with pytest.raises(UserError, match="would be one row of the preferences"):
        preference_rows([*results, twin], bootstrap=FEW)


def test_results_without_pairs_have_no_rows():
    assert preference_rows([{"cell": "a", "coords": {"volume": 4}, "test": {}}]) == []
    assert preference_findings([]) == []


def test_few_abilities_stand_in_one_figure_and_many_in_one_for_each_quantity(results):
    lanes = preference_lanes(results)
    assert [name for name, _, _ in preference_figures(lanes)] == ["preferences"]
    many = [result("dpo", 0, chosen_change=1.0, rejected_change=0.0, abilities=("a", "b", "c", "d"))]
    names = [name for name, _, _ in preference_figures(preference_lanes(many))]
    assert names == ["preferences-margin", "preferences-accuracy", "preferences-logprob"]
    epochs, values = lane_curve(lanes[0], "en", "accuracy")
    assert epochs.tolist() == [0.0, 0.5, 1.0]
    assert values.shape == (3, 3)


def test_the_command_prints_held_out_pairs(results, capsys):
    run = {"steps": 10, "tokens": 100, "final_loss": 0.6, "walked_back": []}
    scores = results[0] | {"run": run, "chosen": {"step": 10, "rule": "last step"}}
    train_command._print_scores(argparse.Namespace(json=False), Path("there"), scores)
    shown = capsys.readouterr().out
    assert "en                 60 pairs: loss 0.693, accuracy 0.500, margin +0.000 -> loss 0." in shown
