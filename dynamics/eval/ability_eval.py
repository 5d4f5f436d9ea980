"""Loss and score of a model on items of every ability.

Two passes over the model: one scores texts (the loss of every reference, the perplexities of the choices, and the
logits of the option letters where an answer begins), one answers by greedy decoding what cannot be read off
likelihoods. Source of the protocols: Song et al. 2023, "Dynamics of Instruction Tuning", and its evaluation code.
"""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int

from dynamics.ability import SCORERS, Item, Kind
from dynamics.data.template import Template
from dynamics.data.tokenizer import Tokenizer
from dynamics.eval import published
from dynamics.eval.prepared import Prepared, offered_letters, prepare
from dynamics.eval.settings import Evaluation
from dynamics.losses.objective import token_logprobs, trained_hidden
from dynamics.losses.sft import CHUNK
from dynamics.model.sample import Generated, greedy
from dynamics.model.sharding import activate, batch_shardings, num_row_shards
from dynamics.record import Record
from dynamics.scorers import read_choice, read_cloze, read_final, read_letters, read_true_false

__all__ = ["Evaluation", "ItemResult", "Prepared", "evaluate", "evaluate_prepared", "prepare"]

# Whether an answer of this kind could be read at all; `exact` takes any text but none.
READERS = {
    "true_false": read_true_false,
    "cloze": read_cloze,
    "numeric": read_final,
    "multi": read_letters,
    "exact": lambda answer: answer.strip() or None,
}
WORKED: tuple[Kind, ...] = ("numeric", "exact")  # answers of many tokens


@dataclass(frozen=True, kw_only=True)
class ItemResult:
    """What became of one item.

    `loss_sum` is in nats, summed over the `num_tokens` tokens of the reference answer, its end of turn included.
    `answer` is the generated text, the letter chosen, or for perplexity the number of the choice (the gold is "0").
    `truncated`: the generated answer did not end, or a scored text was cut (only with over_long="truncate").
    An item too long for the evaluation is not asked: score 0, no tokens.
    """

    id: str
    ability: str
    kind: Kind
    score: float
    chance: float
    loss_sum: float
    num_tokens: int
    answer: str
    unparsed: bool = False
    truncated: bool = False
    too_long: bool = False


def evaluate(
    model: Any,
    records: Sequence[Record],
    *,
    tokenizer: Tokenizer,
    template: Template,
    settings: Evaluation,
    mesh: Mesh | None = None,
) -> list[ItemResult]:
    """One result for each record, in their order. To evaluate again and again, `prepare` once."""
    row_shards = 1 if mesh is None else num_row_shards(mesh)
    prepared = prepare(records, tokenizer, template, settings, row_shards=row_shards)
    return evaluate_prepared(model, prepared, mesh=mesh)


def evaluate_prepared(model: Any, prepared: Prepared, *, mesh: Mesh | None = None) -> list[ItemResult]:
    """One result for each prepared item, in their order."""
    logprobs, letters = score_texts(model, prepared, mesh=mesh)
    answers = _generate(model, prepared, mesh=mesh)
    bounds = np.searchsorted(prepared.item_of_text, np.arange(len(prepared.items) + 1))
    results = []
    for index, item in enumerate(prepared.items):
        texts = slice(bounds[index], bounds[index + 1])
        if index in prepared.too_long:
            results.append(_result(item, prepared.settings, score=0.0, answer="", too_long=True))
            continue
        if index in answers:
            result = _judge(item, answers[index], prepared)
        elif item.kind == "choice":
            result = _choose_letter(item, letters[texts.start], prepared)
        else:
            result = _choose_text(item, logprobs[texts] / prepared.num_targets[texts], prepared.settings)
        loss, count = -logprobs[texts.start], prepared.num_targets[texts.start]
        truncated = result.truncated or index in prepared.cut
        results.append(replace(result, loss_sum=float(loss), num_tokens=int(count), truncated=truncated))
    return results


def _result(item: Item, settings: Evaluation, *, score: float, answer: str, **flags: bool) -> ItemResult:
    record = item.record
    chance = published.chance(item) if settings.rules == "published" else item.chance
    return ItemResult(
        id=record.id, ability=record.ability, kind=item.kind, score=score, chance=chance, loss_sum=0.0,
        num_tokens=0, answer=answer, **flags,
    )  # fmt: skip


def _best(values: Float[np.ndarray, " options"], gold: int, ties: str) -> tuple[int, float]:
    """The place of the largest value and the score, given the place of the gold; a tie is named by its first."""
    winners = np.flatnonzero(values == values.max())
    if gold not in winners:
        return int(winners[0]), 0.0
    return int(winners[0]), 1.0 if ties == "correct" else 1 / len(winners)


def _choose_text(item: Item, mean_logprobs: Float[np.ndarray, " options"], settings: Evaluation) -> ItemResult:
    """The choice of the lowest perplexity, exp(-mean log-probability of its tokens, end of turn included)."""
    # The model computed in float32: a difference below that is a tie.
    place, score = _best(mean_logprobs.astype(np.float32), 0, settings.ties)
    return _result(item, settings, score=score, answer=str(place))


