"""The preference pairs that every DPO peer trains on: one file of ragged tokens, in one order for all.

Only the standard library and NumPy, because each peer's environment imports it.

    prompt      random tokens, lognormal lengths: median 50 (or what is asked for), spread of the logarithm 0.6
    replies     two independent draws: median 70, the same spread, the end token last and nowhere else
    a step      8 pairs, 16 sequences of about 145 tokens: some 2,300 without padding when no prompt is shared
"""

import dataclasses
from pathlib import Path

import numpy as np
from workload import SHAPE

PAIRS = 8  # of a step
PROMPT, REPLY, SIGMA = 50, 70, 0.6  # medians in tokens, and the spread of their logarithm
LONGEST_PROMPT, LONGEST_REPLY = 192, 320  # together the 512 that a fixed row of a peer holds
EOS, BETA = 2, 0.1


@dataclasses.dataclass(frozen=True)
class Pair:
    """Token ids of a prompt and of its two replies."""

    prompt: np.ndarray
    chosen: np.ndarray
    rejected: np.ndarray

    @property
    def replies(self) -> tuple[np.ndarray, np.ndarray]:
        return self.chosen, self.rejected

    @property
    def num_tokens(self) -> int:
        """Of the two sequences, the prompt counted in each."""
        return 2 * len(self.prompt) + len(self.chosen) + len(self.rejected)


def draw(*, num: int, prompt: int | None = None) -> list[Pair]:
    """`num` pairs. With `prompt` every prompt has that many tokens; the replies stay the same."""
    rng = np.random.default_rng(0)

    def lengths(median: int, longest: int) -> np.ndarray:
        return np.clip(rng.lognormal(np.log(median), SIGMA, num).astype(int), 8, longest)

    prompts, chosen, rejected = (lengths(*sizes) for sizes in ((PROMPT, LONGEST_PROMPT), *[(REPLY, LONGEST_REPLY)] * 2))
    if prompt is not None:
        prompts = np.full(num, prompt)

    def reply(size: int) -> np.ndarray:
        return np.append(rng.integers(4, SHAPE["vocab_size"], size - 1), EOS).astype(np.int32)

    return [
        Pair(rng.integers(4, SHAPE["vocab_size"], p).astype(np.int32), reply(c), reply(r))
        for p, c, r in zip(prompts, chosen, rejected, strict=True)
    ]


def save(pairs: list[Pair], path: Path) -> None:
    parts = [part for pair in pairs for part in (pair.prompt, pair.chosen, pair.rejected)]
    np.savez(path, tokens=np.concatenate(parts), lengths=np.array([len(part) for part in parts]))


def load(path: Path) -> list[Pair]:
    with np.load(path) as saved:
        parts = np.split(saved["tokens"], np.cumsum(saved["lengths"])[:-1])
    return [Pair(*parts[start : start + 3]) for start in range(0, len(parts), 3)]


def of_step(pairs: list[Pair], step: int) -> list[Pair]:
    """The pairs of a step, the same for every peer; after the last the first come again."""
    first = step * PAIRS % len(pairs)
    return pairs[first : first + PAIRS]
