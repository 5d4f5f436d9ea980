"""How hard a record is, as a number that orders can sort by: larger is harder.

    Length      tokens of the reply, or of all of it             from the token store
    Level       the record's own level, such as Conifer's 1-5    from the records
    Tags        how many tags a tagger gave it (InsTag)          from the records
    ModelLoss   mean loss of the reply under a model             from a scoring pass
    IFD         that loss over the loss without the instruction  from two scoring passes

This is the pure part: what is computed out of lengths, records and summed log-probabilities. The passes of a model are
made in `study/difficulty.py`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
from jaxtyping import Float64, Int

from dynamics.config import check_fields
from dynamics.data.template import Encoded
from dynamics.errors import UserError
from dynamics.record import Record

GIVEN, ALONE = "given", "alone"  # the passes: the reply after its conversation, and the reply by itself


@dataclass(frozen=True, kw_only=True)
class Difficulty:
    """A family: what makes a record hard. Its members are of three kinds, by what they are computed from."""

    def __post_init__(self) -> None:
        check_fields(self)

    @property
    def name(self) -> str:
        """How reports and tables call it."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class OfTokens(Difficulty):
    """Computed from the lengths in a token store."""

    def __call__(
        self, num_tokens: Int[np.ndarray, " documents"], num_trained: Int[np.ndarray, " documents"]
    ) -> Float64[np.ndarray, " documents"]:
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class OfRecords(Difficulty):
    """Computed from the records."""

    def __call__(self, records: Mapping[str, Record]) -> dict[str, float]:
        """Key of each record -> its difficulty. UserError where the records do not say it."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class OfModel(Difficulty):
    """Computed from what a model makes of the replies: sums of log-probabilities in nats, for each pass it names."""

    passes: ClassVar[tuple[str, ...]] = (GIVEN,)

    def __call__(
        self, sums: Mapping[str, Float64[np.ndarray, " documents"]], num_trained: Int[np.ndarray, " documents"]
    ) -> Float64[np.ndarray, " documents"]:
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class Length(OfTokens):
    """Tokens of the reply (ends of turns included), or of the whole conversation, as the run reads them.

    A conversation that was cut to the row has the length it was cut to.
    """

    of: Literal["reply", "all"] = "reply"

    def __call__(
        self, num_tokens: Int[np.ndarray, " documents"], num_trained: Int[np.ndarray, " documents"]
    ) -> Float64[np.ndarray, " documents"]:
        return (num_trained if self.of == "reply" else num_tokens).astype(np.float64)

    @property
    def name(self) -> str:
        return "length" if self.of == "reply" else "length of all"


@dataclass(frozen=True, kw_only=True)
class Level(OfRecords):
    """The record's `level`, 1 the easiest. A record without one is an error, or of the level `missing`.

    Source: Sun et al. 2024, "Conifer": five levels of constraints on one instruction.
    """

    missing: int | None = None

    def __call__(self, records: Mapping[str, Record]) -> dict[str, float]:
        without = [key for key, record in records.items() if record.level is None]
        if without and self.missing is None:
            raise UserError(
                f"{len(without):,} of {len(records):,} records have no level, such as {min(without)}; a level is a "
                "whole number >= 1 in the field 'level' (no text, no 2.0): write it, leave such records out, or give "
                "them one with Level(missing=...)"
            )
        return {
            key: float(record.level if record.level is not None else self.missing or 0)
            for key, record in records.items()
        }

    @property
    def name(self) -> str:
        return "level" if self.missing is None else f"level ({self.missing} where missing)"


@dataclass(frozen=True, kw_only=True)
class Tags(OfRecords):
    """The number of the record's `tags`; an untagged record has 0. An error where no record has any.

    Source: Lu et al. 2023, "#InsTag": the complexity of a query is its number of tags. There tags are given
    to each query and merged; here those that the record carries are counted, each once.
    """

    def __call__(self, records: Mapping[str, Record]) -> dict[str, float]:
        counted = {key: float(len(set(record.tags))) for key, record in records.items()}
        if records and not any(counted.values()):
            raise UserError(
                f"none of {len(records):,} records has a tag; they are a list of different texts in the field 'tags': "
                "write them, or order by another difficulty"
            )
        return counted

    @property
    def name(self) -> str:
        return "tags"


@dataclass(frozen=True, kw_only=True)
class ModelLoss(OfModel):
    """Mean loss, in nats a token, of the replies under the model that the run starts from.

    Every trained token counts, ends of turns too, as in training. Source: the scoring function of Hacohen and Weinshall
    2019, "On the power of curriculum learning in training deep networks", with the run's first model in the
    place of another trained network.
    """

    passes: ClassVar[tuple[str, ...]] = (GIVEN,)

    def __call__(
        self, sums: Mapping[str, Float64[np.ndarray, " documents"]], num_trained: Int[np.ndarray, " documents"]
    ) -> Float64[np.ndarray, " documents"]:
        with np.errstate(divide="ignore", invalid="ignore"):
            return -sums[GIVEN] / num_trained

    @property
    def name(self) -> str:
        return "model loss"


@dataclass(frozen=True, kw_only=True)
class IFD(OfModel):
    """Instruction-following difficulty: the loss of the reply given the instruction over its loss without it.

        given    <user> What is 1+1 ? <eot> <assistant> 2 <eot>      loss of  2 <eot>
        alone                               <assistant> 2 <eot>      loss of  2 <eot>

    Near 0 the instruction decides the reply; 1 and more mean that it does not help, often because the two do not belong
    together. The paper leaves records above 1 out; here they are kept, come last, and are counted.

    Alone means after the template's opening of a reply, and after the begin of text where the conversation has one:
    the same tokens are scored both times. Each reply of a conversation stands alone, and their losses are summed.

    Source: Li et al. 2023, "From Quantity to Quality": the ratio of the two mean losses. Some other code
    takes the ratio of perplexities, which is above 1 for the same records but orders the others otherwise; and some
    puts the bare reply behind a begin of text, without an opening.
    """

    passes: ClassVar[tuple[str, ...]] = (GIVEN, ALONE)

    def __call__(
        self, sums: Mapping[str, Float64[np.ndarray, " documents"]], num_trained: Int[np.ndarray, " documents"]
    ) -> Float64[np.ndarray, " documents"]:
        del num_trained  # both are of the same tokens
        with np.errstate(divide="ignore", invalid="ignore"):
            return sums[GIVEN] / sums[ALONE]

    @property
    def name(self) -> str:
        return "IFD"


DIFFICULTIES: tuple[Difficulty, ...] = (Length(), Level(), Tags(), ModelLoss(), IFD())


def replies_alone(document: Encoded, *, opening: int, begin: int | None) -> list[Encoded]:
    """Each run of trained tokens as a document: after the `opening` tokens before it, and after `begin` where that id
    opens the document. At least one token stands before a reply, since the first of a document cannot be predicted."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], document.trained, [False]]).astype(np.int8)))
    found: list[Encoded] = []
    for start, stop in edges.reshape(-1, 2).tolist():
        first = max(start - max(opening, 1), 0)
        tokens, trained = document.tokens[first:stop], document.trained[first:stop].copy()
        trained[: start - first] = False  # the opening of a reply may overlap the end of the reply before
        if begin is not None and first > 0 and document.tokens[0] == begin:
            tokens = np.concatenate([document.tokens[:1], tokens])
            trained = np.concatenate([np.zeros(1, np.bool_), trained])
        found.append(Encoded(tokens=tokens, trained=trained))
    return found


def check_scores(scores: Mapping[str, float] | None, keys: Sequence[str], order: str) -> dict[str, float]:
    """The scores of these records, each a finite number; UserError where one is missing or is none."""
    if scores is None:
        raise UserError(f"the order {order!r} needs the difficulty of each record; pass scores= (see order_scores)")
    missing = [key for key in keys if key not in scores]
    if missing:
        raise UserError(
            f"the order {order!r} was given no difficulty of {len(missing):,} of {len(keys):,} records, such as "
            f"{min(missing)}; score all of them"
        )
    own = {key: float(scores[key]) for key in keys}
    bad = [key for key, score in own.items() if not np.isfinite(score)]
    if bad:
        raise UserError(
            f"the difficulty of {len(bad):,} of {len(keys):,} records is no finite number, such as {own[min(bad)]} of "
            f"{min(bad)}, so the order {order!r} cannot place them; leave them out (a reply without a token has no "
            "loss) or look at the model"
        )
    return own
