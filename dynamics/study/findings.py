"""The three questions of the study and what its cells answer: a few sentences each, every claim from an interval.

1  Which abilities need more data, and which a bigger model?
2  What are records written by people worth against records made by a model?
3  What does training on one ability do for the others?
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence

from dynamics.study import tables, words
from dynamics.study.benchmark_tables import BenchmarkRow
from dynamics.study.contrast import Contrast, Exchange
from dynamics.study.curves import MEANS, OUT_OF_DOMAIN, OVERALL, Growth
from dynamics.study.exchange import Ratio
from dynamics.study.mixtures import Mixtures
from dynamics.study.points import ROUNDING, Interval
from dynamics.study.transfer import FALSE_DISCOVERIES, Transfer, is_pair

NOT_MEASURED = "Not measured here"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Finding:
    """A question, the sentences that answer it and more beneath them; `measured` is False where cells are missing."""

    question: str
    lines: tuple[str, ...]
    details: tuple[str, ...] = ()
    measured: bool = True


def findings(
    growths: Sequence[Growth],
    compared: Sequence[Contrast],
    mixtures: Mixtures | None,
    benchmarks: Sequence[BenchmarkRow],
    *,
    apart: Sequence[str] = (),
) -> list[Finding]:
    """The three findings in the paper's order; `apart` says which sources could not be compared, and why."""
    return [_data_and_size(growths), _sources(compared, mixtures, benchmarks, apart), _transfers(growths)]


# ---------------------------------------------------------------- data and size


def _data_and_size(growths: Sequence[Growth]) -> Finding:
    question = "Which abilities need more data, and which a bigger model?"
    growth = growths[0]
    lines = words.headlines(growth)
    if OUT_OF_DOMAIN in growth.chance:
        lines.insert(1, _outside_line(growth))
    if not growth.grows and len(growth.grid.sizes) < 2:
        lines.append(f"{NOT_MEASURED}: this takes several volumes, or several sizes, of one source.")
    return Finding(question=question, lines=tuple(lines), measured=growth.grows or len(growth.grid.sizes) > 1)


def _outside_line(growth: Growth) -> str:
    size = growth.grid.sizes[-1]
    curve = growth.scores[OUT_OF_DOMAIN, size]
    there = [index for index in range(len(curve.volumes)) if math.isfinite(curve.mean[index])]
    if not there:
        return "Out of domain: no result yet."
    slope = next(row for row in growth.sensitivities if row.ability == OUT_OF_DOMAIN)
    change = f"; {slope.data_verdict}, {words.points(slope.data)} points per 4× data" if slope.data else ""
    return (
        f"Out of domain, on what nothing was trained for, the mean at size {size} ends at "
        f"{words.score_text(curve, there[-1])} (chance {words.percent(curve.chance)}){change}."
    )


# ---------------------------------------------------------------- sources


_MOST_LINES = 4  # sentences of the second answer; the rest stands beneath them


def _sources(
    compared: Sequence[Contrast], mixtures: Mixtures | None, benchmarks: Sequence[BenchmarkRow], apart: Sequence[str]
) -> Finding:
    question = "What are human records worth against synthetic ones?"
    lines = [*apart, *(line for contrast in compared for line in contrast_lines(contrast))]
    if not lines:
        lines.append(
            f"{NOT_MEASURED}: this takes cells of a curated source and of another one, each at two volumes or more and "
            "of the same size."
        )
    mixed = [] if mixtures is None else mixture_lines(mixtures)
    lines += mixed[:1] + benchmark_lines(benchmarks)
    more = [line for contrast in compared for line in contrast_details(contrast)]
    return Finding(
        question=question,
        lines=tuple(lines[:_MOST_LINES]),
        details=(*lines[_MOST_LINES:], *more, *mixed[1:]),
        measured=bool(compared),
    )


def contrast_lines(contrast: Contrast) -> list[str]:
    """Gap, rate of exchange, and whether the other source's curve turns down: all overall."""
    lines = (_gap_line(contrast), _base_line(contrast), *_exchange_lines(contrast), _late_line(contrast))
    return [line for line in lines if line]


def contrast_details(contrast: Contrast) -> list[str]:
    """The same by ability, and what was left out."""
    lines = (
        _ability_gaps_line(contrast), _ability_rates_line(contrast), _late_abilities_line(contrast),
        *left_out_lines(contrast),
    )  # fmt: skip
    return [line for line in lines if line]


