"""Reading compiled programs: products and collectives count as often as they run."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from dynamics.study.hlo import read

LAYERS, ROWS, WIDE = 5, 16, 32


def scanned(x, weights):
    return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, weights)[0]


def unrolled(x, weights):
    for weight in weights:
        x = jnp.tanh(x @ weight)
    return x


def compiled_text(function, *shapes):
    return jax.jit(function).lower(*(jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes)).compile().as_text()


@pytest.mark.parametrize("function", [scanned, unrolled, jax.grad(lambda x, w: scanned(x, w).sum(), argnums=(0, 1))])
def test_a_loop_counts_as_often_as_it_runs(function):
    counts = read(compiled_text(function, (ROWS, WIDE), (LAYERS, WIDE, WIDE)), num_chips=1)
    forward = 2 * LAYERS * ROWS * WIDE * WIDE
    passes = 3 if function not in (scanned, unrolled) else 1
    assert counts.matmul_flops == passes * forward
    assert counts.unread_loops == 0


def test_loops_in_loops_multiply():
    def program(x, weights):
        return jax.lax.scan(lambda x, _: (scanned(x, weights), None), x, None, length=3)[0]

    counts = read(compiled_text(program, (ROWS, WIDE), (LAYERS, WIDE, WIDE)), num_chips=1)
    assert counts.matmul_flops == 3 * 2 * LAYERS * ROWS * WIDE * WIDE
    assert sorted(counts.loops) == [3, LAYERS]


def test_a_gather_brings_each_device_what_it_has_not():
    mesh = jax.make_mesh((8,), ("fsdp",), axis_types=(AxisType.Auto,))
    split, whole = (NamedSharding(mesh, PartitionSpec(axis)) for axis in ("fsdp", None))
    shape = jax.ShapeDtypeStruct((64, 32), jnp.float32, sharding=split)
    text = jax.jit(lambda x: x * 2, out_shardings=whole).lower(shape).compile().as_text()
    (traffic,) = read(text, num_chips=8).traffic
    assert (traffic.kind, traffic.times) == ("all-gather", 1)
    assert traffic.wire_bytes == 64 * 32 * 4 * 7 / 8
    assert traffic.network_bytes == 0
    (over_network,) = read(text, num_chips=8, islands=2).traffic
    # Each island of four has half and needs the other half, an eighth of the whole by each chip.
    assert over_network.network_bytes == 64 * 32 * 4 / 2 / 4


# Forms that only a TPU's compiler writes, cut down to what is read.
TPU = """
HloModule step, is_scheduled=true

%condition (c: (u32[], bf16[8,128])) -> pred[] {
  %limit = u32[]{:T(128)} constant(4)
  %c = (u32[]{:T(128)}, bf16[8,128]{1,0:T(8,128)(2,1)}) parameter(0)
  %at = u32[]{:T(128)} get-tuple-element(%c), index=0
  ROOT %less = pred[]{:T(512)} compare(%at, %limit), direction=LT
}

%body (b: (u32[], bf16[8,128])) -> (u32[], bf16[8,128]) {
  %b = (u32[]{:T(128)}, bf16[8,128]{1,0:T(8,128)(2,1)}) parameter(0)
  %i = u32[]{:T(128)} get-tuple-element(%b), index=0
  %x = bf16[8,128]{1,0:T(8,128)(2,1)} get-tuple-element(%b), index=1
  %two = u32[]{:T(128)} constant(2)
  %next = u32[]{:T(128)} add(%i, %two)
  %hop = (bf16[8,128], bf16[8,128], u32[]) collective-permute-start(%x), source_target_pairs={{0,1},{1,0},{2,3},{3,2}}
  %hopped = bf16[8,128]{1,0} collective-permute-done(%hop)
  ROOT %out = (u32[]{:T(128)}, bf16[8,128]{1,0:T(8,128)(2,1)}) tuple(%next, %hopped)
}

%all-reduce-scatter.1 (p: f32[16,128]) -> f32[4,128] {
  %p = f32[16,128]{1,0:T(8,128)} parameter(0)
  %sum = f32[16,128]{1,0:T(8,128)} all-reduce(%p), channel_id=9, replica_groups={{0,1,2,3}}, to_apply=%add
  ROOT %mine = f32[4,128]{1,0} dynamic-slice(%sum), dynamic_slice_sizes={4,128}
}

