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

from dynamics.study import (
    benchmark_tables,
    comparison_figures,
    comparison_tables,
    effect_words,
    effects,
    figures,
    findings,
    mixtures,
    preference_figures,
    preference_tables,
    tables,
    words,
)
from dynamics.study.benchmark_tables import PUBLISHED_SIZE, BenchmarkRow, benchmark_rows
from dynamics.study.contrast import Contrast, apart, contrasts
from dynamics.study.curves import MEANS, OVERALL, Bootstrap, Growth, analyze
from dynamics.study.effects import AXES, Effect
from dynamics.study.gather import volume_of
from dynamics.study.mixtures import Mixtures
from dynamics.study.preference_tables import PreferenceRow

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
    learned = preference_tables.preference_rows(results, bootstrap=bootstrap)
    scored = [result for result in results if result["test"] or not learned]  # cells of pairs alone have no items
    growths = analyze(scored, bootstrap=bootstrap) if scored or not learned else []
    compared = contrasts(scored, bootstrap=bootstrap)
    mixed = mixtures.mixtures(scored, bootstrap=bootstrap)
    asked = benchmark_rows(results, bootstrap=bootstrap)
    chosen = effects.effects(scored, bootstrap=bootstrap)
    rows = report_tables(results, growths) | comparison_rows(growths, compared, mixed, asked, chosen)
    rows |= preference_tables.tables_of(learned)
    cells = cell_states(results, summary, growths)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "figures").mkdir(exist_ok=True)
    page_figures = _Figures(folder)
    for name in FILES:
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
            sections=_sections(growths, page_figures, alone=len(growths) == 1 and mixed is None and not chosen),
            contrasts=[_contrast_section(each, page_figures) for each in compared],
            mixtures=mixed,
            mixture_figures=_mixture_figures(mixed, page_figures),
            effects=[_effect_section(each, page_figures, number) for number, each in enumerate(chosen, 1)],
            benchmarks=_benchmark_section(asked, page_figures),
            preferences=_preference_section(learned, page_figures),
            findings=[
                *preference_tables.preference_findings(learned),
                *effect_words.effect_findings(chosen),
                *(findings.findings(growths, compared, mixed, asked, apart=apart(scored)) if growths else ()),
            ],
            other_headlines=[(growth.grid.variant, words.headlines(growth)) for growth in growths[1:] if growth.grows],
            files=[f"{name}.csv" for name in FILES if rows[name]],
            caveats=words.caveats(growths, cells, seeds=max((row.num_seeds for row in learned), default=0)),
            cells=cells,
            rows=rows,
            wait_share=tables.wait_share(results),
            axes=axes_of(results),
            random=growths[0].random if growths else {},
            bootstrap=bootstrap or Bootstrap(),
            settings=json.dumps(tables.plain(summary.get("settings")), indent=2, ensure_ascii=False),
        )
    )
    path = folder / "report.html"
    path.write_text(page, encoding="utf-8")
    return path


FILES = (
    "results", "points", "sensitivity", "laws", "transfer", "gaps", "exchange", "late", "mixtures", "effects",
    "benchmarks", "published", "preferences", "preference_curve",
)  # fmt: skip


def comparison_rows(
    growths: Sequence[Growth],
    compared: Sequence[Contrast],
    mixed: Mixtures | None,
    asked: Sequence[BenchmarkRow],
    chosen: Sequence[Effect],
) -> dict[str, list[tables.Row]]:
    """The tables of comparisons by name; those that the study has no cells for are empty."""
    return {
        "gaps": comparison_tables.gap_rows(compared),
        "exchange": comparison_tables.exchange_rows(compared),
        "late": comparison_tables.late_rows(compared),
        "mixtures": [] if mixed is None else mixtures.rows_of(mixed),
        "effects": effects.rows_of(chosen),
        "benchmarks": benchmark_tables.rows_of(asked),
        "published": comparison_tables.published_rows(growths),
    }


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
            values = {result["coords"].get(name) for result in results}
            axes[name] = sorted(values, key=str if any(not isinstance(value, int) for value in values) else None)
    return axes


# ---------------------------------------------------------------- figures and page


class _Figures:
    """Figures as markup for the page, with files beside it; past the page's limit only the files."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.used = 0

    def draw(self, name: str, figure: Any, title: str, caption: str) -> dict[str, Any]:
        file = f"figures/{name}.png"
        figures.save_png(figure, self.folder / file)
        markup = figures.svg(figure, name)
        fits = self.used + len(markup) <= _EMBED_LIMIT
        self.used += len(markup) if fits else 0
        return {"title": title, "caption": caption, "file": file, "svg": Markup(markup) if fits else None}


def _sections(growths: Sequence[Growth], page: _Figures, *, alone: bool) -> list[dict[str, Any]]:
    """Every variant's figures. One of a single volume has no curves to show beside others: only scores and transfer."""
    sections = []
    for index, growth in enumerate(growths):
        found = (_figures(growth) if growth.grows or alone else []) + _transfer_figures(growth)
        numbered = f"-{index + 1}" if len(growths) > 1 else ""
        drawn = [page.draw(f"{name}{numbered}", *each) for name, *each in found]
        sections.append(
            {"growth": growth, "variant": growth.grid.variant, "figures": drawn, "brief": not (growth.grows or alone)}
        )
    return sections


