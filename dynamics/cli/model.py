"""`dynamics model info` and `dynamics version`."""

import argparse
import dataclasses
import difflib
import json
from typing import Any

from dynamics.errors import UserError
from dynamics.versions import versions


def version(options: argparse.Namespace) -> int:
    """The versions that results depend on."""
    found = versions()
    if options.json:
        print(json.dumps(found))
    else:
        print("\n".join(f"{name} {number}" for name, number in found.items()))
    return 0


def info(options: argparse.Namespace) -> int:
    """Shapes, parameters and bytes of one named size or of all."""
    from dynamics.model.llama import SIZES

    if options.size is not None and options.size not in SIZES:
        near = difflib.get_close_matches(options.size, SIZES, n=1, cutoff=0.5)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise UserError(f"no size is named {options.size!r}{hint}; known: {', '.join(SIZES)}")
    names = [options.size] if options.size else list(SIZES)
    rows = [_describe(name, options.vocab) for name in names]
    if options.json:
        print(json.dumps(rows[0] if options.size else rows))
    elif options.size:
        print("\n".join(f"{key:16} {_shown(value)}" for key, value in rows[0].items()))
    else:
        _table(rows)
    return 0


def _describe(name: str, vocab: int | None) -> dict[str, Any]:
    import jax

    from dynamics import tree
    from dynamics.model.llama import SIZES, init

    config = SIZES[name]
    if vocab is not None:
        config = dataclasses.replace(config, vocab_size=vocab)
    shapes = jax.eval_shape(lambda: init(config, jax.random.key(0)))
    parameters = tree.num_parameters(shapes)
    return {
        "size": name,
        "parameters": parameters,
        "d_model": config.d_model,
        "num_layers": config.num_layers,
        "num_heads": config.num_heads,
        "num_kv_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "d_ff": config.d_ff,
        "vocab_size": config.vocab_size,
        "tied_head": config.tied_head,
        "param_bytes": sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(shapes)),
        # Parameters, gradients and AdamW's two moments, all in the parameters' type; activations come on top.
        "train_bytes": 4 * sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(shapes)),
    }


def _shown(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def _table(rows: list[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, header_style="bold")
    for key in rows[0]:
        table.add_column(key, justify="left" if key == "size" else "right")
    for row in rows:
        table.add_row(*(_shown(value) for value in row.values()))
    Console().print(table)
