r"""From an answer to a score in [0, 1]: pure functions of (answer, reference), and the readers they rest on.

A reader returns None when it cannot read an answer out of the text, so that the caller can count it as unparsed
(and, for choices, fall back to the letters' logits); a scorer then gives 0.

Source of the protocols: the evaluation code of Song et al. 2023, "Dynamics of Instruction Tuning"; where ours reads an
answer that theirs misreads, the docstring says so. Symbolic equivalence (x + 1 against 1 + x) is not attempted, as
there: `math-verify` would do it at the price of sympy and an ANTLR runtime, and the references are almost all numbers.
"""

import re
from collections.abc import Callable
from fractions import Fraction

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
_MULTIPLIER = r"(?:[万亿百十半]|千(?![米克瓦]))"  # 3千 is 3000, 3千米 is 3 km
_CHINESE_UNIT = r"(?:[\u4e00-\u9fff]+|[(（][\u4e00-\u9fff]+[)）])"
_NUMBER = r"-?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?|-?\.\d+"


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
    if re.fullmatch(r"-?\w+/\w+", bare) or re.fullmatch(rf"(?:{_NUMBER})(?:\s*,\s*(?:{_NUMBER}))*", bare):
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
    end = rf"(?![A-Za-z0-9_]|{_MULTIPLIER}|[.,]\d)"
    found = re.findall(rf"(-?\\[dt]?frac\{{[^{{}}]*\}}\{{[^{{}}]*\}}|{_NUMBER}){end}", text)
    return found[-1] if found else None


def same_value(one: str, other: str) -> bool:
    r"""Whether two final answers are the same number, list of numbers, or expression up to how LaTeX writes it.

    Numbers are compared as exact fractions (0.5, 1/2, \frac12, 50/100; 1,234 and 1234), lists in order and element
    by element, everything else as normalised text. Chinese units are left out (12元 is 12, 3万 is not 3).

    Source: the normalisations of `is_equiv` of the MATH data set (Hendrycks et al. 2021).
    """
    left, right = _normalise(one), _normalise(other)
    if left == right:
        return left != ""
    values = _number(left), _number(right)
    if values[0] is not None or values[1] is not None:
        return values[0] == values[1]
    parts = _split_list(left), _split_list(right)
    if len(parts[0]) != len(parts[1]) or len(parts[0]) == 1:
        return False
    return all(same_value(a, b) for a, b in zip(*parts, strict=True))


def _normalise(text: str) -> str:
    text = text.strip().replace("，", ",").replace("−", "-").rstrip("。.")
    text = re.sub(r"\\(?:left|right|!|,|;|:|quad)(?![A-Za-z])|\\[%$]|[%$°]|\^\s*\{?\\circ\}?", "", text)
    text = re.sub(r"\\[td]frac", r"\\frac", text)
    text = re.sub(r"\\(?:text|mathrm|mbox)\s*\{\s*([A-Za-z ]*)\}\s*$", lambda m: _unit(text, m), text)
    text = re.sub(r"^[A-Za-z]{1,2}\s*=\s*", "", text.strip())
    text = re.sub(r"\s+", "", text)
    text = re.sub(rf"^((?:{_NUMBER})(?:/\d+)?)(?!.*{_MULTIPLIER}){_CHINESE_UNIT}$", r"\1", text)
    text = re.sub(r"sqrt\(([^()]*)\)", r"\\sqrt{\1}", re.sub(r"\\sqrt\(", "sqrt(", text))
    text = re.sub(r"\\sqrt([^{\[\\])", r"\\sqrt{\1}", text)
    text = re.sub(r"\\frac([^{\\])([^{\\])", r"\\frac{\1}{\2}", text)
    text = re.sub(r"\\frac\{([^{}]*)\}([^{\\])", r"\\frac{\1}{\2}", text)
    text = re.sub(r"^(-?)\.(\d)", r"\g<1>0.\2", text)
    return re.sub(r"^(-?)(\d+)/(-?\d+)$", r"\1\\frac{\2}{\3}", text)


def _unit(text: str, found: re.Match[str]) -> str:
    """Units after a number go; text that is the whole answer stays."""
    return "" if text[: found.start()].strip() else found.group(1)


def _number(text: str) -> Fraction | None:
    fraction = re.fullmatch(r"(-?)\\frac\{(-?\d+)\}\{(-?\d+)\}", text)
    if fraction:
        sign, above, below = fraction.groups()
        return None if int(below) == 0 else Fraction(int(above), int(below)) * (-1 if sign else 1)
    if re.fullmatch(_NUMBER, text) or re.fullmatch(r"\+?\d+(?:\.\d+)?", text):
        return Fraction(text.replace(",", ""))
    return None


def is_number(text: str) -> bool:
    r"""Whether a final answer is one number: 7, -0.5, 1,234, 1/2, \\frac{1}{2}, 50%."""
    return _number(_normalise(text)) is not None


def _split_list(text: str) -> list[str]:
    """The elements of a comma list, brackets of the whole kept as part of the first and last element."""
    parts, depth = [""], 0
    for i, letter in enumerate(text):
        inner = 0 < i < len(text) - 1
        depth += {"(": 1, "[": 1, "{": 1, ")": -1, "]": -1, "}": -1}.get(letter, 0) if inner else 0
        if letter == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    if len(parts) > 1 and parts[0][:1] in ("(", "[") and parts[-1][-1:] in (")", "]"):
        kind = parts[0][0] + parts[-1][-1]  # an open interval is not a closed one
        return [kind, parts[0][1:], *parts[1:-1], parts[-1][:-1]]
    return parts


def numeric(answer: str, reference: str) -> float:
    """1 when the final answer of the worked `answer` has the value of `reference`, a final answer itself."""
    given = read_final(answer)
    return float(given is not None and same_value(given, reference))
