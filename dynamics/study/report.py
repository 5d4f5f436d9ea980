"""One self-contained HTML page per study, with its tables beside it as CSV and JSON and its figures as PNG.

The page asks the network for nothing and opens from disk. It works on whatever part of a study is finished: missing
cells are listed, and every table says how many seeds stand behind a number.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from dynamics.study import figures, tables, words
from dynamics.study.curves import OVERALL, Bootstrap, Growth, analyze
from dynamics.study.gather import volume_of

_TEMPLATE = "report.html.jinja"
_EMBED_LIMIT = 2_400_000  # bytes of figures inside the page; later ones stay beside it as files


def write_report(
    results: Sequence[Mapping[str, Any]],
    summary: Mapping[str, Any],
    folder: str | Path,
    *,
    bootstrap: Bootstrap | None = None,
) -> Path:
    """Write report.html, report.json, the CSV files and figures/*.png into `folder`; returns the page's path.

    results   the contents of the finished cells' scores.json, in any order
    summary   what is known of the study as a whole; every key may be missing, and the page then says "not recorded":
        name, command (str), settings (plain JSON), wall_seconds (float), git (str), versions {package: version},
        machine {what: value}, counts {name: number} of the study's shared parts (base models, tokenizer, ...),
        speedup {"speedup": factor, "steps_per_second": {way: rate}, "size", "workers", ...} of the population way,
        cells [{"cell", "coords", "state": "done" | "running" | "failed" | "to do", "reason"}] of the whole plan

    Raises UserError when no cell of a trained model is finished.
    """
    folder = Path(folder)
    growths = analyze(results, bootstrap=bootstrap)
    rows = report_tables(results, growths)
    cells = cell_states(results, summary, growths)
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("results", "points", "sensitivity", "laws", "transfer"):
        if rows[name]:
            tables.write_csv(folder / f"{name}.csv", rows[name])
    machine_readable = {"summary": dict(summary), "cells": cells, "wait_share": tables.wait_share(results), **rows}
    text = json.dumps(tables.plain(machine_readable), ensure_ascii=False, indent=1)
    (folder / "report.json").write_text(text, encoding="utf-8")
    page = (
        _environment()
        .get_template(_TEMPLATE)
        .render(
            title=summary.get("name", "study"),
            summary=summary,
            sections=_sections(growths, folder),
            headlines=[(growth.grid.variant, words.headlines(growth)) for growth in growths],
            caveats=words.caveats(growths, cells),
            cells=cells,
            rows=rows,
            wait_share=tables.wait_share(results),
            axes=axes_of(results),
            random=growths[0].random,
            bootstrap=growths[0].bootstrap,
            settings=json.dumps(tables.plain(summary.get("settings")), indent=2, ensure_ascii=False),
        )
    )
    path = folder / "report.html"
    path.write_text(page, encoding="utf-8")
    return path


def report_tables(results: Sequence[Mapping[str, Any]], growths: Sequence[Growth]) -> dict[str, list[tables.Row]]:
    """Every table of the report by name."""
    return {
        "results": tables.score_rows(growths),
        "points": tables.point_rows(growths),
        "sensitivity": tables.sensitivity_rows(growths),
        "laws": tables.law_rows(growths),
        "transfer": tables.transfer_rows(growths),
        "budget": tables.budget_rows(results),
        "counts": tables.count_rows(results),
        "damage": tables.damage_rows(results),
    }


# ---------------------------------------------------------------- what was run


def cell_states(
    results: Sequence[Mapping[str, Any]], summary: Mapping[str, Any], growths: Sequence[Growth]
) -> dict[str, Any]:
    """How many cells there are in each state, and every cell without a result, with its reason.

    Without a plan in the summary, the plan is every combination of size, volume and seed that occurs in a variant.
    """
    found = {result["cell"] for result in results}
    plan = summary.get("cells")
    if plan is None:
        absent = [
            {"coords": {"size": size, "volume": volume, "seed": seed, "variant": grid.variant}, "state": "to do"}
            for grid in (growth.grid for growth in growths)
            for s, seed in enumerate(grid.seeds)
            for i, size in enumerate(grid.sizes)
            for j, volume in enumerate(grid.volumes)
            if volume > 0 and not grid.done[s, i, j]
        ]
        return {"planned": len(found) + len(absent), "done": len(found), "absent": absent, "states": {}}
    absent = [dict(cell) for cell in plan if cell["cell"] not in found]
    states: dict[str, int] = {}
    for cell in absent:
        # A cell that the plan calls done but whose result was not handed in must not look done.
        cell["state"] = "result missing" if cell.get("state") == "done" else cell.get("state", "to do")
        states[cell["state"]] = states.get(cell["state"], 0) + 1
    return {"planned": len(plan), "done": len(plan) - len(absent), "absent": absent, "states": states}


def axes_of(results: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """The values of every coordinate that occur, sorted; parameters are told with the size."""
    sizes = {r["coords"]["size"]: r["coords"].get("params") or 0 for r in results}
    volumes = sorted({volume_of(result) for result in results})
    axes: dict[str, list[Any]] = {"size": sorted(sizes, key=lambda size: sizes[size]), "volume": volumes}
    for name in dict.fromkeys(name for result in results for name in result["coords"]):
        if name not in ("size", "params", "volume"):
            axes[name] = sorted({result["coords"].get(name) for result in results}, key=str)
    return axes


# ---------------------------------------------------------------- figures and page


def _sections(growths: Sequence[Growth], folder: Path) -> list[dict[str, Any]]:
    """Figures of every variant as markup, with files beside; past the page's limit only the files."""
    (folder / "figures").mkdir(exist_ok=True)
    used = 0
    sections = []
    for index, growth in enumerate(growths):
        drawn = []
        for name, figure, title, caption in _figures(growth):
            name = name if len(growths) == 1 else f"{name}-{index + 1}"
            file = f"figures/{name}.png"
            figures.save_png(figure, folder / file)
            markup = figures.svg(figure, name)
            fits = used + len(markup) <= _EMBED_LIMIT
            used += len(markup) if fits else 0
            drawn.append({"title": title, "caption": caption, "file": file, "svg": Markup(markup) if fits else None})
        sections.append({"growth": growth, "variant": growth.grid.variant, "figures": drawn})
    return sections


def _figures(growth: Growth) -> list[tuple[str, Any, str, str]]:
    """(file name, figure, title, caption) of one variant's figures."""
    level = f"{100 * growth.bootstrap.level:.0f}%"
    several = len(growth.grid.seeds) > 1
    band = f"bands and bars: {level} bootstrap interval over {'seeds and ' if several else ''}test items"
    apart = "; hollow, at the left: the model before tuning" if 0 in growth.grid.volumes else ""
    found = [
        (
            "growth",
            figures.growth_figure(growth, of="score"),
            "Score against volume",
            f"Small dots: single seeds; line: their mean; {band}; dashed: chance{apart}. "
            "Dotted: power law fitted to 1 − score, where one could be fitted. The axis of records is logarithmic.",
        ),
        (
            "loss",
            figures.growth_figure(growth, of="loss"),
            "Loss against volume",
            f"Nats per token of the reference answers; every panel has its own scale; {band}{apart}.",
        ),
    ]
    if len(growth.grid.sizes) > 1:
        caption = f"One line per volume, the largest thick with its {level} interval; dashed: chance."
        found.append(("size", figures.size_figure(growth), "Score against size", caption))
    caption = f"Every ability counts once; a point without all abilities is left out; {band}."
    found.append(("overall", figures.overall_figure(growth), "Mean over abilities", caption))
    if any(row.data for row in growth.sensitivities):
        caption = (
            f"Slopes with {level} intervals. Filled: the interval leaves zero out. Large volumes: the largest third."
        )
        found.append(("sensitivity", figures.sensitivity_figure(growth), "Sensitivity", caption))
    for index, matrix in enumerate(growth.transfers):
        caption = f"Points gained over {matrix.baseline}; bold: the {level} interval leaves zero out."
        title = f"Transfer between abilities: {matrix.size}"
        found.append((f"transfer{index + 1}", figures.transfer_figure(matrix), title, caption))
    return found


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters.update(
        ability=figures.ability_title,
        percent=words.percent,
        points=words.points,
        number=words.number,
        range=words.value_range,
        duration=words.duration,
        speedup=words.speedup_text,
    )
    environment.globals.update(score_text=words.score_text, OVERALL=OVERALL)
    return environment
