"""Optimizers as settings: the direction of an update, and apart from it the learning rate.

The two are apart because the learning rate depends on the length of the run. Step and length are traced numbers,
so one compiled program serves every run of one shape, however long.
"""

import dataclasses
import functools
import importlib
import inspect
from collections.abc import Callable
from typing import Any, Literal, cast

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from dynamics import tree
from dynamics.errors import UserError

Schedule = Literal["linear", "cosine", "constant"]

# Half the distance between a bfloat16 number just above a power of two and its neighbor, as a share of the number.
BFLOAT16_STEP = 2.0**-8


@dataclasses.dataclass(frozen=True, kw_only=True)
class Optimizer:
    """Family of optimizers: the base class holds the schedule, a member says the direction.

    A member of your own is a subclass with one method; any optax transformation will do:

        @dataclasses.dataclass(frozen=True, kw_only=True)
        class Lion(Optimizer):
            b1: float
            b2: float

            def direction(self):
                return optax.scale_by_lion(self.b1, self.b2)  # no learning rate, and uphill: the step subtracts

    The learning rate of update t (the first is t = 0) in a run of n updates, with w = warmup_steps + warmup_share * n:

        t <  w   peak_lr * (t + 1) / w         HF starts at 0, which wastes the first update; this starts one step on
        t >= w   from peak_lr down to end_lr at t = n, which the last update (t = n - 1) just does not reach, as in HF
    """

    peak_lr: float
    end_lr: float
    schedule: Schedule
    warmup_steps: int = 0
    warmup_share: float = 0.0  # of the run's updates
    clip: float | None = None  # largest global norm of the gradient; None leaves it alone
    no_decay: str = r"norm|bias"  # weight decay leaves out parameters whose name matches

    def __post_init__(self) -> None:
        if not 0 <= self.end_lr <= self.peak_lr:
            raise UserError(f"peak_lr={self.peak_lr} and end_lr={self.end_lr}: allowed is 0 <= end_lr <= peak_lr")
        if self.schedule not in ("linear", "cosine", "constant"):
            raise UserError(f"schedule={self.schedule!r} is not known; use 'linear', 'cosine' or 'constant'")
        if self.warmup_steps < 0 or not 0 <= self.warmup_share < 1:
            raise UserError(
                f"warmup_steps={self.warmup_steps}, warmup_share={self.warmup_share}: "
                "warmup_steps is at least 0 and warmup_share from 0 up to, not including, 1"
            )
        if self.clip is not None and self.clip <= 0:
            raise UserError(f"clip={self.clip} would stop all learning; use a positive norm, or None for no clipping")

    def direction(self) -> optax.GradientTransformation:
        """Gradient to direction, uphill, without clipping and learning rate."""
        raise NotImplementedError(f"{type(self).__name__} must say its direction()")

    def transform(self) -> optax.GradientTransformation:
        """Clipping, then the direction. The step subtracts learning_rate(...) times its output."""
        if self.clip is None:
            return self.direction()
        return optax.chain(optax.clip_by_global_norm(self.clip), self.direction())

    def learning_rate(self, step: Int[Array, ""] | int, total_steps: Int[Array, ""] | int) -> Float[Array, ""]:
        """Learning rate of the update number `step`, counted from 0, of a run of `total_steps`."""
        step = jnp.asarray(step, jnp.float32)
        total = jnp.asarray(total_steps, jnp.float32)
        warmup = self.warmup_steps + self.warmup_share * total
        done = jnp.clip((step - warmup) / jnp.maximum(total - warmup, 1.0), 0.0, 1.0)
        remaining = {
            "linear": lambda: 1.0 - done,
            "cosine": lambda: 0.5 * (1.0 + jnp.cos(jnp.pi * done)),
            "constant": lambda: jnp.ones_like(done),
        }[self.schedule]()
        after = self.end_lr + (self.peak_lr - self.end_lr) * remaining
        return jnp.where(step < warmup, self.peak_lr * (step + 1.0) / jnp.maximum(warmup, 1.0), after)

    def decayed(self, params: Any) -> Any:
        """Tree of booleans: which parameters weight decay pulls towards zero.

        HF Trainer, which the paper's code calls, leaves out biases and all norm weights (LLaMA's RMSNorm too) and
        decays the embeddings. Names decide, not ranks: norms of stacked blocks are matrices here.
        """
        return jax.tree.map(lambda matched: not matched, tree.name_mask(params, self.no_decay))


