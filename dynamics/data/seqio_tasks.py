"""SeqIO both ways: our records as Tasks and a Mixture for SeqIO users, and their tasks as our records.

Importing seqio loads TensorFlow (seconds, and hundreds of megabytes), so it happens inside the functions here and never
in a process that trains.

Two views of a conversation, with ids that our templates made (SeqIO tokenizes nothing, so no marker can be split):

    decoder    targets = the whole conversation, target_weights = 1 where a target is trained on, else 0
    prefix     inputs = all before the last assistant turn, targets = that turn and its end; for SeqIO's own
               PrefixLM and EncDec converters. Earlier assistant turns are context there and not trained on.

SeqIO pads with 0, which is `unk` for SentencePiece models: mask by target_weights, never by `id != 0`.
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import numpy as np

from dynamics.data.mixture import head_ids, slice_ids
from dynamics.data.recipes import Recipe
from dynamics.data.sources import SPLITS, Source
from dynamics.data.template import Encoded, Template, encode
from dynamics.data.tfds_builders import TfdsRecords
from dynamics.data.tokenizer import Tokenizer
from dynamics.errors import UserError
from dynamics.record import Record, parse_record

View = Literal["decoder", "prefix"]


def register(
    source: Source,
    *,
    prefix: str,
    tokenizer: Tokenizer,
    template: Template,
    view: View = "decoder",
    recipe: Recipe | None = None,
    seed: int = 0,
) -> str:
    """Register a Task `{prefix}_{ability}` for each ability, and the Mixture `{prefix}` of all; returns its name.

    Tasks keep the text too (inputs_pretokenized, targets_pretokenized). The mixture draws each ability in proportion
    to its train records. With a `recipe` the train split of a task holds the records that the recipe takes, drawn as
    a study's are with this `seed`, and the rates are its volumes.

    Tasks read the source anew for every epoch: there is no cache to make. For a data set that was prepared with TFDS
    give TfdsRecords, which is read record by record. Raises UserError when the prefix is taken.
    """
    import seqio

    chosen = _chosen(source, recipe, seed)
    names = {ability: f"{prefix}_{ability}" for ability in chosen}
    registered = {*seqio.TaskRegistry.names(), *seqio.MixtureRegistry.names()}
    taken = [name for name in [prefix, *names.values()] if name in registered]
    if taken:
        raise UserError(f"SeqIO already has {taken[0]!r}; register under another prefix than {prefix!r}")
    vocabulary = seqio_vocabulary(tokenizer)
    features = {name: seqio.Feature(vocabulary, add_eos=False) for name in _FEATURES[view]}
    rates = []
    for ability, ids in chosen.items():
        counts = {split: len(_records(source, ability, split)) for split in SPLITS}
        if ids is not None:
            counts["train"] = len(ids)
        if counts["train"]:
            rates.append((names[ability], counts["train"]))
        # Any: seqio's own FunctionDataSource does not fit the protocol that its registry asks for. TfdsDataSource does
        # not read ArrayRecord: it asks for builder.as_dataset(), which tfds has for TFRecord and parquet only.
        records: Any = seqio.FunctionDataSource(
            dataset_fn=_dataset_fn(source, ability, ids, tokenizer, template, view),
            splits=[split for split, count in counts.items() if count],
            num_input_examples=counts,
        )
        seqio.TaskRegistry.add(names[ability], source=records, output_features=features, preprocessors=[])
    seqio.MixtureRegistry.add(prefix, rates)
    return prefix


def _chosen(source: Source, recipe: Recipe | None, seed: int) -> dict[str, frozenset[str] | None]:
    """{ability: ids of the train records that are taken}; None for all of them."""
    abilities = source.abilities()
    if recipe is None:
        return dict.fromkeys(abilities)
    ids = {ability: [record.id for record in _records(source, ability, "train")] for ability in abilities}
    volumes = recipe({ability: len(set(found)) for ability, found in ids.items()})
    heads = recipe.heads(volumes)
    return {
        ability: frozenset(
            head_ids(ids[ability], volume, ability=ability)
            if ability in heads
            else slice_ids(ids[ability], volume, seed=seed, ability=ability)
        )
        for ability, volume in volumes.items()
    }


def _records(source: Source, ability: str, split: str) -> Sequence[Record]:
    if isinstance(source, TfdsRecords):
        return source.records(ability, split)
    return source.load(ability, split).records


_FEATURES: dict[View, tuple[str, ...]] = {"decoder": ("targets", "target_weights"), "prefix": ("inputs", "targets")}


def example_of(record: Record, *, tokenizer: Tokenizer, template: Template, view: View) -> dict[str, Any]:
    """The SeqIO example of a record: int32 ids under the names of the view, and the two texts.

    In the decoder view, target_weights[i] says whether targets[i] is trained on.
    """
    *before, last = record.messages
    texts = {
        "inputs_pretokenized": "\n".join(turn.content for turn in before),
        "targets_pretokenized": last.content,
    }
    whole = encode(template, tokenizer, record.messages)
    if view == "decoder":
        return {"targets": whole.tokens, "target_weights": whole.trained.astype(np.int32), **texts}
    start = _start_of_last_turn(whole)
    return {"inputs": whole.tokens[:start], "targets": whole.tokens[start:], **texts}


def _start_of_last_turn(whole: Encoded) -> int:
    """Where the last run of trained ids starts; marks that stand after it (a newline) stay with it."""
    ends = np.flatnonzero(whole.trained)[-1]
    untrained = np.flatnonzero(~whole.trained[:ends])
    return int(untrained[-1]) + 1 if len(untrained) else 0


def _dataset_fn(
    source: Source,
    ability: str,
    wanted: frozenset[str] | None,
    tokenizer: Tokenizer,
    template: Template,
    view: View,
) -> Callable[..., Any]:
    def dataset_fn(split: str, shuffle_files: bool, seed: int | None = None) -> Any:
        """The split in the order of the source; there are no files to shuffle."""
        del shuffle_files, seed
        import tensorflow as tf

        def examples() -> Iterator[dict[str, Any]]:
            for record in _records(source, ability, split):
                if wanted is None or split != "train" or record.id in wanted:
                    yield example_of(record, tokenizer=tokenizer, template=template, view=view)

        ids = tf.TensorSpec(shape=(None,), dtype=tf.int32)
        text = tf.TensorSpec(shape=(), dtype=tf.string)
        signature = dict.fromkeys(_FEATURES[view], ids)
        return tf.data.Dataset.from_generator(
            examples, output_signature={**signature, "inputs_pretokenized": text, "targets_pretokenized": text}
        )

    return dataset_fn


def from_seqio(name: str, *, split: str = "train", ability: str, source: str | None = None) -> Iterator[Record]:
    """One pass over a registered SeqIO Task or Mixture as records: its input is the user's turn, its target the reply.

    The texts are inputs_pretokenized and targets_pretokenized where the task keeps them, else the decoded features.
    What stood in several turns is one user turn here, since SeqIO knows no turns. Nothing is trimmed or shuffled. The
    tasks of a mixture come one after the other, each of them whole: SeqIO's sampling would stop at the first that ends.

    Raises UserError for an unknown name or split, and RecordError for an example without input or target.
    """
    import seqio

    known = sorted({*seqio.TaskRegistry.names(), *seqio.MixtureRegistry.names()})
    if name not in known:
        raise UserError(
            f"SeqIO has no task or mixture {name!r}; import the module that registers it; known: {known[:8]}"
        )
    found = seqio.get_mixture_or_task(name)
    tasks = sorted(found.tasks, key=lambda task: task.name) if isinstance(found, seqio.Mixture) else [found]
    for task in tasks:
        if split not in task.splits:
            raise UserError(f"{task.name!r} has no split {split!r}; it has {', '.join(sorted(task.splits))}")
    for task in tasks:
        dataset = task.get_dataset(sequence_length=None, split=split, shuffle=False, num_epochs=1)
        for index, example in enumerate(dataset.as_numpy_iterator()):
            texts = [_text(example, feature, task.output_features) for feature in ("inputs", "targets")]
            data = {"messages": [{"role": role, "content": text} for role, text in zip(_ROLES, texts, strict=True)]}
            where = f"{task.name}:{split}[{index}]"
            yield parse_record(data, where=where, ability=ability, source=source or f"seqio:{task.name}")


_ROLES = ("user", "assistant")


def _text(example: dict[str, Any], feature: str, features: Any) -> str:
    kept = example.get(f"{feature}_pretokenized")
    if isinstance(kept, bytes):
        return kept.decode("utf-8")
    if feature not in example or feature not in features:
        return ""
    return features[feature].vocabulary.decode([int(id) for id in example[feature]])


def seqio_vocabulary(tokenizer: Tokenizer) -> Any:
    """Our tokenizer, with its special tokens, as a `seqio.Vocabulary`."""
    return _vocabulary_class()(tokenizer)


@functools.cache
def _vocabulary_class() -> type:
    """Made at first use: naming the base class at the top would import seqio with this module."""
    import seqio
    import tensorflow as tf

    class TokenizerVocabulary(seqio.Vocabulary):
        """Ids of dynamics.data.tokenizer.Tokenizer."""

        def __init__(self, tokenizer: Tokenizer) -> None:
            super().__init__()
            self._tokenizer = tokenizer

        @property
        def bos_id(self) -> int | None:
            return self._tokenizer.bos_id

        @property
        def eos_id(self) -> int | None:
            return self._tokenizer.eos_id

        @property
        def unk_id(self) -> int | None:
            return None  # bytes stand in for unknown characters

        @property
        def _base_vocab_size(self) -> int:
            return self._tokenizer.vocab_size

        def _encode(self, s: str) -> Sequence[int]:
            return self._tokenizer.encode(s)

        def _decode(self, ids: Sequence[int]) -> str:
            return self._tokenizer.decode(ids)

        def _encode_tf(self, s: Any) -> Any:
            def ids_of(text: Any) -> np.ndarray:
                return np.asarray(self._tokenizer.encode(text.numpy().decode("utf-8")), dtype=np.int32)

            return tf.ensure_shape(tf.py_function(ids_of, [s], tf.int32), (None,))

        def _decode_tf(self, ids: Any) -> Any:
            def text_of(given: Any) -> str:
                return self._tokenizer.decode(given.numpy().tolist())

            return tf.ensure_shape(tf.py_function(text_of, [ids], tf.string), ())

        def __eq__(self, other: object) -> bool:
            return isinstance(other, TokenizerVocabulary) and self._tokenizer == other._tokenizer

        def __hash__(self) -> int:
            return hash(self._tokenizer)

    return TokenizerVocabulary
