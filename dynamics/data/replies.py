"""A pair as one document: the prompt once, and after it each reply as a branch of its own.

    tokens    <user> ▁What ▁is ▁1+1 ? <eot> <assistant>   ▁2 <eot>   ▁3 ▁maybe <eot>
    branches    0      0     0    0 0   0        0         1   1      2     2     2
    trained     0      0     0    0 0   0        0         1   1      1     1     1

Branches: 0 the prompt, 1 the chosen reply, 2 the rejected one, 3 a reply to some other prompt (KTO's estimate of the
KL term needs it). A judgement of one reply has that branch alone.

The prompt is what the template writes before an answer is generated; a reply is what it writes after that when the
answer is there. Earlier answers stand in the prompt, and nothing of the prompt is trained on. What a template writes
after the end of an answer (ChatML's and Tulu's line break) is left out: nothing is trained on it, and no later token
sees it. TRL keeps it, and its log-probability of a reply counts it; the end token is counted here as there.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
from jaxtyping import Bool, Int32

from dynamics import config
from dynamics.data.packing import OverLong
from dynamics.data.template import Encoded, Template, encode
from dynamics.data.tokenizer import Tokenizer
from dynamics.errors import UserError
from dynamics.pair import Pair
from dynamics.record import Turn

PROMPT, CHOSEN, REJECTED, MISMATCHED = range(4)  # branches


@dataclass(frozen=True, kw_only=True)
class Replies:
    """How pairs are laid out in rows, and how long they may be. All lengths are in tokens.

    With `shared_prompt` a prompt is computed once for all its replies; without, once for each of them, which every
    attention kernel can do. What is longer meets the run's `over_long`: "error" refuses it, "drop" leaves the pair
    out, and "truncate" cuts

        a prompt of more than max_prompt tokens         from the left: the question at its end stays
        a reply beyond max_length - prompt              from the right
        the replies, where a row cannot hold them all   from the right, the longer reply first

    A reply that was cut has no end token. A pair of which a reply has no token left is dropped, and so is one whose
    replies are the same tokens, after cutting or as the template writes them: nothing can be preferred. Both are
    counted.

    What is cut off a prompt's left is whatever stands there: begin of text, system turn and the header of the first
    turn go before the question does, and nothing is put back. TRL has no limit of the prompt alone: it cuts prompt and
    reply together to max_length, from the right, or from the left with the deprecated `truncation_mode="keep_end"`,
    which loses the beginning in the same way.

    A reply to another prompt (KTO) decides nothing about a pair's own tokens: prompt, chosen and rejected are fitted as
    if it were not there. Then it is cut from the right, whatever `over_long` says, to max_length - prompt and to the
    room that the row has left; where no room is left the pair stays without it. Both are counted.
    """

    shared_prompt: bool = True
    max_prompt: int | None = None  # None: as long as it is
    max_length: int | None = None  # of the prompt and one reply; None: what a row holds

    def __post_init__(self) -> None:
        config.check_fields(self)
        if self.max_prompt is not None and self.max_prompt < 1:
            raise UserError(f"Replies(max_prompt={self.max_prompt}); give 1 token or more, or None for no limit")
        least = 1 + (self.max_prompt or 1)
        if self.max_length is not None and self.max_length < least:
            raise UserError(
                f"Replies(max_length={self.max_length}, max_prompt={self.max_prompt}) leaves no token of a reply; "
                f"give max_length={least} or more"
            )


@dataclass(frozen=True, kw_only=True, eq=False)
class Reply:
    """The ids of one reply; the first is predicted at the prompt's last position."""

    branch: int
    tokens: Int32[np.ndarray, " length"]
    trained: Bool[np.ndarray, " length"]

    def __len__(self) -> int:
        return len(self.tokens)

    def cut(self, length: int) -> "Reply":
        return Reply(branch=self.branch, tokens=self.tokens[:length], trained=self.trained[:length])


@dataclass(frozen=True, kw_only=True, eq=False)
class Branched:
    """A prompt and its replies as ids, in the order of their branches."""

    prompt: Int32[np.ndarray, " length"]
    replies: tuple[Reply, ...]

    def __len__(self) -> int:
        """Tokens with the prompt once."""
        return self.size(shared_prompt=True)

    def size(self, *, shared_prompt: bool) -> int:
        """Tokens that it takes of a row."""
        prompts = 1 if shared_prompt else len(self.replies)
        return prompts * len(self.prompt) + sum(map(len, self.replies))

    @property
    def longest(self) -> int:
        """Tokens of the prompt and its longest reply."""
        return len(self.prompt) + max(map(len, self.replies))

    def document(self) -> Encoded:
        """Prompt and replies one after another, as a store holds them."""
        prompt = np.zeros(len(self.prompt), dtype=np.bool_)
        branches = [np.full(len(self.prompt), PROMPT), *(np.full(len(one), one.branch) for one in self.replies)]
        return Encoded(
            tokens=np.concatenate([self.prompt, *(one.tokens for one in self.replies)]),
            trained=np.concatenate([prompt, *(one.trained for one in self.replies)]),
            branches=np.concatenate(branches).astype(np.int8),
        )


