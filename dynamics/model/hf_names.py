"""Our parameters and the Hugging Face tensors that hold them: names, shapes, and how one lies in the other.

Ours are stacked over layers and map inputs to outputs (`query` is [layers, d, h, c]); theirs are one tensor a layer and
map outputs from inputs (`q_proj.weight` is [h * c, d]). Rotary pairs are halves on both sides, so no row moves.
"""

import dataclasses
import math
from collections.abc import Iterator, Mapping

import numpy as np

from dynamics.errors import UserError
from dynamics.model.llama import LlamaConfig
from dynamics.model.safetensor_files import Tensor

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"

_BLOCK = 8 * 2**20  # bytes of a tensor that are looked at together
_FLOATS = ("float16", "bfloat16", "float32", "float64")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Weight:
    """One parameter of ours and the tensor of each layer that holds it."""

    ours: str
    theirs: str  # with {} for the layer
    shape: tuple[int, ...]  # ours, of one layer
    num_inputs: int = 0  # of our dimensions, the first so many are their columns, the others their rows; 0: as it is

    @property
    def stacked(self) -> bool:
        return "{}" in self.theirs

    @property
    def their_shape(self) -> tuple[int, ...]:
        if not self.num_inputs:
            return self.shape
        return math.prod(self.shape[self.num_inputs :]), math.prod(self.shape[: self.num_inputs])

    def names(self, config: LlamaConfig) -> list[str]:
        """The tensors' names, in the order of layers."""
        return [self.theirs.format(layer) for layer in range(config.num_layers)] if self.stacked else [self.theirs]


def weights_of(config: LlamaConfig) -> list[Weight]:
    """Every parameter of a model of this shape."""
    d, f, c, v = config.d_model, config.d_ff, config.head_dim, config.vocab_size
    h, k = config.num_heads, config.num_kv_heads

    def block(ours: str, theirs: str, *shape: int, num_inputs: int = 0) -> Weight:
        theirs = f"model.layers.{{}}.{theirs}.weight"
        return Weight(ours=f"blocks/{ours}", theirs=theirs, shape=shape, num_inputs=num_inputs)

    head = Weight(ours="untied_head", theirs=HEAD, shape=(d, v), num_inputs=1)
    return [
        Weight(ours="embedding", theirs=EMBEDDING, shape=(v, d)),
        block("attention_norm", "input_layernorm", d),
        block("query", "self_attn.q_proj", d, h, c, num_inputs=1),
        block("key", "self_attn.k_proj", d, k, c, num_inputs=1),
        block("value", "self_attn.v_proj", d, k, c, num_inputs=1),
        block("output", "self_attn.o_proj", h, c, d, num_inputs=2),
        block("mlp_norm", "post_attention_layernorm", d),
        block("gate", "mlp.gate_proj", d, f, num_inputs=1),
        block("up", "mlp.up_proj", d, f, num_inputs=1),
        block("down", "mlp.down_proj", f, d, num_inputs=1),
        Weight(ours="final_norm", theirs="model.norm.weight", shape=(d,)),
        *([] if config.tied_head else [head]),
    ]


def check_fit(config: LlamaConfig, tensors: Mapping[str, Tensor], place: str) -> list[str]:
    """The names of tensors that are known to be of no use; UserError unless the others are exactly the model's.

    Of no use: the rotary frequencies that old files carry, and the head of a model whose head is its embedding.
    """
    expected = {name: weight.their_shape for weight in weights_of(config) for name in weight.names(config)}
    missing = [name for name in expected if name not in tensors]
    if missing:
        untied = "; config.json says tie_word_embeddings is false" if missing == [HEAD] else ""
        shapes = ", ".join(f"{name} {list(expected[name])}" for name in missing[:3])
        raise UserError(
            f"{place} lacks {len(missing)} of the {len(expected)} tensors that config.json describes: "
            f"{shapes}{untied}; copy all files of the model again"
        )
    extra = [name for name in tensors if name not in expected]
    harmless = [name for name in extra if name.endswith("rotary_emb.inv_freq") or (name == HEAD and config.tied_head)]
    wrong = [name for name in extra if name not in harmless]
    if wrong:
        raise UserError(
            f"{place} holds {len(wrong)} tensors that a model of its config.json does not have: "
            f"{', '.join(f'{name} ({tensors[name].said()})' for name in wrong[:3])}; the architecture is another one"
        )
    for name, shape in expected.items():
        if tensors[name].shape != shape:
            raise UserError(
                f"tensor {name} is {tensors[name].said()}, but by config.json it is {list(shape)}; "
                "take config.json and the tensors from the same model"
            )
        if str(tensors[name].dtype) not in _FLOATS:
            raise UserError(f"tensor {name} is {tensors[name].said()}; weights are one of {', '.join(_FLOATS)}")
    return harmless


def fill(out: np.ndarray, weight: Weight, tensor: Tensor, index: tuple[slice, ...]) -> None:
    """Copy into `out` the part of one layer's parameter at `index` (whole slices of our dimensions), cast to its type.

    A few MiB of the tensor are looked at together, and of those only the columns that are asked for are copied.
    """
    inputs, outputs = weight.shape[: weight.num_inputs], weight.shape[weight.num_inputs :]
    into, of = index[: weight.num_inputs], index[weight.num_inputs :]
    if not inputs:
        for start, stop in _stretches(of[0], tensor.num_bytes // outputs[0]):
            out[start - of[0].start : stop - of[0].start] = tensor.rows(start, stop)[(slice(None), *of[1:])]
        return
    inner, inner_columns = math.prod(outputs[1:]), math.prod(inputs[1:])
    columns = slice(into[0].start * inner_columns, into[0].stop * inner_columns)
    for start, stop in _stretches(of[0], tensor.num_bytes // outputs[0]):
        rows = tensor.rows(start * inner, stop * inner)[:, columns]
        part = rows.T.reshape(-1, *inputs[1:], stop - start, *outputs[1:])
        target = out[(slice(None),) * len(inputs) + (slice(start - of[0].start, stop - of[0].start),)]
        target[...] = part[(slice(None), *into[1:], slice(None), *of[1:])]


def their_rows(weight: Weight, ours: np.ndarray, start: int, stop: int) -> np.ndarray:
    """Rows of the Hugging Face tensor of one layer's parameter."""
    if not weight.num_inputs:
        return ours[start:stop]
    return ours.reshape(weight.their_shape[::-1])[:, start:stop].T


def _stretches(whole: slice, bytes_each: int) -> Iterator[tuple[int, int]]:
    step = max(1, _BLOCK // max(1, bytes_each))
    for start in range(whole.start, whole.stop, step):
        yield start, min(start + step, whole.stop)
