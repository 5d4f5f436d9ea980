"""What TRL's own trainers make of a few pairs: losses, metrics and gradients; the settings, the pairs and TRL's side.

Policy and reference are toy models that differ by a few nats a reply. Shared by the script that makes the golden file
and by the tests; torch, transformers and TRL are imported only where they are used.
"""

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from parity.toys import CONFIGS, weights, write_toy

CONFIG = CONFIGS["llama2_grouped"]
PAD, EOS = 0, 2
BETA, GAMMA, SMOOTHING, SFT_WEIGHT = 0.3, 0.7, 0.15, 0.4
DESIRABLE, UNDESIRABLE = 1.5, 0.8
LABELS = (True, False, False, True)  # of the unpaired judgements: the chosen reply of the pair, or the rejected one

# name: the trainer and its settings. Weights of one loss type are never mixed with another's unless the name says so.
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "sigmoid": ("dpo", {"loss_type": ["sigmoid"]}),
    "sigmoid_smoothed": ("dpo", {"loss_type": ["sigmoid"], "label_smoothing": SMOOTHING}),
    "sigmoid_norm": ("dpo", {"loss_type": ["sigmoid_norm"]}),
    "robust": ("dpo", {"loss_type": ["robust"], "label_smoothing": SMOOTHING}),
    "ipo": ("dpo", {"loss_type": ["ipo"]}),
    "hinge": ("dpo", {"loss_type": ["hinge"]}),
    "apo_zero": ("dpo", {"loss_type": ["apo_zero"]}),
    "apo_down": ("dpo", {"loss_type": ["apo_down"]}),
    "sft": ("dpo", {"loss_type": ["sft"]}),
    "sigmoid_and_sft": ("dpo", {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, SFT_WEIGHT]}),
    "cpo_without_nll": ("cpo", {"loss_type": "sigmoid", "cpo_alpha": 0.0}),
    "cpo_smoothed": ("cpo", {"loss_type": "sigmoid", "cpo_alpha": 0.0, "label_smoothing": SMOOTHING}),
    "cpo": ("cpo", {"loss_type": "sigmoid", "cpo_alpha": 1.0}),
    "simpo": ("cpo", {"loss_type": "simpo", "cpo_alpha": 0.0, "simpo_gamma": GAMMA}),
    "orpo": ("orpo", {}),
    "kto": ("kto", {"desirable_weight": DESIRABLE, "undesirable_weight": UNDESIRABLE}),
    "kto_unpaired": ("kto", {"desirable_weight": DESIRABLE, "undesirable_weight": UNDESIRABLE}),
    "apo_zero_unpaired": ("kto", {"loss_type": "apo_zero_unpaired"}),
}
# Gradients that are kept: one of each depth. The norm of all of them is kept too.
KEPT = ("model.layers.0.self_attn.v_proj.weight", "model.layers.1.input_layernorm.weight", "model.norm.weight")


def reference_weights() -> dict[str, np.ndarray]:
    """The policy's, moved by a third of their own size."""
    moved = weights(CONFIG, seed=1)
    return {
        name: array + 0.3 * (moved[name] - (array.ndim == 1)).astype(array.dtype)
        for name, array in weights(CONFIG).items()
    }


def pairs() -> list[dict[str, list[int]]]:
    """prompt, chosen, rejected and a reply that belongs to another prompt. The end token is there once, at the end."""
    rng = np.random.default_rng(11)

    def draw(size: int) -> list[int]:
        return rng.integers(4, CONFIG["vocab_size"], size).tolist()

    found = [
        {"prompt": draw(p), "chosen": [*draw(c - 1), EOS], "rejected": [*draw(r - 1), EOS]}
        for p, c, r in ((6, 5, 9), (11, 12, 3), (1, 1, 7), (4, 8, 8))
    ]
    for number, pair in enumerate(found):
        pair["mismatched"] = found[(number + 1) % len(found)][("rejected", "chosen")[number % 2]]
    return found


def trl_results() -> dict[str, np.ndarray]:
    """{"case/what": value} of every case, and the log-probabilities that all of them start from."""
    os.environ |= {"HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": "", "TRL_EXPERIMENTAL_SILENCE": "1"}
    import torch

    found: dict[str, np.ndarray] = {}
    with _models() as (policy, reference):
        for side, model in (("policy", policy), ("reference", reference)):
            with torch.no_grad():
                found[f"logps/{side}"] = np.array(
                    [[_logp(model, pair["prompt"], pair[branch]) for branch in BRANCHES] for pair in pairs()]
                )
        for name in CASES:
            policy.zero_grad()
            loss, metrics = _run(name, policy, reference)
            loss.backward()
            found[f"{name}/loss"] = np.array(loss.item())
            found |= {f"{name}/{key}": np.array(value) for key, value in metrics.items()}
            gradients = {key: p.grad for key, p in policy.named_parameters() if p.grad is not None}
            found |= {f"{name}/gradient/{key}": gradients[key].numpy().copy() for key in KEPT}
            norms = [float(gradient.double().norm()) for gradient in gradients.values()]
            found[f"{name}/gradient_norm"] = np.array(np.linalg.norm(norms))
    return found


BRANCHES = ("chosen", "rejected", "mismatched")