def left_out_lines(contrast: Contrast) -> list[str]:
    """What the comparison does not rest on."""
    lines = []
    if contrast.only_one:
        lines.append(f"Left out, since one of the two was not measured on it: {tables.named(contrast.only_one)}.")
    if contrast.left_out:
        lines.append(f"Compared at {contrast.setting}; {contrast.left_out} cells of other settings are left out.")
    if contrast.beside:
        totals = ", ".join(f"{total:,}" for total in contrast.beside)
        lines.append(
            f"{len(contrast.beside)} {contrast.other} volume{'s' * (len(contrast.beside) > 1)} ({totals} records) "
            f"within 5% of a {contrast.human} one that a nearer volume already stands beside: no gap is taken there."
        )
    return lines


def _gap_line(contrast: Contrast) -> str:
    human, other = contrast.human, contrast.other
    if not contrast.shared or OVERALL not in contrast.mean_gaps:
        why = "no volume at which both have every ability" if contrast.shared else "no volume in common"
        return f"{human.capitalize()} and {other} data have {why}, so there is no overall gap at equal volume."
    overall = contrast.mean_gaps[OVERALL]
    where = f"{words.value_range((contrast.shared[0], contrast.shared[-1]))} records".replace(" – ", "–")
    sizes = "" if len(contrast.sizes) == 1 else f" and {len(contrast.sizes)} sizes"
    parts = [
        f"At equal volume ({where}, mean over {len(contrast.shared)} volumes{sizes}) {human} data score "
        f"{words.points(overall)} points {_against(overall, other)} overall"
    ]
    if OUT_OF_DOMAIN in contrast.mean_gaps:
        parts.append(f"{words.points(contrast.mean_gaps[OUT_OF_DOMAIN])} out of domain")
    return ", and ".join(parts) + "."


def _ability_gaps_line(contrast: Contrast) -> str:
    each = {name: gap for name, gap in contrast.mean_gaps.items() if name not in MEANS}
    said = _sorted_out(each, f"clearly ahead with {contrast.human} data", f"clearly ahead with {contrast.other} data")
    return said.strip()


def _base_line(contrast: Contrast) -> str:
    """A warning where the two sources do not start from the same model."""
    differ = {
        size for (_, size, total), gap in contrast.gaps.items() if total == 0 and abs(gap.value) > ROUNDING
    }  # fmt: skip
    apart = [size for size in contrast.sizes if size in differ]
    if not apart:
        return ""
    known = {size: contrast.gaps[OVERALL, size, 0] for size in apart if (OVERALL, size, 0) in contrast.gaps}
    gaps = ", ".join(f"{size} {words.points(gap)}" for size, gap in known.items())
    said = f" ({gaps} points)" if known else f" at size {tables.named(apart)}"
    return (
        f"Before tuning the two already differ{said}: they start from different base models, and a part of "
        "every gap is theirs."
    )


def _against(item: Interval, other: str) -> str:
    return f"against {other}" + ("" if item.positive or item.negative else " (no clear difference)")


def _sorted_out(each: Mapping[str, Interval], up: str, down: str) -> str:
    """' Up: a +1 [..], b; down: c; no clear difference: d.'"""
    groups = [
        (up, [name for name, item in each.items() if item.positive], True),
        (down, [name for name, item in each.items() if item.negative], True),
        ("no clear difference", [n for n, item in each.items() if not item.positive and not item.negative], False),
    ]
    said = []
    for claim, members, numbers in groups:
        ranked = sorted(members, key=lambda name: -abs(each[name].value))
        if ranked and numbers:
            said.append(
                f"{claim}: " + ", ".join(f"{tables.spoken(name)} {words.points(each[name])}" for name in ranked)
            )
        elif ranked:
            said.append(f"{claim}: {tables.named(ranked)}")
    text = "; ".join(said)
    return f" {text[0].upper()}{text[1:]}." if text else ""


def _exchange_lines(contrast: Contrast) -> list[str]:
    """The rate overall, one for each size."""
    rates = {size: contrast.exchanges[OVERALL, size] for size in contrast.sizes}
    known = [
        f"{f'size {size} ' if len(rates) > 1 else ''}{ratio_text(rate.median)} {_volumes(rate, contrast, size)}"
        for size, rate in rates.items()
        if rate.median is not None
    ]
    none = [size for size, rate in rates.items() if rate.median is None]
    lines = []
    if known:
        needed = f"{contrast.other.capitalize()} records needed for one {contrast.human} record, overall"
        lines.append(f"{needed}: {', '.join(known)}.")
    if none:
        at = f" at size {tables.named(none)}" if len(rates) > 1 else ""
        lines.append(
            f"How many {contrast.other} records equal one {contrast.human} record is not defined{at}: "
            f"{contrast.human} data gain nothing clear over {rates[none[0]].over}."
        )
    return lines


