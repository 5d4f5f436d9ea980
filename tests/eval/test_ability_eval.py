"""Evaluation: what is computed in packed batches is what a reading of the definition gives, text by text."""

import dataclasses
import random

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dynamics.ability import item_of
from dynamics.data.template import DOIT, TEMPLATES, encode, tokenizer_specials
from dynamics.data.tokenizer import Tokenizer
from dynamics.eval import ability_eval
from dynamics.eval.ability_eval import Evaluation, evaluate, evaluate_prepared, prepare, score_texts
from dynamics.eval.settings import PUBLISHED
from dynamics.model.sample import Generated
from dynamics.model.sharding import MeshShape, make_mesh, shardings_for
from dynamics.record import Turn

from .conftest import Unigram, record, record_of_format_1

SMALL = Evaluation(max_new_tokens=6, row_length=64, batch_tokens=128, max_length=256, batch_size=4)
FOUR = "Which is red? A. sky B. rose C. leaf D. sand"


def run(model, records, tokenizer, settings=SMALL, **options):
    return evaluate(model, records, tokenizer=tokenizer, template=DOIT, settings=settings, **options)


def close(one, other):
    """Equal results, losses up to float32 sums in another order."""
    assert one.loss_sum == pytest.approx(other.loss_sum, rel=2e-5, abs=1e-4)
    assert dataclasses.replace(one, loss_sum=0.0) == dataclasses.replace(other, loss_sum=0.0)


@pytest.fixture(scope="module", params=["likelihood", "generation"])
def settings(request):
    return dataclasses.replace(SMALL, choice=request.param)


def test_all_at_once_equals_one_by_one(model, records, tokenizer, settings):
    together = run(model, records, tokenizer, settings)
    assert [result.id for result in together] == [record.id for record in records]
    for given, result in zip(records, together, strict=True):
        close(run(model, [given], tokenizer, settings)[0], result)


def test_the_order_of_records_does_not_matter(model, records, tokenizer, settings):
    shuffled = random.Random(0).sample(records, len(records))
    by_id = {result.id: result for result in run(model, shuffled, tokenizer, settings)}
    for result in run(model, records, tokenizer, settings):
        close(by_id[result.id], result)


@jax.jit
def full_logits(model, tokens):
    return model(tokens, jnp.arange(tokens.shape[1])[None], jnp.ones_like(tokens)) @ model.head


def naive_logprobs(model, tokenizer, messages):
    """Log-probabilities of the last turn's tokens and all logits, from the whole text alone in a row."""
    text = encode(DOIT, tokenizer, messages)
    start = len(encode(DOIT, tokenizer, messages[:-1], generate=True))
    tokens = np.zeros((1, 128), np.int32)  # one program for all texts; what stands after a text cannot change it
    tokens[0, : len(text)] = text.tokens
    logits = np.asarray(full_logits(model, tokens), np.float64)[0]
    logprobs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    places = np.arange(start, len(text))
    return logprobs[places - 1, text.tokens[places]], logits[start - 1]


def test_losses_and_choices_match_full_logits(model, records, tokenizer):
    for given, result in zip(records, run(model, records, tokenizer), strict=True):
        item = item_of(given)
        gold, logits = naive_logprobs(model, tokenizer, given.messages)
        assert result.loss_sum == pytest.approx(-gold.sum(), rel=1e-4)
        assert result.num_tokens == len(gold)
        if item.kind == "choice":
            letters = [logits[tokenizer.letter_id(letter)] for letter in item.options]
            assert result.answer == item.options[int(np.argmax(letters))]
        if item.kind == "perplexity":
            turns = [(*item.prompt, Turn(role="assistant", content=choice)) for choice in item.options]
            perplexities = [np.exp(-naive_logprobs(model, tokenizer, turn)[0].mean()) for turn in turns]
            assert result.answer == str(int(np.argmin(perplexities)))
            assert result.score == float(perplexities[0] == min(perplexities))


def test_only_the_last_turn_counts_in_the_loss(model, tokenizer):
    result = run(model, [record("understanding", "hi", "gold silver copper", FOUR, "B")], tokenizer)[0]
    assert result.num_tokens == 2  # B and the end of turn


@pytest.mark.parametrize("template", TEMPLATES, ids=lambda template: template.name)
def test_every_template_finds_where_answers_begin(model, tokenizer, template):
    tokenizer = Tokenizer.from_bytes(tokenizer.model, specials=tokenizer_specials(template))
    prepared = prepare([record("biology", FOUR, "B"), record("biology", FOUR, "D")], tokenizer, template, SMALL)
    (packed,) = prepared.packed
    targets = np.concatenate([batch["trained_targets"].reshape(-1) for batch in packed.batches])
    first = targets[packed.first_entry]
    assert {prepared.letters[list(prepared.letter_ids).index(token)] for token in first} == {"B", "D"}


