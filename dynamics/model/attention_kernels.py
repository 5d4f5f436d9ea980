"""Attention as a Pallas kernel for TPU: scores live in on-chip memory only, and blocks of the future are skipped.

Dimensions: b batch, l length, h query heads, k key/value heads, c head channels.
"""

from typing import cast

import jax
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel, splash_attention_mask
from jaxtyping import Array, Float, Int

BLOCKS = (512, 256, 128)  # positions of a tile; the largest that divides the length is taken


def splash(
    query: Float[Array, "b l h c"],
    key: Float[Array, "b l k c"],
    value: Float[Array, "b l k c"],
    segments: Int[Array, "b l"],
    *,
    saved_as: str,
    interpret: bool,
) -> Float[Array, "b l h c"]:
    """Causal attention inside segments by the Splash kernel that comes with JAX; length in 128s, c in 64s.

    `saved_as` names its output and softmax denominators for rematerialisation. `interpret` runs it without a TPU.
    """
    length, heads = query.shape[1:3]
    block = next(size for size in BLOCKS if length % size == 0)
    kernel = splash_attention_kernel.make_splash_mha(
        splash_attention_mask.MultiHeadMask([splash_attention_mask.CausalMask((length, length))] * heads),
        block_sizes=splash_attention_kernel.BlockSizes(
            block_q=block, block_kv=block, block_q_dkv=block, block_kv_dkv=block, block_q_dq=block, block_kv_dq=block
        ),
        head_shards=1,
        q_seq_shards=1,
        residual_checkpoint_name=saved_as,
        interpret=interpret,
    )
    by_head = [x.transpose(0, 2, 1, 3) for x in (query * query.shape[-1] ** -0.5, key, value)]
    mixed = jax.vmap(kernel)(*by_head, splash_attention_kernel.SegmentIds(segments, segments))
    return cast(Array, mixed).transpose(0, 2, 1, 3)  # it gives a tuple only when asked for its residuals
