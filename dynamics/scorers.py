r"""From an answer to a score in [0, 1]: pure functions of (answer, reference), and the readers they rest on.

A reader returns None when it cannot read an answer out of the text, so that the caller can count it as unparsed
(and, for choices, fall back to the letters' logits); a scorer then gives 0.

Source of the protocols: the evaluation code of Song et al. 2023, "Dynamics of Instruction Tuning"; where ours reads an
answer that theirs misreads, the docstring says so, and `dynamics.eval.published` reads as they do.
"""

import re
from collections.abc import Callable

from dynamics.math_answers import MULTIPLIER, NUMBER, is_number, same_value

__all__ = [
    "FALSE_WORDS", "TRUE_WORDS", "Scorer", "choice", "cloze", "exact", "is_number", "multi", "numeric", "read_choice",
    "read_cloze", "read_final", "read_letters", "read_true_false", "same_value", "true_false",
]  # fmt: skip

Scorer = Callable[[str, str], float]

TRUE_WORDS = ("正确", "对", "√", "T", "V", "true")
FALSE_WORDS = ("错误", "错", "×", "F", "X", "false")


def exact(answer: str, reference: str) -> float:
    """1 when the texts are equal once white space is collapsed."""
    return float(" ".join(answer.split()) == " ".join(reference.split()))


def read_choice(answer: str, *, options: str | tuple[str, ...]) -> str | None:
    """The letter when the stripped answer is exactly one of the options; "" when it is any other single character.

    None when it is not one character: the protocol then reads the logits of the last generated step.

    >>> read_choice(" B ", options="ABCD"), read_choice("E", options="ABCD"), read_choice("B is right", options="ABCD")
    ('B', '', None)
    """
    answer = answer.strip()
    if len(answer) != 1:
        return None
    return answer if answer in options else ""


def choice(answer: str, reference: str) -> float:
    return float(read_choice(answer, options="ABCDEFGHIJ") == reference.strip())


def read_true_false(answer: str) -> str | None:
    """'T' or 'F' when keywords of exactly one side occur in the answer.

    A Latin keyword counts only as a whole word: the published search finds the T of "The statement is false". As
    published, a negation is not understood: 不对 holds 对 and reads as true.
    """
    is_true, is_false = (_holds(answer, words) for words in (TRUE_WORDS, FALSE_WORDS))
    if is_true == is_false:
        return None
    return "T" if is_true else "F"


def _holds(text: str, words: tuple[str, ...]) -> bool:
    return any(
        re.search(rf"(?<![A-Za-z]){word}(?![A-Za-z])", text, re.IGNORECASE if len(word) > 1 else 0)
        if word.isascii()
        else word in text
        for word in words
    )


def true_false(answer: str, reference: str) -> float:
    side = read_true_false(answer)
    return float(side is not None and side == read_true_false(reference))


def read_cloze(answer: str) -> str | None:
    """The first run of Chinese characters. The published pattern also takes the punctuation after it, so that
    春天。 is marked wrong against 春天; ours does not."""
    found = re.search(r"[\u4e00-\u9fff]+", answer)
    return found.group() if found else None


def cloze(answer: str, reference: str) -> float:
    run = read_cloze(answer)
    return float(run is not None and run == reference.strip())


def read_letters(answer: str) -> frozenset[str] | None:
    """The set of letters A-F on the last non-empty line, bare or in brackets: "A, C", "(A)(C)" and "AC" are one set.

    Letters inside a longer Latin word do not count (the published pattern finds an A in "Answer").
    """
    lines = [line for line in answer.splitlines() if line.strip()]
    if not lines:
        return None
    runs = re.findall(r"(?<![A-Za-z])[A-F]+(?![A-Za-z])", lines[-1])
    return frozenset("".join(runs)) or None


def multi(answer: str, reference: str) -> float:
    letters = read_letters(answer)
    return float(letters is not None and letters == read_letters(reference))


# --- final answers of worked problems -----------------------------------------------------------------------------

_ANSWER_MARK = re.compile(r"答案|\banswer(?:\s+is\b|\s*:)", re.IGNORECASE)


def read_final(text: str) -> str | None:
    r"""The final answer of a worked solution, as written there; None when there is none.

    The text after the last 答案 ("answer is", "answer:") is searched, in this order, for: the last \boxed{...}; the
    last $...$; a bare fraction a/b, a comma list of numbers, the last sqrt(...), the last bracket; what follows the
    last "="; the last number. Of an equation the right-hand side is taken.

    Differs from the published code in that an "=" ends at its line or sentence, that sqrt(...) and brackets count only
    at the end (theirs reads (2) out of "f(2) = 5"), that an unboxed \frac{a}{b} is a number (theirs reads b), and that
    the English marks, the colon or 是 after a mark, and a unit right after a number (12元) are known.
    """
    text = _ANSWER_MARK.split(text)[-1].lstrip(" \t:：是为").strip()
    readers = (_last_boxed, _last_dollars, _bare_form, _after_equals, _last_number)
    for reader in readers:
        found = reader(text)
        if found:
            return found.replace("或", ", ").replace("$", "").strip() or None
    return None


def _right_hand_side(text: str) -> str:
    return text.rsplit("=", 1)[-1].strip()


def _last_boxed(text: str) -> str | None:
    start = max(text.rfind("\\boxed{"), text.rfind("\\fbox{"))
    if start < 0:
        return None
    begin = text.index("{", start)
    depth = 0
    for i in range(begin, len(text)):
        depth += {"{": 1, "}": -1}.get(text[i], 0)
        if depth == 0:
            return _right_hand_side(text[begin + 1 : i])
    return None


def _last_dollars(text: str) -> str | None:
    found = re.findall(r"\$([^$\n]+)\$", text)
    if not found:
        return None
    # "$a$或$b$" is one answer in two spans.
    pair = re.search(r"\$([^$\n]+)\$\s*或\s*\$([^$\n]+)\$\s*[。.]?$", text)
    return ", ".join(_right_hand_side(part) for part in pair.groups()) if pair else _right_hand_side(found[-1])


def _bare_form(text: str) -> str | None:
    bare = text.rstrip("。.").replace("，", ",")
    if re.fullmatch(r"-?\w+/\w+", bare) or re.fullmatch(rf"(?:{NUMBER})(?:\s*,\s*(?:{NUMBER}))*", bare):
        return bare
    tight = bare.replace(" ", "")
    found = re.search(r"(?:sqrt\([^)]*\)|\[[^\]]*\]|\([^)]*\))$", tight)
    return found.group() if found else None


def _after_equals(text: str) -> str | None:
    if "=" not in text:
        return None
    line = text.rsplit("=", 1)[-1].strip().splitlines()
    # A sentence ends at a full stop that is not a decimal point.
    return re.split(r"[。；;]|\.(?!\d)|,\s", line[0])[0].strip() if line else None


def _last_number(text: str) -> str | None:
    # Not \w: a Chinese unit may follow without a space (12元), but 12万 is another number.
    end = rf"(?![A-Za-z0-9_]|{MULTIPLIER}|[.,]\d)"
    found = re.findall(rf"(-?\\[dt]?frac\{{[^{{}}]*\}}\{{[^{{}}]*\}}|{NUMBER}){end}", text)
    return found[-1] if found else None


def numeric(answer: str, reference: str) -> float:
    """1 when the final answer of the worked `answer` has the value of `reference`, a final answer itself."""
    given = read_final(answer)
    return float(given is not None and same_value(given, reference))