def test_a_mesh_gives_the_results_of_one_device(model, records, tokenizer):
    mesh = make_mesh(MeshShape(data=2, fsdp=2, tensor=2))
    spread = jax.device_put(model, shardings_for(model, mesh))
    for one, other in zip(run(model, records, tokenizer), run(spread, records, tokenizer, mesh=mesh), strict=True):
        close(one, other)


# --- models whose answers are known --------------------------------------------------------------------------------


def unigram(tokenizer, **likely):
    logits = np.zeros(tokenizer.padded_vocab_size(8), np.float32)
    for text, value in likely.items():
        logits[tokenizer.encode(text)] = value
    return Unigram(jnp.asarray(logits))


def test_a_model_that_knows_the_answers_scores_one(tokenizer):
    known = [
        record("biology", FOUR, "B"),
        record("reasoning", "Which?\nA. a\nB. b\nC. c", "B"),
        record_of_format_1("code", "which?", "gold gold", "iron", "silver"),
        record_of_format_1("role_play", "which?", "gold", "copper iron", "silver"),
    ]
    results = run(unigram(tokenizer, B=5.0, gold=9.0), known, tokenizer)
    assert [result.score for result in results] == [1, 1, 1, 1]
    assert [result.answer for result in results] == ["B", "B", "0", "0"]
    results = run(unigram(tokenizer, A=5.0, iron=9.0, silver=9.0, copper=9.0), known, tokenizer)
    assert [result.score for result in results] == [0, 0, 0, 0]


def test_a_model_that_knows_nothing_scores_chance_when_ties_are_shared(tokenizer):
    items = [record("biology", FOUR, "B"), record_of_format_1("code", "which?", "gold gold", "iron", "silver sky")]
    knows_nothing = unigram(tokenizer)
    results = run(knows_nothing, items, tokenizer)
    assert [result.score for result in results] == pytest.approx([result.chance for result in results])
    results = run(knows_nothing, items, tokenizer, dataclasses.replace(SMALL, ties="correct"))
    assert [result.score for result in results] == [1, 1]


def test_uniform_loss_is_the_log_of_the_vocabulary(tokenizer):
    result = run(unigram(tokenizer), [record("biology", FOUR, "B")], tokenizer)[0]
    assert result.loss_sum / result.num_tokens == pytest.approx(np.log(tokenizer.padded_vocab_size(8)), rel=1e-5)


def test_random_logits_score_the_chance_level(tokenizer):
    items = [record("biology", f"{FOUR} {i}", "ABCD"[i % 4]) for i in range(4)]
    items += [record_of_format_1("code", f"which? {i}", "gold", "iron", "sand") for i in range(4)]
    prepared = prepare(items, tokenizer, DOIT, SMALL)
    draw, scores = np.random.default_rng(0), {item.kind: [] for item in prepared.items}
    for item in prepared.items * 500:
        if item.kind == "choice":
            result = ability_eval._choose_letter(item, draw.normal(size=4), prepared)
        else:
            result = ability_eval._choose_text(item, draw.normal(size=3), SMALL)
        scores[item.kind].append(result.score)
    for kind, chance in (("choice", 1 / 4), ("perplexity", 1 / 3)):
        error = (chance * (1 - chance) / len(scores[kind])) ** 0.5
        assert abs(np.mean(scores[kind]) - chance) < 4 * error


# --- generated answers ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("item", "text", "score", "unparsed"),
    [
        (record("math", "2 + 3?", "2 + 3 = 5", answer="5"), "2 + 3 = 5", 1, False),
        (record("math", "2 + 3?", "2 + 3 = 5", answer="5"), "no idea", 0, True),
        (record("history", "true or false?", "T"), "true", 1, False),
        (record("history", "true or false?", "T"), "gold", 0, True),
        (record("chinese", "春风又绿（ ）岸", "江南"), "江南", 1, False),
        (record("chinese", "春风又绿（ ）岸", "江南"), "明月", 0, False),
        (record("ethics", FOUR, "A, C"), "C, A", 1, False),
        (record("ethics", FOUR, "A, C"), "", 0, True),
        (record("creative_writing", "poem", "gold sky"), "gold  sky", 1, False),
        (record("biology", FOUR, "B"), "B", 1, False),
        (record("biology", FOUR, "B"), "F", 0, False),  # one character that is no option: wrong, not unparsed
        (record("biology", FOUR, "B"), "rose", 1, True),  # read from the logits of the last step, which favor B
        (record("biology", FOUR, "A"), "rose", 0, True),
    ],
)
def test_generated_answers_are_read_and_judged(tokenizer, item, text, score, unparsed):
    prepared = prepare([item], tokenizer, DOIT, dataclasses.replace(SMALL, choice="generation"))
    logits = np.zeros(tokenizer.vocab_size, np.float32)
    logits[tokenizer.letter_id("B")] = 1.0
    generated = Generated(tokens=tokenizer.encode(text), stopped=True, last_logits=logits)
    result = ability_eval._judge(prepared.items[0], generated, prepared)
    assert (result.score, result.unparsed, result.truncated) == (score, unparsed, False)
    assert result.answer.split() == text.split()


