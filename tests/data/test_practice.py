"""Laws of the practice set: records are addressed, splits are disjoint, labels are balanced, no shortcut."""

import dataclasses
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest

from dynamics.ability import item_of, question_options
from dynamics.config import from_json, to_json
from dynamics.data.practice import Practice
from dynamics.data.practice.design import DESIGN
from dynamics.data.practice.source import split_of
from dynamics.data.practice.world import PERSONAS, world
from dynamics.data.template import DOIT, encode
from dynamics.data.tokenizer import Tokenizer, train_tokenizer
from dynamics.errors import UserError
from dynamics.record import ABILITY_NAMES, parse_record

SMALL = Practice(pool=512, corpus_documents=4000)
KINDS = {
    "biology": {"choice"},
    "history": {"choice", "true_false"},
    "code": {"perplexity"},
    "creative_writing": {"perplexity"},
    "chinese": {"choice", "cloze"},
    "understanding": {"choice"},
    "role_play": {"perplexity"},
    "reasoning": {"choice"},
    "math": {"numeric"},
    "ethics": {"multi"},
}


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(SMALL.tokenizer_texts(), vocab_size=1024)


@pytest.mark.parametrize("ability", ABILITY_NAMES)
def test_the_same_settings_give_the_same_records(ability):
    again = dataclasses.replace(SMALL)
    for split in ("train", "valid", "test"):
        assert SMALL.load(ability, split) == again.load(ability, split)


def test_records_are_the_same_in_another_process():
    code = (
        "from dynamics.data.practice import Practice; import hashlib\n"
        "p = Practice(pool=20, corpus_documents=20)\n"
        "ids = [r.id for a in p.abilities() for r in p.load(a, 'train').records]\n"
        "print(hashlib.sha256(repr((ids, list(p.corpus()))).encode()).hexdigest())"
    )
    prints = {
        subprocess.run(
            [sys.executable, "-c", code], env={"PYTHONHASHSEED": seed}, capture_output=True, text=True, check=True
        ).stdout
        for seed in ("1", "2")
    }
    assert len(prints) == 1


@pytest.mark.parametrize("ability", ABILITY_NAMES)
def test_a_larger_pool_begins_with_the_smaller_one(ability):
    smaller = dataclasses.replace(SMALL, pool=100, num_test=10)
    assert SMALL.load(ability, "train").records[:100] == smaller.load(ability, "train").records
    assert SMALL.load(ability, "test").records[:10] == smaller.load(ability, "test").records


def test_another_seed_gives_other_records_and_another_fingerprint():
    other = dataclasses.replace(SMALL, seed=1)
    assert other.fingerprint() != SMALL.fingerprint()
    for ability in ABILITY_NAMES:
        ours, theirs = ({r.id for r in source.load(ability, "test").records} for source in (SMALL, other))
        assert len(ours & theirs) <= 10, ability


def test_every_setting_changes_the_fingerprint():
    for field in dataclasses.fields(SMALL):
        value = getattr(SMALL, field.name)
        changed = dataclasses.replace(SMALL, **{field.name: value + 1 if isinstance(value, int) else value + "x"})
        assert changed.fingerprint() != SMALL.fingerprint(), field.name


def test_settings_survive_json():
    assert from_json(to_json(SMALL)) == SMALL


@pytest.mark.parametrize("ability", ABILITY_NAMES)
def test_splits_share_no_question(ability):
    """What is asked (the last prompt, every earlier turn included) stands in one split only; wordings do not help."""
    prompts = {
        split: {tuple(turn.content for turn in r.messages[:-1]) for r in SMALL.load(ability, split).records}
        for split in ("train", "valid", "test")
    }
    assert not prompts["train"] & prompts["valid"]
    assert not prompts["train"] & prompts["test"]
    assert not prompts["valid"] & prompts["test"]


def test_the_split_of_a_question_is_a_partition_with_the_stated_shares():
    splits = Counter(split_of(0, "math", f"question {i}") for i in range(20_000))
    assert splits["valid"] / 20_000 == pytest.approx(0.15, abs=0.02)
    assert splits["test"] / 20_000 == pytest.approx(0.15, abs=0.02)
    assert splits["train"] / 20_000 == pytest.approx(0.70, abs=0.02)


@pytest.mark.parametrize("ability", ABILITY_NAMES)
def test_no_record_occurs_twice(ability):
    for split in ("train", "valid", "test"):
        ids = [record.id for record in SMALL.load(ability, split).records]
        assert len(ids) == len(set(ids))


