"""Machines as numbers: what a chip holds, computes and moves, and how many of them a topology has.

Numbers are the makers', per chip, in bytes and seconds; `hbm` of a TPU is what the compiler lets a program use (the
limit its own refusals name, libtpu 0.0.42), which is a little under what is printed on the box.
Sources: Google Cloud documentation of TPU v4, v5e, v5p and v6e (peak, HBM bandwidth, inter-chip bandwidth, NICs per
host); NVIDIA data sheets of A100, H100 and H200 SXM (dense bf16, HBM, NVLink) with one network card a GPU, 200 Gb/s
beside an A100 and 400 Gb/s beside an H100 or H200, as in NVIDIA's reference machines.
"""

import dataclasses
import difflib
import math
import re

from dynamics.errors import UserError

GIB = 2**30


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chip:
    """One accelerator. Bandwidths are one way, in bytes/s."""

    name: str
    hbm: float  # bytes a program may use
    peak: float  # bf16 FLOP/s
    hbm_bandwidth: float
    link: float  # one link to a neighbor (TPU), or into the switch of the node (GPU)
    network: float  # this chip's share of the network between slices or nodes
    dimensions: int = 0  # of a TPU's torus; 0 for a GPU
    wraps_at: int = 0  # a torus dimension closes to a ring when its size is a multiple of this
    # Seen in what the compiler makes for v5p and v5e (benchmarks/plan_accuracy.py) and taken alike for v4 and v6e: on a
    # three-dimensional torus a layer's weights and gradients are whole for a while, and are gathered and scattered by
    # all-reduces, which move twice what is needed; on a two-dimensional one products work on parts passed around.
    whole_layers: int = 1  # copies of one layer's weights, gradients included, in the compute type
    exchange: float = 1.0  # bytes moved over bytes that gathers and scatters need
    options: tuple[tuple[str, str], ...] = ()  # what libtpu must be told beside the topology
    shapes: tuple[str, ...] = ()  # examples of topologies, for messages

    @property
    def is_tpu(self) -> bool:
        return self.dimensions > 0


def _tpu(name: str, *, hbm: float, peak: float, memory: float, link: float, network: float, dimensions: int,
         wraps_at: int, shapes: str, options: tuple[tuple[str, str], ...] = ()) -> Chip:  # fmt: skip
    return Chip(
        name=name, hbm=hbm * GIB, peak=peak * 1e12, hbm_bandwidth=memory * 1e9, link=link * 1e9,
        network=network * 1e9, dimensions=dimensions, wraps_at=wraps_at, options=options, shapes=tuple(shapes.split()),
        whole_layers=5 if dimensions == 3 else 1, exchange=2.0 if dimensions == 3 else 1.0,
    )  # fmt: skip


def _gpu(name: str, *, hbm: float, peak: float, memory: float, link: float, network: float) -> Chip:
    return Chip(
        name=name, hbm=hbm * GIB, peak=peak * 1e12, hbm_bandwidth=memory * 1e9, link=link * 1e9, network=network * 1e9,
        shapes=("8", "64"), whole_layers=4,  # the layer at work and the next, and their gradients: not compared
    )  # fmt: skip


GPUS_PER_NODE = 8