def encode_replies(template: Template, tokenizer: Tokenizer, pair: Pair, *, mismatched: str | None = None) -> Branched:
    """The ids of a pair under a template; `mismatched` is a reply to another prompt, for branch 3.

    Raises UserError for a template that writes a prompt otherwise when an answer follows: its replies would be
    branches of a prompt that they never had.
    """
    prompt = encode(template, tokenizer, pair.prompt, generate=True).tokens
    said = ((CHOSEN, pair.chosen), (REJECTED, pair.rejected), (MISMATCHED, mismatched))
    replies = tuple(
        _encode_reply(template, tokenizer, pair.prompt, prompt, branch, text)
        for branch, text in said
        if text is not None
    )
    return Branched(prompt=prompt, replies=replies)


def _encode_reply(
    template: Template,
    tokenizer: Tokenizer,
    turns: Sequence[Turn],
    prompt: Int32[np.ndarray, " length"],
    branch: int,
    text: str,
) -> Reply:
    whole = encode(template, tokenizer, (*turns, Turn(role="assistant", content=text)))
    if not np.array_equal(whole.tokens[: len(prompt)], prompt):
        raise UserError(
            f"template {template.name!r} writes this prompt otherwise when an answer follows it; replies need a "
            "template whose `opening` ends with what `write` puts before the answer"
        )
    trained = whole.trained[len(prompt) :]
    end = int(trained.nonzero()[0].max(initial=-1)) + 1
    return Reply(branch=branch, tokens=whole.tokens[len(prompt) :][:end], trained=trained[:end])


@dataclass(frozen=True, kw_only=True)
class ReplyCounts:
    """What a length policy did, in pairs."""

    kept: int = 0  # cut ones included
    truncated: int = 0
    prompts_cut: int = 0  # of the truncated, those whose prompt lost tokens
    replies_cut: int = 0  # of the truncated, those of which a reply lost tokens
    dropped: int = 0  # for being too long
    no_trained_token: int = 0  # dropped because no token of some reply was left
    same_replies: int = 0  # dropped because chosen and rejected are the same tokens, cut or from the start
    mismatches_cut: int = 0  # of the kept, those whose reply to another prompt was cut
    mismatches_left_out: int = 0  # of the kept, those whose row had no room for it

    def __add__(self, other: "ReplyCounts") -> "ReplyCounts":
        mine, theirs = asdict(self), asdict(other)
        return ReplyCounts(**{name: mine[name] + theirs[name] for name in mine})


def fit_replies(
    pair: Branched, replies: Replies, *, length: int, policy: OverLong, key: str = ""
) -> tuple[Branched | None, ReplyCounts]:
    """A pair that fits a row of `length` tokens (see `Replies`), None where there is none, and what was done."""
    own = Branched(prompt=pair.prompt, replies=tuple(one for one in pair.replies if one.branch != MISMATCHED))
    fitted, counts = _fit_own(own, replies, length=length, policy=policy, key=key)
    if fitted is None or len(own.replies) == len(pair.replies):
        return fitted, counts
    whole = pair.replies[-1]
    added = whole.cut(_room(fitted, replies, length))
    if not added.trained.any():
        return fitted, counts + ReplyCounts(mismatches_left_out=1)
    counts += ReplyCounts(mismatches_cut=int(len(added) < len(whole)))
    return Branched(prompt=fitted.prompt, replies=(*fitted.replies, added)), counts


