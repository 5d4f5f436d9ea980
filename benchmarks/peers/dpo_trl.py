"""TRL's DPOTrainer on transformers' LlamaForCausalLM, float32, without gradient checkpointing: 8 pairs a step.

16 sequences padded to the longest of them. The reference model stands beside the policy and is asked in every step,
which is the default, or with --precompute once before training.

TRL shuffles by default; here it takes the pairs in their order, so that every peer sees the same ones.
"""

import os
import tempfile

import numpy as np
import torch
from pairs import BETA, EOS, LONGEST_PROMPT, LONGEST_REPLY, PAIRS, Pair, load, of_step
from peer import Line, Meter, parser
from workload import OPTIMIZER, SHAPE

os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false", CUDA_VISIBLE_DEVICES="")

from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, TrainerCallback
from trl import DPOConfig, DPOTrainer


class OnCommand(TrainerCallback):
    """Holds the trainer between two steps until the runner asks for another."""

    def __init__(self, line: Line, pairs: list[Pair]) -> None:
        self.line = line
        self.pairs = pairs
        self.made = 0
        self.first: dict[str, float] = {}  # said once, with the first step

    def on_train_begin(self, args, state, control, **_) -> None:
        control.should_training_stop = not self.line.wait()

    def on_step_end(self, args, state, control, **_) -> None:
        control.should_log = True

    def on_log(self, args, state, control, logs, **_) -> None:
        if "loss" not in logs:  # the summary at the end
            return
        if not self.made:
            self.first |= {f"{side}_logprob": logs[f"logps/{side}"] for side in ("chosen", "rejected")}
        tokens = sum(pair.num_tokens for pair in of_step(self.pairs, self.made))
        self.line.report(tokens=tokens, loss=logs["loss"], pairs=PAIRS, **self.first)
        self.made, self.first = self.made + 1, {}
        control.should_training_stop = not self.line.wait()


class Timed(DPOTrainer):
    """Keeps what the pass over the reference cost."""

    def _precompute_ref_logps(self, *arguments, **named):
        meter = Meter()
        found = super()._precompute_ref_logps(*arguments, **named)
        self.reference = {f"reference_{name}": value for name, value in meter.read().items()}
        return found


def text(ids: np.ndarray) -> str:
    """Words that the tokenizer below turns into these ids; TRL takes no ids."""
    return "".join(f"<{number}> " for number in ids)


def tokenizer() -> PreTrainedTokenizerFast:
    words = Tokenizer(models.WordLevel({f"<{n}>": n for n in range(SHAPE["vocab_size"])}, unk_token="<3>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<0>", eos_token=f"<{EOS}>")


def saved_model(weights: str, folder: str) -> str:
    """A folder of the model: the trainer reads policy and reference from it."""
    shape = {name: value for name, value in SHAPE.items() if name != "rope_theta"}
    rope = {"rope_type": "default", "rope_theta": SHAPE["rope_theta"]}
    model = LlamaForCausalLM(LlamaConfig(**shape, rope_parameters=rope, tie_word_embeddings=False))
    with np.load(weights) as saved:
        model.load_state_dict({name: torch.from_numpy(saved[name]) for name in saved})
    model.save_pretrained(folder)
    return folder


def main() -> None:
    made = parser(__doc__)
    made.add_argument("--precompute", action="store_true", help="ask the reference once, before training")
    arguments = made.parse_args()
    line = Line()
    pairs = load(arguments.workload)
    rows = [
        {"prompt": text(p.prompt), "chosen": text(p.chosen).strip(), "rejected": text(p.rejected).strip()}
        for p in pairs
    ]
    with tempfile.TemporaryDirectory() as folder:
        settings = DPOConfig(
            output_dir=folder, per_device_train_batch_size=PAIRS, max_length=LONGEST_PROMPT + LONGEST_REPLY, beta=BETA,
            max_steps=1000, precompute_ref_log_probs=arguments.precompute, train_sampling_strategy="sequential",
            learning_rate=OPTIMIZER["lr"], lr_scheduler_type="constant_with_warmup",
            warmup_steps=OPTIMIZER["warmup_steps"], adam_beta1=OPTIMIZER["b1"], adam_beta2=OPTIMIZER["b2"],
            adam_epsilon=OPTIMIZER["eps"], weight_decay=OPTIMIZER["weight_decay"], max_grad_norm=OPTIMIZER["clip"],
            gradient_checkpointing=False, bf16=False, use_cpu=True, report_to="none", save_strategy="no",
            logging_steps=1, disable_tqdm=True, dataloader_pin_memory=False,
            model_init_kwargs={"dtype": "float32", "attn_implementation": "sdpa"},
        )  # fmt: skip
        callback = OnCommand(line, pairs)
        trainer = Timed(
            saved_model(arguments.weights, folder), args=settings, train_dataset=Dataset.from_list(rows),
            processing_class=tokenizer(), callbacks=[callback],
        )  # fmt: skip
        lengths = [
            [len(row[f"{part}_ids"]) for part in ("prompt", "chosen", "rejected")] for row in trainer.train_dataset
        ]
        assert lengths == [[len(p.prompt), len(p.chosen), len(p.rejected)] for p in pairs], "other tokens than ours"
        if arguments.precompute:
            columns = (trainer.train_dataset[f"ref_{side}_logps"] for side in ("chosen", "rejected"))
            callback.first = trainer.reference | {"reference": [list(map(float, column)) for column in columns]}
        trainer.train()


if __name__ == "__main__":
    main()
