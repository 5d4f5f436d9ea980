"""What data alone tell of the difficulty of a run's records; and what stands in for a model where a run is planned."""

from collections.abc import Sequence

import numpy as np

from dynamics.data.difficulty import Difficulty, OfRecords, OfTokens
from dynamics.data.replies import CHOSEN, REJECTED
from dynamics.errors import UserError
from dynamics.seeds import name_hash
from dynamics.study.prepare import Workspace
from dynamics.study.run import Run, is_preference


def known_scores(run: Run, keys: Sequence[str], workspace: Workspace) -> dict[str, float] | None:
    """Difficulty of these train records by key, from the token store or the records; None where a model must say it.

    Of a pair the length is that of its own replies together, with its prompt once where all of it counts; a reply to
    another prompt, which KTO reads too, says nothing of the pair.
    """
    by = run.order.difficulty
    if isinstance(by, OfTokens):
        store = workspace.pool(run).store
        index = store.indices(keys)
        num_tokens, num_trained = store.num_tokens[index], store.num_trained[index]
        if is_preference(run):
            lengths = store.branch_lengths[index]
            num_tokens, num_trained = (
                lengths[:, : REJECTED + 1].sum(axis=1),
                lengths[:, CHOSEN : REJECTED + 1].sum(axis=1),
            )
        return dict(zip(keys, by(num_tokens, num_trained).tolist(), strict=True))
    if isinstance(by, OfRecords):
        return _of_records(by, run, keys, workspace)
    return None


def _of_records(by: OfRecords, run: Run, keys: Sequence[str], workspace: Workspace) -> dict[str, float]:
    if is_preference(run):
        raise UserError(
            f"pairs of replies carry no {by.name}; order them by Length(), ModelLoss() or IFD(), or at random"
        )
    wanted, source = set(keys), workspace.source(run)
    records = {
        key: record
        for ability in dict.fromkeys(key.partition("/")[0] for key in keys)
        for record in source.load(ability, "train").records
        if (key := f"{ability}/{record.id}") in wanted
    }
    return by(records)


def stand_in_scores(by: Difficulty, keys: Sequence[str]) -> dict[str, float]:
    """A number for each record that has nothing to do with it: for planning how long a run is, never for training."""
    largest = np.iinfo(np.uint64).max
    return {key: name_hash("stand-in", by.name, key) / float(largest) for key in keys}
