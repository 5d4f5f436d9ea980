"""What a compiled program does, read from its text: matrix products, and what travels between chips.

XLA's own counts take the body of a loop once. Here every instruction counts as often as it runs: a body times the
trips of its loop, and those of the loops around it. Reads the text of TPU, GPU and CPU programs.
"""

import collections
import dataclasses
import functools
import itertools
import math
import re
from collections.abc import Iterator, Mapping

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")

_BYTES = {"pred": 1, "bf16": 2, "f16": 2, "f32": 4, "f64": 8}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Traffic:
    """What the collectives of one kind move in a step, on each chip."""

    kind: str
    times: float  # how often one is started
    wire_bytes: float  # that reach the chip
    network_bytes: float  # of them, those that come over the network between islands (slices, or nodes)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Counts:
    """One run of the program, on each chip."""

    matmul_flops: float  # of products that XLA makes; kernels written by hand are not in it
    traffic: tuple[Traffic, ...]
    kernels: dict[str, float]  # hand-written kernels: name -> how often one runs
    loops: tuple[int, ...]  # trips of every loop, outermost first
    unread_loops: int  # loops whose trips the text does not say, taken as one


@dataclasses.dataclass(frozen=True)
class _Instruction:
    name: str
    shape: str
    opcode: str
    operands: tuple[str, ...]
    attributes: str
    constant: str  # what stands between the parentheses
    is_root: bool


class _Computation(dict[str, _Instruction]):
    """Instructions by name; `root` is what it gives."""

    @property
    def root(self) -> _Instruction:
        return next((one for one in self.values() if one.is_root), next(reversed(self.values())))


def read(text: str, *, num_chips: int, islands: int = 1) -> Counts:
    """Count the compiled text of a program over `num_chips` chips that lie in `islands` equal runs of numbers."""
    module, entry = _parse(text)
    walk = _Walk(module)
    walk.enter(entry, 1.0)
    traffic: dict[str, list[float]] = {}
    for kind, one, times in walk.collectives():
        wire, network = _moved(kind, one, num_chips=num_chips, islands=islands)
        total = traffic.setdefault(kind, [0.0, 0.0, 0.0])
        for index, value in enumerate((times, times * wire, times * network)):
            total[index] += value
    return Counts(
        matmul_flops=walk.flops,
        traffic=tuple(
            Traffic(kind=kind, times=traffic[kind][0], wire_bytes=traffic[kind][1], network_bytes=traffic[kind][2])
            for kind in KINDS
            if kind in traffic
        ),
        kernels=dict(walk.kernels),
        loops=tuple(walk.loops),
        unread_loops=walk.unread,
    )


class _Walk:
    """From the entry down through loops, fusions and calls, with how often each computation runs."""

    def __init__(self, module: Mapping[str, _Computation]) -> None:
        self.module = module
        self.flops = 0.0
        self.kernels: collections.Counter[str] = collections.Counter()
        self.loops: list[int] = []
        self.unread = 0
        self._found: list[tuple[str, _Instruction, float, str]] = []

    def enter(self, name: str, times: float) -> None:
        computation = self.module[name]
        for one in computation.values():
            if one.opcode in ("dot", "convolution"):
                self.flops += times * _product_flops(one, computation)
            elif one.opcode == "while":
                self._loop(one, computation, times)
            elif one.opcode == "custom-call" and (target := _attribute(one, "custom_call_target")) in _KERNELS:
                self.kernels[_kernel_name(one, target)] += int(times)
            elif (kind := one.opcode.removesuffix("-start")) in KINDS:
                self._found.append((kind, one, times, name))
            for called in _called(one):
                self.enter(called, times)

    def _loop(self, loop: _Instruction, around: _Computation, times: float) -> None:
        trips = _trips(loop, around, self.module)
        self.unread += trips is None
        if trips is not None:
            self.loops.append(trips)
        self.enter(_attribute(loop, "body"), times * (1 if trips is None else trips))

    def collectives(self) -> Iterator[tuple[str, _Instruction, float]]:
        """Each collective once. A TPU program may spread one over the fusions that run meanwhile: these repeat it."""
        whole = {(kind, _channel(one)) for kind, one, _, name in self._found if "async_collective_fusion" not in name}
        spread: dict[tuple[str, str], tuple[str, _Instruction, float]] = {}
        for kind, one, times, name in self._found:
            if "async_collective_fusion" not in name:
                # An all-reduce of which each chip keeps its part is a reduce-scatter, and runs as one.
                yield ("reduce-scatter" if name.startswith("all-reduce-scatter") else kind), one, times
            elif (key := (kind, _channel(one))) not in whole and (key not in spread or spread[key][2] > times):
                spread[key] = (kind, one, times)
        yield from spread.values()