%start (q: bf16[4,128]) -> bf16[16,128] {
  %q = bf16[4,128]{1,0} parameter(0)
  ROOT %gather.1 = bf16[16,128]{1,0} all-gather(%q), channel_id=3, replica_groups=mesh['a'=2,'b'=2] {'a','b'}
}

%async_collective_fusion.5 (r: bf16[4,128]) -> bf16[16,128] {
  %r = bf16[4,128]{1,0} parameter(0)
  ROOT %gather.2 = bf16[16,128]{1,0} all-gather(%r), channel_id=3, replica_groups=mesh['a'=2,'b'=2] {'a','b'}
}

ENTRY %main (in: bf16[8,128], grads: f32[16,128], part: bf16[4,128], w: bf16[2,128,64]) -> f32[4,128] {
  %in = bf16[8,128]{1,0:T(8,128)(2,1)} parameter(0)
  %grads = f32[16,128]{1,0} parameter(1)
  %part = bf16[4,128]{1,0} parameter(2)
  %w = bf16[2,128,64]{2,1,0} parameter(3)
  %zero = u32[]{:T(128)} constant(0)
  %copied = u32[]{:T(128)} copy(%zero)
  %carry = (u32[]{:T(128)}, bf16[8,128]{1,0}) tuple(%copied, %in)
  %loop = (u32[]{:T(128)}, bf16[8,128]{1,0}) while(%carry), condition=%condition, body=%body
  %begun = bf16[16,128]{1,0} fusion(%part), kind=kCustom, calls=%start
  %more = bf16[16,128]{1,0} fusion(%part), kind=kCustom, calls=%async_collective_fusion.5
  %split = bf16[8,2,128]{2,1,0} reshape(%more)
  %product = bf16[8,64,1]{1,0,2} convolution(%split, %w), window={size=2}, dim_labels=b0f_0io->bf0
  %heads = bf16[2,8,128]{2,1,0} reshape(%more)
  %each = f32[2,8,64]{2,1,0} convolution(%heads, %w), window={size=2 stride=1 lhs_dilate=2}, dim_labels=0bf_0io->0bf
  ROOT %fused = f32[4,128]{1,0} fusion(%grads), kind=kCustom, calls=%all-reduce-scatter.1
}
"""


def test_the_forms_of_a_tpu_program_are_read():
    counts = read(TPU, num_chips=4, islands=2)
    assert counts.loops == (2,), "0, 2 below 4"
    found = {one.kind: one for one in counts.traffic}
    permute, gather, scatter = (found[kind] for kind in ("collective-permute", "all-gather", "reduce-scatter"))
    assert (permute.times, permute.wire_bytes, permute.network_bytes) == (2, 2 * 8 * 128 * 2, 0)
    assert gather.times == 1, "a gather that is spread over fusions is one gather"
    assert (gather.wire_bytes, gather.network_bytes) == (16 * 128 * 2 * 3 / 4, 16 * 128 * 2 / 2 / 2)
    assert scatter.wire_bytes == 16 * 128 * 4 * 3 / 4, "an all-reduce of which each keeps its part"
    # One product contracts 2 x 128, the other is two products of 128: windows of which only the real places count.
    assert counts.matmul_flops == 2 * 8 * 64 * 2 * 128 + 2 * 2 * 8 * 64 * 128


@pytest.mark.parametrize(
    ("groups", "first"),
    [
        ("{{0,2},{1,3}}", 2),
        ("[2,2]<=[2,2]T(1,0)", 2),
        ("[1,4]<=[4]", 4),
        ("mesh['a'=2,'b'=2] {'a'}", 2),
    ],
)
def test_groups_are_read_however_they_are_written(groups, first):
    text = f"""
ENTRY %main (x: f32[4,4]) -> f32[4,4] {{
  %x = f32[4,4]{{1,0}} parameter(0)
  ROOT %sum = f32[4,4]{{1,0}} all-reduce(%x), channel_id=1, replica_groups={groups}, to_apply=%add
}}
"""
    (traffic,) = read(text, num_chips=4, islands=2).traffic
    assert traffic.wire_bytes == 2 * 64 * (first - 1) / first
    # Chips 0 and 1 are one island: every group here reaches into the other.
    assert traffic.network_bytes == 2 * 64 / 2 / (first / 2)
