"""Scores that "Dynamics of Instruction Tuning" published for its mixtures, to stand beside ours.

Source: Tables 2 and 3 of Song et al., arXiv 2310.19651, read from the text of its first version. Chinese-LLaMA-Plus 7B;
percent of questions answered rightly, by the letter with the largest logit. Which mean over the subsets of AGIEval the
paper took is not known, and no interval was published: one run each.
"""

EPOCHS = (5, 10, 15)
# Records of the published mixtures, about: a mixture of the same name over other data is another one.
RECORDS = {"baseline": 10_000, "reconstruct": 10_000, "maximum": 40_000, "mix-2560": 42_560, "mix-40960": 81_000}
# {mixture: {(benchmark, shots): score after (5, 10, 15) epochs}}
PUBLISHED: dict[str, dict[tuple[str, int], tuple[float, float, float]]] = {
    "baseline": {
        ("agieval", 0): (31.59, 34.64, 34.76),
        ("cmmlu", 0): (35.46, 36.75, 36.34),
        ("agieval", 5): (28.71, 31.01, 30.27),
        ("cmmlu", 5): (34.5, 35.14, 34.29),
    },
    "reconstruct": {
        ("agieval", 0): (35.82, 35.43, 35.18),
        ("cmmlu", 0): (35.77, 36.85, 36.76),
        ("agieval", 5): (33.66, 32.27, 32.65),
        ("cmmlu", 5): (35.12, 35.89, 35.79),
    },
    "maximum": {
        ("agieval", 0): (36.41, 37.61, 38.85),
        ("cmmlu", 0): (37.74, 37.28, 37.53),
        ("agieval", 5): (33.37, 33.57, 33.35),
        ("cmmlu", 5): (37.02, 37.16, 37.13),
    },
    "mix-2560": {
        ("agieval", 0): (37.08, 39.21, 39.88),
        ("cmmlu", 0): (37.3, 37.74, 37.74),
        ("agieval", 5): (34.11, 34.07, 34.0),
        ("cmmlu", 5): (36.91, 36.87, 36.46),
    },
    "mix-40960": {
        ("agieval", 0): (32.69, 34.43, 34.38),
        ("cmmlu", 0): (33.98, 36.2, 35.34),
        ("agieval", 5): (30.06, 31.65, 31.41),
        ("cmmlu", 5): (34.07, 35.06, 35.17),
    },
}


def published(mixture: str, records: int, benchmark: str, shots: int | None, epoch: float) -> float | None:
    """The published score as a fraction; None where the paper has none for a mixture of about so many records.

    >>> published("maximum", 39_618, "agieval", 0, 15.0), published("maximum", 39_618, "agieval", 0, 3.0)
    (0.3885, None)
    """
    scores = PUBLISHED.get(mixture, {}).get((benchmark, -1 if shots is None else shots))
    near = [index for index, at in enumerate(EPOCHS) if abs(at - epoch) < 0.05]
    alike = 0.9 < records / RECORDS.get(mixture, 1) < 1.1
    return round(scores[near[0]] / 100, 6) if scores and near and alike else None
