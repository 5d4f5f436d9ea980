"""Where the tokens of pairs go in a row: as runs of neighboring tokens of the store."""

import numpy as np
from jaxtyping import Int32, Int64


def pair_pieces(
    lengths: Int32[np.ndarray, "pairs branches"], sides: int, *, shared_prompt: bool
) -> dict[str, Int64[np.ndarray, " pieces"]]:
    """The runs of tokens that these pairs are laid out in, pair by pair:

    pair        which of them
    branch      0 of a prompt
    size        tokens, one or more
    source      of the first among the tokens of all these pairs
    place       of the first, from where the pair starts in its row
    position    of the first, as the model sees it
    predictor   of the first, from where the pair starts; of a prompt it means nothing
    sequence    1 and more, among those of the pair, where the prompt is not shared
    """
    num, lengths = len(lengths), lengths[:, : 1 + sides].astype(np.int64)
    prompt = lengths[:, :1]
    total = lengths.sum(axis=1)
    begins = (np.cumsum(total) - total)[:, None]
    starts = begins + np.cumsum(lengths, axis=1) - lengths  # of each branch, among the tokens of all these pairs
    branch = np.arange(1 + sides)[None]
    if shared_prompt:
        size, source, position = lengths, starts, np.where(branch > 0, prompt, 0)
        sequence = np.ones_like(size)
    else:
        # prompt, reply, prompt, reply, ...: the prompt of a reply that there is not is left out with it.
        reply = lengths[:, 1:]
        size = np.stack([np.where(reply > 0, prompt, 0), reply], axis=2).reshape(num, -1)
        source = np.stack([np.broadcast_to(begins, reply.shape), starts[:, 1:]], axis=2).reshape(num, -1)
        position = np.tile(np.concatenate([np.zeros_like(prompt), prompt], axis=1), (1, sides))
        branch = np.stack([np.zeros(sides, np.int64), np.arange(1, 1 + sides)], axis=1).reshape(1, -1)
        sequence = np.broadcast_to(np.repeat(np.arange(1, 1 + sides), 2)[None], size.shape)
    place = np.cumsum(size, axis=1) - size
    predictor = np.broadcast_to(prompt - 1, size.shape) if shared_prompt else place - 1
    columns = {
        "pair": np.broadcast_to(np.arange(num)[:, None], size.shape),
        "branch": np.broadcast_to(branch, size.shape),
        "size": size,
        "source": source,
        "place": place,
        "position": position,
        "predictor": predictor,
        "sequence": sequence,
    }
    return {name: column[size > 0] for name, column in columns.items()}
