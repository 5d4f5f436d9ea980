"""SeqIO both ways. The only test file that imports seqio: TensorFlow comes with it, once for all tests here."""

import itertools
import json
from dataclasses import replace

import numpy as np
import pytest
import tensorflow_datasets as tfds

import dynamics.tfds_datasets  # noqa: F401  # registers jsonl_folder
from dynamics.data.mixture import slice_ids
from dynamics.data.recipes import Maximum
from dynamics.data.seqio_tasks import example_of, from_seqio, register, seqio_vocabulary
from dynamics.data.sources import Files
from dynamics.data.template import DOIT, TEMPLATES, encode
from dynamics.data.tfds_base import Config
from dynamics.data.tfds_builders import TfdsRecords
from dynamics.data.tokenizer import SPECIALS, Tokenizer, train_tokenizer
from dynamics.errors import UserError
from dynamics.record import Record, RecordError, Turn, parse_record

WORDS = ["what is one and one", "it is two", "write a poem", "雨落在山上", "what is two and two", "it is four"]


def record(number: int, ability: str) -> Record:
    texts = [f"{WORDS[(number + step) % len(WORDS)]} {ability} {number}" for step in range(4 if number % 2 else 2)]
    turns = tuple(Turn(role="assistant" if i % 2 else "user", content=text) for i, text in enumerate(texts))
    return Record(messages=turns, ability=ability, idx=number)


RECORDS = {ability: [record(number, ability) for number in range(size)] for ability, size in (("code", 6), ("math", 3))}


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer((" ".join(WORDS) for _ in range(20)), vocab_size=420)


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Files:
    folder = tmp_path_factory.mktemp("records")
    for ability, records in RECORDS.items():
        lines = "".join(json.dumps(one.to_dict()) + "\n" for one in records)
        (folder / f"{ability}_train.jsonl").write_text(lines)
        for split in ("valid", "test"):
            (folder / f"{ability}_{split}.jsonl").write_text(json.dumps(record(90, ability).to_dict()))
    return Files(data_dir=str(folder))


@pytest.fixture(scope="module")
def seqio():
    return pytest.importorskip("seqio")


@pytest.fixture(scope="module")
def decoder(seqio, source, tokenizer) -> str:
    return register(source, prefix="ours", tokenizer=tokenizer, template=DOIT)


def examples(seqio, name: str, stop: int | None = None, **arguments) -> list[dict]:
    provider = seqio.get_mixture_or_task(name)
    arguments = {"sequence_length": None, "split": "train", "shuffle": False, "num_epochs": 1} | arguments
    return list(itertools.islice(provider.get_dataset(**arguments).as_numpy_iterator(), stop))


@pytest.mark.parametrize("template", TEMPLATES, ids=lambda template: template.name)
def test_a_prefix_example_is_the_conversation_cut_before_the_last_answer(tokenizer, template):
    extra = [name for name in template.specials if name not in (*SPECIALS, "<bos>", "<eos>")]
    words = Tokenizer.from_bytes(tokenizer.model, specials=(*SPECIALS, *extra)) if extra else tokenizer
    for one in RECORDS["code"]:
        whole = encode(template, words, one.messages)
        cut = example_of(one, tokenizer=words, template=template, view="prefix")
        np.testing.assert_array_equal(np.concatenate([cut["inputs"], cut["targets"]]), whole.tokens)
        assert whole.trained[len(cut["inputs"])]
        assert not whole.trained[len(cut["inputs"]) - 1]
        assert one.messages[-1].content in words.decode(cut["targets"].tolist())


def test_a_task_gives_our_ids_weights_and_texts_in_our_order(seqio, decoder, tokenizer):
    assert decoder == "ours"
    for one, example in zip(RECORDS["code"], examples(seqio, "ours_code"), strict=True):
        whole = encode(DOIT, tokenizer, one.messages)
        np.testing.assert_array_equal(example["targets"], whole.tokens)
        np.testing.assert_array_equal(example["target_weights"], whole.trained)
        assert example["targets_pretokenized"].decode() == one.messages[-1].content


def test_the_mixture_draws_abilities_by_their_number_of_records(seqio, decoder, tokenizer):
    mixture = seqio.get_mixture_or_task(decoder)
    assert {task.name: mixture.get_rate(task) for task in mixture.tasks} == {"ours_code": 6, "ours_math": 3}
    drawn = examples(seqio, decoder, num_epochs=None, seed=0, stop=60)
    math = {tuple(encode(DOIT, tokenizer, one.messages).tokens.tolist()) for one in RECORDS["math"]}
    assert 8 < sum(tuple(example["targets"].tolist()) in math for example in drawn) < 32  # a third of them


def test_a_recipe_gives_the_rates_and_the_records_of_the_train_split(seqio, source, tokenizer):
    few = Maximum(few=2, few_of=("code",), capped=())
    name = register(source, prefix="ours_few", tokenizer=tokenizer, template=DOIT, recipe=few)
    mixture = seqio.get_mixture_or_task(name)
    assert {task.name: mixture.get_rate(task) for task in mixture.tasks} == {"ours_few_code": 2, "ours_few_math": 3}
    heads = [one["targets_pretokenized"].decode() for one in examples(seqio, "ours_few_code")]
    assert heads == [one.messages[-1].content for one in RECORDS["code"][:2]]
    assert len(examples(seqio, "ours_few_code", split="test")) == 1
    hashed = replace(few, take="hash")
    register(source, prefix="ours_hash", tokenizer=tokenizer, template=DOIT, recipe=hashed, seed=3)
    taken = {one["targets_pretokenized"].decode() for one in examples(seqio, "ours_hash_code")}
    ids = slice_ids([one.id for one in RECORDS["code"]], 2, seed=3, ability="code")
    assert taken == {one.messages[-1].content for one in RECORDS["code"] if one.id in ids}