@contextlib.contextmanager
def _models() -> Iterator[tuple[Any, Any]]:
    import torch
    import transformers

    with tempfile.TemporaryDirectory() as home:
        folders = (
            write_toy(Path(home) / name, CONFIG, arrays)
            for name, arrays in (("policy", weights(CONFIG)), ("reference", reference_weights()))
        )
        policy, reference = (
            transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32) for folder in folders
        )
        yield policy, reference


def _logp(model: Any, prompt: list[int], reply: list[int]) -> float:
    """Sum over the reply of one unpadded sequence, by transformers alone."""
    import torch

    ids = torch.tensor([[*prompt, *reply]])
    logprobs = torch.log_softmax(model(ids).logits[0, :-1], dim=-1)
    gold = logprobs[torch.arange(ids.shape[1] - 1), ids[0, 1:]]
    return gold[len(prompt) - 1 :].sum().item()


def _run(name: str, policy: Any, reference: Any) -> tuple[Any, dict[str, float]]:
    """The loss to differentiate and what the trainer would log."""
    kind, settings = CASES[name]
    with tempfile.TemporaryDirectory() as folder:
        trainer = _trainer(kind, settings, policy, reference, folder)
        if kind in ("dpo", "kto"):
            examples = (
                [_ids(pair, "chosen_ids", "rejected_ids") for pair in pairs()] if kind == "dpo" else _judgements(name)
            )
            policy.train()
            loss = trainer.compute_loss(policy, trainer.data_collator(examples))
            logged = {key: float(np.mean(values)) for key, values in trainer._metrics["train"].items()}
        else:
            batch = trainer.data_collator([_labelled(pair) for pair in pairs()])
            loss, logged = trainer.get_batch_loss_metrics(policy, batch)
            if kind == "orpo":
                # TRL takes the likelihood of prompt and reply, the paper that of the reply: only the other term, the
                # odds ratio's, can be compared. Its value and gradient are those of the loss without the likelihood.
                loss = loss - trainer.concatenated_forward(policy, batch)[4]
        del trainer
    wanted = ("rewards/", "logps/", "kl", "nll_loss", "log_odds")
    return loss, {key: value for key, value in logged.items() if key.startswith(wanted)}


def _ids(pair: dict[str, list[int]], *fields: str) -> dict[str, Any]:
    return {"prompt_ids": pair["prompt"], **{field: pair[field.removesuffix("_ids")] for field in fields}}


def _judgements(name: str) -> list[dict[str, Any]]:
    """Both replies of every pair, or one of each. Both stand with the same wrong reply: TRL averages over replies."""
    found = []
    for pair, kept in zip(pairs(), LABELS, strict=True):
        for side, label in (("chosen", True), ("rejected", False)):
            if name in ("kto", "apo_zero_unpaired") or label == kept:
                other = {} if name == "apo_zero_unpaired" else {"KL_completion_ids": pair["mismatched"]}
                found.append({"prompt_ids": pair["prompt"], "completion_ids": pair[side], "label": label, **other})
    return found


def _labelled(pair: dict[str, list[int]]) -> dict[str, list[int]]:
    """Features of the collator that CPO and ORPO use."""
    features = {"prompt_input_ids": pair["prompt"], "prompt_attention_mask": [1] * len(pair["prompt"])}
    for side in ("chosen", "rejected"):
        ids = [*pair["prompt"], *pair[side]]
        features[f"{side}_input_ids"] = ids
        features[f"{side}_attention_mask"] = [1] * len(ids)
        features[f"{side}_labels"] = [-100] * len(pair["prompt"]) + pair[side]
    return features


def _trainer(kind: str, settings: dict[str, Any], policy: Any, reference: Any, folder: str) -> Any:
    """A trainer as a user makes one. Its own data are a stand-in of one row; ours go through its collator."""
    from datasets import Dataset
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast
    from trl import DPOConfig, DPOTrainer, KTOConfig, KTOTrainer
    from trl.experimental.cpo import CPOConfig, CPOTrainer
    from trl.experimental.orpo import ORPOConfig, ORPOTrainer

    words = Tokenizer(models.WordLevel({f"<{n}>": n for n in range(CONFIG["vocab_size"])}, unk_token="<3>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token=f"<{PAD}>", bos_token="<1>", eos_token=f"<{EOS}>"
    )
    kinds = {
        "dpo": (DPOConfig, DPOTrainer), "kto": (KTOConfig, KTOTrainer),
        "cpo": (CPOConfig, CPOTrainer), "orpo": (ORPOConfig, ORPOTrainer),
    }  # fmt: skip
    make_config, make_trainer = kinds[kind]
    row: dict[str, Any] = {"prompt": "<5> <6> ", "chosen": "<7> <8>", "rejected": "<9>"}
    row_kto = {"prompt": "<5> <6> ", "completion": "<7> <8>", "label": True}
    rows = [row, row] if kind != "kto" else [row_kto, row_kto | {"label": False}]
    return make_trainer(
        policy,
        **({"ref_model": reference} if kind in ("dpo", "kto") else {}),
        args=make_config(
            output_dir=folder, beta=BETA, max_length=None, per_device_train_batch_size=2, use_cpu=True, bf16=False,
            report_to="none", gradient_checkpointing=False, disable_tqdm=True, **settings,
        ),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
    )  # fmt: skip