CHIPS: dict[str, Chip] = {
    chip.name: chip
    for chip in (
        # Without "megacore" libtpu describes v4 by its cores, two a chip; with it, by chips, as they are used.
        _tpu("v4", hbm=30.75, peak=275, memory=1228, link=50, network=6.25, dimensions=3, wraps_at=4,
             shapes="2x2x1 2x2x4 4x4x4 4x4x8 4x8x8 8x8x8", options=(("chip_config_name", "megacore"),)),
        _tpu("v5e", hbm=15.75, peak=197, memory=819, link=50, network=3.125, dimensions=2, wraps_at=16,
             shapes="2x2 2x4 4x4 4x8 8x8 8x16 16x16"),
        _tpu("v5p", hbm=95.74, peak=459, memory=2765, link=100, network=6.25, dimensions=3, wraps_at=4,
             shapes="2x2x1 2x2x2 2x2x4 2x4x4 4x4x4 4x4x8 4x8x8 8x8x8"),
        _tpu("v6e", hbm=31.25, peak=918, memory=1638, link=100, network=12.5, dimensions=2, wraps_at=16,
             shapes="2x2 2x4 4x4 4x8 8x8 8x16 16x16"),
        # Of a GPU's memory the driver and the libraries keep about 1 GiB; JAX's own pool is then set to the rest.
        _gpu("a100-40", hbm=38.5, peak=312, memory=1555, link=300, network=25),
        _gpu("a100-80", hbm=78.0, peak=312, memory=2039, link=300, network=25),
        _gpu("h100", hbm=78.0, peak=989, memory=3350, link=450, network=50),
        _gpu("h200", hbm=139.0, peak=989, memory=4800, link=450, network=50),
    )
}  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class Topology:
    """So many chips of one kind: `slices` of a TPU shape joined by the network, or GPUs in nodes of eight."""

    name: str  # as it was written, 'v5p:4x4x4'
    chip: Chip
    shape: tuple[int, ...]  # of one slice; (GPUs,) for GPUs
    slices: int = 1

    @property
    def num_chips(self) -> int:
        return math.prod(self.shape) * self.slices

    @property
    def islands(self) -> int:
        """Groups of chips with fast links inside and the network between: slices, or nodes of GPUs."""
        return self.slices if self.chip.is_tpu else max(1, self.num_chips // GPUS_PER_NODE)

    @property
    def label(self) -> str:
        return self.name if self.slices == 1 else f"{self.slices} x {self.name}"

    @property
    def inside(self) -> float:
        """Bytes/s that reach a chip over the fast links when a collective uses every direction of the torus.

        A dimension that closes to a ring is fed from both sides, an open one on average from one.
        """
        if not self.chip.is_tpu:
            return self.chip.link
        links = sum(2 if size % self.chip.wraps_at == 0 else 1 for size in self.shape if size > 1)
        return self.chip.link * max(1, links)

    def seconds(self, wire_bytes: float, network_bytes: float) -> float:
        """Time of collectives that bring `wire_bytes` to every chip, `network_bytes` of them over the network."""
        return max(wire_bytes / self.inside, network_bytes / self.chip.network)


MOST_CHIPS = {"v4": 4096, "v5p": 8960}  # of a pod; those with a torus of two dimensions come in the listed shapes alone


def _check_exists(chip: Chip, text: str, shape: tuple[int, ...]) -> None:
    """UserError for a TPU slice that nobody can rent: the arithmetic would price it all the same."""
    if chip.dimensions == 2 and "x".join(map(str, shape)) not in ("1x1", *chip.shapes):
        raise UserError(f"--topology {text!r}: {chip.name} comes as 1x1, {', '.join(chip.shapes)}; give one of these")
    if chip.dimensions == 3 and (
        math.prod(shape) > MOST_CHIPS[chip.name] or any(size > 2 and size % 4 for size in shape)
    ):
        raise UserError(
            f"--topology {text!r}: a slice of {chip.name} has sides of 1, 2 or a multiple of 4 and at most "
            f"{MOST_CHIPS[chip.name]:,} chips, such as {', '.join(chip.shapes)}"
        )


def parse_topology(text: str, *, slices: int = 1) -> Topology:
    """'v5p:4x4x4' or 'h100:64'. Raises UserError naming what is known."""
    kind, _, sizes = text.partition(":")
    if kind not in CHIPS:
        near = difflib.get_close_matches(kind, CHIPS, n=1, cutoff=0.5)
        hint = f"; did you mean {near[0]}:{CHIPS[near[0]].shapes[-1]}?" if near else ""
        known = ", ".join(f"{chip.name}:{chip.shapes[-1]}" for chip in CHIPS.values())
        raise UserError(f"--topology {text!r} names no chip known here{hint}; write one such as {known}")
    chip = CHIPS[kind]
    if slices < 1:
        raise UserError(f"--slices {slices}; give a whole number of slices, 1 or more")
    wanted = chip.dimensions or 1
    shape = tuple(int(size) for size in re.findall(r"\d+", sizes))
    if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*)*", sizes) or len(shape) != wanted:
        what = f"{wanted} sizes joined by x" if chip.is_tpu else "the number of GPUs"
        raise UserError(f"--topology {text!r}: after {kind}: come {what}, such as {', '.join(chip.shapes)}")
    _check_exists(chip, text, shape)
    if not chip.is_tpu:
        _check_gpus(text, shape[0], slices)
    return Topology(name=text, chip=chip, shape=shape, slices=slices)


def _check_gpus(text: str, count: int, slices: int) -> None:
    if slices > 1:
        raise UserError(f"--slices {slices} has no use for {text}: GPUs are counted whole, so write their number there")
    if count > GPUS_PER_NODE and count % GPUS_PER_NODE:
        near = GPUS_PER_NODE * max(1, round(count / GPUS_PER_NODE))
        raise UserError(
            f"--topology {text!r}: {count} GPUs do not fill nodes of {GPUS_PER_NODE}; give up to {GPUS_PER_NODE}, or a "
            f"multiple of it such as {near}"
        )
