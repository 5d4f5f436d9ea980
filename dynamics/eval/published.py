r"""The published rules, errors included: for numbers that must stand beside those of the paper.

`Evaluation(rules="published")` judges by them; docs/guide/benchmarks.md says rule by rule where ours differ and why.
What they reproduce, in own words:

    choice      the logits of A to D are compared, also where the question has three options
    true_false  keywords anywhere: the T of "The statement is false" makes that answer ambiguous
    cloze       the first run of Chinese characters with the marks after it: 春天。 is wrong against 春天
    multi       every letter A to F on the last line, those inside words too: the A of "Answer: B"
    numeric     texts are compared after LaTeX normalisation; where one of them is a number their code fails inside,
                catches that, and compares the raw texts: 7.0 is not 7, 1,234 not 1234, 50\% not 50

Source: evaluate/{utils,parse_utils,math_equivalence,scorer}.py of ChiyuSONG/dynamics-of-instruction-tuning.
"""

import math
import re

from dynamics.ability import Item, Kind
from dynamics.scorers import FALSE_WORDS, TRUE_WORDS

LETTERS = ("A", "B", "C", "D")
_TRUE = "|".join(word for word in TRUE_WORDS if word != "true")
_FALSE = "|".join(word for word in FALSE_WORDS if word != "false")
# Their class [,-?\d] is a range from the comma to the question mark.
_NUMBER_LIKE = re.compile(r"[,-?\d]+")


def read(kind: Kind, answer: str) -> str | frozenset[str] | None:
    """What the published code reads out of an answer; None where it reads nothing."""
    answer = answer.strip()
    if kind == "true_false":
        return _true_false(answer)
    if kind == "cloze":
        found = re.search(r"[\u4e00-\u9fff]+[^\w\s]*", answer)
        return found.group() if found else answer or None
    if kind == "multi":
        lines = [line for line in answer.split("\n") if line.strip()]
        return frozenset(re.findall("[A-F]", lines[-1])) or None if lines else None
    if kind == "numeric":
        return read_final(answer)
    return answer or None


def score(kind: Kind, answer: str, reference: str) -> float:
    """1 or 0, as the published scorer judges; `exact`, which it does not know, is equality."""
    given = read(kind, answer)
    if given is None:
        return 0.0
    if kind == "true_false":
        return float(given == _true_false(reference))
    if kind == "multi":
        return float(given == read("multi", reference))
    if kind == "numeric":
        return float(same_value(str(given), reference))
    return float(given == reference)


def chance(item: Item) -> float:
    """The published expected score of guessing: 0.33 for three options, of four letters whatever the options."""
    if item.kind == "choice":
        return 0.33 if len(item.options) == 3 else 0.25
    if item.kind == "multi":
        letters = read("multi", item.reference) or ()
        return 1 / math.comb(4, len(letters)) if len(letters) <= 4 else 0.0
    return item.chance


def _true_false(answer: str) -> str | None:
    is_true, is_false = re.search(_TRUE, answer) is not None, re.search(_FALSE, answer) is not None
    return None if is_true == is_false else ("T" if is_true else "F")


# --- math ---------------------------------------------------------------------------------------------------------


def read_final(text: str) -> str | None:
    r"""The final answer that the published code reads: after 答案; in \boxed; between dollars; odd forms; after "="."""
    if "答案" in text:
        text = text.split("答案")[-1].strip()
    boxed = _last_boxed(text)
    if boxed is not None:
        if not (boxed.startswith("\\boxed{") and boxed.endswith("}")):
            return None  # an \fbox is found and then not read
        found = _after_equals(boxed[len("\\boxed{") : -1])
    else:
        spans = re.findall(r"\$(.*)\$", text)
        found = _after_equals(spans[-1]) if spans else None
        found = found or _odd_form(text) or _plain(text)
    return found.replace("或", ", ").replace("$", "") if found is not None else None


def _after_equals(text: str) -> str:
    return text.split("=")[-1].lstrip(" ") if "=" in text else text