_KERNELS = ("tpu_custom_call", "__cudnn$fmhaSoftmax", "__cudnn$fmhaSoftmaxBackward")


def _kernel_name(one: _Instruction, target: str) -> str:
    """The kernel's own name where the program keeps it."""
    found = re.search(r'op_name="[^"]*?(\w*(?:splash|flash|fmha)\w*)', one.attributes)
    return found.group(1) if found else target


def _channel(one: _Instruction) -> str:
    return _attribute(one, "channel_id") or one.name


# Reading the text


_HEADER = re.compile(r"^(ENTRY\s+)?%?([\w.\-]+)\s+\(.*\{\s*$")
_LINE = re.compile(r"^\s+(ROOT\s+)?%?([\w.\-]+) = ")


def _parse(text: str) -> tuple[dict[str, _Computation], str]:
    module: dict[str, _Computation] = {}
    entry, current = "", None
    for line in text.splitlines():
        if (start := _LINE.match(line)) and current is not None:
            instruction = _instruction(start.group(2), line[start.end() :], is_root=bool(start.group(1)))
            current[instruction.name] = instruction
        elif header := _HEADER.match(line):
            current = module.setdefault(header.group(2), _Computation())
            entry = header.group(2) if header.group(1) else entry
    return module, entry


def _instruction(name: str, text: str, *, is_root: bool) -> _Instruction:
    shape_end = _closing(text, 0) + 1 if text.startswith("(") else text.index(" ")
    rest = text[shape_end:].lstrip()
    opening = rest.index("(")
    closing = _closing(rest, opening)
    inside = rest[opening + 1 : closing]
    operands = tuple(re.findall(r"%([\w.\-]+)", inside))
    return _Instruction(
        name, text[:shape_end], rest[:opening].strip(), operands, rest[closing + 1 :], inside, is_root
    )  # fmt: skip


def _closing(text: str, opening: int) -> int:
    depth = 0
    for index in range(opening, len(text)):
        depth += (text[index] == "(") - (text[index] == ")")
        if depth == 0:
            return index
    return len(text) - 1


def _attribute(one: _Instruction, name: str) -> str:
    """The word after `name=`; empty when there is none."""
    found = re.search(rf'\b{name}="?%?([^\s,"}}]+)', one.attributes)
    return found.group(1) if found else ""


def _called(one: _Instruction) -> list[str]:
    """Computations that run once whenever the instruction does."""
    names = [_attribute(one, "calls")]
    if one.opcode == "call":
        names.append(_attribute(one, "to_apply"))
    if one.opcode == "conditional":
        found = re.search(r"branch_computations=\{([^}]*)\}", one.attributes)
        names += re.findall(r"%([\w.\-]+)", found.group(1)) if found else []
        names += [_attribute(one, "true_computation"), _attribute(one, "false_computation")]
    return [name for name in names if name]


@functools.lru_cache(maxsize=4096)
def _arrays(shape: str) -> tuple[tuple[str, tuple[int, ...]], ...]:
    """(type, sizes) of every array in a shape's text; scalars that only stand for a transfer count too."""
    return tuple(
        (kind, tuple(int(size) for size in sizes.split(",") if size))
        for kind, sizes in re.findall(r"\b([a-z]\w*)\[([\d,]*)\]", shape)
    )


def _bytes(shape: str, index: int | None = None) -> float:
    arrays = _arrays(shape) if index is None else _arrays(shape)[index : index + 1]
    return sum(math.prod(sizes) * _item_bytes(kind) for kind, sizes in arrays)