@pytest.mark.parametrize(
    ("item", "text", "score", "unparsed", "chance"),
    [
        (record("history", "true or false?", "T"), "正确 T", 1, False, 0.5),
        (record("history", "true or false?", "错误"), "The F", 0, True, 0.5),  # the T of The, which ours passes over
        (record("chinese", "春风又绿（ ）岸", "江南"), "江南。", 0, False, 0.0),  # ours takes the mark off
        (record("ethics", FOUR, "B"), "Answer: B", 0, False, 0.25),  # the A of Answer
        (record("math", "2 + 3?", "5", answer="5"), "答案：5.0", 0, False, 0.0),
        (record("understanding", "Which?\nA. sky\nB. rose\nC. leaf", "C"), "rose", 0, True, 0.33),  # D is likeliest
        (record("biology", FOUR, "D"), "rose", 1, True, 0.25),
        (record("creative_writing", "poem", "gold sky"), "gold sky", 1, False, 0.0),
    ],
)
def test_answers_are_judged_by_the_published_rules_where_asked(tokenizer, item, text, score, unparsed, chance):
    settings = dataclasses.replace(SMALL, choice="generation", ties="correct", rules="published")
    prepared = prepare([item], tokenizer, DOIT, settings)
    logits = np.zeros(tokenizer.vocab_size, np.float32)
    logits[tokenizer.letter_id("C")], logits[tokenizer.letter_id("D")] = 1.0, 2.0
    generated = Generated(tokens=tokenizer.encode(text), stopped=True, last_logits=logits)
    result = ability_eval._judge(prepared.items[0], generated, prepared)
    assert (result.score, result.unparsed, result.chance) == (score, unparsed, chance)


def test_the_published_rules_take_the_first_of_equal_letters(tokenizer):
    items = [record("biology", FOUR, "A"), record("biology", FOUR, "B")]
    settings = dataclasses.replace(SMALL, ties="correct", rules="published")
    assert [result.score for result in run(unigram(tokenizer), items, tokenizer, settings)] == [1, 0]
    assert [result.answer for result in run(unigram(tokenizer), items, tokenizer, settings)] == ["A", "A"]


def test_published_settings_score_every_kind(model, records, tokenizer):
    settings = dataclasses.replace(PUBLISHED, max_new_tokens=6, max_length=256, row_length=64, batch_tokens=128)
    results = run(model, [*records, record_of_format_1("code", "which?", "gold", "iron " * 300)], tokenizer, settings)
    assert not any(result.too_long for result in results)
    assert results[-1].truncated
    assert all(result.num_tokens > 0 for result in results)


def test_an_answer_that_does_not_end_is_counted_as_truncated(tokenizer):
    prepared = prepare([record("math", "2 + 3?", "5", answer="5")], tokenizer, DOIT, SMALL)
    generated = Generated(tokens=tokenizer.encode("5"), stopped=False, last_logits=np.zeros(tokenizer.vocab_size))
    assert ability_eval._judge(prepared.items[0], generated, prepared).truncated


def test_prepared_items_are_used_again(model, records, tokenizer):
    prepared = prepare(records, tokenizer, DOIT, SMALL)
    assert evaluate_prepared(model, prepared) == evaluate_prepared(model, prepared)
    assert len(score_texts(model, prepared)[0]) == len(prepared.num_targets)


def test_items_that_are_too_long_are_counted_and_never_cut(model, tokenizer):
    long = record("biology", "gold " * 300 + FOUR, "B")
    long_choice = record_of_format_1("code", "which?", "gold", "iron " * 300)
    no_room = record("math", "gold " * 252, "5", answer="5")  # fits, but not with max_new_tokens
    fine = record("biology", FOUR, "B")
    results = run(model, [long, fine, long_choice, no_room], tokenizer)
    assert [result.too_long for result in results] == [True, False, True, True]
    assert [result.num_tokens > 0 for result in results] == [False, True, False, False]
    assert results[0].score == results[2].score == results[3].score == 0
    close(results[1], run(model, [fine], tokenizer)[0])


def test_no_records_give_no_results(model, tokenizer):
    assert run(model, [], tokenizer) == []
