"""What a study would train on, before anything is trained: volumes in tokens, and rendered rows."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from dynamics.data.mixture import slice_ids
from dynamics.data.store import TokenStore
from dynamics.data.template import Template, encode
from dynamics.data.tokenizer import Tokenizer
from dynamics.errors import UserError
from dynamics.record import Record
from dynamics.study.course import mixture_of
from dynamics.study.grid import Study, objective_name
from dynamics.study.prepare import Pool, Workspace
from dynamics.study.run import Run, is_preference, stages


def preview(study: Study, workspace: Workspace, *, rows: int) -> dict[str, Any]:
    """Plain data: the table of abilities x volumes (records, tokens, trained tokens), counts, and sample rows.

    The slices are those of the study's first seed. A volume that an ability cannot fill is an error here as it is in
    training; a recipe stands in the place of the volumes, by its name. `rows` samples of each ability are given as
    parts {text, trained}, joined from the ids that are trained. `plus` holds the same of each further grid, of the runs
    that these start after, and of pairs where a study learns from both records and pairs.

    Of pairs, records are pairs, tokens those of prompt and replies, and a part says of which `reply` it is.
    """
    if rows < 0:
        raise UserError(f"--rows {rows}; give 0 or more sample rows for each ability")
    first, *others = _parts(study)
    return _view(first, workspace, rows) | {"plus": [_view(part, workspace, rows) for part in others]}


def _parts(study: Study) -> list[Study]:
    """Every grid as one of each kind of objective (of records, of pairs), then the runs that theirs start after."""
    parts: list[Study] = []
    before: dict[Run, None] = {}
    for grid in study.grids():
        kinds: dict[bool, Run] = {}
        for objective in grid.objectives or (grid.run.objective,):
            run = dataclasses.replace(grid.run, objective=objective)
            kinds.setdefault(is_preference(run), run)
        parts += [dataclasses.replace(grid, run=run, objectives=()) for run in kinds.values()]
        starts = (dataclasses.replace(grid.run, base=base) for base in grid.bases or (grid.run.base,))
        before |= {stage: None for run in starts for stage in stages(run)}
    return [*parts, *(Study(name=f"{study.name}-before", run=stage, base_cells=False) for stage in before)]


def _view(study: Study, workspace: Workspace, rows: int) -> dict[str, Any]:
    seed = study.seeds[0] if study.seeds else study.run.seed
    run = dataclasses.replace(study.run, seed=seed)
    pool = workspace.pool(run)
    columns = _columns(study, run)
    slices = {name: _slices(column, pool) for name, column in columns.items()}
    abilities = run.ability_names()
    return {
        "name": study.name,
        "seed": seed,
        "source": run.source.name,
        "objective": objective_name(run.objective),
        "volumes": list(columns),
        "abilities": [_ability_row(pool, ability, slices) for ability in abilities],
        "counts": _counts(pool, abilities),
        "differences": workspace.source(run).differences(),
        "samples": [part for ability in abilities for part in _samples(run, workspace, pool, ability, rows)],
        "plus": [],
    }


def _columns(study: Study, run: Run) -> dict[Any, Run]:
    """{volume or name of the recipe: a run of it}, those that train nothing left out."""
    if run.recipe is not None:
        return {run.recipe.name: run}
    runs = (dataclasses.replace(run, volume=volume) for volume in study.volumes or (run.volume,))
    return {run.volume: run for run in runs if run.trains}


def _slices(run: Run, pool: Pool) -> dict[str, list[str]]:
    return mixture_of(run, {ability: len(set(ids)) for ability, ids in pool.ids.items()}).slices(pool.ids).groups


def _ability_row(pool: Pool, ability: str, slices: dict[Any, dict[str, list[str]]]) -> dict[str, Any]:
    cells = []
    for volume, groups in slices.items():
        ids = groups.get(ability, [])
        index = pool.store.indices([f"{ability}/{id}" for id in ids])
        tokens, trained = pool.store.num_tokens[index], pool.store.num_trained[index]
        cells.append(
            {"volume": volume, "records": len(ids), "tokens": int(tokens.sum()), "trained": int(trained.sum())}
        )
    return {"ability": ability, "pool": len(pool.ids[ability]), "volumes": cells}


def _counts(pool: Pool, abilities: tuple[str, ...]) -> dict[str, int]:
    """What the pool lost on the way from lines to tokens."""
    if pool.of_pairs:
        told = {
            "rejected": "lines rejected", "prompts_cut": "pairs whose prompt was cut",
            "replies_cut": "pairs of which a reply was cut", "dropped": "pairs dropped as too long",
            "no_trained_token": "pairs without a trained token", "judgements": "pairs of one reply (judgements)",
            "same_replies": "pairs dropped whose replies are the same tokens",
            "no_mismatch": "pairs without a reply to another prompt",
            "mismatches_cut": "pairs whose reply to another prompt was cut",
            "weighted": "pairs of a weight other than 1",
        }  # fmt: skip
        return {words: sum(pool.pairs[one].get(name, 0) for one in abilities) for name, words in told.items()}
    return {
        "lines rejected": sum(pool.rejected[ability] for ability in abilities),
        "conversations truncated to a row": sum(key.partition("/")[0] in abilities for key in pool.truncated),
        "conversations dropped as too long": sum(pool.counts[ability].dropped for ability in abilities),
        "records without a trained token": sum(pool.counts[ability].no_trained_token for ability in abilities),
    }


def _samples(run: Run, workspace: Workspace, pool: Pool, ability: str, rows: int) -> list[dict[str, Any]]:
    seed = run.seed if run.slice_seed is None else run.slice_seed
    count = min(rows, len(set(pool.ids[ability])))
    wanted = slice_ids(pool.ids[ability], count, seed=seed, ability=ability)
    if not wanted:
        return []
    if pool.of_pairs:
        keys = [f"{ability}/{id}" for id in wanted]
        return [{"ability": ability, "parts": rendered_pair(workspace.tokenizer(run), pool.store, key)} for key in keys]
    records = {record.id: record for record in workspace.source(run).load(ability, "train").records}
    tokenizer = workspace.tokenizer(run)
    return [{"ability": ability, "parts": rendered(run.template, tokenizer, records[id])} for id in wanted]


def rendered(template: Template, tokenizer: Tokenizer, record: Record) -> list[dict[str, Any]]:
    """The record's ids as text in parts that are trained on or not: what the model reads, decoded piece by piece."""
    encoded = encode(template, tokenizer, record.messages)
    return _joined(tokenizer, encoded.tokens.tolist(), [{"trained": bool(one)} for one in encoded.trained])


_REPLIES = ("prompt", "chosen", "rejected", "mismatched")


def rendered_pair(tokenizer: Tokenizer, store: TokenStore, key: str) -> list[dict[str, Any]]:
    """A pair as `rendered` shows a record, as it is stored: cut where it was too long. Parts say of which reply."""
    tokens, trained, branches = store.read_replies(store.indices([key]))
    marks = [
        {"trained": bool(one), "reply": _REPLIES[branch]}
        for one, branch in zip(trained, branches.tolist(), strict=True)
    ]
    return _joined(tokenizer, tokens.tolist(), marks)


def _joined(tokenizer: Tokenizer, tokens: Sequence[int], marks: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The text of the ids, neighbors with the same marks in one part."""
    parts: list[dict[str, Any]] = []
    for token, mark in zip(tokens, marks, strict=True):
        text = tokenizer.piece(token).replace("▁", " ")
        if parts and {**parts[-1], "text": ""} == {"text": "", **mark}:
            parts[-1]["text"] += text
        else:
            parts.append({"text": text, **mark})
    return parts