def _item_bytes(kind: str) -> float:
    if kind in _BYTES:
        return _BYTES[kind]
    digits = re.search(r"\d+", kind)
    return int(digits.group()) / 8 if digits else 0


def _sizes(name: str, computation: _Computation) -> tuple[int, ...]:
    return _arrays(computation[name].shape)[0][1]


# Loops


def _trips(loop: _Instruction, around: _Computation, module: Mapping[str, _Computation]) -> int | None:
    """How often the body runs: as XLA says, or from `i < limit` with a constant start and step."""
    said = re.search(r'known_trip_count\D*"?n"?\s*:\s*"?(\d+)', loop.attributes)
    if said:
        return int(said.group(1))
    condition, body = module[_attribute(loop, "condition")], module[_attribute(loop, "body")]
    test = condition.root
    if test.opcode != "compare" or "direction=LT" not in test.attributes:
        return None
    counter, limit = (_resolved(name, condition) for name in test.operands)
    index = _attribute(counter, "index")
    if limit.opcode != "constant" or counter.opcode != "get-tuple-element":
        return None
    initial = _resolved(around[loop.operands[0]].operands[int(index)], around) if loop.operands else None
    start = int(initial.constant) if initial is not None and initial.opcode == "constant" else 0
    step = _step(body, int(index))
    return max(0, math.ceil((int(limit.constant) - start) / step))


def _resolved(name: str, computation: _Computation) -> _Instruction:
    """The instruction behind copies and conversions."""
    one = computation[name]
    while one.opcode in ("copy", "bitcast", "convert", "reshape") and one.operands:
        one = computation[one.operands[0]]
    return one


def _step(body: _Computation, index: int) -> int:
    """What a trip adds to the counter; 1 where the text does not say."""
    root = body.root
    if root.opcode != "tuple" or index >= len(root.operands):
        return 1
    added = _resolved(root.operands[index], body)
    if added.opcode != "add":
        return 1
    constants = [_resolved(name, body) for name in added.operands]
    values = [int(one.constant) for one in constants if one.opcode == "constant"]
    if values:
        return values[0] or 1
    return sum(_step_of(one, body) for one in constants) or 1


def _step_of(one: _Instruction, body: _Computation) -> int:
    """The constant part of counter + constant, where one addition stands inside another."""
    if one.opcode != "add":
        return 0
    parts = [_resolved(name, body) for name in one.operands]
    return sum(int(part.constant) for part in parts if part.opcode == "constant") + sum(
        _step_of(part, body) for part in parts
    )


# Products


def _product_flops(one: _Instruction, computation: _Computation) -> float:
    """Two for every multiplication that is added up."""
    out = math.prod(_arrays(one.shape)[0][1])
    left, right = (_sizes(name, computation) for name in one.operands[:2])
    if one.opcode == "dot":
        found = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", one.attributes)
        dims = [int(dim) for dim in found.group(1).split(",") if dim] if found else []
        return 2.0 * out * math.prod(left[dim] for dim in dims)
    return _convolution_flops(one, left, right)


def _convolution_flops(one: _Instruction, left: tuple[int, ...], right: tuple[int, ...]) -> float:
    """A TPU writes matrix products as convolutions; their extra dimensions are windows, of which few places count."""
    lhs, rhs, out = re.match(r"(\w+)_(\w+)->(\w+)", _attribute(one, "dim_labels")).groups()  # pyright: ignore[reportOptionalMemberAccess]
    sizes = _arrays(one.shape)[0][1]
    products = 2.0 * sizes[out.index("b")] * sizes[out.index("f")] * right[rhs.index("i")]
    for number, window in enumerate(_windows(one, len(rhs) - 2)):
        label = str(number)
        products *= _places(sizes[out.index(label)], left[lhs.index(label)], **window)
    return products


