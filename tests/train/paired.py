"""Micro-batches of pairs by a plain loop, in two layouts: each prompt once, or once for each reply."""

from collections.abc import Sequence

import numpy as np

from dynamics.seeds import stream

Pair = tuple[list[int], tuple[list[int] | None, ...]]  # a prompt's tokens, those of each side


def random_rows(seed: int, *, rows: int, pairs: int, vocab: int, sides: int = 2, longest: int = 5) -> list[list[Pair]]:
    """Rows of a few pairs each; a pure function of the arguments."""
    rng = stream(seed, "pairs")

    def tokens(least: int) -> list[int]:
        return rng.integers(1, vocab, int(rng.integers(least, longest + 1))).tolist()

    return [[(tokens(2), tuple(tokens(1) for _ in range(sides))) for _ in range(pairs)] for _ in range(rows)]


def micro_batch(
    rows: Sequence[Sequence[Pair]],
    *,
    length: int,
    shared: bool = True,
    groups: int = 1,
    cap: int | None = None,
    pairs: int | None = None,
    weights: Sequence[float] | None = None,
    reference: Sequence[Sequence[float]] | None = None,
) -> dict[str, np.ndarray]:
    """The device arrays of one micro-batch (see `dynamics.data.pair_batches`); `pairs` and `cap` of a group.

    `weights` and `reference` are of the pairs in the order of the rows.
    """
    sides = len(rows[0][0][1])
    whole = {name: np.zeros((len(rows), length), np.int32) for name in ("tokens", "positions", "segments", "branches")}
    listed: list[list[tuple[int, int, int]]] = [[] for _ in range(groups)]
    of_group: list[list[int]] = [[] for _ in range(groups)]
    part, number = len(rows) // groups, 0
    for row, documents in enumerate(rows):
        at, segment, group = 0, 0, row // part

        def lay(tokens, start, segment, branch, row=row):
            nonlocal at
            stop = at + len(tokens)
            whole["tokens"][row, at:stop], whole["segments"][row, at:stop] = tokens, segment
            whole["positions"][row, at:stop], whole["branches"][row, at:stop] = (
                range(start, start + len(tokens)),
                branch,
            )
            at = stop
            return stop - len(tokens)

        for prompt, replies in documents:
            place = len(of_group[group])
            of_group[group].append(number)
            number += 1
            segment += shared
            prompt_at = lay(prompt, 0, segment, 0) if shared else 0
            for side, reply in enumerate(replies):
                if reply is None:
                    continue
                if not shared:
                    segment += 1
                    prompt_at = lay(prompt, 0, segment, 0)
                reply_at = lay(reply, len(prompt), segment, side + 1 if shared else 0)
                for i, token in enumerate(reply):
                    before = prompt_at + len(prompt) - 1 if i == 0 else reply_at + i - 1
                    listed[group].append(((row % part) * length + before, token, place * sides + side))
    cap = cap or max(map(len, listed))
    pairs = pairs or max(map(len, of_group))
    batch = dict(whole)
    if not shared:
        del batch["branches"]
    entries = np.zeros((3, groups, cap), np.int32)
    trained = np.zeros((groups, cap), np.float32)
    pair_weights, known = np.zeros((groups, pairs), np.float32), np.zeros((groups, pairs, sides), np.float32)
    for group, (some, numbers) in enumerate(zip(listed, of_group, strict=True)):
        entries[:, group, : len(some)] = np.array(some, np.int32).reshape(-1, 3).T
        trained[group, : len(some)] = 1
        pair_weights[group, : len(numbers)] = 1 if weights is None else np.array(weights)[numbers]
        if reference is not None:
            known[group, : len(numbers)] = np.array(reference)[numbers]
    names = ("trained_index", "trained_targets", "trained_reply")
    batch |= dict(zip(names, entries, strict=True)) | {"trained_weights": trained}
    return batch | {"pair_weights": pair_weights, "reference": known}
