"""What the cells say about an order, an objective or another choice, as sentences; every claim from a test."""

from collections.abc import Sequence

from dynamics.study import tables, words
from dynamics.study.effects import AXES, Effect, Test
from dynamics.study.findings import Finding
from dynamics.study.points import MEANS, OVERALL

QUESTION = {
    "order": "Does the order of the data matter?",
    "objective": "Does the objective matter?",
    "after": "Does it matter what the first stage was?",
    "source": "Does it matter which source the data are from?",
}
_MOST_NAMED = 4  # abilities or choices of a sentence; the table beneath has all


def effect_findings(found: Sequence[Effect]) -> list[Finding]:
    """A finding for each axis that some setting tried."""
    answers = []
    for axis in AXES:
        mine = [effect for effect in found if effect.axis == axis]
        if mine:
            several = len(mine) > 1
            lines = [f"{effect.setting}: {line}" if several else line for effect in mine for line in _main(effect)]
            details = [line for effect in mine for line in _details(effect)]
            answers.append(Finding(question=QUESTION[axis], lines=tuple(lines), details=tuple(details)))
    return answers


def _main(effect: Effect) -> list[str]:
    test = effect.tests[OVERALL]
    if test.p is None and len(effect.seeds) > 1:
        return [f"{_tried(effect)} score the same in every one of {_seeds(effect)}."]
    if test.p is None:
        return [
            f"Not answered: {_tried(effect)} with {_seeds(effect)}, so there is nothing to compare a difference with."
        ]
    ranked = sorted(range(len(effect.choices)), key=lambda index: effect.scores[OVERALL][index].value)
    worst, best = effect.choices[ranked[0]], effect.choices[ranked[-1]]
    if test.clear:
        first = (
            f"It does for the mean over abilities: {_p(test)} over {_seeds(effect)}. Best is {best}, worst {worst}, "
            f"{_points(test.spread)} points apart."
        )
    else:
        first = (
            f"No effect on the mean over abilities is shown: {_p(test)}. {_tried(effect)} lie within "
            f"{_points(test.spread)} points; a difference of {_points(test.detectable)} between two of them would have "
            f"shown four times out of five with {_seeds(effect)}, a smaller one may be there."
        )
    return [first, *_against_reference(effect), _loss_line(effect)]


def _against_reference(effect: Effect) -> list[str]:
    apart = [
        (choice, item)
        for choice, item in zip(effect.choices[1:], effect.differences[OVERALL][1:], strict=True)
        if item.positive or item.negative
    ]
    if not apart:
        return []
    each = ", ".join(f"{choice} {words.points(item)}" for choice, item in apart)
    return [f"Against {effect.reference}, taken one by one, clear are: {each} points."]


def _loss_line(effect: Effect) -> str:
    test = effect.loss_tests[OVERALL]
    if test.p is None:
        return "The loss on the reference answers is the same for all."
    said = "tells them apart" if test.clear else "does not tell them apart either"
    if test.clear == effect.tests[OVERALL].clear:
        said = "agrees" if test.clear else "shows none either"
    return (
        f"The loss on the reference answers {said} ({_p(test)}; the means lie within {test.spread:.3f} nats a token)."
    )


def _details(effect: Effect) -> list[str]:
    clear = [name for name, test in effect.tests.items() if name not in MEANS and test.clear]
    lines = []
    for name in clear:
        scores = effect.scores[name]
        ranked = sorted(range(len(scores)), key=lambda index: scores[index].value)
        lines.append(
            f"{tables.spoken(name).capitalize()}: {_p(effect.tests[name])}; from {effect.choices[ranked[0]]} "
            f"{words.percent(scores[ranked[0]].value)} to {effect.choices[ranked[-1]]} "
            f"{words.percent(scores[ranked[-1]].value)}."
        )
    if not clear:
        lines.append("No single ability is clear when all are tested at once.")
    else:
        rest = [n for n, test in effect.tests.items() if n not in MEANS and not test.clear and test.p is not None]
        if rest:
            lines.append(f"Not clear when all are tested at once: {tables.named(rest)}.")
    if effect.left_out:
        lines.append(f"{effect.left_out} cells are left out, whose seed has not tried every choice.")
    if not effect.exact:
        lines.append("Shufflings were drawn, since there are too many to count; p is known to about a tenth of itself.")
    return [f"{effect.setting}: {line}" for line in lines]


def _tried(effect: Effect) -> str:
    several = ", ".join(effect.choices[:_MOST_NAMED])
    more = len(effect.choices) - _MOST_NAMED
    return f"{len(effect.choices)} choices ({several}{f' and {more} more' if more > 0 else ''})"


def _seeds(effect: Effect) -> str:
    return f"{len(effect.seeds)} seed{'s' * (len(effect.seeds) > 1)}"


def _p(test: Test) -> str:
    assert test.p is not None
    return f"p = {test.p:.2g}" if test.p >= 1e-3 else "p < 0.001"


def _points(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.1f}"
