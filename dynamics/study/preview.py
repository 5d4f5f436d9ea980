"""What a study would train on, before anything is trained: volumes in tokens, and rendered rows."""

import dataclasses
from typing import Any

from dynamics.data.mixture import slice_ids
from dynamics.data.template import Template, encode
from dynamics.data.tokenizer import Tokenizer
from dynamics.errors import UserError
from dynamics.record import Record
from dynamics.study.course import mixture_of
from dynamics.study.grid import Study
from dynamics.study.prepare import Pool, Workspace
from dynamics.study.run import Run


def preview(study: Study, workspace: Workspace, *, rows: int) -> dict[str, Any]:
    """Plain data: the table of abilities x volumes (records, tokens, trained tokens), counts, and sample rows.

    The slices are those of the study's first seed. A volume that an ability cannot fill is an error here as it is in
    training; a recipe stands in the place of the volumes, by its name. `rows` samples of each ability are given as
    parts {text, trained}, joined from the ids that are trained. `plus` holds the same of each further grid.
    """
    if rows < 0:
        raise UserError(f"--rows {rows}; give 0 or more sample rows for each ability")
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
        "volumes": list(columns),
        "abilities": [_ability_row(pool, ability, slices) for ability in abilities],
        "counts": _counts(pool, abilities),
        "samples": [part for ability in abilities for part in _samples(run, workspace, pool, ability, rows)],
        "plus": [preview(grid, workspace, rows=rows) for grid in study.grids()[1:]],
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
    records = {record.id: record for record in workspace.source(run).load(ability, "train").records}
    tokenizer = workspace.tokenizer(run)
    return [{"ability": ability, "parts": rendered(run.template, tokenizer, records[id])} for id in wanted]


def rendered(template: Template, tokenizer: Tokenizer, record: Record) -> list[dict[str, Any]]:
    """The record's ids as text in parts that are trained on or not: what the model reads, decoded piece by piece."""
    encoded = encode(template, tokenizer, record.messages)
    parts: list[dict[str, Any]] = []
    for token, trained in zip(encoded.tokens.tolist(), encoded.trained.tolist(), strict=True):
        text = tokenizer.piece(token).replace("▁", " ")
        if parts and parts[-1]["trained"] == trained:
            parts[-1]["text"] += text
        else:
            parts.append({"text": text, "trained": trained})
    return parts
