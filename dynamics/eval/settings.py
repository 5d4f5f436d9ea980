"""How an evaluation is done. Apart from the code that does it, so that reading a config loads no model code."""

from dataclasses import dataclass
from typing import Literal

from dynamics.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """How items are put to a model and how it is batched.

    `choice`: "likelihood" takes the most likely option letter where the answer begins; "generation" is the published
    protocol, which reads the letter from a greedy answer and falls back to the letters' logits at its last step.
    `ties`: among equally likely answers with the gold, "share" gives 1 / their number, which is what breaking the tie
    by chance would give on average; "correct" gives 1, as the published scorer does for perplexities.
    `max_length`: tokens of a text that is scored, or of a prompt and its answer. `over_long` says what becomes of an
    item that needs more: "zero" does not ask it, gives it 0 and counts it as too long; "truncate" does as the
    published code, cutting texts that are scored on the right (counted as truncated) and letting answers run past
    `max_length`; an item whose prompt alone takes it up is too long there too.
    `rules`: "ours", or "published" to read and judge answers as the published code does, its errors included
    (dynamics/eval/published.py lists them); with PUBLISHED every setting is as published.

    `batch_tokens` and `batch_size` are among the best on one CPU core at 0.2m (of 1,024 to 8,192 and of 16 to 256);
    accelerators and large models want more.
    """

    choice: Literal["likelihood", "generation"] = "likelihood"
    ties: Literal["share", "correct"] = "share"
    rules: Literal["ours", "published"] = "ours"
    over_long: Literal["zero", "truncate"] = "zero"
    max_new_tokens: int = 48  # of a generated answer; one that goes on is counted as truncated
    max_length: int = 2048  # tokens of prompt and answer
    row_length: int = 128  # tokens of a packed row; longer texts go to rows of twice, four times ... the length
    batch_tokens: int = 2048  # positions of a scoring batch
    batch_size: int = 32  # prompts answered at a time

    def __post_init__(self) -> None:
        words = {
            "choice": ("likelihood", "generation"),
            "ties": ("share", "correct"),
            "rules": ("ours", "published"),
            "over_long": ("zero", "truncate"),
        }
        for field, allowed in words.items():
            if getattr(self, field) not in allowed:
                raise UserError(f"evaluation: {field} is {getattr(self, field)!r}; allowed: {', '.join(allowed)}")
        for field in ("max_new_tokens", "max_length", "row_length", "batch_tokens", "batch_size"):
            if getattr(self, field) < 1:
                raise UserError(f"evaluation: {field} is {getattr(self, field)}; give a whole number >= 1")
        if self.row_length > self.max_length:
            raise UserError(
                f"evaluation: row_length is {self.row_length} and max_length {self.max_length}; "
                "rows hold at most one text of max_length, so lower row_length or raise max_length"
            )


# DoIT's own test. Its batches are of one; here only the memory they take depends on that.
PUBLISHED = Evaluation(
    choice="generation", ties="correct", rules="published", over_long="truncate", max_new_tokens=1024, max_length=2048
)
