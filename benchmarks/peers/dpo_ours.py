"""`dynamics` itself: the reference asked once, pairs packed into rows, the head at the replies' positions only.

Each prompt is computed once for both replies; with --apart once for each. A batch holds as many pairs as its rows take,
about 8; --pairs-per-step fixes how many. Started like a study's worker: freed memory is kept.
"""

import argparse
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from ours import config, optimizer_settings
from pairs import BETA, PAIRS, Pair, load
from peer import Line, Meter, parser

if TYPE_CHECKING:
    from dynamics.data.pair_batches import PairBatches
    from dynamics.data.store import TokenStore

STEPS = 64  # that batches are planned for; then they come again


def store_of(pairs: list[Pair], folder: Path) -> "TokenStore":
    from dynamics.data.store import TokenStore
    from dynamics.data.template import Encoded

    documents = []
    for number, pair in enumerate(pairs):
        parts = (pair.prompt, pair.chosen, pair.rejected)
        branches = np.repeat(np.arange(3, dtype=np.int8), [len(part) for part in parts])
        encoded = Encoded(tokens=np.concatenate(parts), trained=branches > 0, branches=branches)
        documents.append((f"{number:04d}", encoded))
    return TokenStore.build(folder / "store", documents, manifest={"benchmark": "dpo"})


def train(arguments: argparse.Namespace, folder: Path) -> None:
    line = Line()
    from dynamics.allocator import keep_freed_memory

    keep_freed_memory()
    import jax

    if arguments.cache is not None:
        jax.config.update("jax_compilation_cache_dir", str(arguments.cache))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    from dynamics.data.pair_batches import PairBatches, compact_pairs, pair_caps
    from dynamics.losses.dpo import DPO
    from dynamics.model.llama import init
    from dynamics.train.optimizer import AdamW
    from dynamics.train.step import init_state, make_step

    pairs = load(arguments.workload)
    store = store_of(pairs, folder)
    layout = {"rows": arguments.rows, "length": arguments.length, "shared_prompt": not arguments.apart}
    keys = list(store.keys)
    model = jax.jit(init, static_argnums=0)(config(), jax.random.key(0))
    first = {} if arguments.without_reference else reference_pass(model, PairBatches.build(store, [keys], **layout))
    epochs = -(-STEPS * PAIRS // len(pairs))
    batches = PairBatches.build(store, [keys] * epochs, documents_per_batch=arguments.pairs_per_step, **layout)
    if first:
        batches = batches.with_values(np.array(first["reference"], np.float32).T, None)
    optimizer = AdamW(**optimizer_settings())
    state = init_state(model, optimizer, total_steps=1000)
    del model
    step, made = make_step(DPO(beta=BETA, chunk=arguments.chunk), optimizer), 0
    cap, room = pair_caps(batches, groups=1)
    while line.wait():
        number = made % len(batches)
        state, metrics = step(state, compact_pairs(batches.batch(number), groups=1, cap=cap, pairs=room))
        loss = step.values(metrics)["loss"]
        planned = batches.documents[batches.plan.documents(number)]
        tokens = sum(pairs[document].num_tokens for document in planned)
        line.report(tokens=tokens, loss=loss, pairs=len(planned), **first)
        made, first = made + 1, {}


def reference_pass(model: object, batches: "PairBatches") -> dict:
    """Log-probabilities of all replies, computed twice: what the first pass takes longer is compiling."""
    from dynamics.eval.preferences import reply_scores

    meter = Meter()
    reply_scores(model, batches)
    compiled = meter.read()
    meter = Meter()
    sums, _ = reply_scores(model, batches)
    found = {f"reference_{name}": value for name, value in meter.read().items()}
    found["reference_first_s"] = compiled["wall_s"]
    # Means of the pairs that every peer sees in its first step; packing keeps the order.
    chosen, rejected = sums[:PAIRS].mean(axis=0)
    found |= {"chosen_logprob": float(chosen), "rejected_logprob": float(rejected)}
    return found | {"reference": sums.T.astype(float).tolist()}


def main() -> None:
    made = parser(__doc__)
    made.add_argument("--apart", action="store_true", help="the prompt once for each reply")
    made.add_argument("--rows", type=int, default=4)
    made.add_argument("--length", type=int, default=512)
    made.add_argument("--pairs-per-step", type=int, help="at most so many pairs in a batch")
    made.add_argument("--chunk", type=int, default=2048, help="positions with logits at a time")
    made.add_argument("--without-reference", action="store_true", help="leave the pass out: zeros stand in for it")
    made.add_argument("--cache", type=Path, help="folder of compiled programs; without it every start compiles")
    arguments = made.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        train(arguments, Path(folder))


if __name__ == "__main__":
    main()
