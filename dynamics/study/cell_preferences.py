"""The pairs of a cell that learns from preferences: its references, its held-out readings, what is told of them."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float32, Int64

from dynamics.data.pair_batches import PairBatches
from dynamics.data.store import TokenStore
from dynamics.errors import UserError
from dynamics.eval.preferences import (
    PairShape,
    Values,
    pair_shape,
    pair_values,
    preference_points,
    preferences_by_ability,
    reply_scores,
    reply_tokens,
)
from dynamics.losses.preference import Preference
from dynamics.model.lora import freeze
from dynamics.study.base import first_model
from dynamics.study.choice import OF_JUDGEMENTS, OF_PAIRS
from dynamics.study.course import Course
from dynamics.study.prepare import Workspace
from dynamics.study.references import pair_batches, references
from dynamics.study.run import Run
from dynamics.study.stores import PassLine
from dynamics.train.distributed import is_lead

HELD_OUT = ("valid", "test")

_WHY = {  # a pair is left out
    "dropped": "too long",
    "no_trained_token": "without a trained token",
    "same_replies": "of two replies of the same tokens",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class HeldOut:
    """The pairs of a split, laid out to be read again and again; every array has a row for each pair."""

    batches: PairBatches
    shape: PairShape
    weights: Float32[np.ndarray, " pairs"]
    tokens: Int64[np.ndarray, "pairs sides"]
    reference: Float32[np.ndarray, "pairs sides"]  # sums in nats of the model that training starts from

    @property
    def keys(self) -> list[str]:
        return self.batches.store.keys

    def values(self, objective: Preference, policy: Float32[np.ndarray, "pairs sides"]) -> Values:
        return pair_values(objective, policy, self.reference, self.tokens, self.weights)


class CellPreferences:
    """What a cell does with its pairs. Made before the policy is loaded: only then may the reference be in memory.

    `curve` is changed in place only: it is part of every checkpoint's meta. It begins with the model before training,
    whose log-probabilities are the references, and so cost nothing more.
    """

    def __init__(self, run: Run, workspace: Workspace, mesh: Mesh | None, course: Course | None) -> None:
        assert isinstance(run.objective, Preference)
        self.run, self.mesh, self.objective = run, mesh, run.objective
        self.workspace = workspace
        first = functools.cache(lambda: _reference_model(run, workspace, mesh))
        self.course = None if course is None else self._with_values(course, first)
        self.held_out = {split: self._held_out(split, first) for split in HELD_OUT}
        self.curve: list[dict[str, Any]] = []
        self.start_over()

    def start_over(self) -> None:
        """The curve as it is before the first step."""
        self.curve[:] = self._points(0, 0.0, None)

    def read(self, step: int, epoch: float, model: Any) -> None:
        """Add the valid pairs under the parameters of this step to the curve."""
        points = self._points(step, epoch, model)
        self.curve[:] = [point for point in self.curve if point["step"] < step]
        self.curve += points

    def candidates(self) -> list[dict[str, Any]]:
        """The curve as `choose` reads it: accuracy is the score, None of judgements, which have none.

        Before training only where there is nothing else.
        """
        points = [point for point in self.curve if point["step"] > 0] or self.curve
        return [point | {"score": point["accuracy"]} for point in points]

    @property
    def rule(self) -> str:
        """What `candidates` are chosen by."""
        return OF_PAIRS if any(point["accuracy"] is not None for point in self.curve) else OF_JUDGEMENTS

    def told(self, step: int, model: Any) -> dict[str, Any]:
        """What scores.json holds: the curve, and the test pairs read once, under `model` of this step."""
        held = self.held_out["test"]
        test = {}
        if held is not None:
            sums = (held.reference, self._sums(held, step, model))
            before, after = (held.values(self.objective, each) for each in sums)
            test = preferences_by_ability(before, after, held.keys, held.tokens, held.weights)
        return {"objective": self.objective.name, "curve": self.curve, "test": test}

    def counts(self) -> dict[str, int]:
        """Held-out pairs, and what was left out or cut of them; `pool_counts` says it of those trained on."""
        counts: dict[str, int] = {}
        for split, held in self.held_out.items():
            counts[f"pairs_{split}"] = 0 if held is None else len(held.keys)
            notes = self.workspace.pair_notes(self.run, split)
            counts |= {f"{name}_{split}": count for name, count in _totals(notes).items()}
        return counts

    def _points(self, step: int, epoch: float, model: Any) -> list[dict[str, Any]]:
        held = self.held_out["valid"]
        if held is None:
            return []
        values = held.values(self.objective, self._sums(held, step, model))
        return preference_points(values, held.keys, step=step, epoch=epoch)

    def _sums(self, held: HeldOut, step: int, model: Any) -> Float32[np.ndarray, "pairs sides"]:
        if step == 0:
            return held.reference
        return reply_scores(model, held.batches, shape=held.shape, mesh=self.mesh)[0]

    def _with_values(self, course: Course, first: Callable[[], Any]) -> Course:
        """The course with the references of the pairs that it reads, where the objective asks for them."""
        batches = course.batches
        assert isinstance(batches, PairBatches)
        weights = self.workspace.pair_weights(self.run, "train")
        if not self.objective.needs_reference:
            return course.with_values(None, weights)
        keys = [batches.store.keys[index] for index in np.unique(batches.documents)]
        return course.with_values(self._references("train", batches.store, keys, first), weights)

    def _held_out(self, split: str, first: Callable[[], Any]) -> HeldOut | None:
        store = self.workspace.pair_store(self.run, split)
        if store is None:
            return None
        batches = pair_batches(self.run, store, np.arange(len(store)))
        weights = self.workspace.pair_weights(self.run, split)
        return HeldOut(
            batches=batches,
            shape=pair_shape(batches, mesh=self.mesh),
            weights=np.ones(len(store), np.float32) if weights is None else weights,
            tokens=reply_tokens(store, batches.documents, sides=batches.sides),
            reference=self._references(split, store, store.keys, first),
        )

    def _references(
        self, split: str, store: TokenStore, keys: Sequence[str], first: Callable[[], Any]
    ) -> Float32[np.ndarray, "documents sides"]:
        line = PassLine(f"reference log-probabilities, {split} pairs")
        told = line if is_lead() else (lambda progress: None)
        return references(self.run, store, keys, self.workspace, first, self.mesh, told)


def check_measured(run: Run, workspace: Workspace, *, num_records: Mapping[str, int]) -> None:
    """UserError where a split has neither pairs that fit nor records: a study needs both splits."""
    for split in HELD_OUT:
        if num_records[split] or workspace.pair_store(run, split) is not None:
            continue
        source = run.source.name
        notes = workspace.pair_notes(run, split)
        given = sum(note.get("records", 0) for note in notes.values())
        if not given:
            raise UserError(
                f"source {source!r} has no {split} pairs and no {split} records to score; a study needs valid "
                "and test data: add pairs, or give its files a share for each split"
            )
        lost = {
            words: count for name, words in _WHY.items() if (count := sum(note.get(name, 0) for note in notes.values()))
        }
        raise UserError(
            f"none of the {given:,} {split} pairs of source {source!r} is left to measure on in rows of "
            f"{run.batch.length} tokens ({', '.join(f'{count:,} {words}' for words, count in lost.items())}), and it "
            f"has no {split} records; give a larger Batch(length=..), or over_long='truncate'"
        )


def _reference_model(run: Run, workspace: Workspace, mesh: Mesh | None) -> Any:
    """The model that training starts from, as it is kept under adapters where there are some."""
    model = first_model(run, workspace.model_shape(run), workspace, lambda fraction: None, mesh)
    return model if run.adapter is None else freeze(model, run.adapter)


def _totals(notes: Mapping[str, Mapping[str, int]]) -> dict[str, int]:
    """What was counted of a split's pairs, over its abilities."""
    names = {
        "pairs_rejected": "rejected", "pairs_truncated": "truncated", "pairs_dropped": "dropped",
        "pairs_untrained": "no_trained_token", "same_replies": "same_replies",
        "judgements": "judgements", "no_mismatch": "no_mismatch", "mismatches_cut": "mismatches_cut",
        "mismatches_left_out": "mismatches_left_out",
    }  # fmt: skip
    return {name: sum(note.get(field, 0) for note in notes.values()) for name, field in names.items()}