@pytest.mark.parametrize("ability", ABILITY_NAMES)
def test_repeated_draws_are_few_and_counted(ability):
    assert 0 <= SMALL.repeats(ability, "train") <= SMALL.pool


@pytest.mark.parametrize("ability", ABILITY_NAMES)
def test_every_record_passes_the_parser_unchanged(ability):
    for split in ("train", "valid", "test"):
        for record in SMALL.load(ability, split).records:
            parsed = parse_record(record.to_dict(), where="practice")
            assert dataclasses.replace(parsed, idx=record.idx) == record


@pytest.mark.parametrize("ability", ABILITY_NAMES)
def test_items_are_asked_as_in_the_paper(ability):
    items = [item_of(record) for split in ("valid", "test") for record in SMALL.load(ability, split).records]
    assert {item.kind for item in items} == KINDS[ability]
    assert len(items) == 200


def test_three_way_and_four_way_talks_have_their_chance_level():
    chances = Counter(item_of(r).chance for r in SMALL.load("understanding", "test").records)
    assert set(chances) == {1 / 3, 1 / 4}
    assert min(chances.values()) >= 45


@pytest.mark.parametrize("ability", ABILITY_NAMES)
def test_no_constant_answer_beats_chance(ability):
    """Always the same letter, side or text: within three standard deviations of the chance of 200 items."""
    items = [item_of(r) for split in ("valid", "test") for r in SMALL.load(ability, split).records]
    for kind in {item.kind for item in items} - {"perplexity"}:
        ours = [item for item in items if item.kind == kind]
        most = Counter(item.reference for item in ours).most_common(1)[0][1] / len(ours)
        # A blank has no options, yet sixteen words are all the answers there are, some of them to several words.
        # Answers to sums are few as well.
        chance = 0.1 if kind in ("cloze", "numeric") else np.mean([item.chance for item in ours])
        assert most <= chance + 3 * np.sqrt(chance * (1 - chance) / len(ours)), (kind, most)


@pytest.mark.parametrize("ability", ["code", "creative_writing", "role_play"])
def test_gold_is_not_told_by_its_length(ability, tokenizer):
    """The shortest (or longest) of three choices is the gold about as often as chance; ties count a share."""
    hits = {min: 0.0, max: 0.0}
    records = [r for split in ("valid", "test") for r in SMALL.load(ability, split).records]
    for record in records:
        lengths = [len(tokenizer.encode(choice)) for choice in record.choices]
        for extreme in hits:
            best = extreme(lengths)
            hits[extreme] += (lengths[0] == best) / lengths.count(best)
    for extreme, count in hits.items():
        assert count / len(records) == pytest.approx(1 / 3, abs=0.11), extreme.__name__


def test_letters_of_the_first_question_say_nothing_of_the_second():
    pairs = Counter(
        (r.messages[1].content, r.messages[3].content) for r in SMALL.load("understanding", "train").records
    )
    for letter in "ABC":
        one, other = pairs["A", letter], pairs["B", letter]
        assert abs(one - other) <= 4 * np.sqrt(one + other)


def comment_holds(program: str) -> bool:
    """Whether the value that a line of code assigns is the one that its comment states."""
    names: dict[str, object] = {}
    exec(program, {}, names)
    return list(names.values()) == [int(program.rsplit("=", 1)[1])]


def test_multi_turn_records_chinese_text_code_and_worked_sums_are_there():
    first = {ability: SMALL.load(ability, "train").records[0] for ability in ABILITY_NAMES}
    assert len(first["understanding"].messages) == len(first["role_play"].messages) == 4
    assert any("\u4e00" <= letter <= "\u9fff" for letter in first["chinese"].messages[0].content)
    for record in SMALL.load("code", "train").records[:50]:
        assert [comment_holds(choice) for choice in record.choices] == [True, False, True]
    for record in SMALL.load("math", "train").records[:50]:
        for step in record.messages[-1].content.split(", "):
            left, right = step.split("=")
            assert eval(left) == int(right)
        assert record.answer == record.messages[-1].content.rsplit("=", 1)[1]


