"""The estimate: FLOPs counted by hand, memory that is the state's own, and agreement with the compiler."""

import dataclasses

import pytest

from dynamics.losses.sft import SFT
from dynamics.model.llama import REMATS, LlamaConfig
from dynamics.model.lora import Lora
from dynamics.model.sharding import MeshShape
from dynamics.study import estimate, search
from dynamics.study.estimate import Work
from dynamics.study.program import Pairs, Program
from dynamics.study.run import Batch
from dynamics.train.optimizer import DOIT

TINY = LlamaConfig(
    name="tiny", vocab_size=256, d_model=128, num_layers=2, num_heads=2, num_kv_heads=1, head_dim=64, d_ff=192,
    compute_dtype="bfloat16", remat="dots", scan_layers=True,
)  # fmt: skip
PROGRAM = Program(
    shape=TINY, batch=Batch(rows=16, length=256), headed=16 * 256, objective=SFT(), optimizer=DOIT,
    mesh=MeshShape(fsdp=-1), adapter=None, topology="v5e:2x4", slices=1,
)  # fmt: skip
WORK = Work(tokens=4000.0, trained=1000.0, pairs=300_000.0)

# query 128 x 128, key and value 128 x 64 each, output 128 x 128, gate, up and down 128 x 192 each.
LAYER = 128 * 128 + 2 * 128 * 64 + 128 * 128 + 3 * 128 * 192


def changed(**fields):
    return dataclasses.replace(PROGRAM, **fields)


def with_shape(**fields):
    return changed(shape=dataclasses.replace(TINY, **fields))


def test_useful_flops_are_those_counted_by_hand():
    forward = 2 * (2 * LAYER * 4000 + 128 * 256 * 1000) + 2 * 2 * 2 * (2 * 64) * 300_000
    assert estimate.flops(PROGRAM, WORK).useful == 3 * forward


def test_executed_flops_work_on_whole_rows_and_blocks():
    flops = estimate.flops(PROGRAM, WORK)
    positions = 16 * 256
    assert flops.products == 3 * 2 * (2 * LAYER + 128 * 256) * positions
    # Splash at length 256 has one block of 256, so every pair; two products forward and seven backward.
    assert flops.attention == 2 * 2 * (2 * 64) * 16 * 256 * 256 * 9


def test_what_is_not_kept_is_made_again():
    kept = estimate.flops(PROGRAM, WORK).products
    full = estimate.flops(with_shape(remat="full"), WORK).products
    assert full - kept == 2 * 2 * (LAYER - 128 * 192) * 16 * 256, "all but the last product of a layer"
    every = {remat: estimate.memory(with_shape(remat=remat)).saved for remat in REMATS}
    assert every["offload"] < every["full"] < every["attention"] < every["qkv"] < every["dots"] < every["none"]


def test_a_frozen_model_costs_two_passes_and_its_adapters_three():
    lora = Lora(rank=4, alpha=8.0, targets=("query", "down"))
    flops = estimate.flops(changed(adapter=lora), WORK)
    adapters = 4 * (128 + 128) + 4 * (128 + 192)
    passes = 2 * 2 * (2 * LAYER * 4000 + 128 * 256 * 1000) + 3 * 2 * 2 * adapters * 4000
    assert flops.useful == passes + 3 * 2 * 2 * 2 * (2 * 64) * 300_000


@pytest.mark.parametrize("mesh", [MeshShape(fsdp=8), MeshShape(fsdp=4, sequence=2), MeshShape(data=8)], ids=str)
def test_the_state_is_parameters_and_two_moments(mesh):
    """Even over the axes that split parameters, but for norms, which lie whole on every chip."""
    parameters, norms = 2 * LAYER + 2 * 128 * 256, 5 * 128
    splits = mesh.fsdp * mesh.sequence
    expected = 3 * 4 * (parameters / splits + norms) + 3 * 4  # and three counters
    assert sum(changed(mesh=mesh).state_bytes().values()) == expected


def test_more_chips_need_less_each_and_more_rows_need_more():
    here = estimate.memory(PROGRAM).total
    assert estimate.memory(changed(topology="v5e:4x4")).total < here
    assert estimate.memory(changed(batch=Batch(rows=32, length=256), headed=32 * 256)).total > here
    assert estimate.memory(changed(batch=Batch(rows=16, length=256, micro=2))).saved < here


def test_pairs_of_a_shared_prompt_are_planned_with_the_kernel_that_takes_them():
    def passes(program):
        return estimate._attention_passes(program)

    shared = Pairs(number=16, sides=2, shared_prompt=True)
    assert passes(PROGRAM) == passes(changed(pairs=dataclasses.replace(shared, shared_prompt=False)))
    assert passes(changed(pairs=shared)) == passes(with_shape(attention="blocks")) != passes(PROGRAM)


def test_the_longest_bound_names_the_step():
    line = estimate.roofline(PROGRAM, chip_flops=1e12, wire_bytes=1e12, network_bytes=0.0)
    assert line.bound == "interconnect"
    assert line.step == line.interconnect == 1e12 / PROGRAM.machine.inside
    assert line.serial == pytest.approx(line.compute + line.memory + line.interconnect)


def test_only_gradients_cross_between_slices():
    two = changed(slices=2, mesh=MeshShape(dcn=2, fsdp=8))
    found = estimate.traffic(two)
    assert found["parameters"][1] == 0
    assert found["gradients"][1] > 0


def test_the_most_rows_fit_and_more_do_not():
    needs = estimate.memory(PROGRAM).total
    had = 50 * needs
    rows = search.largest_rows(PROGRAM, needs, had)
    fits = [
        estimate.memory(changed(batch=Batch(rows=count, length=256), headed=count * 256)).total <= had
        for count in (rows, rows + 8)
    ]
    assert (rows % 8, fits) == (0, [True, False])
    assert search.largest_rows(PROGRAM, needs, 0.0) == 0


def test_the_nearest_setting_that_fits_is_on_a_larger_machine_where_none_here_does():
    large = dataclasses.replace(
        TINY, d_model=4096, num_layers=32, num_heads=32, num_kv_heads=32, head_dim=128, d_ff=11_008, vocab_size=32_000
    )
    found = search.nearest(changed(shape=large, batch=Batch(rows=64, length=2048), headed=64 * 2048), WORK)
    assert found is not None
    assert found["topology"] not in ("v5e:2x2", "v5e:2x4")
    assert found["used"] < found["had"]


def test_a_search_offers_only_what_divides():
    for candidate in search.candidates(PROGRAM, WORK):
        assert candidate.program.problem is None
        assert TINY.num_heads % (candidate.program.mesh.tensor * candidate.program.mesh.sequence) == 0
