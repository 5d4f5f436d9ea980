"""Laws of pairs as documents: replies are what the template writes after the prompt, and every cut is counted."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.small_tokenizers import small
from dynamics.config import from_json, to_json
from dynamics.data.encoding import Item, PairItems, PairReplies
from dynamics.data.preparation import prepare
from dynamics.data.replies import (
    Branched,
    Replies,
    Reply,
    ReplyCounts,
    encode_replies,
    fit_replies,
    mismatched_replies,
)
from dynamics.data.sources import LoadedPairs, Source
from dynamics.data.store import TokenStore
from dynamics.data.template import CHATML, DOIT, TEMPLATES, Encoded, Piece, Template, encode, tokenizer_specials
from dynamics.data.tokenizer import SPECIALS
from dynamics.errors import UserError
from dynamics.pair import Pair
from dynamics.record import Turn

ALL_SPECIALS = (*SPECIALS, *dict.fromkeys(name for t in TEMPLATES for name in t.specials if name[1] == "|"))
PROMPT = (
    Turn(role="user", content="the quick brown fox"),
    Turn(role="assistant", content="jumps over"),
    Turn(role="user", content=" 12 + 34 = ?\n"),
)


def pair(number: int = 0, *, chosen: str | None = "46.", rejected: str | None = "Answer: A\nlazy dog") -> Pair:
    prompt = (Turn(role="user", content=f"question {number} " + "fox " * (number % 5)),)
    return Pair(prompt=prompt, chosen=chosen, rejected=rejected)


@pytest.mark.parametrize("kind", ["sentencepiece", "bytes of llama 3"])
@pytest.mark.parametrize("template", TEMPLATES, ids=lambda template: template.name)
def test_a_branch_is_what_the_template_writes_after_the_prompt(template, kind):
    tokenizer = small(kind, ALL_SPECIALS)
    replies = {"chosen": "46. 你好", "rejected": "", "mismatched": " def area(width):\n    return 12"}
    encoded = encode_replies(
        template,
        tokenizer,
        Pair(prompt=PROMPT, chosen=replies["chosen"], rejected=replies["rejected"]),
        mismatched=replies["mismatched"],
    )
    prompt = encode(template, tokenizer, PROMPT, generate=True).tokens.tolist()
    assert encoded.prompt.tolist() == prompt
    assert [reply.branch for reply in encoded.replies] == [1, 2, 3]
    for text, reply in zip(replies.values(), encoded.replies, strict=True):
        whole = encode(template, tokenizer, [*PROMPT, Turn(role="assistant", content=text)])
        tail = whole.trained[len(prompt) :]
        assert [*prompt, *reply.tokens.tolist()] == whole.tokens[: len(prompt) + len(reply)].tolist()
        assert reply.trained.tolist() == tail[: len(reply)].tolist()
        assert reply.trained.all(), "a reply is trained on whole, and only"
        assert reply.tokens[-1] == tokenizer.special_id(template.stop), "the end is learned, told by its place"
        assert not tail[len(reply) :].any(), "what is left out after the end is not trained on"


def test_a_document_is_the_prompt_and_its_replies_with_the_prompt_untrained():
    encoded = encode_replies(
        DOIT, small("bytes", tokenizer_specials(DOIT)), Pair(prompt=PROMPT, chosen="a", rejected="b")
    )
    document = encoded.document()
    num = len(encoded.prompt)
    assert document.branches is not None
    assert document.branches.tolist() == [0] * num + [1] * 2 + [2] * 2
    assert document.trained.tolist() == [False] * num + [True] * 4, "nor is an earlier answer"
    assert document.num_trained == 4
    assert len(document) == len(encoded) == encoded.size(shared_prompt=True) == encoded.size(shared_prompt=False) - num


@pytest.mark.parametrize(("given", "branch"), [({"rejected": None}, 1), ({"chosen": None}, 2)])
def test_a_judgement_has_one_branch(given, branch):
    encoded = encode_replies(DOIT, small("bytes", tokenizer_specials(DOIT)), pair(**given))
    assert [reply.branch for reply in encoded.replies] == [branch]


@dataclass(frozen=True, kw_only=True)
class Counting(Template):
    """Writes how many turns there are, so that an answer changes what stands before it."""

    name: str = "counting"
    stop: str = "<eot>"
    specials: tuple[str, ...] = ("<eot>",)

    def write(self, messages: Sequence[Turn]) -> Iterator[Piece]:
        yield Piece(text=f"{len(messages)} turns", role="system", trained=False)
        for turn in messages:
            yield Piece(text=turn.content, role=turn.role, trained=turn.role == "assistant")

    def opening(self) -> list[Piece]:
        return []


def test_a_template_that_writes_the_prompt_otherwise_is_refused_with_the_pair():
    tokenizer = small("bytes", tokenizer_specials(DOIT))
    with pytest.raises(UserError, match="template 'counting' writes this prompt otherwise when an answer follows it"):
        encode_replies(Counting(), tokenizer, pair())
    work = PairReplies(length=64, template=Counting(), replies=Replies(), over_long="drop")
    with pytest.raises(UserError, match=r"^pair a/1 of there: template 'counting' writes this prompt otherwise"):
        work(tokenizer, [Item(ability="a", key="a/1", content=pair(), place="there")])


# ---- lengths


def branched(prompt: int, *replies: int) -> Branched:
    made = [
        Reply(branch=branch, tokens=np.arange(size, dtype=np.int32) + 100 * branch, trained=np.ones(size, np.bool_))
        for branch, size in enumerate(replies, 1)
    ]
    return Branched(prompt=np.arange(prompt, dtype=np.int32), replies=tuple(made))


def slow_cut(pair: Branched, replies: Replies, length: int) -> tuple[int, list[int]]:
    """Sizes of prompt and replies by taking away one token after another."""
    prompt, sizes = len(pair.prompt), [len(reply) for reply in pair.replies]
    while replies.max_prompt is not None and prompt > replies.max_prompt:
        prompt -= 1
    for index in range(len(sizes)):
        while sizes[index] > 0 and prompt + sizes[index] > min(replies.max_length or length, length):
            sizes[index] -= 1
    prompts = prompt * (1 if replies.shared_prompt else len(sizes))
    while sum(sizes) > 0 and prompts + sum(sizes) > length:
        last_of_longest = max(range(len(sizes)), key=lambda index: (sizes[index], index))
        sizes[last_of_longest] -= 1
    return prompt, sizes


@given(
    prompt=st.integers(1, 20),
    sizes=st.lists(st.integers(1, 20), min_size=1, max_size=2),
    max_prompt=st.none() | st.integers(1, 12),
    more=st.none() | st.integers(1, 15),
    shared_prompt=st.booleans(),
    length=st.integers(2, 40),
)
def test_cutting_takes_the_prompt_from_the_left_and_the_longer_reply_first(
    prompt, sizes, max_prompt, more, shared_prompt, length
):
    replies = Replies(
        shared_prompt=shared_prompt,
        max_prompt=max_prompt,
        max_length=None if more is None else (max_prompt or 1) + more,
    )
    given_pair = branched(prompt, *sizes)
    fitted, counts = fit_replies(given_pair, replies, length=length, policy="truncate")
    expected_prompt, expected = slow_cut(given_pair, replies, length)
    if min(expected) == 0:
        assert fitted is None
        assert counts == ReplyCounts(no_trained_token=1)
        return
    assert fitted is not None
    assert fitted.prompt.tolist() == given_pair.prompt[-expected_prompt:].tolist()
    for reply, whole, size in zip(fitted.replies, given_pair.replies, expected, strict=True):
        assert reply.tokens.tolist() == whole.tokens[:size].tolist()
    assert fitted.size(shared_prompt=shared_prompt) <= length
    changed = (expected_prompt < prompt, expected != sizes)
    assert counts == ReplyCounts(kept=1, truncated=any(changed), prompts_cut=changed[0], replies_cut=changed[1])
    dropped, counts = fit_replies(given_pair, replies, length=length, policy="drop")
    assert (dropped is None) == any(changed)
    assert counts == (ReplyCounts(dropped=1) if any(changed) else ReplyCounts(kept=1))


@given(
    prompt=st.integers(1, 12),
    sizes=st.lists(st.integers(1, 12), min_size=2, max_size=2),
    other=st.integers(1, 30),
    limits=st.tuples(st.none() | st.integers(1, 8), st.none() | st.integers(1, 8)),
    shared_prompt=st.booleans(),
    length=st.integers(2, 40),
    policy=st.sampled_from(["error", "drop", "truncate"]),
)
def test_a_reply_to_another_prompt_decides_nothing_about_the_pairs_own_tokens(
    prompt, sizes, other, limits, shared_prompt, length, policy
):
    max_prompt, more = limits
    most = None if more is None else (max_prompt or 1) + more
    replies = Replies(shared_prompt=shared_prompt, max_prompt=max_prompt, max_length=most)
    own, whole = branched(prompt, *sizes), branched(prompt, *sizes, other)
    try:
        without, counts = fit_replies(own, replies, length=length, policy=policy)
    except UserError as refused:
        with pytest.raises(UserError, match=re.escape(str(refused))):
            fit_replies(whole, replies, length=length, policy=policy)
        return
    fitted, told = fit_replies(whole, replies, length=length, policy=policy)
    if without is None:
        assert (fitted, told) == (None, counts)
        return
    assert fitted is not None
    mine, theirs = fitted.document(), without.document()
    for name in ("tokens", "trained", "branches"):
        assert getattr(mine, name)[: len(theirs)].tolist() == getattr(theirs, name).tolist()
    assert fitted.size(shared_prompt=shared_prompt) <= length
    # As long as the limits and the row allow, token by token.
    added, kept = len(fitted) - len(without), len(without.prompt)
    longer = min(added + 1, other)
    taken = without.size(shared_prompt=shared_prompt) + longer + (0 if shared_prompt else kept)
    assert added == other or taken > length or kept + longer > (most or length)
    assert fitted.longest <= min(length, most or length)
    expected = ReplyCounts(mismatches_cut=0 < added < other, mismatches_left_out=added == 0)
    assert told == counts + expected


def test_replies_that_are_the_same_tokens_are_dropped_and_counted():
    def of(*rests: int) -> Branched:
        made = [
            Reply(branch=branch, tokens=np.array([7, 8, 9, rest], np.int32), trained=np.ones(4, np.bool_))
            for branch, rest in enumerate(rests, 1)
        ]
        return Branched(prompt=np.arange(2, dtype=np.int32), replies=tuple(made))

    same = (None, ReplyCounts(same_replies=1))
    assert fit_replies(of(1, 2), Replies(max_length=5), length=20, policy="truncate") == same
    assert fit_replies(of(1, 2, 3), Replies(max_length=5), length=20, policy="truncate") == same
    assert fit_replies(of(1, 1), Replies(), length=20, policy="drop") == same
    assert fit_replies(of(1, 2, 1), Replies(), length=20, policy="drop")[1] == ReplyCounts(kept=1)
    assert fit_replies(of(1, 2), Replies(), length=20, policy="error")[1] == ReplyCounts(kept=1)
    assert fit_replies(of(1, 1), Replies(), length=20, policy="error") == same


@pytest.mark.parametrize(
    ("replies", "policy", "message"),
    [
        (Replies(max_prompt=4), "error", "pair a has a prompt of 5 tokens, max_prompt is 4; use longer rows"),
        (Replies(max_length=9), "error", "pair a has 11 tokens with its longest reply, max_length is 9"),
        (Replies(), "error", "pair a has 13 tokens with its prompt once, rows have 12; use longer rows"),
        (Replies(shared_prompt=False), "error", "has 18 tokens with its prompt before each reply, rows have 12"),
    ],
)
def test_what_is_too_long_is_told(replies, policy, message):
    with pytest.raises(UserError, match=message):
        fit_replies(branched(5, 6, 2), replies, length=12, policy=policy, key="a")


def test_a_reply_without_a_trained_token_is_never_kept():
    nothing = Reply(branch=1, tokens=np.zeros(2, np.int32), trained=np.zeros(2, np.bool_))
    empty = Branched(prompt=np.zeros(3, np.int32), replies=(nothing,))
    assert fit_replies(empty, Replies(), length=9, policy="drop") == (None, ReplyCounts(no_trained_token=1))
    with pytest.raises(UserError, match="pair b has a reply without a token to train on"):
        fit_replies(empty, Replies(), length=9, policy="error", key="b")


def test_settings_survive_json_and_refuse_limits_that_leave_no_reply():
    settings = Replies(shared_prompt=False, max_prompt=8, max_length=20)
    assert from_json(to_json(settings)) == settings
    with pytest.raises(UserError, match="leaves no token of a reply; give max_length=9 or more"):
        Replies(max_prompt=8, max_length=8)
    with pytest.raises(UserError, match=r"max_prompt=0\); give 1 token or more"):
        Replies(max_prompt=0)


# ---- replies to other prompts


@given(prompts=st.lists(st.integers(0, 2), max_size=8), sides=st.lists(st.integers(0, 2), min_size=8, max_size=8))
def test_a_mismatched_reply_is_of_the_next_pair_with_another_prompt(prompts, sides):
    pairs = [
        pair(prompt, chosen=None if side == 1 else f"yes {index}", rejected=None if side == 2 else f"no {index}")
        for index, (prompt, side) in enumerate(zip(prompts, sides, strict=False))
    ]
    expected: list[str | None] = []
    for index, one in enumerate(pairs):
        others = [other for other in (*pairs[index + 1 :], *pairs[:index]) if other.prompt != one.prompt]
        wanted = [(other.chosen, other.rejected)[:: -1 if index % 2 else 1] for other in others[:1]]
        expected.append(next((text for both in wanted for text in both if text is not None), None))
    assert mismatched_replies(pairs) == expected


# ---- stores


@dataclass(frozen=True, kw_only=True)
class Asked(Source):
    """Twenty pairs of two abilities, every fourth a judgement, every seventh too long for a row."""

    name: str = "asked"

    def paired(self) -> tuple[str, ...]:
        return ("code", "math")

    def pairs(self, ability: str, split: str) -> LoadedPairs:
        made = [
            pair(
                number,
                chosen=None if number % 8 == 3 else f"{ability} {split} good " + "dog " * (30 * (number % 7 == 6)),
                rejected=None if number % 8 == 7 else "bad " * (number % 3),
            )
            for number in range(10)
        ]
        return LoadedPairs(pairs=tuple(made), rejected=())


def test_items_are_the_pairs_of_a_split_by_ability():
    items = PairItems(Asked(), "valid")
    listed = list(items)
    assert [item.ability for item in listed] == ["code"] * 10 + ["math"] * 10
    assert listed[0].key == f"code/{listed[0].content.id}"
    assert "valid" in listed[0].content.chosen
    assert listed[3].size == len(listed[3].content.prompt[0].content) + len(listed[3].content.rejected)
    assert items.notes() == {"code": {"rejected": 0}, "math": {"rejected": 0}}


def made(folder: Path, *, workers: int, mismatched: bool, per_part: int = 6) -> TokenStore:
    items = PairItems(Asked(), "train")
    work = PairReplies(
        length=90, template=CHATML, replies=Replies(max_prompt=24), over_long="truncate", mismatched=mismatched
    )
    tokenizer = small("bytes", tokenizer_specials(CHATML))
    prepare(
        folder, items, work, tokenizer=tokenizer, manifest={}, workers=workers, small=0, items_per_part=per_part,
        notes=items.notes,
    )  # fmt: skip
    return TokenStore.open(folder, in_memory=0 if workers == 1 else 1 << 30)


def test_any_number_of_workers_writes_the_same_pairs(tmp_path):
    for mismatched in (False, True):
        stores = [
            made(tmp_path / f"{mismatched} {workers}", workers=workers, mismatched=mismatched) for workers in (1, 2)
        ]
        first, second = ({path.name: path.read_bytes() for path in store.folder.iterdir()} for store in stores)
        assert first == second
        assert stores[0].branch_lengths.tolist() == stores[1].branch_lengths.tolist()
        assert stores[0].branch_lengths[:, 3].any() == mismatched


@pytest.mark.parametrize("over_long", ["drop", "truncate"])
def test_pairs_and_their_tokens_are_the_same_with_replies_to_other_prompts(over_long):
    items, tokenizer = list(PairItems(Asked(), "train")), small("bytes", tokenizer_specials(CHATML))
    kept, told = [], []
    for mismatched in (False, True):
        work = PairReplies(
            length=90, template=CHATML, replies=Replies(max_prompt=30), over_long=over_long, mismatched=mismatched
        )
        documents, counts = work(tokenizer, items)
        kept.append(
            [
                (one.key, one.encoded.tokens[one.encoded.branches < 3].tolist(), one.uncut > len(one.encoded))
                for one in documents
            ]
        )
        told.append(counts)
    assert kept[0] == kept[1]
    differ = {name for of in told[0] for name in told[0][of] if told[0][of][name] != told[1][of][name]}
    assert differ <= {"tokens", "trained", "no_mismatch", "mismatches_cut", "mismatches_left_out"}
    for counts in told[1].values():
        assert counts["no_mismatch"] == counts["mismatches_left_out"]


def test_a_store_holds_the_pairs_as_encoded_and_its_notes_count_them(tmp_path):
    store = made(tmp_path / "store", workers=1, mismatched=True)
    tokenizer = small("bytes", tokenizer_specials(CHATML))
    items = list(PairItems(Asked(), "train"))
    assert store.keys == [item.key for item in items]
    for index, item in enumerate(items):
        part = [one.content for one in items if items.index(one) // 6 == index // 6]
        whole = encode_replies(CHATML, tokenizer, item.content, mismatched=mismatched_replies(part)[index % 6])
        fitted, _ = fit_replies(whole, Replies(max_prompt=24), length=90, policy="truncate")
        assert fitted is not None
        wanted, found = fitted.document(), store.document(index)
        for name in ("tokens", "trained", "branches"):
            assert getattr(found, name).tolist() == getattr(wanted, name).tolist()
        assert store.branch_lengths[index].tolist() == np.bincount(wanted.branches, minlength=8).tolist()
        own = len(encode_replies(CHATML, tokenizer, item.content))
        lost = own - int((wanted.branches < 3).sum())
        assert (store.num_uncut[index], store.num_trained[index]) == (len(wanted) + lost, wanted.num_trained)
    for ability in ("code", "math"):
        told = store.notes["abilities"][ability]
        mine = [index for index, item in enumerate(items) if item.ability == ability]
        cut = int((store.num_uncut > store.num_tokens)[mine].sum())
        assert told["truncated"] == cut > 0 < told["prompts_cut"]
        assert 0 < told["replies_cut"] <= cut
        alone = int((store.branch_lengths[mine, 3] == 0).sum())
        assert (told["records"], told["kept"], told["judgements"], told["no_mismatch"]) == (10, 10, 2, alone)
        assert told["tokens"] == int(store.num_tokens[mine].sum())


def test_a_lone_pair_has_no_reply_to_another_prompt_and_that_is_counted():
    work = PairReplies(length=64, template=DOIT, replies=Replies(), over_long="error", mismatched=True)
    tokenizer = small("bytes", tokenizer_specials(DOIT))
    (document,), counts = work(tokenizer, [Item(ability="a", key="a/1", content=pair())])
    assert document.encoded.branches is not None
    assert document.encoded.branches.max() == 2
    assert counts["a"]["no_mismatch"] == 1


def test_ids_that_the_bits_of_a_branch_would_overlay_are_refused(tmp_path):
    large = Encoded(tokens=np.array([1, 1 << 28], np.int32), trained=np.ones(2, np.bool_))
    with pytest.raises(UserError, match="document a has the id 268435456; a token store holds ids from 0 to 268435455"):
        TokenStore.build(tmp_path / "store", [("a", large)], manifest={})


def test_branches_are_beside_the_ids_and_change_nothing_that_was_read_before(tmp_path):
    tokens, trained = np.array([5, (1 << 28) - 1, 7], np.int32), np.array([False, True, True])
    branches = np.array([0, 7, 2], np.int8)
    documents = [
        ("plain", Encoded(tokens=tokens, trained=trained)),
        ("branched", Encoded(tokens=tokens, trained=trained, branches=branches)),
    ]
    store = TokenStore.build(tmp_path / "store", documents, manifest={})
    both = np.array([1, 0])
    assert [one.tolist() for one in store.read(both)] == [tokens.tolist() * 2, trained.tolist() * 2]
    assert store.read_branches(both).tolist() == [0, 7, 2, 0, 0, 0]
    assert store.document(0).branches is None
    assert store.document(1).branches.tolist() == branches.tolist()