def global_norm(gradients: Any) -> Float[Array, ""]:
    """Euclidean norm over all leaves, in float32."""
    return jnp.sqrt(sum(jnp.sum(jnp.square(leaf.astype(jnp.float32))) for leaf in jax.tree.leaves(gradients)))


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdamW(Optimizer):
    """Adam with decoupled weight decay; moments in `moment_dtype` whatever the parameters' type.

    Moments in bfloat16 halve the state. They are computed in float32 and rounded only to be kept until the next
    update; b1 and b2 must move them by more than that rounding, or they would never shrink again.

    Source: Loshchilov and Hutter 2019, algorithm 2, with the decay multiplied by the learning rate (as torch does).
    """

    b1: float
    b2: float
    eps: float
    weight_decay: float
    moment_dtype: Literal["float32", "bfloat16"] = "float32"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.moment_dtype not in ("float32", "bfloat16"):
            raise UserError(f"moment_dtype={self.moment_dtype!r} is not known; use 'float32' or 'bfloat16'")
        slowest = max(self.b1, self.b2)
        if self.moment_dtype == "bfloat16" and 1 - slowest < BFLOAT16_STEP:
            raise UserError(
                f"moments in bfloat16 with b1={self.b1}, b2={self.b2}: a moment times {slowest} rounds back to itself, "
                f"so it would never shrink; allowed is up to {1 - BFLOAT16_STEP:.4f}, or moment_dtype='float32'"
            )

    def direction(self) -> optax.GradientTransformation:
        """The paper's chain with float32 moments, which `transform` is checked against."""
        return optax.chain(
            optax.scale_by_adam(self.b1, self.b2, self.eps),
            optax.add_decayed_weights(self.weight_decay, mask=self.decayed),
        )

    def transform(self) -> optax.GradientTransformation:
        """The same numbers as the chain of the base class, with clipping and moments in one pass over the gradients.

        The state is optax's own ScaleByAdamState.
        """

        def init(params: Any) -> optax.ScaleByAdamState:
            zeros = lambda: jax.tree.map(lambda p: jnp.zeros(p.shape, self.moment_dtype), params)  # noqa: E731
            return optax.ScaleByAdamState(count=jnp.zeros((), jnp.int32), mu=zeros(), nu=zeros())

        def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, optax.ScaleByAdamState]:
            grads = updates
            count = optax.safe_increment(state.count)
            scale = 1.0 if self.clip is None else self.clip / jnp.maximum(global_norm(grads), self.clip)
            first, second = 1 - self.b1**count, 1 - self.b2**count
            wide = functools.partial(jax.tree.map, lambda moment: moment.astype(jnp.float32))
            kept = functools.partial(jax.tree.map, lambda moment: moment.astype(self.moment_dtype))
            mu = jax.tree.map(lambda g, m: self.b1 * m + (1 - self.b1) * (g * scale), grads, wide(state.mu))
            nu = jax.tree.map(lambda g, v: self.b2 * v + (1 - self.b2) * (g * scale) ** 2, grads, wide(state.nu))

            def direct(m: Array, v: Array, p: Array, decayed: bool) -> Array:
                adam = (m / first) / (jnp.sqrt(v / second) + self.eps)
                return adam + self.weight_decay * p if decayed else adam

            direction = jax.tree.map(direct, mu, nu, params, self.decayed(params))
            return direction, optax.ScaleByAdamState(count=count, mu=kept(mu), nu=kept(nu))

        return optax.GradientTransformation(init, update)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Custom(Optimizer):
    """Any optax transformation, named by 'module:function', with its keyword arguments as (name, value) pairs.

        Custom(factory="optax:lion", arguments=(("b1", 0.9), ("weight_decay", 0.1)), peak_lr=1e-4, ...)

    A factory that asks for a learning rate (optax.lion) is given 1 and its sign is turned, so that the schedule here
    stays the only one; one that does not (optax.scale_by_lion) is taken as a direction uphill. A factory with both
    `weight_decay` and `mask` gets this class's decay mask.
    """

    factory: str
    arguments: tuple[tuple[str, float | int | bool | str | None], ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        self.direction()

    def direction(self) -> optax.GradientTransformation:
        make = _load_factory(self.factory)
        accepted = inspect.signature(make).parameters
        arguments: dict[str, Any] = dict(self.arguments)
        for name in arguments:
            if name not in accepted or name == "learning_rate":
                allowed = ", ".join(other for other in accepted if other != "learning_rate")
                raise UserError(
                    f"{self.factory} is given {name!r}; it takes {allowed} (the learning rate is this class's peak_lr)"
                )
        if {"weight_decay", "mask"} <= set(accepted):
            arguments.setdefault("mask", self.decayed)
        if "learning_rate" not in accepted:
            return make(**arguments)
        return optax.chain(make(learning_rate=1.0, **arguments), optax.scale(-1.0))


def _load_factory(path: str) -> Callable[..., optax.GradientTransformation]:
    module_name, _, name = path.partition(":")
    try:
        make = getattr(importlib.import_module(module_name), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(
            f"factory={path!r} cannot be found ({error}); write module:function, such as optax:lion"
        ) from error
    if not callable(make):
        raise UserError(f"factory={path!r} is not a function; write module:function, such as optax:lion")
    return cast(Callable[..., optax.GradientTransformation], make)


# Betas, decay, rates and schedule are the paper's; clipping is HF Trainer's default, which the paper's code does not
# change. Its DeepSpeed file may have overruled betas and schedule unnoticed; the paper's text is what is kept here.
# Source: Song et al. 2024 (DoIT), section 4 and train_sft.py.
DOIT = AdamW(
    peak_lr=1e-5, end_lr=1e-6, schedule="linear", clip=1.0, b1=0.9, b2=0.95, eps=1e-8, weight_decay=0.1
)  # fmt: skip

# The same but for the rate: models of a million parameters, trained for a few hundred updates, need a larger one.
PRACTICE = dataclasses.replace(DOIT, peak_lr=3e-3, end_lr=3e-4, warmup_share=0.03)

OPTIMIZERS = (DOIT, PRACTICE)
