"""`dynamics` itself: the step, optimizer and batches that a study uses.

    --write   make the workload and the first weights for all peers, and leave

Started like a study's worker: freed memory is kept, and compiled programs lie in the folder given by --cache.
"""

import argparse
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from peer import Line, parser
from workload import LENGTH, OPTIMIZER, PACKED, ROWS, SHAPE, Workload, documents

if TYPE_CHECKING:
    from dynamics.model.llama import Llama, LlamaConfig

Arrays = dict[str, np.ndarray]


def packed_workload(*, steps: int) -> Workload:
    """Documents for `steps` steps of every peer, packed with our packer."""
    from dynamics.data.batches import Batches
    from dynamics.data.store import TokenStore
    from dynamics.data.template import Encoded

    num = int(1.5 * steps * ROWS * LENGTH / 147) + 20 * ROWS
    made = list(documents(num, vocab_size=SHAPE["vocab_size"], longest=LENGTH))
    pairs = [(f"{number:06d}", Encoded(tokens=t, trained=m)) for number, (t, m) in enumerate(made)]
    with tempfile.TemporaryDirectory() as folder:
        store = TokenStore.build(Path(folder) / "store", pairs, manifest={"benchmark": "peers"})
        batches = Batches.build(store, [[key for key, _ in pairs]], rows=ROWS, length=LENGTH)
        rows = [batches.batch(step) for step in range(steps)]
    return Workload(made, {name: np.stack([batch[name] for batch in rows]) for name in PACKED})


def write(arguments: argparse.Namespace) -> None:
    """The two files that every peer reads; the weights are drawn with our initialiser."""
    import jax

    from dynamics.model.llama import init

    packed_workload(steps=arguments.steps).save(arguments.workload)
    np.savez(arguments.weights, **exported(init(config(), jax.random.key(0))))


def config() -> "LlamaConfig":
    from dynamics.model.llama import LlamaConfig

    return LlamaConfig(
        name="reference", vocab_size=SHAPE["vocab_size"], d_model=SHAPE["hidden_size"],
        num_layers=SHAPE["num_hidden_layers"], num_heads=SHAPE["num_attention_heads"],
        num_kv_heads=SHAPE["num_key_value_heads"], head_dim=SHAPE["head_dim"], d_ff=SHAPE["intermediate_size"],
        rms_eps=SHAPE["rms_norm_eps"], rope_theta=SHAPE["rope_theta"],
    )  # fmt: skip


def exported(model: "Llama") -> Arrays:
    """Our parameters by transformers' names; its products store [out, in]."""
    d, blocks = SHAPE["hidden_size"], model.blocks
    weights = {
        "self_attn.q_proj": [w.reshape(d, -1).T for w in np.asarray(blocks.query[...])],
        "self_attn.k_proj": [w.reshape(d, -1).T for w in np.asarray(blocks.key[...])],
        "self_attn.v_proj": [w.reshape(d, -1).T for w in np.asarray(blocks.value[...])],
        "self_attn.o_proj": [w.reshape(-1, d).T for w in np.asarray(blocks.output[...])],
        "mlp.gate_proj": [w.T for w in np.asarray(blocks.gate[...])],
        "mlp.up_proj": [w.T for w in np.asarray(blocks.up[...])],
        "mlp.down_proj": [w.T for w in np.asarray(blocks.down[...])],
        "input_layernorm": list(np.asarray(blocks.attention_norm[...])),
        "post_attention_layernorm": list(np.asarray(blocks.mlp_norm[...])),
    }
    named = {
        f"model.layers.{layer}.{name}.weight": weight
        for name, layers in weights.items()
        for layer, weight in enumerate(layers)
    }
    return named | {
        "model.embed_tokens.weight": np.asarray(model.embedding[...]),
        "model.norm.weight": np.asarray(model.final_norm[...]),
        "lm_head.weight": np.asarray(model.head).T,
    }


def train(arguments: argparse.Namespace) -> None:
    line = Line()
    from dynamics.allocator import keep_freed_memory

    if arguments.keep_memory:
        keep_freed_memory()
    import jax

    if arguments.cache is not None:
        jax.config.update("jax_compilation_cache_dir", str(arguments.cache))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    from dynamics.data.batches import compact
    from dynamics.losses.sft import SFT
    from dynamics.model.llama import init
    from dynamics.train.optimizer import AdamW
    from dynamics.train.step import init_state, make_step

    workload = Workload.load(arguments.workload)
    optimizer = AdamW(**optimizer_settings())
    cap = trained_cap(workload)
    state = init_state(jax.jit(init, static_argnums=0)(config(), jax.random.key(0)), optimizer, total_steps=1000)
    step, made = make_step(SFT(), optimizer), 0
    while line.wait():
        rows = workload.rows(made)
        state, metrics = step(state, compact(rows, groups=1, cap=cap))
        loss = step.values(metrics)["loss"]
        made += 1
        line.report(tokens=int((rows["segments"] > 0).sum()), loss=loss)


def optimizer_settings() -> dict[str, float | str]:
    """Fields of dynamics.train.optimizer.AdamW."""
    others = {name: value for name, value in OPTIMIZER.items() if name != "lr"}
    return {"peak_lr": OPTIMIZER["lr"], "end_lr": OPTIMIZER["lr"], "schedule": "constant", **others}


def trained_cap(workload: Workload) -> int:
    """As dynamics.data.batches.trained_cap, from the rows alone: rounded up to a sixteenth of the positions."""
    most, unit = int((workload.packed["weights"] > 0).sum(axis=(1, 2)).max()), ROWS * LENGTH // 16
    return -(-most // unit) * unit


def main() -> None:
    made = parser(__doc__)
    made.add_argument("--write", action="store_true", help="write the workload and the weights, and leave")
    made.add_argument("--steps", type=int, default=16, help="steps that --write packs rows for")
    made.add_argument("--cache", type=Path, help="folder of compiled programs; without it every start compiles")
    made.add_argument("--keep-memory", action=argparse.BooleanOptionalAction, default=True, help="as a worker does")
    arguments = made.parse_args()
    (write if arguments.write else train)(arguments)


if __name__ == "__main__":
    main()