def test_records_are_short(tokenizer):
    lengths = {
        ability: [len(encode(DOIT, tokenizer, r.messages).tokens) for r in SMALL.load(ability, "train").records]
        for ability in ABILITY_NAMES
    }
    assert np.mean([np.mean(of) for of in lengths.values()]) <= 32
    assert max(max(of) for of in lengths.values()) <= 64
    assert max(len(tokenizer.encode(text)) for text in SMALL.corpus()) <= 64


def test_letters_are_pieces_of_their_own(tokenizer):
    for letter in "ABCDTF":
        assert len(tokenizer.encode(letter)) == 1
        assert tokenizer.encode(f"x {letter}. y")[1:].count(tokenizer.letter_id(letter)) == 1


def test_the_vocabulary_covers_the_text(tokenizer):
    """Few byte pieces: characters without a piece of their own cost three tokens."""
    ids = [id for r in SMALL.load("chinese", "test").records for t in r.messages for id in tokenizer.encode(t.content)]
    assert len(ids) / 100 < 40


def test_the_corpus_holds_no_question_of_valid_or_test():
    texts = " \n ".join(Practice(corpus_documents=20_000).corpus())
    for ability in ABILITY_NAMES:
        for split in ("valid", "test"):
            for record in SMALL.load(ability, split).records:
                assert not all(turn.content in texts for turn in record.messages[:-1]), record.messages


def test_the_corpus_tells_no_fact_that_records_are_to_teach():
    here = world(0)
    texts = list(Practice(corpus_documents=20_000).corpus())
    for text in texts:
        assert "*" not in text or "=" not in text
        told = [name for name in (*here.wild_creatures, *here.dark_kings) if name in text]
        if told:
            assert not any(
                word in text for word in ("beast", "bird", "fish", "insect", "stone", "bronze", "iron", "gold")
            )
        assert not any(saying in text for saying in here.saying.values())


def test_unknown_names_and_impossible_counts_are_refused():
    with pytest.raises(UserError, match="no ability 'maths'; known: biology"):
        SMALL.load("maths", "train")
    with pytest.raises(UserError, match="no split 'dev'; allowed: train, valid, test"):
        SMALL.load("math", "dev")
    with pytest.raises(UserError, match="pool=0"):
        Practice(pool=0)
    with pytest.raises(UserError, match="ask for at most"):
        Practice(num_test=5_000).load("biology", "test")


def test_options_are_marked_so_that_they_are_found():
    for ability in ("biology", "reasoning", "ethics"):
        for record in SMALL.load(ability, "test").records:
            assert question_options(record.messages[-2].content) == tuple("ABCD")


def test_the_design_states_chance_as_the_items_have_it():
    assert tuple(DESIGN) == ABILITY_NAMES
    for ability, expected in DESIGN.items():
        items = [item_of(r) for split in ("valid", "test") for r in SMALL.load(ability, split).records]
        assert expected.chance == pytest.approx(np.mean([item.chance for item in items]), abs=0.01), ability


def test_the_design_counts_the_facts_of_the_world():
    for seed in (0, 1):
        here = world(seed)
        assert DESIGN["biology"].num_facts == len(here.wild_creatures)
        assert DESIGN["history"].num_facts == len(here.dark_kings)
        assert DESIGN["role_play"].num_facts == len(PERSONAS) == len(set(here.saying.values()))
    pool = Practice(pool=2048).load("code", "train").records
    assert len({record.messages[-1].content.split()[-1].split("=")[0] for record in pool}) == DESIGN["code"].num_facts


@pytest.mark.parametrize("ability", ["biology", "role_play"])
def test_facts_told_grow_as_the_coverage_formula_says(ability):
    """The share of the facts that the first v records tell, against 1 - (1 - 1/F)^(v k)."""
    here, records = world(0), SMALL.load(ability, "train").records
    names = here.wild_creatures if ability == "biology" else PERSONAS
    for volume in (16, 64, 256):
        text = " ".join(turn.content for record in records[:volume] for turn in record.messages)
        told = np.mean([f" {name}" in text for name in names])
        assert told == pytest.approx(DESIGN[ability].coverage(volume), abs=0.12), volume


def test_ten_times_4096_records_take_a_few_seconds():
    """In a process of its own, without the shape checks of the suite: about 1.5 CPU-seconds on an idle machine."""
    code = (
        "import time; from dynamics.data.practice import Practice\n"
        "start = time.process_time(); source = Practice()\n"
        "assert sum(len(source.load(ability, 'train').records) for ability in source.abilities()) == 40_960\n"
        "print(time.process_time() - start)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 8
