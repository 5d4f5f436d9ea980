"""Bare torch: the loop a careful person writes by hand, on documents laid end to end without any padding.

--head completion   logits at trained positions only: the best hand-written loop
--head full         logits everywhere
--attention documents   one causal attention per document (exact, and no work on pairs that are hidden)
--attention mask        rows of 512 under a block-diagonal mask
--keep-memory       glibc keeps freed memory, as `dynamics` has it
"""

import ctypes
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from peer import Line, parser
from torch import Tensor, nn
from workload import OPTIMIZER, SHAPE, Workload

Rows = dict[str, np.ndarray]


def rotary_tables(positions: Tensor) -> tuple[Tensor, Tensor]:
    half = torch.arange(0, SHAPE["head_dim"], 2, dtype=torch.float32) / SHAPE["head_dim"]
    angles = positions[:, None].float() * SHAPE["rope_theta"] ** -half
    angles = torch.cat([angles, angles], dim=-1)[:, None]
    return angles.cos(), angles.sin()


def rotate(x: Tensor, tables: tuple[Tensor, Tensor]) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return x * tables[0] + torch.cat([-second, first], dim=-1) * tables[1]


def product(x: Tensor, weight: Tensor) -> Tensor:
    """x @ weight.T by oneDNN, without gradient."""
    operands = (operand.contiguous().to_mkldnn() for operand in (x, weight))
    return torch._C._nn.mkldnn_linear(*operands).to_dense()