def _choose_letter(item: Item, logits: Float[np.ndarray, " letters"], prepared: Prepared) -> ItemResult:
    """The most likely of the letters that the item offers; the published code takes the first of equal ones."""
    settings, letters = prepared.settings, offered_letters(item, prepared.settings)
    offered, gold = logits[[prepared.letters.index(letter) for letter in letters]], letters.index(item.reference)
    place, score = _best(offered, gold, settings.ties)
    if settings.rules == "published":
        score = float(place == gold)
    return _result(item, settings, score=score, answer=letters[place])


def _judge(item: Item, generated: Generated, prepared: Prepared) -> ItemResult:
    """The score of a generated answer; a choice that cannot be read is taken from the last step's logits."""
    answer, settings = prepared.tokenizer.decode(generated.tokens), prepared.settings
    truncated = not generated.stopped
    if item.kind != "choice":
        if settings.rules == "published":
            unparsed = published.read(item.kind, answer) is None
            score = published.score(item.kind, answer, item.reference)
        else:
            unparsed = READERS[item.kind](answer) is None
            score = SCORERS[item.kind](answer, item.reference)
        return _result(item, settings, score=score, answer=answer, unparsed=unparsed, truncated=truncated)
    letter = read_choice(answer, options=item.options)
    if letter is not None:
        return _result(item, settings, score=float(letter == item.reference), answer=answer, truncated=truncated)
    chosen = _choose_letter(item, np.asarray(generated.last_logits)[prepared.letter_ids], prepared)
    return replace(chosen, answer=answer, unparsed=True, truncated=truncated)


def _generate(model: Any, prepared: Prepared, *, mesh: Mesh | None) -> dict[int, Generated]:
    """{item: its greedy answer}. Worked answers go apart: a batch runs until its longest answer ends."""
    settings = prepared.settings
    answers: dict[int, Generated] = {}
    for worked in (False, True):
        asked = [pair for pair in prepared.prompts if (prepared.items[pair[0]].kind in WORKED) == worked]
        if not asked:
            continue
        generated = greedy(
            model,
            [ids for _, ids in asked],
            max_new_tokens=settings.max_new_tokens,
            stop_ids=sorted(prepared.stop_ids),
            pad_id=prepared.tokenizer.pad_id,
            batch_size=settings.batch_size,
            mesh=mesh,
        )
        answers |= {index: answer for (index, _), answer in zip(asked, generated, strict=True)}
    return answers


def score_texts(
    model: Any, prepared: Prepared, *, mesh: Mesh | None = None
) -> tuple[Float[np.ndarray, " texts"], Float[np.ndarray, "texts letters"]]:
    """Summed log-probability in nats of every text's answer, and the logits of the letters where it begins."""
    num_texts = len(prepared.num_targets)
    logprobs = np.zeros(num_texts)
    letters = np.zeros((num_texts, len(prepared.letter_ids)), np.float32)
    # Everything is dispatched before anything is read, so the host never waits between batches.
    running = [
        [_score(model, _place(batch, mesh), prepared.letter_ids, mesh=mesh) for batch in packed.batches]
        for packed in prepared.packed
    ]
    for packed, outputs in zip(prepared.packed, running, strict=True):
        host = jax.device_get(outputs)
        entries = np.concatenate([one.reshape(-1) for one, _ in host])
        used = packed.text_of_entry >= 0
        sums = np.bincount(packed.text_of_entry[used], entries[used].astype(np.float64), minlength=len(packed.texts))
        logprobs[packed.texts] = sums
        all_letters = np.concatenate([two.reshape(one.size, two.shape[-1]) for one, two in host])
        letters[packed.texts] = all_letters[packed.first_entry]
    return logprobs, letters


@functools.partial(jax.jit, static_argnames="mesh")
def _score(
    model: Any, batch: Mapping[str, Array], letter_ids: Int[Array, " letters"], *, mesh: Mesh | None
) -> tuple[Float[Array, "g n"], Float[Array, "g n letters"]]:
    """Log-probabilities of the targets and logits of the letters at every trained position, whole on every host."""
    with activate(mesh):
        micro_batch = {name: value[0] for name, value in batch.items()}
        hidden = trained_hidden(model, micro_batch)
        logprobs = token_logprobs(hidden, model.head, micro_batch["trained_targets"], chunk=CHUNK)
        letters = (hidden @ model.head[:, letter_ids].astype(hidden.dtype)).astype("float32")
    if mesh is not None:
        whole = NamedSharding(mesh, PartitionSpec())
        logprobs, letters = jax.lax.with_sharding_constraint((logprobs, letters), whole)
    return logprobs, letters


def _place(batch: dict[str, np.ndarray], mesh: Mesh | None) -> dict[str, Any]:
    """The batch on the mesh, every host giving the rows of its own devices (all hosts hold all items)."""
    if mesh is None:
        return batch
    shardings = batch_shardings(batch, mesh)
    return {
        name: jax.make_array_from_callback(value.shape, shardings[name], value.__getitem__)
        for name, value in batch.items()
    }
