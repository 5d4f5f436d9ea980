"""Tunix's PeftTrainer on its own Llama3 model, float32, all weights trained.

    --input padded   8 documents a step, each padded to 512
    --input packed   our packed rows with positions and a block-diagonal mask made outside, since Tunix packs none

Its rotary base is 1,000,000 whatever the settings say, so its losses are its own.
"""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from peer import Line, parser
from tunix.models.llama3.model import Llama3, ModelConfig
from tunix.sft.peft_trainer import PeftTrainer, TrainingConfig
from workload import LENGTH, OPTIMIZER, SHAPE, Workload

Arrays = dict[str, np.ndarray]
CAUSAL = np.tril(np.ones((LENGTH, LENGTH), dtype=bool))


def model_of(path: str) -> Llama3:
    config = ModelConfig(
        num_layers=SHAPE["num_hidden_layers"], vocab_size=SHAPE["vocab_size"], embed_dim=SHAPE["hidden_size"],
        hidden_dim=SHAPE["intermediate_size"], num_heads=SHAPE["num_attention_heads"], head_dim=SHAPE["head_dim"],
        num_kv_heads=SHAPE["num_key_value_heads"], rope_theta=SHAPE["rope_theta"], norm_eps=SHAPE["rms_norm_eps"],
    )  # fmt: skip
    model = Llama3(config, rngs=nnx.Rngs(0))
    d, heads = SHAPE["hidden_size"], (SHAPE["hidden_size"], SHAPE["num_attention_heads"], SHAPE["head_dim"])
    with np.load(path) as saved:
        model.embedder.input_embedding.value = jnp.asarray(saved["model.embed_tokens.weight"])
        model.final_norm.w.value = jnp.asarray(saved["model.norm.weight"])
        model.lm_head.w.value = jnp.asarray(saved["lm_head.weight"].T)
        for number, layer in enumerate(model.layers):
            prefix = f"model.layers.{number}."
            for name in ("q_proj", "k_proj", "v_proj"):
                weight = saved[f"{prefix}self_attn.{name}.weight"].T.reshape(heads)
                getattr(layer.attn, name).w.value = jnp.asarray(weight)
            output = saved[f"{prefix}self_attn.o_proj.weight"].T.reshape(*heads[1:], d)
            layer.attn.o_proj.w.value = jnp.asarray(output)
            for name in ("gate_proj", "up_proj", "down_proj"):
                getattr(layer.mlp, name).kernel.value = jnp.asarray(saved[f"{prefix}mlp.{name}.weight"].T)
            layer.input_layernorm.w.value = jnp.asarray(saved[f"{prefix}input_layernorm.weight"])
            layer.post_attention_layernorm.w.value = jnp.asarray(saved[f"{prefix}post_attention_layernorm.weight"])
    return model


def inputs(rows: Arrays) -> Arrays:
    """What Tunix's loss takes. It marks the token that is predicted, and ours the position that predicts it."""
    mask = np.zeros_like(rows["tokens"])
    mask[:, 1:] = rows["weights"][:, :-1] > 0
    segments = rows["segments"]
    return {
        "input_tokens": rows["tokens"],
        "input_mask": mask,
        "positions": rows["positions"],
        "attention_mask": (segments[:, :, None] == segments[:, None, :]) & CAUSAL,
    }


def optimizer() -> optax.GradientTransformation:
    not_norms = lambda params: jax.tree.map(lambda p: p.ndim > 1, params)  # noqa: E731
    rate = optax.linear_schedule(0.0, OPTIMIZER["lr"], OPTIMIZER["warmup_steps"])
    return optax.chain(
        optax.clip_by_global_norm(OPTIMIZER["clip"]),
        optax.adamw(
            rate, OPTIMIZER["b1"], OPTIMIZER["b2"], OPTIMIZER["eps"],
            weight_decay=OPTIMIZER["weight_decay"], mask=not_norms,
        ),
    )  # fmt: skip


class LossKept(PeftTrainer):
    """Keeps the loss of the last step; the rest is Tunix's trainer."""

    loss = 0.0

    def _buffer_metrics(self, metrics_buffer, loss, step, additional_metrics=None):
        self.loss = loss
        return super()._buffer_metrics(metrics_buffer, loss, step, additional_metrics)


def main() -> None:
    made = parser(__doc__)
    made.add_argument("--input", choices=["padded", "packed"], required=True)
    arguments = made.parse_args()
    line = Line()
    workload, model = Workload.load(arguments.workload), model_of(arguments.weights)
    trainer = LossKept(model, optimizer(), TrainingConfig(eval_every_n_steps=10**9, max_steps=None))
    rows_of = workload.rows if arguments.input == "packed" else workload.padded_rows

    def batches() -> Iterator[Arrays]:
        """Tunix asks for a batch when it has sent off the step before, so here is where that step is waited for."""
        step = 0
        while line.wait():
            rows = rows_of(step)
            yield inputs(rows)
            jax.block_until_ready(nnx.state(model))
            line.report(tokens=int((rows["segments"] > 0).sum()), loss=float(trainer.loss))
            step += 1

    trainer.train(batches())


if __name__ == "__main__":
    main()