def test_tasks_on_a_data_set_that_tfds_prepared(seqio, source, tokenizer, decoder, tmp_path):
    builder = tfds.builder("jsonl_folder", config=Config(name="seqio", folder=source.data_dir), data_dir=tmp_path)
    builder.download_and_prepare()
    prepared = TfdsRecords(data_dir=builder.data_dir)
    register(prepared, prefix="on_tfds", tokenizer=tokenizer, template=DOIT)
    for task in ("code", "math"):
        for one, other in zip(examples(seqio, f"on_tfds_{task}"), examples(seqio, f"ours_{task}"), strict=True):
            np.testing.assert_array_equal(one["targets"], other["targets"])
    assert seqio.get_mixture_or_task("on_tfds_math").num_input_examples("train") == 3
    # Why they do not go through TfdsDataSource: tfds reads ArrayRecord by index only.
    theirs = seqio.TfdsDataSource("jsonl_folder/seqio:1.0.0", tfds_data_dir=str(tmp_path), splits=["train"])
    with pytest.raises(NotImplementedError, match="not implemented for ArrayRecord"):
        theirs.get_dataset("train", shuffle=False)


def test_seqio_can_pack_our_prefix_view_with_its_own_converter(seqio, source, tokenizer):
    name = register(source, prefix="ours_prefix", tokenizer=tokenizer, template=DOIT, view="prefix")
    lengths = {"inputs": 64, "targets": 64}
    dataset = seqio.get_mixture_or_task(f"{name}_code").get_dataset(lengths, split="train", shuffle=False)
    converter = seqio.PrefixLMFeatureConverter(pack=True)
    rows = list(converter(dataset, task_feature_lengths=lengths).as_numpy_iterator())
    trained = sum(int(row["decoder_loss_weights"].sum()) for row in rows)
    views = [example_of(one, tokenizer=tokenizer, template=DOIT, view="prefix") for one in RECORDS["code"]]
    assert trained == sum(len(view["targets"]) for view in views)


@pytest.mark.parametrize("name", ["ours_code", "ours"])
def test_records_come_back_from_our_own_tasks(decoder, name):
    back = list(from_seqio(name, ability="code"))
    # A task keeps the last exchange as (input, target); what stood before it is part of the input.
    expected = RECORDS["code"] if name == "ours_code" else RECORDS["code"] + RECORDS["math"]
    assert [one.messages[-1].content for one in back] == [one.messages[-1].content for one in expected]
    assert {one.ability for one in back} == {"code"}
    assert [one.source for one in back] == [f"seqio:ours_{one.ability}" for one in expected]


@pytest.fixture(scope="module")
def foreign(seqio, tokenizer) -> str:
    """A task of a SeqIO user: text in, text out, tokenized by SeqIO; it keeps no pretokenized text."""
    import tensorflow as tf

    def dataset_fn(split, shuffle_files, seed=None):
        rows = {"inputs": ["what is one", "write a poem"], "targets": ["it is two", "" if split == "test" else "雨落"]}
        return tf.data.Dataset.from_tensor_slices(rows)

    vocabulary = seqio_vocabulary(tokenizer)
    seqio.TaskRegistry.add(
        "theirs",
        source=seqio.FunctionDataSource(dataset_fn=dataset_fn, splits=["train", "test"]),
        output_features={name: seqio.Feature(vocabulary, add_eos=False) for name in ("inputs", "targets")},
        preprocessors=[lambda ds, output_features: seqio.preprocessors.tokenize(ds, output_features, False)],
    )
    return "theirs"


def test_a_foreign_task_is_read_through_its_vocabulary(foreign):
    read = list(from_seqio(foreign, ability="chinese", source="a friend"))
    assert [[turn.content for turn in one.messages] for one in read] == [
        ["what is one", "it is two"],
        ["write a poem", "雨落"],
    ]
    assert read[0] == parse_record(read[0].to_dict(), where="x:1")
    assert read[0].source == "a friend"


def test_an_example_without_a_target_is_an_error_with_its_number(foreign):
    with pytest.raises(RecordError) as caught:
        list(from_seqio(foreign, split="test", ability="chinese"))
    assert str(caught.value).startswith("theirs:test[1]: messages[1].content is empty; ")


def test_the_vocabulary_knows_our_ids_in_and_out_of_graphs(seqio, tokenizer):
    vocabulary = seqio_vocabulary(tokenizer)
    assert vocabulary.vocab_size == tokenizer.vocab_size
    ids = vocabulary.encode("it is two")
    assert ids == tokenizer.encode("it is two")
    assert vocabulary.encode_tf("it is two").numpy().tolist() == ids
    assert vocabulary.decode_tf(vocabulary.encode_tf("雨 is two")).numpy().decode() == "雨 is two"
    assert vocabulary == seqio_vocabulary(tokenizer)


def test_unknown_and_taken_names_are_named(decoder, source, tokenizer):
    with pytest.raises(UserError, match="SeqIO has no task or mixture 'nope'; import the module that registers it"):
        list(from_seqio("nope", ability="math"))
    with pytest.raises(UserError, match="'ours_code' has no split 'dev'; it has test, train, valid"):
        list(from_seqio("ours", split="dev", ability="math"))
    with pytest.raises(UserError, match="SeqIO already has 'ours'; register under another prefix than 'ours'"):
        register(source, prefix="ours", tokenizer=tokenizer, template=DOIT)
