r"""Whether two final answers of mathematics are the same, however they are written.

Symbolic equivalence (x + 1 against 1 + x) is not attempted, as in the published code: `math-verify` does it, at the
price of sympy and an ANTLR runtime, and references are almost all numbers. docs/guide/benchmarks.md compares them.
"""

import math
import re
import unicodedata
from fractions import Fraction

MULTIPLIER = r"(?:[万亿百十半]|千(?![米克瓦]))"  # 3千 is 3000, 3千米 is 3 km
_CHINESE_UNIT = r"(?:[\u4e00-\u9fff]+|[(（][\u4e00-\u9fff]+[)）])"
NUMBER = r"-?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?|-?\.\d+"


def same_value(one: str, other: str) -> bool:
    r"""Whether two final answers are the same number, list, interval or expression up to how they are written.

    Numbers are compared by value: exactly where they are rational (0.5, 1/2, \frac12, 1\frac{1}{2} and 3/2; 1,234 and
    1234; 3万 and 30000; 2^3 and 8), to 12 digits where roots and pi make them irrational (\sqrt{12} and 2\sqrt{3}), and
    an irrational number never equals a decimal. A comma of thousands has no space after it: 1, 100 and 1、100 are two
    numbers, and 1,100 may be either. Bare lists and sets are compared without order, as solutions of an
    equation; points and intervals in order, with their brackets. Units go (12元 is 12), different ones too: 5元 is 5角.
    A percent sign goes too, so 50% is 50 and not 0.5. All else is compared as normalised text: x + 1 is not 1 + x.

    Source: the normalisations of `is_equiv` of the MATH data set (Hendrycks et al. 2021), which compares texts; the
    table of cases in tests/test_math_equivalence.py says where the verdicts differ.
    """
    if max(len(one), len(other)) > _LONGEST:
        return one.strip() == other.strip()
    return _same(_normalise(one), _normalise(other))


def _same(left: str, right: str) -> bool:
    left, right = (_NAME.sub("", text) for text in (left, right))
    if not left or not right:
        return False
    if left.replace(_MARK, ",") == right.replace(_MARK, ","):
        return True
    value, other = _value(left), _value(right)
    if value is not None and other is not None:
        if isinstance(value, Fraction) or isinstance(other, Fraction):
            return type(value) is type(other) and value == other
        return math.isclose(value, other, rel_tol=1e-12)
    kind, parts = _parts(left)
    other_kind, others = _parts(right)
    if kind != other_kind or len(parts) != len(others) or (parts, others) == ([left], [right]):
        return False
    if kind in ("", _UNION):
        return _same_set(parts, others)
    return all(_same(a, b) for a, b in zip(parts, others, strict=True))


def _same_set(parts: list[str], others: list[str]) -> bool:
    left = list(others)
    for part in parts:
        found = next((place for place, other in enumerate(left) if _same(part, other)), None)
        if found is None:
            return False
        del left[found]
    return True


# --- how final answers are written --------------------------------------------------------------------------------