def _contrast_section(contrast: Contrast, page: _Figures) -> dict[str, Any]:
    level = f"{100 * contrast.bootstrap.level:.0f}%"
    caption = (
        f"Bands and bars: {level} bootstrap interval; dashed: chance; hollow, at the left: the model before tuning. "
        "The axis counts all records trained on, since a synthetic record belongs to no ability."
    )
    drawn = [
        page.draw(
            f"contrast-{contrast.other}-{size}",
            comparison_figures.contrast_figure(contrast, size),
            f"Score against all records trained on: size {size}",
            caption,
        )
        for size in contrast.sizes
    ]
    return {"contrast": contrast, "figures": drawn}


def _mixture_figures(mixed: Mixtures | None, page: _Figures) -> list[dict[str, Any]]:
    if mixed is None:
        return []
    caption = f"Filled: the {100 * mixed.bootstrap.level:.0f}% interval leaves zero out."
    return [
        page.draw(
            f"mixtures-{size}",
            comparison_figures.mixtures_figure(mixed, size),
            f"Difference from the baseline: size {size}",
            caption,
        )
        for size, rows in mixed.by_size.items()
        if any(row.differences for row in rows)
    ]


def _effect_section(effect: Effect, page: _Figures, number: int) -> dict[str, Any]:
    caption = (
        f"{100 * effect.bootstrap.level:.0f}% intervals over seeds and test items, the same drawn on both sides; "
        "filled: the interval leaves zero out. The choices are tested together in the table, not here."
    )
    drawn = page.draw(
        f"effect-{effect.axis}-{number}",
        comparison_figures.effect_figure(effect),
        f"Difference from {effect.reference}",
        caption,
    )
    return {"effect": effect, "name": AXES[effect.axis], "figure": drawn}


def _preference_section(rows: Sequence[PreferenceRow], page: _Figures) -> dict[str, Any] | None:
    """Figures by size, and a table for each lane."""
    if not rows:
        return None
    lanes = list(dict.fromkeys(row.lane for row in rows))
    caption = (
        "Valid pairs. Line: mean over seeds; band: from the lowest to the highest seed; the first reading is the model "
        "before training. A margin may grow although the chosen reply becomes less likely: the right panels say so."
    )
    drawn = []
    for number, size in enumerate(sizes := list(dict.fromkeys(lane.size for lane in lanes)), 1):
        here = [lane for lane in lanes if lane.size == size]
        for name, title, figure in preference_figures.preference_figures(here):
            drawn.append(
                page.draw(f"{name}-{number}", figure, f"{title}: size {size}" if sizes[1:] else title, caption)
            )
    return {
        "figures": drawn,
        "groups": [(preference_tables.lane_title(lane), [row for row in rows if row.lane is lane]) for lane in lanes],
        "tied": any(row["accuracy_before"].value in (0.0, 0.5) for row in rows),
    }


def _benchmark_section(asked: Sequence[BenchmarkRow], page: _Figures) -> dict[str, Any] | None:
    if not asked:
        return None
    caption = (
        "The last reading of each run. Bars: bootstrap interval over questions within tasks and seeds; filled: the "
        "baseline, and what differs clearly from it; dashed: chance."
    )
    figure = comparison_figures.benchmark_figure(asked)
    titles = dict.fromkeys((row.benchmark, row.shots, row.letters) for row in asked)
    # A published score stands beside ours where the size is the paper's; otherwise it is told apart, as a landmark.
    same_size = any(row.size.lower() == PUBLISHED_SIZE and row.published is not None for row in asked)
    return {
        "figure": page.draw("benchmarks", figure, "Benchmarks by mixture", caption),
        "groups": [
            (title, [row for row in asked if (row.benchmark, row.shots, row.letters) == title]) for title in titles
        ],
        "published": [row for row in asked if row.published is not None],
        "same_size": same_size,
    }


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
        found.append(("sensitivity", comparison_figures.sensitivity_figure(growth), "Sensitivity", caption))
    return found


def _transfer_figures(growth: Growth) -> list[tuple[str, Any, str, str]]:
    level = f"{100 * growth.bootstrap.level:.0f}%"
    found = []
    for index, matrix in enumerate(growth.transfers):
        caption = (
            f"Points gained over {matrix.baseline}; bold: the {level} interval leaves zero out; framed: still clear "
            "when all pairs of one ability trained and another measured are tested at once (an ability's gain from "
            "itself, and the row of all abilities, are not among them)."
        )
        title = f"Transfer between abilities: {matrix.size}"
        found.append((f"transfer{index + 1}", comparison_figures.transfer_figure(matrix), title, caption))
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
    environment.filters.update(ratio=findings.ratio_text)
    environment.globals.update(
        left_out_lines=findings.left_out_lines,
        score_text=words.score_text,
        interval_text=words.interval_text,
        outcome=comparison_tables.outcome,
        plain_text=preference_tables.plain_text,
        signed_text=preference_tables.signed_text,
        OVERALL=OVERALL,
        MEANS=MEANS,
    )
    return environment