def _ability_rates_line(contrast: Contrast) -> str:
    """The rates of the abilities at the largest size."""
    size = contrast.sizes[-1]
    found = {a: contrast.exchanges[a, size].median for a in contrast.abilities if a not in MEANS}
    said = [f"{tables.spoken(ability)} {ratio_text(rate)}" for ability, rate in found.items() if rate is not None]
    rest = [ability for ability, rate in found.items() if rate is None]
    if not said:
        return ""
    more = f"; not defined, without a clear gain: {tables.named(rest)}" if rest else ""
    needed = f"{contrast.other.capitalize()} records needed for one {contrast.human} record, by ability"
    return f"{needed}{f' at size {size}' if len(contrast.sizes) > 1 else ''}: {', '.join(said)}{more}."


def _volumes(exchange: Exchange, contrast: Contrast, size: str) -> str:
    """What the median is over, and at how many volumes the other source never gets there."""
    found = [rate for rate in exchange.at.values() if rate is not None]
    never = sum(math.isinf(rate.at_most) for rate in found)
    most = contrast.largest_other(size)
    short = f"; {most:,} {contrast.other} records do not reach the score at {never} of them" if never else ""
    return f"(median over {len(found)} volume{'s' if len(found) > 1 else ''}{short})"


def ratio_text(ratio: Ratio | None) -> str:
    """'12× [8, 20]'; '≥ 64× [30, ∞)' where the score was never reached; '≤ 0.5× (0, 1.2]' where it always was."""
    if ratio is None:
        return "–"
    if ratio.exact:
        value = f"{words.number(_round(ratio.at_least))}×"
    elif math.isinf(ratio.at_most):
        value = f"≥ {words.number(_round(ratio.at_least))}×" if ratio.at_least > 0 else "unbounded"
    elif ratio.at_least == 0:
        value = f"≤ {words.number(_round(ratio.at_most))}×"
    else:
        value = f"{words.number(_round(ratio.at_least))}–{words.number(_round(ratio.at_most))}×"
    low = f"[{words.number(_round(ratio.low))}" if ratio.low > 0 else "(0"
    high = "∞)" if math.isinf(ratio.high) else f"{words.number(_round(ratio.high))}]"
    return f"{value} {low},\N{NO-BREAK SPACE}{high}"


def _round(value: float) -> float:
    """Three significant digits; what a rate of exchange can bear."""
    return float(f"{value:.3g}")


def _late_line(contrast: Contrast) -> str:
    other = contrast.other
    overall = contrast.late.get((other, OVERALL))
    if overall is None:
        return ""
    start = f"From {contrast.late_from[other, OVERALL]:,} records on, {other} data change the overall score by"
    verdict = "it falls" if overall.negative else "it still rises" if overall.positive else "no clear change"
    same = contrast.late.get((contrast.human, OVERALL))
    human = contrast.human
    beside = f"; {human} from {contrast.late_from[human, OVERALL]:,} on {words.points(same)}" if same else ""
    return f"{start} {words.points(overall)} points per 4× records ({verdict}{beside})."


def _late_abilities_line(contrast: Contrast) -> str:
    late = {ability: contrast.late.get((contrast.other, ability)) for ability in contrast.abilities}
    falling = [ability for ability, slope in late.items() if ability not in MEANS and _negative(slope)]
    return f"Clearly falling with more {contrast.other} data: {tables.named(falling)}." if falling else ""


def _negative(item: Interval | None) -> bool:
    return bool(item and item.negative)


def mixture_lines(mixtures: Mixtures) -> list[str]:
    """A sentence per mean and size: the difference of every mixture from the baseline. The largest size comes first."""
    lines = []
    for mean in (name for name in MEANS if name in mixtures.chance):
        for size, rows in reversed(mixtures.by_size.items()):
            most = max(row.num_seeds for row in rows)
            each = [
                f"{row.name}{_few_seeds(row.num_seeds, most)} {words.points(row.differences[mean])}"
                for row in rows
                if row.differences
            ]
            if each:
                lines.append(
                    f"Mixtures at size {size}, {mean}, against the baseline of {rows[0].records:,} "
                    f"{mixtures.baseline}{_few_seeds(rows[0].num_seeds, most)}: {', '.join(each)} points."
                )
    return lines


def _few_seeds(number: int, most: int) -> str:
    """A warning where seeds are missing: the intervals know less of chance than where all are there."""
    return f" ({number} of {most} seeds)" if number < most else ""


