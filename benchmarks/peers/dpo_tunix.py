"""Tunix's DPOTrainer on its own Llama3 model, float32, all weights trained: 8 pairs a step, 16 rows of 512.

Tunix wants every prompt padded on the left to one length and every reply on the right to another (192 and 320). The
reference model stands beside the policy and is asked in every step: it has no other mode.

Its rotary base is 1,000,000 whatever the settings say, so its log-probabilities are its own.
"""

from collections.abc import Iterator, Sequence

import jax
import numpy as np
from flax import nnx
from pairs import BETA, LONGEST_PROMPT, LONGEST_REPLY, PAIRS, Pair, load, of_step
from peer import Line, parser
from tunix.sft.dpo.dpo_trainer import DPOTrainer, DPOTrainingConfig, TrainingInput
from tunix_trainer import model_of, optimizer


def padded(parts: Sequence[np.ndarray], length: int, *, left: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Token ids [parts, length] and which of them are no padding."""
    ids, mask = np.zeros((len(parts), length), np.int32), np.zeros((len(parts), length), np.int32)
    for row, part in enumerate(parts):
        place = slice(length - len(part), length) if left else slice(0, len(part))
        ids[row, place], mask[row, place] = part, 1
    return ids, mask


def inputs(pairs: list[Pair]) -> TrainingInput:
    prompt_ids, prompt_mask = padded([pair.prompt for pair in pairs], LONGEST_PROMPT, left=True)
    chosen_ids, chosen_mask = padded([pair.chosen for pair in pairs], LONGEST_REPLY)
    rejected_ids, rejected_mask = padded([pair.rejected for pair in pairs], LONGEST_REPLY)
    return TrainingInput(
        prompt_ids=prompt_ids, prompt_mask=prompt_mask, chosen_ids=chosen_ids, chosen_mask=chosen_mask,
        rejected_ids=rejected_ids, rejected_mask=rejected_mask,
    )  # fmt: skip


class Kept(DPOTrainer):
    """Keeps the loss and the metrics of the last step; the rest is Tunix's trainer."""

    loss = 0.0
    aux: dict | None = None

    def _buffer_metrics(self, metrics_buffer, loss, step, additional_metrics=None):
        self.loss = loss
        return super()._buffer_metrics(metrics_buffer, loss, step, additional_metrics)

    def _post_process_train_step(self, aux):
        self.aux = aux
        return super()._post_process_train_step(aux)


def main() -> None:
    arguments = parser(__doc__).parse_args()
    line = Line()
    pairs = load(arguments.workload)
    policy, reference = model_of(arguments.weights), model_of(arguments.weights)
    settings = DPOTrainingConfig(beta=BETA, eval_every_n_steps=10**9, max_steps=None)
    trainer = Kept(policy, reference, optimizer(), settings)

    def batches() -> Iterator[TrainingInput]:
        """Tunix asks for a batch when it has sent off the step before, so here is where that step is waited for."""
        step = 0
        while line.wait():
            chosen = of_step(pairs, step)
            yield inputs(chosen)
            jax.block_until_ready(nnx.state(policy))
            sides = ("chosen", "rejected") if trainer.aux is not None and step == 0 else ()
            first = {f"{side}_logprob": float(trainer.aux[f"log_probs/{side}"]) for side in sides}
            tokens = sum(pair.num_tokens for pair in chosen)
            line.report(tokens=tokens, loss=float(trainer.loss), pairs=PAIRS, **first)
            step += 1

    trainer.train(batches())


if __name__ == "__main__":
    main()