def _fit_own(
    pair: Branched, replies: Replies, *, length: int, policy: OverLong, key: str
) -> tuple[Branched | None, ReplyCounts]:
    problem = _problem(pair, replies, length)
    if problem is not None and policy == "error":
        raise UserError(
            f"pair {key} has {problem}; use longer rows, larger limits, or the policy 'truncate' or 'drop', "
            "which count what they do"
        )
    if problem is not None and policy == "drop":
        return None, ReplyCounts(dropped=1)
    fitted = _cut(pair, replies, length) if problem is not None else pair
    if fitted is None or not all(one.trained.any() for one in fitted.replies):
        if policy == "error":
            raise UserError(
                f"pair {key} has a reply without a token to train on; leave it out or use the policy 'drop', "
                "which counts it"
            )
        return None, ReplyCounts(no_trained_token=1)
    if _same(fitted.replies):
        return None, ReplyCounts(same_replies=1)
    was = [len(one) for one in pair.replies]
    now = [len(one) for one in fitted.replies]
    return fitted, ReplyCounts(
        kept=1,
        truncated=int(problem is not None),
        prompts_cut=int(len(fitted.prompt) < len(pair.prompt)),
        replies_cut=int(now != was),
    )


def _same(replies: tuple[Reply, ...]) -> bool:
    return len(replies) == 2 and np.array_equal(replies[0].tokens, replies[1].tokens)


def _room(fitted: Branched, replies: Replies, length: int) -> int:
    """Tokens that a further reply may have; 0 for none."""
    own, prompt = fitted.size(shared_prompt=replies.shared_prompt), len(fitted.prompt)
    left = length - own - (0 if replies.shared_prompt else prompt)
    return max(0, min(left, (replies.max_length or length) - prompt))


def _problem(pair: Branched, replies: Replies, length: int) -> str | None:
    """What is too long, or None."""
    if replies.max_prompt is not None and len(pair.prompt) > replies.max_prompt:
        return f"a prompt of {len(pair.prompt)} tokens, max_prompt is {replies.max_prompt}"
    if replies.max_length is not None and pair.longest > replies.max_length:
        return f"{pair.longest} tokens with its longest reply, max_length is {replies.max_length}"
    size = pair.size(shared_prompt=replies.shared_prompt)
    if size > length:
        prompts = "its prompt once" if replies.shared_prompt else "its prompt before each reply"
        return f"{size} tokens with {prompts}, rows have {length}"
    return None


def _cut(pair: Branched, replies: Replies, length: int) -> Branched | None:
    """The pair cut to the limits; None where some reply would have no token."""
    prompt = pair.prompt if replies.max_prompt is None else pair.prompt[-replies.max_prompt :]
    one = min(length, replies.max_length or length) - len(prompt)
    room = length - (1 if replies.shared_prompt else len(pair.replies)) * len(prompt)
    if one < 1 or room < len(pair.replies):
        return None
    sizes = _levelled([min(len(reply), one) for reply in pair.replies], room)
    cut = tuple(reply.cut(size) for reply, size in zip(pair.replies, sizes, strict=True))
    return Branched(prompt=prompt, replies=cut)


def _levelled(sizes: list[int], room: int) -> list[int]:
    """Sizes with at most `room` in total: the largest gives first, down to the next, then both alike.

    Of equal sizes the last gives first, so that a chosen reply keeps the odd token.
    """
    total = sum(sizes)
    if total <= room:
        return sizes
    level = max(sizes)
    while sum(min(size, level) for size in sizes) > room:
        level -= 1
    spare = room - sum(min(size, level) for size in sizes)
    levelled = []
    for size in sizes:
        more = int(size > level and spare > 0)
        spare -= more
        levelled.append(min(size, level) + more)
    return levelled


def mismatched_replies(pairs: Sequence[Pair]) -> list[str | None]:
    """For each pair a reply of the next pair that has another prompt, cyclically; None where all prompts are one.

    Chosen and rejected by turns, or the one that there is. TRL takes the reply of the neighboring example of a batch,
    whatever its prompt: two judgements of one prompt beside each other then mismatch nothing.

    It is drawn once, when the store of all pairs is made: among the pairs of one part of that store (4,096 pairs,
    of any of its abilities), kept ones or not, and before a run takes its slice. So the reply to another
    prompt may be of a pair that the run does not train on, and it is the same one at every volume and in every epoch.

    Source: Ethayarajh et al. 2024, "KTO", section 4 (the estimate of z0).
    """
    next_other: int | None = None
    found: list[str | None] = [None] * len(pairs)
    # Twice round, from the end: the last pairs look at the first ones.
    for place in range(2 * len(pairs) - 1, -1, -1):
        here = place % len(pairs)
        after = (here + 1) % len(pairs)
        if pairs[after].prompt != pairs[here].prompt:
            next_other = after
        found[here] = None if next_other is None else _reply_of(pairs[next_other], rejected=here % 2 == 1)
    return found


def _reply_of(pair: Pair, *, rejected: bool) -> str | None:
    first, second = (pair.rejected, pair.chosen) if rejected else (pair.chosen, pair.rejected)
    return second if first is None else first
