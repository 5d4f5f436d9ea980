"""Trees by name."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dynamics import tree
from dynamics.errors import UserError

TREE = {"blocks": {"query": jnp.ones((2, 3)), "norm": jnp.zeros(3)}, "head": jnp.ones((3, 5))}


def test_names_are_paths_and_rebuilding_is_identity():
    leaves = tree.named_leaves(TREE)
    assert set(leaves) == {"blocks/query", "blocks/norm", "head"}
    rebuilt = tree.with_leaves(TREE, leaves)
    assert jax.tree.structure(rebuilt) == jax.tree.structure(TREE)
    assert tree.tree_digest(rebuilt) == tree.tree_digest(TREE)


def test_an_entry_called_value_keeps_its_name():
    assert set(tree.named_leaves({"blocks": {"value": 0, "key": 1}})) == {"blocks/value", "blocks/key"}


def test_missing_and_extra_names_are_named():
    with pytest.raises(UserError, match=r"missing \['head'\], not expected \['tail'\]"):
        tree.with_leaves(TREE, {"blocks/query": 0, "blocks/norm": 0, "tail": 0})


def test_masks_follow_names_and_counts_follow_shapes():
    assert tree.name_mask(TREE, "norm|head") == {"blocks": {"query": False, "norm": True}, "head": True}
    assert tree.num_parameters(jax.eval_shape(lambda: TREE)) == 6 + 3 + 15


def test_a_digest_sees_every_bit_the_type_and_the_shape():
    base = np.arange(12, dtype=np.float32)
    flipped = base.copy()
    flipped.view(np.uint32)[5] ^= 1
    others = [flipped, base.reshape(3, 4), base.astype(np.float64), np.float32(0).reshape(())]
    digests = {tree.digest(value) for value in [base, *others]}
    assert len(digests) == 5
    assert tree.digest(jnp.asarray(base)) == tree.digest(base)
