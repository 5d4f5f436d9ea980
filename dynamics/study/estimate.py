"""What a training step needs, by arithmetic alone: FLOPs, memory, traffic, and the time that follows from them.

Dimensions: d model, h heads, k key/value heads, c head channels, f feed-forward, v vocabulary, as in model/llama.py.

*Useful* work is what the mathematics asks for: products with tokens that are not padding, queries with keys of their
own document, the head at trained positions; once forward, twice backward. *Executed* work is what the program does:
whole rows, whole attention blocks, and what rematerialisation computes a second time. MFU is useful work over peak.
"""

import dataclasses
import math
from typing import Literal

from dynamics.model.attention_kernels import BLOCKS
from dynamics.model.llama import LlamaConfig, attention_kernel
from dynamics.model.lora import IN_DIMENSIONS, Lora
from dynamics.study.program import Program
from dynamics.study.topologies import Topology

# A large bf16 product reaches this share of a chip's peak when its operands are there: the one efficiency assumed.
# Bandwidths are taken at their full value, so what they bound is a bound and no forecast.
MATMUL_EFFICIENCY = 0.75

Bound = Literal["compute", "memory", "interconnect"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Work:
    """What one step reads on average. Tokens are those that are not padding."""

    tokens: float
    trained: float  # of them, those that have a target
    # A token and one that it may look at, itself included: length (length + 1) / 2 for each document; the replies to a
    # shared prompt look at it and at themselves.
    pairs: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flops:
    """Of one step over the whole batch."""

    useful: float
    products: float  # executed, with weights
    attention: float  # executed, scores and mixing

    @property
    def executed(self) -> float:
        return self.products + self.attention


def layer_weights(shape: LlamaConfig) -> dict[str, int]:
    """{name: numbers} of one layer's matrices."""
    d, f, c = shape.d_model, shape.d_ff, shape.head_dim
    heads, kv_heads = shape.num_heads * c, shape.num_kv_heads * c
    return {"query": d * heads, "key": d * kv_heads, "value": d * kv_heads, "output": heads * d,
            "gate": d * f, "up": d * f, "down": f * d}  # fmt: skip


def adapter_weights(shape: LlamaConfig, adapter: Lora | None) -> int:
    """Numbers of one layer's adapters."""
    if adapter is None:
        return 0
    d, f, c = shape.d_model, shape.d_ff, shape.head_dim
    wide = {"query": shape.num_heads * c, "key": shape.num_kv_heads * c, "value": shape.num_kv_heads * c,
            "output": shape.num_heads * c, "gate": f, "up": f, "down": f}  # fmt: skip
    return sum(adapter.rank * (d + wide[name]) for name in adapter.targets if name in IN_DIMENSIONS)


def flops(program: Program, work: Work) -> Flops:
    """Two for each multiplication. A frozen model needs no gradient of its weights: two passes, not three."""
    shape, batch = program.shape, program.batch
    layer, adapters = sum(layer_weights(shape).values()), adapter_weights(shape, program.adapter)
    head, width = shape.d_model * shape.vocab_size, shape.num_heads * shape.head_dim
    passes = 3 if program.adapter is None else 2
    layers = shape.num_layers
    matrices = layer_weights(shape)
    ends = ("output", "gate", "up", "down")
    # Not scanned: what follows attention in the last layer runs at trained positions alone (Llama.__call__).
    last = 0 if shape.scan_layers else sum(matrices[name] for name in ends)
    again = 0 if shape.scan_layers else sum(matrices[name] for name in _RECOMPUTED[shape.remat] if name in ends)
    useful = (
        passes * 2 * (layers * layer * work.tokens + head * work.trained)
        - passes * 2 * last * (work.tokens - work.trained)
        + 3 * 2 * layers * adapters * work.tokens
        + 3 * 4 * layers * width * work.pairs
    )
    positions = batch.rows * batch.length
    products = (
        2 * layers * positions * (passes * layer + 3 * adapters + _recomputed_weights(shape))
        - 2 * (positions - program.headed) * (passes * last + again)
        # Gradients of the head are made in the forward pass, whether it is frozen or not.
        + (4 if _logits_twice(program) else 3) * 2 * head * program.headed
    )
    pairs, forward, backward = _attention_passes(program)
    attention = 2 * layers * width * batch.rows * pairs * (forward + backward)
    return Flops(useful=useful, products=products, attention=attention)


def _logits_twice(program: Program) -> bool:
    """Whether logits are made again in the backward pass: of pairs, whose weights are known only after them.

    Not where all positions of a shard fit one chunk, which is then kept.
    """
    return program.pairs is not None and program.cap > getattr(program.objective, "chunk", program.cap)


# Products whose results the backward pass needs and the policy does not keep. `down` is last in its layer: nobody asks.
_RECOMPUTED = {
    "none": (),
    "dots": (),
    "full": ("query", "key", "value", "output", "gate", "up"),
    "offload": ("query", "key", "value", "output", "gate", "up"),
    "attention": ("query", "key", "value", "output", "gate", "up"),
    "qkv": ("output", "gate", "up"),
    "mlp": ("query", "key", "value", "output"),
}


def _recomputed_weights(shape: LlamaConfig) -> int:
    weights = layer_weights(shape)
    return sum(weights[name] for name in _RECOMPUTED[shape.remat])


def _attention_passes(program: Program) -> tuple[float, int, int]:
    """(pairs of a row that the kernel works on, products over them forward, and backward with what is made again)."""
    shape, length = program.shape, program.batch.length
    kernel = _kernel(program)
    again = 2 if shape.remat in ("full", "offload") else 0
    if kernel == "splash":  # two backward kernels, each makes the scores and their gradient for itself
        block = next(size for size in BLOCKS if length % size == 0)
        return length * (length + block) / 2, 2, 7 + again
    if kernel == "blocks":
        return length * (length + min(shape.attention_block, length)) / 2, 2, 5 + again
    if kernel == "cudnn":
        return length * (length + min(128, length)) / 2, 2, 5 + again
    return float(length * length), 2, 4 + (0 if shape.remat == "none" else 2)


# Memory


@dataclasses.dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes on each chip, by what they hold."""

    state: float  # parameters, optimizer state, a frozen model
    batch: float
    gradients: float
    weights: float  # the blocks' parameters in the compute type
    saved: float  # activations that wait for the backward pass
    layer: float  # one layer's work, and its weights gathered
    head: float  # logits, the head gathered, and its gradient

    @property
    def arguments(self) -> float:
        return self.state + self.batch

    @property
    def temporaries(self) -> float:
        """At the worse of two moments: after the head, or in the backward pass of the last layer."""
        return self.weights + self.saved + max(self.head, self.gradients + self.layer)

    @property
    def total(self) -> float:
        return self.arguments + self.temporaries


def memory(program: Program) -> Memory:
    """What a step must hold, term by term; compared with the compiler in benchmarks/plan_accuracy.py."""
    shape, batch, sizes = program.shape, program.batch, program.mesh_sizes()
    splits = sizes["fsdp"] * sizes["sequence"] * sizes["tensor"]
    tokens = batch.rows // batch.micro // program.row_shards * batch.length / sizes["sequence"]
    item = _item(shape.compute_dtype)
    layer = sum(layer_weights(shape).values())
    table = shape.vocab_size * shape.d_model / (sizes["tensor"] * sizes["sequence"])  # with whole rows of d
    tables = (1 if shape.tied_head else 2) * table / sizes["fsdp"]
    trained = shape.num_layers * layer / splits + tables
    if program.adapter is not None:
        trained = shape.num_layers * adapter_weights(shape, program.adapter) / splits
    kept = tokens * saved_bytes(shape, sizes["tensor"], _kernel(program))
    return Memory(
        state=sum(program.state_bytes().values()),
        batch=batch.rows // program.row_shards * batch.length * (4 if program.branches else 3) * 4
        + 12 * program.cap * batch.micro
        + _pair_bytes(program),
        # With micro-batches: the sum so far, the new part, and the sum that comes of them.
        gradients=4 * (1 if batch.micro == 1 else 3) * trained,
        weights=item * shape.num_layers * layer / splits,
        saved=shape.num_layers * kept + tokens * shape.d_model * item,
        layer=program.machine.chip.whole_layers * item * layer / sizes["tensor"] + kept + _work_bytes(program, tokens),
        head=_head_bytes(program, table),
    )


def _pair_bytes(program: Program) -> float:
    """Which reply each trained position is of, and the weight and the reference of each pair."""
    if program.pairs is None:
        return 0.0
    return 4 * program.batch.micro * (program.cap + program.pair_cap * (1 + program.pairs.sides))


def _kernel(program: Program) -> str:
    platform = "tpu" if program.machine.chip.is_tpu else "gpu"
    return attention_kernel(program.shape, platform, program.batch.length, branches=program.branches)


def _item(dtype: str) -> int:
    return 4 if dtype == "float32" else 2


def saved_bytes(shape: LlamaConfig, tensor: int, kernel: str) -> float:
    """What a layer keeps of each token for the backward pass, in bytes on a chip."""
    d, f = shape.d_model, shape.d_ff / tensor
    heads, kv_heads = shape.num_heads * shape.head_dim / tensor, shape.num_kv_heads * shape.head_dim / tensor
    item = _item(shape.compute_dtype)
    norms = 4 * shape.num_heads / tensor if kernel in ("splash", "blocks", "cudnn") else 0
    mixed = item * heads + norms
    qkv = item * (heads + 2 * kv_heads)
    return {
        "offload": 0,
        "full": item * d,
        "attention": item * d + mixed,
        "qkv": item * d + mixed + qkv,
        "mlp": item * d + mixed + item * 2 * f,
        "dots": item * 2 * d + mixed + qkv + item * 2 * f,
        # Whatever a product or a nonlinearity reads: normed twice, rotated, silu and its argument, their product.
        "none": item * 5 * d + 2 * mixed + 2 * qkv + item * 4 * f,
    }[shape.remat]


def _work_bytes(program: Program, tokens: float) -> float:
    """What a layer's backward pass makes and drops: values and gradients of six arrays of f and eight of d."""
    shape, sizes = program.shape, program.mesh_sizes()
    work = tokens * _item(shape.compute_dtype) * (6 * shape.d_ff / sizes["tensor"] + 8 * shape.d_model)
    if _kernel(program) in ("fused", "reference"):  # scores of all pairs, and their gradients
        rows, heads = tokens * sizes["sequence"] / program.batch.length, shape.num_heads
        work += 2 * 4 * rows * heads / sizes["tensor"] / sizes["sequence"] * program.batch.length**2
    return work


def _head_bytes(program: Program, table: float) -> float:
    """The head gathered, two arrays of a chunk's logits, its gradient: thrice (new, sent, sum) if all-reduced."""
    shape = program.shape
    chunk = min(getattr(program.objective, "chunk", program.cap), program.cap)
    copies = 3 if program.machine.chip.exchange > 1 else 1
    logits = 2 * 4 * chunk * table / shape.d_model
    return _item(shape.compute_dtype) * table + copies * 4 * table + logits


# Time


@dataclasses.dataclass(frozen=True, kw_only=True)
class Roofline:
    """Seconds of a step that each part of the machine needs at the least; they overlap, so the longest bounds the step.

    `compute` takes products at MATMUL_EFFICIENCY of the peak.
    """

    compute: float
    memory: float
    interconnect: float

    @property
    def step(self) -> float:
        return max(self.compute, self.memory, self.interconnect)

    @property
    def serial(self) -> float:
        """Seconds of a step in which nothing overlaps: the other end of what can be expected."""
        return self.compute + self.memory + self.interconnect

    @property
    def bound(self) -> Bound:
        parts: dict[Bound, float] = {
            "compute": self.compute, "memory": self.memory, "interconnect": self.interconnect
        }  # fmt: skip
        return max(parts, key=lambda name: parts[name])


def roofline(program: Program, *, chip_flops: float, wire_bytes: float, network_bytes: float) -> Roofline:
    """The step's times from what each chip computes and receives. Chips that the mesh leaves out do nothing."""
    machine = program.machine
    return Roofline(
        compute=chip_flops / (machine.chip.peak * MATMUL_EFFICIENCY * precision(program)),
        memory=memory_traffic(program) / machine.chip.hbm_bandwidth,
        interconnect=machine.seconds(wire_bytes, network_bytes),
    )


def estimated(program: Program, work: Work) -> Roofline:
    """The step's times without a compiled program: executed work and the traffic that the mesh makes necessary."""
    moved = traffic(program).values()
    return roofline(
        program,
        chip_flops=flops(program, work).executed / program.num_chips,
        wire_bytes=sum(wire for wire, _ in moved),
        network_bytes=sum(network for _, network in moved),
    )


def forward_seconds(step: Roofline, work: Work, passed: Work) -> float:
    """Seconds of a forward pass over `passed`, given a training step over `work`: a third of it for each token."""
    return step.step / 3 * passed.tokens / work.tokens


def precision(program: Program) -> float:
    """Share of the bf16 peak at the compute type: by default float32 is one bf16 pass on a TPU, TF32 on a GPU."""
    full = program.shape.compute_dtype != "float32" or program.machine.chip.is_tpu
    return 1.0 if full else 0.5


def memory_traffic(program: Program) -> float:
    """Bytes that a chip's memory gives and takes in a step: weights, activations, logits, the optimizer.

    A layer's weights are read forward, backward for both gradients, and once more where they are made again; about
    sixteen arrays of d and eight of f pass through memory for each token of a layer.
    """
    shape, batch, sizes = program.shape, program.batch, program.mesh_sizes()
    item = _item(shape.compute_dtype)
    tokens = batch.rows // program.row_shards * batch.length / sizes["sequence"]
    weights = shape.num_layers * sum(layer_weights(shape).values()) / sizes["tensor"]
    passes = 4 if shape.remat in ("none", "dots") else 5
    activations = shape.num_layers * tokens * item * (16 * shape.d_model + 8 * shape.d_ff / sizes["tensor"])
    logits = 6 * 4 * program.cap * batch.micro * shape.vocab_size / sizes["tensor"] / sizes["sequence"]
    return batch.micro * passes * item * weights + activations + logits + 3 * sum(program.state_bytes().values())


def traffic(program: Program) -> dict[str, tuple[float, float]]:
    """{what: (bytes that reach a chip, of them over the network)} in a step, by what the mesh makes necessary.

    Parameters are gathered for the forward and for the backward pass of each micro-batch and their gradients are
    scattered, in the compute type; copies of the model on `data` and `dcn` add their gradients up; `tensor` adds up
    two activations of each layer in each direction, `sequence` trades positions for heads four times each way.
    """
    shape, batch, sizes = program.shape, program.batch, program.mesh_sizes()
    item = _item(shape.compute_dtype)
    layers = shape.num_layers * sum(layer_weights(shape).values())
    tables = shape.vocab_size * shape.d_model
    tokens = batch.rows // program.row_shards * batch.length / sizes["sequence"]
    shards = sizes["fsdp"] * sizes["sequence"]
    frozen = program.adapter is not None
    own = layers / sizes["tensor"]
    gathered = (2 * item * own + 2 * item * tables / sizes["tensor"]) * batch.micro
    scattered = 0 if frozen else (item * own + 4 * 2 * tables / sizes["tensor"]) * batch.micro
    trained = shape.num_layers * adapter_weights(shape, program.adapter) if frozen else layers + 2 * tables
    copies = sizes["data"] * sizes["dcn"]
    added = 2 * 4 * trained / (shards * sizes["tensor"]) * (copies - 1) / copies
    width = shape.num_layers * tokens * item
    share = program.machine.chip.exchange * (shards - 1) / shards
    found = {
        "parameters": gathered * share,
        "gradients": scattered * share + added,
        "activations": 2 * 4 * width * shape.d_model * (sizes["tensor"] - 1) / sizes["tensor"]
        + 8 * width * shape.num_heads * shape.head_dim * (sizes["sequence"] - 1) / sizes["sequence"] / sizes["tensor"],
    }
    return {name: (wire, _over_network(program.machine, sizes, name, wire)) for name, wire in found.items()}


def _over_network(machine: Topology, sizes: dict[str, int], name: str, wire: float) -> float:
    """Of the bytes that reach a chip, those that cross between islands, each chip of an island carrying its part."""
    if machine.islands == 1:
        return 0.0
    if machine.chip.is_tpu:  # only gradients cross between slices
        return wire if name == "gradients" and sizes["dcn"] > 1 else 0.0
    group = sizes["fsdp"] * sizes["sequence"] * sizes["tensor"]
    inside = min(group, machine.num_chips // machine.islands)
    spans = math.ceil(group / inside)
    return wire * (spans - 1) / spans / inside * group / max(1, group - 1) if spans > 1 else 0.0