def _last_boxed(text: str) -> str | None:
    start = text.rfind("\\boxed")
    start = text.rfind("\\fbox") if start < 0 else start
    depth = 0
    for place in range(start, len(text)) if start >= 0 else ():
        depth += {"{": 1, "}": -1}.get(text[place], 0)
        if text[place] == "}" and depth == 0:
            return text[start : place + 1]
    return None


def _odd_form(text: str) -> str | None:
    text = text.strip()
    parts = text.split("/")
    if len(parts) == 2:
        return None if any(re.search("[^a-zA-Z0-9]", part) for part in parts) else text
    text = text.replace("，", ",")
    if re.match(r"^[,-?\d]+$", text):
        return text
    text = text.replace(" ", "")
    for pattern in (r"sqrt\([^)]*\)", r"\[.*?\]|\(.*?\)"):
        if found := re.findall(pattern, text):
            return found[-1]
    return None


def _plain(text: str) -> str | None:
    if "=" in text:
        return text.split("=")[-1].lstrip(" ").rstrip(".").split("\\n")[0]
    found = re.findall(r"\$?-?\d+(?:\.\d+)?(?![\w\d])", text)
    return found[-1].strip("$") if found else None


class _Fails(Exception):
    """Where their normalisation fails inside and they compare the raw texts."""


def same_value(one: str, other: str) -> bool:
    """Whether the published comparison calls two final answers equal."""
    try:
        return _form(one) == _form(other)
    except _Fails:
        return one == other


def _form(text: str) -> str:
    for given, becomes in (
        ("\n", ""), ("\\!", ""), ("\\\\", "\\"), ("tfrac", "frac"), ("dfrac", "frac"), ("\\left", ""), ("\\right", ""),
        ("^{\\circ}", ""), ("^\\circ", ""), ("\\$", ""),
    ):  # fmt: skip
        text = text.replace(given, becomes)
    if text.count("\\text{ ") > 1:
        raise _Fails
    text = text.split("\\text{ ")[0].replace("\\%", "").replace(" .", " 0.").replace("{.", "{0.")
    if not text:
        return text
    text = f"0{text}" if text[0] == "." else text
    sides = text.split("=")
    text = sides[1] if len(sides) == 2 and len(sides[0]) <= 2 else text
    text = _braced_fractions(_braced_roots(text).replace(" ", ""))
    text = _slash(r"\frac{1}{2}" if text == "0.5" else text)
    if _NUMBER_LIKE.fullmatch(text.removesuffix("\n")):
        raise _Fails  # they make a set of it, and search the set with a pattern
    text = re.sub(r"\\frac{(-)(\d+)}{(\d+)}", r"-\\frac{\2}{\3}", text)
    letter = re.match(r"\\text\{\(([A-F])\)", text)
    return letter.group(1) if letter else text


def _braced_roots(text: str) -> str:
    first, *others = text.split("\\sqrt")
    if any(not one for one in others):
        raise _Fails
    return first + "".join("\\sqrt" + (one if one[0] == "{" else f"{{{one[0]}}}{one[1:]}") for one in others)


def _braced_fractions(text: str) -> str:
    first, *others = text.split("\\frac")
    written = first
    for one in others:
        if not one:
            raise _Fails
        if one[0] != "{":
            if len(one) < 2:
                return text
            below = one[1] if one[1] == "{" else f"{{{one[1]}}}"
            one = f"{{{one[0]}}}{below}{one[2:]}"
        written += "\\frac" + one
    return written


def _slash(text: str) -> str:
    """a/b of whole numbers as a fraction, with at most one minus sign in front."""
    parts = text.split("/")
    if len(parts) != 2:
        return text
    if not parts[0]:
        raise _Fails
    sign = "-" if parts[0][0] == "-" else ""
    try:
        above, below = int(parts[0].removeprefix("-")), int(parts[1])
    except ValueError:
        return text
    if not sign and text != f"{above}/{below}":
        return text
    return f"{sign}\\frac{{{above}}}{{{below}}}"
