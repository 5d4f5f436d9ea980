"""Pytrees by name: flatten to {name: array}, rebuild, masks by pattern, counts, digests."""

import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
import xxhash

from dynamics.errors import UserError


def path_name(path: tuple[Any, ...]) -> str:
    """'blocks/attention/query' for a key path of jax.tree_util; the `value` step of a wrapped parameter is left out.

    That step is an attribute; an entry of a dict that is called 'value' (a projection of attention) keeps its name.
    """
    parts = []
    for key in path:
        part = getattr(key, "name", getattr(key, "key", getattr(key, "idx", None)))
        parts.append(str(part))
    if len(parts) > 1 and parts[-1] == "value" and hasattr(path[-1], "name"):
        parts = parts[:-1]
    return "/".join(parts)


def named_leaves(tree: Any) -> dict[str, Any]:
    """{name: leaf} in tree order."""
    leaves = {path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}
    assert len(leaves) == len(jax.tree_util.tree_leaves(tree)), "two leaves share a name"
    return leaves


def with_leaves(tree: Any, leaves: Mapping[str, Any]) -> Any:
    """The same tree with its leaves replaced by name; every name must be there, none may be left over."""
    names = list(named_leaves(tree))
    missing = [name for name in names if name not in leaves]
    extra = [name for name in leaves if name not in set(names)]
    if missing or extra:
        raise UserError(
            f"the arrays do not fit this model: missing {missing[:5]}, not expected {extra[:5]} "
            f"({len(missing)} missing, {len(extra)} extra); use the configuration that wrote them"
        )
    return jax.tree_util.tree_unflatten(jax.tree_util.tree_structure(tree), [leaves[name] for name in names])


def name_mask(tree: Any, pattern: str) -> Any:
    """A tree of booleans: whether the leaf's name matches the regular expression somewhere."""
    matcher = re.compile(pattern)
    return jax.tree_util.tree_map_with_path(lambda path, _: matcher.search(path_name(path)) is not None, tree)


def num_parameters(tree: Any) -> int:
    """How many numbers the leaves hold; works on shapes (jax.eval_shape) too."""
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree_util.tree_leaves(tree))


def digest(array: Any) -> str:
    """Hex digest of an array's dtype, shape and bytes; equal exactly when the arrays are bit-identical."""
    value = np.asarray(array)
    state = xxhash.xxh3_128(f"{value.dtype.str}{value.shape}".encode())
    state.update(np.ascontiguousarray(value).reshape(-1).view(np.uint8).data)
    return state.hexdigest()


def tree_digest(tree: Any, of: Callable[[Any], str] = digest) -> str:
    """One digest of a whole tree, names included."""
    state = xxhash.xxh3_128()
    for name, leaf in named_leaves(tree).items():
        state.update(f"{name}={of(leaf)};".encode())
    return state.hexdigest()