_LONGEST = 300  # characters of an answer that is looked into; a model that runs on writes longer ones
_UNION = "\\cup"
_NAME = re.compile(r"^[A-Za-z](?:_?\w)?(?:=|\\in(?!fty|t))")  # of the unknown: x=, x_1=, S=, x\in
_MARK = "、"  # between elements for sure, where a comma may be of thousands
_SIGNS = str.maketrans(
    {"−": "-", "×": "\\times", "·": "\\cdot", "÷": "\\div", "π": "\\pi", "∞": "\\infty", "∪": "\\cup", "±": "\\pm",
     "²": "^2", "³": "^3", "≤": "\\le", "≥": "\\ge", "∅": "\\emptyset",
     "∈": "\\in"}
)  # fmt: skip
_UNITS = (
    "mm|cm|dm|km|kg|mg|ml|mL|min|seconds?|minutes?|hours?|days?|weeks?|months?|years?|feet|foot|inch(?:es)?|miles?|"
    "(?:centi|kilo)?met(?:er|re)s?|(?:kilo)?grams?|lit(?:er|re)s?|dollars?|cents?|yuan|degrees?|units?"
)
_LAST_TEXT = re.compile(r"\\(?:text|mathrm|mbox|textbf)\s*\{\s*([^{}]*)\}(?:\^\s*\{?[23]\}?)?\s*$")
_REWRITES = tuple(
    (re.compile(pattern), becomes)
    for pattern, becomes in (
        (r"√\s*(\d+(?:\.\d+)?)", r"\\sqrt{\1}"),
        (r"√\s*(?=[({])", r"\\sqrt"),
        (r",(?:\s|~|\\ |\\quad(?![A-Za-z]))+", _MARK),
        (r"\\(?:left|right|!|,|;|:|quad|displaystyle)(?![A-Za-z])|\\ |~", ""),
        (r"\\[%$]|[%$°]|\^\s*\{?\\circ\}?|\\degree", ""),
        (r"\{,\}", ","),
        (r"\\[dtc]frac", r"\\frac"),
        (r"\\(le|ge)(?:q|qslant|slant)?(?![A-Za-z])", r"\\\1"),
        (r"\\lbrace(?![A-Za-z])", r"\\{"),
        (r"\\rbrace(?![A-Za-z])", r"\\}"),
        (r"\\varnothing|\\\{\s*\\\}", r"\\emptyset"),
        (r"\\(?:text|mathrm)\s*\{\s*(?:and|or)\s*\}|\b(?:and|or)\b|或者?|和|以及", _MARK),
        (r"^([-+]?\d+)\s+(\d+)/(\d+)$", r"\1\\frac{\2}{\3}"),
        (rf"(?<=[\d}}])\s*(?:{_UNITS}|(?<=\s)[mgsh])\.?(?:\^\s*\{{?[23]\}}?)?$", ""),
        (r"\s+", ""),
        (rf"(?:^|(?<=[(\[,=:{_MARK}]))\+(?=\\infty)", ""),
        (rf"^((?:{NUMBER})(?:/\d+)?)(?!.*{MULTIPLIER}){_CHINESE_UNIT}$", r"\1"),
        (rf"^((?:{NUMBER})(?:[万亿百]|千(?!米))+)(?:元|人|个|米|千米|公里|吨)$", r"\1"),
        (r"\\?sqrt\(([^()]*)\)", r"\\sqrt{\1}"),
        (r"\\sqrt([^{\[\\])", r"\\sqrt{\1}"),
        (r"\\frac([^{\\])([^{\\])", r"\\frac{\1}{\2}"),
        (r"\\frac([^{\\])", r"\\frac{\1}"),
        (r"\\frac\{([^{}]*)\}([^{\\])", r"\\frac{\1}{\2}"),
        (r"^([A-Za-z])/([A-Za-z])$", r"\\frac{\1}{\2}"),
        (r"([\^_])\{(\w)\}", r"\1\2"),
        (r"^\(([A-J])\)$", r"\1"),
    )
)


def _normalise(text: str) -> str:
    text = unicodedata.normalize("NFKC", text.strip().translate(_SIGNS)).replace("\u2044", "/").rstrip("。.")
    text = _LAST_TEXT.sub(lambda found: _unit(text, found), text)
    for pattern, becomes in _REWRITES:
        text = pattern.sub(becomes, text.strip())
    return text


def _unit(text: str, found: re.Match[str]) -> str:
    """Units after a number go; text that is the whole answer stays."""
    return "" if text[: found.start()].strip() else found.group(1)


def _parts(text: str) -> tuple[str, list[str]]:
    r"""(kind, elements) of a list: its brackets where they are of a point or interval, "" for a bare list or a set."""
    pieces = _split(text, _UNION)
    if len(pieces) > 1:
        return _UNION, pieces
    if text.startswith("\\{") and text.endswith("\\}"):
        return "", _solutions(text[2:-2])
    if text[0] == "{" and _closing(text) == len(text) - 1:
        return "", _solutions(text[1:-1])
    if text[:1] in ("(", "[") and text[-1:] in (")", "]") and _closing(text) == len(text) - 1:
        inside = _listed(text[1:-1])
        return ("", [text]) if len(inside) == 1 else (text[0] + text[-1], inside)
    return "", _solutions(text)


def _solutions(text: str) -> list[str]:
    found = []
    for part in _listed(text):
        signs = ("+", "-") if part.count("\\pm") == 1 else ("",)
        found += [part.replace("\\pm", sign) for sign in signs]
    return found


def _listed(text: str) -> list[str]:
    """The elements between marks. Beside a sure mark a comma may be of thousands: 1,100、200 are two, 1,100 are too."""
    parts = _split(text, _MARK)
    if len(parts) == 1:
        return _split(text, ",")
    return [one for part in parts for one in ([part] if _value(part) is not None else _split(part, ","))]


def _closing(text: str) -> int:
    """The place of the bracket that closes the first one, an interval's of either kind; -1 without one."""
    depth = 0
    for place, letter in enumerate(text):
        depth += (letter in "([{") - (letter in ")]}")
        if depth == 0:
            return place
    return -1


def _split(text: str, mark: str) -> list[str]:
    """The stretches between marks outside all brackets."""
    parts, depth, start = [], 0, 0
    for place, letter in enumerate(text):
        depth += (letter in "([{") - (letter in ")]}")
        if depth == 0 and text.startswith(mark, place):
            parts.append(text[start:place])
            start = place + len(mark)
    return [*parts, text[start:]]


# --- the value of a constant --------------------------------------------------------------------------------------

_TOKEN = re.compile(
    r"\\frac|\\sqrt|\\pi|\\cdot|\\times|\\div|(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+|[-+*/^(){}\[\]万亿千百]"
)


