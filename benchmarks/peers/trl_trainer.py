"""TRL's SFTTrainer on transformers' LlamaForCausalLM, float32, without gradient checkpointing.

--packing padded    8 documents a step, padded to the longest of them
--packing bfd       best-fit-decreasing rows of 512, the only one of its modes in which documents stay apart
--packing wrapped   rows of 512 that cut documents and let them see each other
"""

import os
import tempfile
from collections.abc import Iterator

import numpy as np
import torch
from peer import Line, parser
from workload import LENGTH, OPTIMIZER, ROWS, SHAPE, Workload

os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false", CUDA_VISIBLE_DEVICES="")

from datasets import Dataset
from tokenizers import Tokenizer, models
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, TrainerCallback
from trl import SFTConfig, SFTTrainer


class OnCommand(TrainerCallback):
    """Holds the trainer between two steps until the runner asks for another, and counts what a step saw."""

    def __init__(self, line: Line) -> None:
        self.line = line
        self.tokens = 0

    def on_train_begin(self, args, state, control, **_) -> None:
        control.should_training_stop = not self.line.wait()

    def on_step_end(self, args, state, control, **_) -> None:
        control.should_log = True

    def on_log(self, args, state, control, logs, **_) -> None:
        if "loss" not in logs:  # the summary at the end
            return
        self.line.report(tokens=self.tokens, loss=logs["loss"])
        self.tokens = 0
        control.should_training_stop = not self.line.wait()


def counted(collate, callback: OnCommand):
    """The trainer's own collator, and how many tokens of each batch are no padding."""
    queue: list[int] = []

    def made(examples: list) -> dict:
        batch = collate(examples)
        mask = batch.get("attention_mask")
        queue.append(int(batch["input_ids"].numel() if mask is None else mask.sum()))
        return batch

    def taken(module, args, kwargs) -> None:
        # The data loader is one batch ahead, so a batch counts when the model sees it.
        callback.tokens += queue.pop(0)

    return made, taken


def rows_of(workload: Workload) -> Iterator[dict[str, list[int]]]:
    for tokens, trained in workload.documents:
        yield {"input_ids": tokens.tolist(), "completion_mask": trained.astype(int).tolist()}


def main() -> None:
    made = parser(__doc__)
    made.add_argument("--packing", choices=["padded", "bfd", "wrapped"], required=True)
    arguments = made.parse_args()
    line = Line()
    workload = Workload.load(arguments.workload)
    shape = {name: value for name, value in SHAPE.items() if name != "rope_theta"}
    rope = {"rope_type": "default", "rope_theta": SHAPE["rope_theta"]}
    config = LlamaConfig(
        **shape, rope_parameters=rope, tie_word_embeddings=False, attn_implementation="sdpa", dtype="float32"
    )
    model = LlamaForCausalLM(config)
    with np.load(arguments.weights) as saved:
        model.load_state_dict({name: torch.from_numpy(saved[name]) for name in saved})
    vocabulary = {f"<{number}>": number for number in range(SHAPE["vocab_size"])}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(vocabulary, unk_token="<0>")), pad_token="<0>", eos_token="<2>"
    )
    packing = {} if arguments.packing == "padded" else {"packing": True, "packing_strategy": arguments.packing}
    with tempfile.TemporaryDirectory() as folder:
        settings = SFTConfig(
            output_dir=folder, per_device_train_batch_size=ROWS, max_length=LENGTH, max_steps=1000,
            completion_only_loss=True, learning_rate=OPTIMIZER["lr"], lr_scheduler_type="constant_with_warmup",
            warmup_steps=OPTIMIZER["warmup_steps"], adam_beta1=OPTIMIZER["b1"],
            adam_beta2=OPTIMIZER["b2"], adam_epsilon=OPTIMIZER["eps"],
            weight_decay=OPTIMIZER["weight_decay"], max_grad_norm=OPTIMIZER["clip"], gradient_checkpointing=False,
            bf16=False, use_cpu=True, report_to="none", save_strategy="no", logging_steps=1, disable_tqdm=True,
            eos_token="<2>", dataloader_pin_memory=False, **packing,
        )  # fmt: skip
        callback = OnCommand(line)
        trainer = SFTTrainer(
            model, args=settings, train_dataset=Dataset.from_list(list(rows_of(workload))),
            processing_class=tokenizer, callbacks=[callback],
        )  # fmt: skip
        trainer.data_collator, taken = counted(trainer.data_collator, callback)
        model.register_forward_pre_hook(taken, with_kwargs=True)
        trainer.train()


if __name__ == "__main__":
    main()