class OneDNN(torch.autograd.Function):
    """x @ weight.T and its gradients, each one product by oneDNN."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return product(x.detach(), weight.detach())

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        x, weight = ctx.saved_tensors
        return product(gradient, weight.T), product(gradient.T, x.T)


class Linear(nn.Linear):
    """Without bias, by the library that the command line chose."""

    onednn = False

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return OneDNN.apply(x, self.weight) if self.onednn else F.linear(x, self.weight)


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        d = SHAPE["hidden_size"]
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            setattr(self, name, Linear(d, d))

    def forward(self, x: Tensor, tables: tuple[Tensor, Tensor], where: "Documents | Mask") -> Tensor:
        heads = (len(x), SHAPE["num_attention_heads"], SHAPE["head_dim"])
        query, key = (rotate(project(x).view(heads), tables) for project in (self.q_proj, self.k_proj))
        return self.o_proj(where(query, key, self.v_proj(x).view(heads)).reshape(len(x), -1))


class MLP(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        d, f = SHAPE["hidden_size"], SHAPE["intermediate_size"]
        self.gate_proj, self.up_proj = Linear(d, f), Linear(d, f)
        self.down_proj = Linear(f, d)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.self_attn, self.mlp = Attention(), MLP()
        self.input_layernorm = nn.RMSNorm(SHAPE["hidden_size"], SHAPE["rms_norm_eps"])
        self.post_attention_layernorm = nn.RMSNorm(SHAPE["hidden_size"], SHAPE["rms_norm_eps"])

    def forward(self, x: Tensor, tables: tuple[Tensor, Tensor], where: "Documents | Mask") -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), tables, where)
        return x + self.mlp(self.post_attention_layernorm(x))


class Model(nn.Module):
    """Tokens [n] to hidden states [n, d]. Parameters are named as in transformers, after its prefix 'model.'"""

    def __init__(self) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(SHAPE["vocab_size"], SHAPE["hidden_size"])
        self.layers = nn.ModuleList(Layer() for _ in range(SHAPE["num_hidden_layers"]))
        self.norm = nn.RMSNorm(SHAPE["hidden_size"], SHAPE["rms_norm_eps"])
        self.lm_head = Linear(SHAPE["hidden_size"], SHAPE["vocab_size"])

    def forward(self, tokens: Tensor, positions: Tensor, where: "Documents | Mask") -> Tensor:
        x, tables = self.embed_tokens(tokens), rotary_tables(positions)
        for layer in self.layers:
            x = layer(x, tables, where)
        return self.norm(x)


class Documents:
    """Causal attention in each document by itself."""

    def __init__(self, lengths: list[int]) -> None:
        self.lengths = lengths

    def __call__(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        pieces = (x.split(self.lengths) for x in (query, key, value))
        mixed = [
            F.scaled_dot_product_attention(*(x.transpose(0, 1)[None] for x in piece), is_causal=True)[0].transpose(0, 1)
            for piece in zip(*pieces, strict=True)
        ]
        return torch.cat(mixed)


class Mask:
    """Attention over whole rows under a mask, [rows, 1, length, length]."""

    def __init__(self, segments: Tensor) -> None:
        self.rows, self.length = segments.shape
        causal = torch.ones(self.length, self.length, dtype=torch.bool).tril()
        self.mask = (segments[:, :, None] == segments[:, None, :])[:, None] & causal

    def __call__(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        rows = (x.view(self.rows, self.length, *x.shape[1:]).transpose(1, 2) for x in (query, key, value))
        return F.scaled_dot_product_attention(*rows, attn_mask=self.mask).transpose(1, 2)


def flat(rows: Rows, attention: Literal["documents", "mask"]) -> tuple[dict[str, Tensor], "Documents | Mask"]:
    """The arrays of a batch end to end, without padding where attention goes by document."""
    if attention == "mask":
        return {k: torch.from_numpy(v).flatten() for k, v in rows.items()}, Mask(torch.from_numpy(rows["segments"]))
    kept = rows["segments"] > 0
    starts = np.flatnonzero(rows["positions"][kept] == 0)
    lengths = np.diff([*starts, kept.sum()]).tolist()
    return {name: torch.from_numpy(array[kept]) for name, array in rows.items()}, Documents(lengths)


def load(model: Model, path: str) -> None:
    with np.load(path) as saved:
        model.load_state_dict({name.removeprefix("model."): torch.from_numpy(saved[name]) for name in saved})


def optimizer_of(model: Model) -> torch.optim.AdamW:
    decayed = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim == 1]
    groups = [{"params": decayed}, {"params": others, "weight_decay": 0.0}]
    settings = {name: OPTIMIZER[name] for name in ("lr", "eps", "weight_decay")}
    return torch.optim.AdamW(groups, betas=(OPTIMIZER["b1"], OPTIMIZER["b2"]), fused=True, **settings)


def warm_up(optimizer: torch.optim.AdamW) -> torch.optim.lr_scheduler.LambdaLR:
    """The rate rises over the first steps and then stays."""
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / OPTIMIZER["warmup_steps"]))


def loss_of(model: Model, rows: Rows, *, attention: Literal["documents", "mask"], head: str) -> Tensor:
    batch, where = flat(rows, attention)
    hidden, targets, trained = model(batch["tokens"], batch["positions"], where), batch["targets"], batch["weights"] > 0
    if head == "completion":
        return F.cross_entropy(model.lm_head(hidden[trained]), targets[trained].long())
    return F.cross_entropy(model.lm_head(hidden), torch.where(trained, targets, -100).long())


def keep_freed_memory() -> None:
    """As dynamics/allocator.py: no mmap for large blocks, no trimming."""
    mallopt = ctypes.CDLL(None).mallopt
    for option in ((-4, 0), (-1, 2**31 - 1), (-2, 2**26)):
        mallopt(*option)


def main() -> None:
    made = parser(__doc__)
    made.add_argument("--head", choices=["completion", "full"], required=True)
    made.add_argument("--attention", choices=["documents", "mask"], required=True)
    made.add_argument("--products", choices=["mkl", "onednn"], default="mkl")
    made.add_argument("--keep-memory", action="store_true")
    arguments = made.parse_args()
    line = Line()
    if arguments.keep_memory:
        keep_freed_memory()
    Linear.onednn = arguments.products == "onednn"
    workload, model = Workload.load(arguments.workload), Model()
    load(model, arguments.weights)
    optimizer, step = optimizer_of(model), 0
    schedule = warm_up(optimizer)
    while line.wait():
        rows = workload.rows(step)
        loss = loss_of(model, rows, attention=arguments.attention, head=arguments.head)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), OPTIMIZER["clip"])
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        step += 1
        line.report(tokens=int((rows["segments"] > 0).sum()), loss=loss.item())


if __name__ == "__main__":
    main()
