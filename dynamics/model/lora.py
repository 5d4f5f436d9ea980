"""LoRA: low-rank adapters as a tree beside the weights, which stay as they are.

    weight      [layers, in..., out...]      frozen
    adapter a   [layers, in..., rank]        drawn
    adapter b   [layers, rank, out...]       zero, so that training starts at the model as it was
    together    x @ weight + (alpha / rank) * (x @ a) @ b

Source: Hu et al. 2021, section 4.1.
"""

import dataclasses
import difflib
import math
from collections.abc import Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array

from dynamics.errors import UserError
from dynamics.model.llama import Adapter, Llama, floats, is_rounded
from dynamics.tree import named_leaves, path_name, with_leaves

# The weights of a block that can be adapted, each with the number of dimensions that it takes in (layers not counted).
IN_DIMENSIONS = {"query": 1, "key": 1, "value": 1, "output": 2, "gate": 1, "up": 1, "down": 1}

Adapters = Mapping[str, Adapter]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Lora:
    """Which weights get adapters, how large, and in which type the frozen model is kept."""

    rank: int
    alpha: float  # the addition is scaled by alpha / rank
    targets: tuple[str, ...] = tuple(IN_DIMENSIONS)
    # Of the frozen matrices; norms keep theirs. "int8" is for those of the blocks alone, a scale for each output.
    base_dtype: Literal["same", "bfloat16", "int8"] = "same"

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise UserError(f"Lora(rank={self.rank}): give a whole number >= 1, such as 16")
        if self.alpha <= 0:
            raise UserError(f"Lora(alpha={self.alpha}) undoes the adapters; give a positive number, such as the rank")
        if not self.targets or len(set(self.targets)) < len(self.targets):
            raise UserError(f"Lora(targets={self.targets!r}): name at least one weight, each once")
        for name in self.targets:
            if name not in IN_DIMENSIONS:
                near = difflib.get_close_matches(name, IN_DIMENSIONS, n=1, cutoff=0.4)
                hint = f"; did you mean {near[0]!r}?" if near else ";"
                raise UserError(f"Lora targets {name!r}, which no block has{hint} known: {', '.join(IN_DIMENSIONS)}")
        if self.base_dtype not in ("same", "bfloat16", "int8"):
            raise UserError(f"Lora(base_dtype={self.base_dtype!r}): known: same, bfloat16, int8")

    @property
    def scale(self) -> float:
        return self.alpha / self.rank


def init_adapters(model: Llama, lora: Lora, key: Array) -> dict[str, Adapter]:
    """Fresh adapters for a model or its shapes, float32 whatever the model's type: they are what is trained.

    `a` is drawn from a normal distribution with variance 1 / (numbers taken in), so that the narrow activations have
    the size of the wide ones. The paper says a random Gaussian without its size; its code and peft draw uniformly
    (kaiming_uniform with a = sqrt(5)) with a third of this variance. `b` is zero in all of them.
    """
    adapters = {}
    for name, one in zip(lora.targets, jax.random.split(key, len(lora.targets)), strict=True):
        weight = getattr(model.blocks, name)
        split = 1 + IN_DIMENSIONS[name]
        axes, shape = weight.get_metadata()["logical_axes"], weight.shape
        a = jax.random.normal(one, (*shape[:split], lora.rank), jnp.float32) * math.prod(shape[1:split]) ** -0.5
        b = jnp.zeros((shape[0], lora.rank, *shape[split:]), jnp.float32)
        adapters[name] = Adapter(a, b, scale=lora.scale, in_axes=axes[1:split], out_axes=axes[split:])
    return adapters


def freeze(model: Llama, lora: Lora) -> Llama:
    """The model as it is kept while its adapters are trained: matrices in `base_dtype`, norms as they were."""
    if lora.base_dtype == "same":
        return model

    def cast(path: tuple, leaf: Array) -> Array:
        return leaf if "norm" in path_name(path) else leaf.astype(lora.base_dtype)

    return jax.tree_util.tree_map_with_path(_rounded if lora.base_dtype == "int8" else cast, model)


def _rounded(path: tuple, leaf: Array) -> Any:
    """A block's matrix as int8 with a float scale for each layer and output: off by at most half a scale. By qwix."""
    home, _, name = path_name(path).rpartition("/")
    if home != "blocks" or name not in IN_DIMENSIONS:
        return leaf
    try:
        import qwix
    except ImportError as error:
        raise UserError('Lora(base_dtype="int8") needs the package qwix; install it, or use "bfloat16"') from error
    outputs = (0, *range(1 + IN_DIMENSIONS[name], leaf.ndim))
    return qwix.quantize(leaf, jnp.int8, channelwise_axes=outputs, calibration_method="absmax")


def thaw(frozen: Llama, like: Llama) -> Llama:
    """The frozen model in the types of `like`, arrays or shapes: what adapters are merged into without a loss."""
    return jax.tree.map(lambda kept, wanted: floats(kept).astype(wanted.dtype), frozen, like, is_leaf=is_rounded)


def attach(model: Llama, adapters: Adapters) -> Llama:
    """The model with its adapters, called like any other; the products stay apart, nothing is copied."""
    return model.with_adapters(adapters)


def merge(model: Llama, adapters: Adapters) -> Llama:
    """A plain model whose weights are weight + scale * a @ b, in the type that the weights have.

    In bfloat16 the sum rounds: a change of less than about 0.4 % of a weight can be lost. Merge into a float32 model
    where it must not.
    """
    leaves = named_leaves(model)
    for name, adapter in adapters.items():
        if f"blocks/{name}" not in leaves:
            raise UserError(f"blocks/{name} is kept in int8, where a small change would be lost; merge into thaw(...)")
        weight, a, b = leaves[f"blocks/{name}"], adapter.a[...], adapter.b[...]
        layers, rank = b.shape[:2]
        change = jnp.matmul(a.reshape(layers, -1, rank), b.reshape(layers, rank, -1), precision="highest")
        whole = weight.astype(jnp.float32) + adapter.scale * change.reshape(weight.shape)
        leaves[f"blocks/{name}"] = whole.astype(weight.dtype)
    return with_leaves(model, leaves)