def _value(text: str) -> Fraction | float | None:
    """The value of a constant expression: exact where it is rational, a float with roots and pi; None for all else."""
    if "," in text and text[0] in "([{":
        return None
    tokens = _TOKEN.findall(text)
    if "".join(tokens) != text:
        return None
    try:
        value = _Constant(tokens).whole()
        return value if isinstance(value, Fraction) or math.isfinite(value) else None
    except (IndexError, ValueError, ZeroDivisionError, OverflowError, RecursionError):
        return None


_ZEROS = {"百": 2, "千": 3, "万": 4, "亿": 8}


class _Constant:
    """A reader of tokens by recursive descent; any fault of grammar or arithmetic is a ValueError or the like."""

    def __init__(self, tokens: list[str]):
        self.tokens = [*tokens, ""]
        self.place = 0

    def whole(self) -> Fraction | float:
        value = self.sum()
        if self.tokens[self.place]:
            raise ValueError
        return value

    def take(self, *allowed: str) -> str:
        token = self.tokens[self.place]
        if token not in allowed:
            raise ValueError
        self.place += 1
        return token

    def sum(self) -> Fraction | float:
        value = self.product()
        while self.tokens[self.place] in ("+", "-"):
            value = value + self.product() if self.take("+", "-") == "+" else value - self.product()
        return value

    def product(self) -> Fraction | float:
        sign = -1 if self.tokens[self.place] in ("+", "-") and self.take("+", "-") == "-" else 1
        start = self.place
        value = self.power()
        while (token := self.tokens[self.place]) and token not in ("+", "-", ")", "}", "]"):
            if token in ("/", "\\div"):
                self.place += 1
                value = value / self.power()
            elif self.place == start + 1 and self.is_mixed():
                value = value + self.power()
            else:
                self.place += token in ("*", "\\times", "\\cdot")
                value = value * self.power()
        return sign * value

    def is_mixed(self) -> bool:
        r"""Whether what follows a number makes it a mixed one, as in 1\frac{1}{2}: a fraction of whole numbers."""
        before, *after = self.tokens[self.place - 1 : self.place + 7]
        return before.isdigit() and after[0] == "\\frac" and all(after[at : at + 1][0].isdigit() for at in (2, 5))

    def power(self) -> Fraction | float:
        value = self.atom()
        if self.tokens[self.place] == "^":
            self.place += 1
            sign = -1 if self.tokens[self.place] == "-" and self.take("-") else 1
            value = _power(value, sign * self.atom())
        return value

    def atom(self) -> Fraction | float:
        token = self.tokens[self.place]
        self.place += 1
        if token[:1].isdigit() or token[:1] == ".":
            value = Fraction(token.replace(",", ""))
            while (zeros := _ZEROS.get(self.tokens[self.place])) is not None:
                value *= 10**zeros
                self.place += 1
                if self.tokens[self.place][:1].isdigit():  # 3万5千 is no product
                    raise ValueError
            return value
        if token == "\\pi":
            return math.pi
        if token == "\\frac":
            return self.group("{") / self.group("{")
        if token == "\\sqrt":
            order = self.group("[") if self.tokens[self.place] == "[" else Fraction(2)
            return _power(self.group("{"), 1 / order)
        self.place -= 1
        return self.group("(", "{")

    def group(self, *opening: str) -> Fraction | float:
        closing = {"(": ")", "[": "]", "{": "}"}[self.take(*opening)]
        value = self.sum()
        self.take(closing)
        return value


def _power(base: Fraction | float, exponent: Fraction | float) -> Fraction | float:
    """Exact where the result is rational; a power too large to be an answer is an OverflowError."""
    if isinstance(base, Fraction) and isinstance(exponent, Fraction) and abs(exponent) <= 64:
        if exponent.denominator == 1 and base.numerator.bit_length() + base.denominator.bit_length() < 128:
            return base**exponent.numerator
        if base >= 0 and exponent.numerator == 1:
            roots = [round(part ** (1 / exponent.denominator)) for part in (base.numerator, base.denominator)]
            root = Fraction(*roots)
            if root**exponent.denominator == base:
                return root
    if base <= 0:
        raise ValueError
    return float(base) ** float(exponent)


def _number(text: str) -> Fraction | None:
    fraction = re.fullmatch(r"(-?)(?:\\frac\{(-?\d+)\}\{(-?\d+)\}|(\d+)/(-?\d+))", text)
    if fraction or re.fullmatch(rf"\+?(?:{NUMBER})", text):
        value = _value(text)
        return value if isinstance(value, Fraction) else None
    return None


def is_number(text: str) -> bool:
    r"""Whether a final answer is one number: 7, -0.5, 1,234, 1/2, \\frac{1}{2}, 50%."""
    return _number(_normalise(text)) is not None
