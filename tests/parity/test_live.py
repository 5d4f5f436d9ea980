"""Ours and transformers, both running: their folders in our hands, our folders in theirs."""

import json

import numpy as np
import pytest

from dynamics.data.template import CHATML, tokenizer_specials
from dynamics.data.tokenizer import Tokenizer, train_tokenizer
from dynamics.model.convert import Params, export_model, import_model, load_model, read_config, tokenizer_path
from dynamics.model.sharding import MeshShape, make_mesh
from parity.ours import FLOAT32, check_bfloat16, distance, logits
from parity.toys import CONFIGS, tokens, weights, write_toy

torch = pytest.importorskip("torch", reason="live parity needs torch and transformers: run `make parity`")
transformers = pytest.importorskip("transformers", reason="live parity needs torch and transformers: run `make parity`")


def their_model(folder, dtype="auto"):
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()


def their_logits(model, ids):
    with torch.no_grad():
        return model(torch.from_numpy(ids).long()).logits.float().numpy()


def saved_by_transformers(folder, name, *, max_shard_size="5GB"):
    """A folder that transformers itself writes, of a model that transformers itself reads."""
    their_model(write_toy(folder / "toy", CONFIGS[name])).save_pretrained(folder / "hf", max_shard_size=max_shard_size)
    return folder / "hf"


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("max_shard_size", ["5GB", "20KB"])
def test_a_folder_that_transformers_writes_gives_its_logits(name, max_shard_size, tmp_path):
    config = CONFIGS[name]
    folder = saved_by_transformers(tmp_path, name, max_shard_size=max_shard_size)
    assert (folder / "model.safetensors.index.json").exists() == (max_shard_size == "20KB")
    expected = their_logits(their_model(folder, torch.float32), tokens(config))
    assert distance(logits(folder, tokens(config), compute_dtype="float32"), expected) < FLOAT32


@pytest.mark.parametrize("name", [name for name in CONFIGS if CONFIGS[name]["torch_dtype"] == "bfloat16"])
def test_bfloat16_is_as_near_as_its_precision_allows(name, tmp_path):
    folder, ids = saved_by_transformers(tmp_path, name), tokens(CONFIGS[name])
    theirs, exact = (their_logits(their_model(folder, dtype), ids) for dtype in (torch.bfloat16, torch.float32))
    check_bfloat16(logits(folder, ids, compute_dtype="bfloat16"), theirs, exact)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_folder_that_we_write_gives_transformers_the_same_weights_and_logits(name, tmp_path):
    config = CONFIGS[name]
    source = write_toy(tmp_path / "hf", config)
    import_model(source, tmp_path / "model", max_shard=20_000)
    export_model(tmp_path / "model", tmp_path / "out")
    ours = their_model(tmp_path / "out")
    assert str(ours.dtype) == f"torch.{config['torch_dtype']}"
    for key, tensor in their_model(source).state_dict().items():
        assert torch.equal(ours.state_dict()[key], tensor), key
    np.testing.assert_array_equal(their_logits(ours, tokens(config)), their_logits(their_model(source), tokens(config)))


@pytest.mark.parametrize("name", ["llama1", "llama2_linear", "one_kv_head_wide", "llama3_tied", "llama3_bfloat16"])
def test_parameters_of_ours_give_transformers_our_logits(name, tmp_path):
    """The config.json is written anew, so every field of it is put to the test."""
    tokenizer = train_tokenizer(["some words to make pieces of"] * 3, vocab_size=390)
    config = CONFIGS[name] | {"vocab_size": 390}
    folder, ids = write_toy(tmp_path / "hf", config), tokens(config)
    model = load_model(folder, mesh=make_mesh(MeshShape(fsdp=2)))
    export_model(Params.of(model, tokenizer, max_length=256), tmp_path / "out", dtype="float32")
    found = their_logits(their_model(tmp_path / "out"), ids)
    assert distance(logits(folder, ids, compute_dtype="float32"), found) < FLOAT32
    described = their_model(tmp_path / "out").config
    assert (described.eos_token_id, described.max_position_embeddings) == (tokenizer.eos_id, 256)


def test_an_exported_tokenizer_gives_transformers_our_ids(tmp_path):
    """SentencePiece, with tokens that a template added. transformers writes one space less before a text that begins
    with spaces of its own, which templates strip."""
    tokenizer = train_tokenizer(["some words to make pieces of"] * 3, vocab_size=390)
    model = load_model(write_toy(tmp_path / "hf", CONFIGS["llama2_grouped"] | {"vocab_size": 390}))
    export_model(Params.of(model, tokenizer, max_length=64), tmp_path / "out")
    import_model(tmp_path / "out", tmp_path / "grown", template=CHATML)
    for folder, num_ids in ((tmp_path / "out", 390), (tmp_path / "grown", 392)):
        theirs = transformers.AutoTokenizer.from_pretrained(folder)
        ours = Tokenizer.load(tokenizer_path(folder), specials=tokenizer_specials(CHATML) if num_ids == 392 else ())
        assert len(theirs) == ours.vocab_size == num_ids
        assert (theirs.bos_token_id, theirs.eos_token_id) == (ours.bos_id, ours.eos_id)
        for text in ("some words", "A b  c\n d", "中文", "x1+y2=3"):
            assert theirs(text, add_special_tokens=False)["input_ids"] == ours.encode(text)
        assert theirs.convert_tokens_to_ids(list(ours.specials)) == list(ours.specials.values())


def test_grown_rows_leave_the_logits_of_the_old_tokens(tmp_path):
    config = CONFIGS["llama2_grouped"]
    folder = write_toy(tmp_path / "hf", config)
    import_model(folder, tmp_path / "model", vocab_multiple=48)
    grown = their_logits(their_model(tmp_path / "model"), tokens(config))
    assert grown.shape[-1] == read_config(tmp_path / "model").vocab_size == 96
    expected = their_logits(their_model(folder), tokens(config))
    assert distance(grown[..., :64], expected) < FLOAT32
    mean = weights(config)["lm_head.weight"].mean(axis=0)
    assert np.abs(their_model(tmp_path / "model").lm_head.weight[64:].detach().numpy() - mean).max() < 1e-6


def test_a_change_of_rotary_settings_would_be_seen(tmp_path):
    """The tolerances are tight enough to tell scaled from unscaled angles."""
    folder, ids = write_toy(tmp_path / "hf", CONFIGS["llama3_tied"]), tokens(CONFIGS["llama3_tied"])
    expected = their_logits(their_model(folder), ids)
    described = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(described | {"rope_scaling": None}))
    assert read_config(folder).rope_scaling is None
    assert distance(logits(folder, ids, compute_dtype="float32"), expected) > 1000 * FLOAT32