def benchmark_lines(rows: Sequence[BenchmarkRow]) -> list[str]:
    """One sentence per size and benchmark: which mixtures differ clearly from the baseline at the last reading."""
    last = [row for row in rows if row.reading == 0 and row.macro_difference is not None and row.records > 0]
    lines = []
    for size in dict.fromkeys(row.size for row in sorted(last, key=lambda row: row.params)):
        each: dict[str, list[str]] = {}
        for row in last:
            differs = row.macro_difference
            if row.size == size and differs is not None and (differs.positive or differs.negative):
                each.setdefault(row.title, []).append(f"{row.mixture} {words.points(differs)}")
        said = "; ".join(f"{title}: {', '.join(names)}" for title, names in each.items())
        lines.append(
            f"On the benchmarks at size {size}, clearly different from the baseline: {said} points (each by its own "
            "interval, not corrected for their number)."
            if said
            else f"On the benchmarks at size {size} no mixture differs clearly from the baseline."
        )
    return lines


# ---------------------------------------------------------------- transfer


def _transfers(growths: Sequence[Growth]) -> Finding:
    question = "What does training on one ability do for the others?"
    matrices = [matrix for growth in growths for matrix in growth.transfers]
    if not matrices:
        lines = (f"{NOT_MEASURED}: this takes cells that train on one ability alone.",)
        return Finding(question=question, lines=lines, measured=False)
    level = growths[0].bootstrap.level
    # The same question at several sizes or volumes: the largest of each says it, the tables hold all.
    last = max(matrices, key=lambda matrix: (matrix.params, len(matrix.training), matrix.volume))
    return Finding(question=question, lines=tuple(transfer_lines(last, level)))


def transfer_lines(matrix: Transfer, level: float) -> list[str]:
    """Which abilities gain from the others, and how many of the single pairs are more than chance."""
    over = f"over {matrix.baseline}" if matrix.baseline.startswith("the model") else f"against {matrix.baseline}"
    others = {name: item for name, item in zip(matrix.abilities, matrix.from_others, strict=True) if item is not None}
    own = {name: item for name, item in zip(matrix.abilities, matrix.from_itself, strict=True) if item is not None}
    clear = {name: item for name, item in others.items() if item.positive or item.negative}
    rest = [name for name in others if name not in clear]
    lines = [
        f"Trained on others alone (size {matrix.size}, {matrix.volume:,} records of one ability or set, {over})."
        + (_sorted_out(clear, "gain", "lose") or " No ability clearly changes by it.")
        + (f" Chance alone would make about {(1 - level) * len(others):.1f} of {len(others)}." if clear else "")
    ]
    if rest and clear:
        lines.append(f"No clear change from training on others: {tables.named(rest)}.")
    if own:
        gained = sorted((name for name in own if own[name].positive), key=lambda name: -own[name].value)
        others = [name for name in own if name not in gained]
        said = ", ".join(f"{tables.spoken(name)} {words.points(own[name])}" for name in gained)
        lines.append(
            "From training on itself clearly gain: "
            + (f"{said} points" if gained else "none")
            + (f"; no clear gain: {tables.named(others)}." if others else ".")
        )
    return [*lines, _pairs_line(matrix, level)]


def _pairs_line(matrix: Transfer, level: float) -> str:
    pairs = [
        (label, name, gain, kept)
        for label, gains, keeps in zip(matrix.training, matrix.gains, matrix.survives, strict=True)
        for name, gain, kept in zip(matrix.abilities, gains, keeps, strict=True)
        if is_pair(label, name) and math.isfinite(gain.value)
    ]
    clear = [pair for pair in pairs if pair[2].positive or pair[2].negative]
    kept = sorted((pair for pair in pairs if pair[3]), key=lambda pair: -abs(pair[2].value))
    shown = ", ".join(
        f"{tables.spoken(label)} → {tables.spoken(name)} {words.points(gain)}" for label, name, gain, _ in kept[:6]
    )
    more = f" and {len(kept) - 6} more" if len(kept) > 6 else ""
    chance = (1 - level) * len(pairs)
    rule = f"Benjamini and Hochberg's rule, on average at most {100 * FALSE_DISCOVERIES:.0f}% of them wrong"
    found = (
        f"{len(kept)} {_verb(len(kept))} clear when all are tested at once ({rule}): {shown}{more}"
        if kept
        else f"none stays clear when all are tested at once ({rule})"
    )
    alone = " One seed: chance in training is no part of this." if matrix.seeds == 1 else ""
    return (
        f"Of {len(pairs)} pairs of one ability trained and another measured, the {100 * level:.0f}% interval of "
        f"{len(clear)} leaves zero out, where chance alone would make about {chance:.0f}; {found}.{alone}"
    )


def _verb(number: int) -> str:
    return "stays" if number == 1 else "stay"