def _windows(one: _Instruction, count: int) -> list[dict[str, int]]:
    found = re.search(r"window=\{([^}]*)\}", one.attributes)
    fields = dict(part.split("=") for part in found.group(1).split()) if found else {}

    def values(name: str, default: str) -> list[str]:
        return fields[name].split("x") if name in fields else [default] * count

    pads = [pad.split("_")[0] for pad in values("pad", "0_0")]
    names = zip(values("size", "1"), values("stride", "1"), pads, values("lhs_dilate", "1"), values("rhs_dilate", "1"),
                strict=True)  # fmt: skip
    return [
        {"size": int(size), "stride": int(stride), "pad": int(pad), "dilate": int(dilate), "spread": int(spread)}
        for size, stride, pad, dilate, spread in names
    ]


@functools.lru_cache(maxsize=4096)
def _places(outputs: int, inputs: int, *, size: int, stride: int, pad: int, dilate: int, spread: int) -> int:
    """Pairs of an output and a place of its window that meet a real input, along one dimension."""
    if size == 1 and stride == 1 and pad == 0 and dilate == 1:
        return min(outputs, inputs)
    places = (out * stride + tap * spread - pad for out, tap in itertools.product(range(outputs), range(size)))
    return sum(1 for place in places if 0 <= place <= (inputs - 1) * dilate and place % dilate == 0)


# Collectives


def _moved(kind: str, one: _Instruction, *, num_chips: int, islands: int) -> tuple[float, float]:
    """(bytes that reach a chip, those of them over the network) when the collective runs once.

    A group of n chips in m islands, S being the whole array: a gather or a scatter brings S (n - 1) / n to each chip,
    an all-reduce is both; over the network each island needs what it has not, S (m - 1) / m, by its n / m chips
    at once.
    """
    per_island = max(1, num_chips // islands)
    if kind == "collective-permute":
        listed = one.attributes.partition("source_target_pairs=")[2].partition("}}")[0]
        pairs = re.findall(r"\{(\d+),(\d+)", listed)
        size = _bytes(one.shape, 0)
        crosses = any(int(source) // per_island != int(target) // per_island for source, target in pairs)
        return size, size if crosses else 0.0
    group = _group(one, num_chips)
    number, spans = len(group), len({chip // per_island for chip in group})
    whole = _whole_bytes(one, number)
    rounds = 2 if kind == "all-reduce" else 1
    wire = rounds * whole * (number - 1) / number
    return wire, rounds * whole * (spans - 1) / spans / (number / spans)


def _whole_bytes(one: _Instruction, number: int) -> float:
    """Bytes of the gathered, or not yet scattered, array."""
    size = _bytes(one.shape)
    if one.opcode == "all-gather-start":  # (inputs, outputs)
        return size * number / (number + 1)
    return size * number if one.opcode == "reduce-scatter" else size


def _group(one: _Instruction, num_chips: int) -> list[int]:
    """The first group of chips that talk to each other; all of them when the text names none."""
    text = one.attributes.partition("replica_groups=")[2]
    if found := re.match(r"\{\{([\d,]+)\}", text):
        return [int(chip) for chip in found.group(1).split(",")]
    if found := re.match(r"\[(\d+),(\d+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", text):
        sizes = [int(size) for size in found.group(3).split(",")]
        order = [int(axis) for axis in found.group(4).split(",")] if found.group(4) else list(range(len(sizes)))
        return _transposed(sizes, order)[: int(found.group(2))]
    if found := re.match(r"mesh\[([^\]]*)\][^{]*\{([^}]*)\}", text):
        axes = re.findall(r"'([^']+)'=(\d+)", found.group(1))
        mine = re.findall(r"'([^']+)'", found.group(2))
        sizes = [int(size) for _, size in axes]
        names = [name for name, _ in axes]
        order = [names.index(name) for name in names if name not in mine] + [names.index(name) for name in mine]
        return _transposed(sizes, order)[: math.prod(sizes[names.index(name)] for name in mine)]
    return list(range(num_chips))


def _transposed(sizes: list[int], order: list[int]) -> list[int]:
    """The numbers 0, 1, ... of an array of these sizes, read with its dimensions in another order."""
    strides = [math.prod(sizes[axis + 1 :]) for axis in range(len(sizes))]
    places = itertools.product(*(range(sizes[axis]) for axis in order))
    return [sum(place * strides[axis] for place, axis in zip(one, order, strict=True)) for one in places]
