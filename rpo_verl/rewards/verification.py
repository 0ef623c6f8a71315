"""Compares an answer with the ground truth by math-verify.

Both are normalised before (`normalization.py`), and what math-verify cannot know stands around it: units, words,
bases and clock times; brackets; the imaginary unit; how many digits count. What a policy writes can keep a computer
algebra system busy for ever or fill the memory, so these functions run in processes that may be killed (`workers.py`).
"""

import logging
import re
from collections.abc import Iterable
from fractions import Fraction

import sympy

try:
    from latex2sympy2_extended import NormalizationConfig
    from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse, verify
except ImportError as error:
    raise ImportError(
        "The reward function of rpo_verl needs math-verify and pebble: pip install 'rpo-verl[math]'."
    ) from error

from rpo_verl.rewards.normalization import normalize, parts, wrapped
from rpo_verl.rewards.quantities import multiplied, quantity
from rpo_verl.rewards.units import Unit

#: math-verify warns of the time limit that is not its own here.
logging.getLogger("math_verify").setLevel(logging.ERROR)

#: Characters of an answer that are passed on to be logged.
_SHOWN = 200
#: Digits behind the point that math-verify compares of decimals, and digits of everything else.
_DECIMALS, _DIGITS = 6, 15
#: Signs that `\pm` and `\mp` stand for together.
_SIGN_PAIRS = ({"pm": "+", "mp": "-"}, {"pm": "-", "mp": "+"})
#: Numbers below 10^-_SMALLEST are compared as zero.
_SMALLEST = 3000

_BOXED = [
    LatexExtractionConfig(
        boxed_match_priority=0,
        normalization_config=NormalizationConfig(units=False, malformed_operators=True, nits=True),
    )
]
_ANYWHERE = [LatexExtractionConfig(), ExprExtractionConfig()]

_CHOICE = re.compile(r"^\(?([A-J])(?:\)[.:]?|[.:](?=\s))\s*(.*)$")
_CHOICES = re.compile(r"^[A-J](?:\s*,?\s*[A-J])+$")
_PREFIXED = re.compile(r"^0([xXbBoO])([\dA-Fa-f]+)$")
_BASED = re.compile(
    r"^(?:\\text\{)?\s*(\d[\dA-Fa-f]*(?:\.\d+)?|[A-Fa-f]*\d[\dA-Fa-f]*|[A-F]{2,})\s*\}?_\{?\s*(\d+)\s*\}?$"
)
_CLOCK = re.compile(r"^\s*([01]?\d|2[0-4])(?::([0-5]\d))?\s*$")
_COMMAND = r"\\text\{[^{}]*\}|\\[A-Za-z]+"
_NAMED = re.compile(r"^\s*([A-Za-z](?:_\{?\w+\}?)?)\s*=\s*")
_VECTOR = re.compile(r"^\\begin\{[pb]matrix\}\s*(.*?)\s*(?:\\\\\s*)?\\end\{[pb]matrix\}$", re.DOTALL)


def unreadable(ground_truth: str) -> str | None:
    """Why no response can match a ground truth; None if one can.

    It is also compared with itself and with a number, so that one whose value cannot be computed uses up the time
    here, and not with every response.
    """
    plain = normalize(ground_truth)
    if not re.search(r"\w|\\[a-zA-Z]", plain):
        return "cannot be read: there is neither a number nor a word in it"
    if plain in ("nan", "NaN", "null"):
        return "cannot be read: it stands for a value that is missing"
    if re.search(r"[=<>^_]$", plain):
        return "cannot be read: it breaks off"
    unclosed = ground_truth.count("{") != ground_truth.count("}")
    if unclosed or len(re.findall(r"[(\[]", plain)) > len(re.findall(r"[)\]]", plain)):
        return "cannot be read: a bracket in it is never closed"
    same(ground_truth, "7")
    return None if same(ground_truth, ground_truth) else "does not even match itself"


def compare(ground_truth: str, text: str, whole: bool) -> tuple[bool, str | None]:
    """Whether `text` gives the answer `ground_truth`.

    Args:
        whole: all of `text` is the answer; otherwise math-verify looks for one in it.

    Returns:
        the verdict, and the answer as it was read, None if there is none.
    """
    if whole:
        return same(ground_truth, text), text[:_SHOWN]
    readings = parse(text, _ANYWHERE, parsing_timeout=None)
    if not readings:
        return False, None
    answer = next((reading for reading in readings if isinstance(reading, str)), "")
    truth = quantity(normalize(ground_truth)).value
    return _equal(_read(truth), readings), answer[:_SHOWN]


def same(truth: str, answer: str) -> bool:
    """Whether two answers say the same."""
    return any(_same(one, other) for one in _readings(normalize(truth)) for other in _readings(normalize(answer)))


def _readings(answer: str) -> list[str]:
    """`(B) 12` is the choice B, and 12."""
    choice = _CHOICE.match(re.sub(r"^\\text\{\s*(\(?[A-J]\))\s*\}", r"\1 ", answer))
    return [part for part in choice.groups() if part] if choice else [answer]


def _same(truth: str, answer: str) -> bool:
    verdict = _same_words(truth, answer)
    if verdict is None:
        verdict = _same_base(truth, answer)
    if verdict is None:
        verdict = _same_quantity(truth, answer)
    return verdict


def _same_words(truth: str, answer: str) -> bool | None:
    """Words are compared as words; for math-verify, letters are a product in any order."""
    if _unwrapped(truth) == _unwrapped(answer):
        return True
    if _CHOICES.match(truth) and _CHOICES.match(answer) and ("," in truth) != ("," in answer):
        return sorted(re.findall("[A-J]", truth)) == sorted(re.findall("[A-J]", answer))
    one, other = _words(truth), _words(answer)
    if one is None or other is None or not (_is_words(truth, one) or _is_words(answer, other)):
        return None
    if one == other or sorted(one.split(", ")) == sorted(other.split(", ")):
        return True
    return one in ("yes", "no", "true", "false") and other.startswith(one + ", ")


def _unwrapped(answer: str) -> str:
    return re.sub(r"\s*,\s*", ",", " ".join(re.sub(r"\\text\{([^{}]*)\}", r" \1 ", answer).split()))


def _words(answer: str) -> str | None:
    """The words of an answer in lower case; None if there is mathematics in it."""
    plain = _unwrapped(answer)
    if not re.match("[A-Za-z]", plain) or re.search(r"[\\^_=<>+*/|{}()\[\]]", plain):
        return None
    if re.fullmatch(r"[A-Za-z](?:\s+[A-Za-z])+", answer):  # a product
        return None
    return re.sub(r"\s*,\s*", ", ", " ".join(plain.casefold().replace("-", " ").split())).strip(" .,")


def _is_words(answer: str, words: str) -> bool:
    letters = re.findall("[a-z]+", words)
    longest = max(map(len, letters))
    return longest > 2 or (longest > 1 and (r"\text" in answer or answer.isupper() or len(letters) > 1))


def _same_base(truth: str, answer: str) -> bool | None:
    """`1010_2`: equal in value; where one has no base, equal in its digits or as a decimal number."""
    one, other = _based(truth), _based(answer)
    if one is None and other is None:
        return None
    if one and other:
        return one[1] == other[1]
    digits, value = one or other
    plain = (answer if one else truth).replace(",", "").strip().upper()
    return plain == digits or plain == str(value) if plain.isalnum() else None


def _based(answer: str) -> tuple[str, Fraction] | None:
    prefixed, match = _PREFIXED.match(answer), _BASED.match(answer)
    if prefixed:
        digits, base = prefixed[2], {"x": 16, "b": 2, "o": 8}[prefixed[1].lower()]
    elif match:
        digits, base = match[1], int(match[2])
    else:
        return None
    if not 2 <= base <= 36:
        return None
    try:
        whole, _, places = digits.partition(".")
        value = Fraction(int(whole + places, base), base ** len(places))
        return (digits.upper(), value)
    except ValueError:
        return None


def _same_quantity(truth: str, answer: str) -> bool:
    one = quantity(truth)
    other = quantity(answer, letters=bool(one.unit.kind))
    for degrees, angle in ((one, other), (other, one)):
        if degrees.unit.of("degree") and (angle.unit.of("radian") or (r"\pi" in angle.value and not angle.unit.kind)):
            return _same_value(rf"({degrees.value})\cdot\frac{{\pi}}{{180}}", angle.value)
    ratio = other.unit.ratio(one.unit)
    if ratio is None:
        return False
    clocks = [_clock(each.value, each.unit) for each in (one, other)]
    if all(clocks):
        return not set(clocks[0]).isdisjoint(clocks[1])
    return _same_value(one.value, multiplied(other.value, ratio))


def _clock(value: str, unit: Unit) -> list[tuple[int, int]]:
    """Hours and minutes that a time of day may mean, as it is written and in 24 hours; none if it is no such time."""
    match = _CLOCK.match(value)
    half = unit.of("before noon", "after noon")
    if not match or not (match[2] or half):
        return []
    hour, minute = int(match[1]), int(match[2] or 0)
    return [(hour, minute), (hour % 12 + 12 * unit.of("after noon"), minute)] if half else [(hour, minute)]


def _same_value(truth: str, answer: str) -> bool:
    ratios = [text.split(":") for text in (truth, answer)]
    if max(map(len, ratios)) > 2:  # math-verify divides: 7:3:2 would equal 7:2:3
        truth, answer = (f"({','.join(rf'({term})/({terms[0]})' for term in terms[1:])})" for terms in ratios)
    pair = _same_brackets(truth, answer)
    if pair is None:
        return False
    one, other = _same_logarithm(*pair)
    return _equal(_read(one), _read(other))


def _same_brackets(truth: str, answer: str) -> tuple[str, str] | None:
    """Both in comparable brackets; None if a tuple is compared with a set, or an interval with a list.

    A list without brackets is a set beside a set, and a tuple, in its order, beside a tuple.
    """
    kinds = [_brackets(truth), _brackets(answer)]
    if "(" in kinds:
        truth, answer = (_vector(text) for text in (truth, answer))
        kinds = [_brackets(truth), _brackets(answer)]
    if "(" in kinds and "," in kinds:
        truth, answer = (f"({_ordered(text)})" if _brackets(text) == "," else text for text in (truth, answer))
    elif kinds[0] and kinds[1] and kinds[0] != kinds[1] and set(kinds) != {"{", ","}:
        return None
    return truth, answer


def _brackets(answer: str) -> str | None:
    """The brackets around a list of two or more elements; `,` if there are none; None if it is no list."""
    for opening, closing in (("(", ")"), ("[", "]"), (r"\{", r"\}")):
        inside = wrapped(answer, opening, closing)
        if inside is not None and len(parts(inside)) > 1:
            return opening[-1]
    return "," if len(parts(answer)) > 1 and not re.fullmatch(r"\s*-?\d{1,3}(,\d{3})+(\.\d+)?\s*", answer) else None


def _ordered(answer: str) -> str:
    """Elements of a list without brackets, `y=2, x=1` in the order of their names."""
    elements = parts(answer)
    names = [_NAMED.match(element) for element in elements]
    if all(names):
        elements = [element for _, element in sorted(zip((name[1] for name in names), elements, strict=True))]
    return ",".join(_NAMED.sub("", element) for element in elements)


def _vector(answer: str) -> str:
    match = _VECTOR.match(answer)
    if not match or ("&" in match[1]) == (r"\\" in match[1]):
        return answer
    return "(" + ",".join(re.split(r"&|\\\\", match[1])) + ")"


def _same_logarithm(truth: str, answer: str) -> tuple[str, str]:
    r"""Where one writes `\ln`, the other's `\log` without a base is natural too."""
    if (r"\ln" in truth) != (r"\ln" in answer):
        return tuple(re.sub(r"\\log(?![A-Za-z_])", r"\\ln", text) for text in (truth, answer))
    return truth, answer


def _read(answer: str) -> list:
    """math-verify's readings of a value."""
    answer = _without_repeated_name(_both_signs(answer))
    if r"\land" in answer:
        conditions = [reading[0] for reading in map(_read, answer.split(r"\land")) if reading]
        if all(isinstance(one, sympy.logic.boolalg.Boolean) for one in conditions):
            return [sympy.Intersection(*(_region(one) or sympy.S.EmptySet for one in conditions)), answer]
    answer = re.sub(r"(?<![A-Za-z\\])[Ee](?=_)", r"\\mathcal{E}", answer)
    if not re.search(r"\\int|\\frac\s*\{\s*d", answer):
        # For math-verify, dc is a differential.
        answer = re.sub(rf"{_COMMAND}|d(?=\s*[A-Za-z\\])", lambda m: "(d)" if m[0] == "d" else m[0], answer)
    # A derivative is a name here: math-verify makes dy/dx = 0 of it.
    answer = re.sub(r"\\frac\s*\{\s*d\s*([A-Za-z])\s*\}\s*\{\s*d\s*([A-Za-z])\s*\}", r"\1_{d\2}", answer)
    answer = re.sub(r"(?<![A-Za-z\\{])tr(?![A-Za-z])", "t r", answer)  # no trace
    percent = re.fullmatch(r"(?:[A-Za-z]\w*\s*=\s*)?([^%,=]+?)\s*\\%", answer)
    return parse(rf"${percent[1]}$\%" if percent else rf"\boxed{{{answer}}}", _BOXED, parsing_timeout=None)


def _both_signs(answer: str) -> str:
    r"""`\frac{1\pm\sqrt5}{2}` as its two values, also in a set or a list; two signs that may differ stay."""
    inside = wrapped(answer, r"\{", r"\}")
    if inside is not None:
        return rf"\{{{_both_signs(inside)}\}}"
    elements = []
    for element in parts(answer):
        upper, lower = (re.sub(r"\\(pm|mp)(?![A-Za-z])", lambda m, s=signs: s[m[1]], element) for signs in _SIGN_PAIRS)
        elements += [upper, lower] if element.count(r"\pm") == 1 else [element]
    return ", ".join(elements) if r"\pm" in answer else answer


def _without_repeated_name(answer: str) -> str:
    """`x=2, x=3` as `2, 3`."""
    elements = parts(answer)
    names = [match and match[1] for match in map(_NAMED.match, elements)]
    if len(elements) < 2 or names[0] is None or len(set(names)) > 1:
        return answer
    return ", ".join(_NAMED.sub("", element) for element in elements)


def _equal(truths: list, answers: list) -> bool:
    truths, answers = ([_plain(one) for one in readings] for readings in (truths, answers))
    # For math-verify, 5 % is a product.
    truths, answers = (
        readings if any("%" in str(one) for one in readings) else [_exact(one) for one in readings]
        for readings in (truths, answers)
    )
    for truth in truths:
        for answer in answers:
            truth, answer = _as_sets(truth, answer)
            extra = _leading_zeros((truth, answer))
            decimals = min(_decimals(truths), _decimals(answers))
            if verify(
                truth,
                answer,
                float_rounding=max(_DECIMALS, decimals, extra + _DECIMALS - 2),
                numeric_precision=_DIGITS + extra,
                allow_set_relation_comp=True,
                timeout_seconds=None,
            ):
                return True
    return False


def _plain(reading):
    """A reading whose `i` is the imaginary unit and whose `e` is Euler's number, and whose other letters are alike.

    math-verify takes letters for real in one answer and not in the other.
    """
    if isinstance(reading, str) or not hasattr(reading, "free_symbols"):
        return reading
    symbols = reading.atoms(sympy.Symbol)
    bound = {symbol.name for symbol in symbols - reading.free_symbols}
    constants = {name: value for name, value in (("i", sympy.I), ("e", sympy.E)) if name not in bound}
    # sympy knows that no real x equals 1 + i, and makes False of the equation.
    real = None if "i" in {one.name for one in symbols} and reading.has(sympy.Equality) else True
    plain = {one: constants.get(one.name, sympy.Symbol(one.name, real=real)) for one in symbols}
    try:
        return reading.xreplace(plain) if any(one != other for one, other in plain.items()) else reading
    except (TypeError, ValueError, AttributeError):  # sympy has no interval with complex ends, for one
        return reading


def _exact(reading):
    r"""`4.2\times 10^{-5}` as a fraction, and so all that numbers, sums, products and powers make of it.

    math-verify rounds a decimal number, but no product of two, and takes fractions for equal that differ little.
    """
    if isinstance(reading, (sympy.FiniteSet, sympy.Tuple)):
        return reading.func(*map(_exact, reading.args))
    if not isinstance(reading, (sympy.Add, sympy.Mul, sympy.Pow)) or reading.free_symbols:
        return reading
    for part in sympy.preorder_traversal(reading):
        if isinstance(part, sympy.Pow):
            digits = sympy.log(abs(part.base.evalf(4)) + 10, 10).evalf(4)
            small = part.exp.is_Integer and bool(abs(part.exp) * digits <= _SMALLEST)
        else:
            small = isinstance(part, (sympy.Add, sympy.Mul, sympy.Number))
        if not small:
            return reading
    exact = reading.xreplace({one: sympy.Rational(str(one)) for one in reading.atoms(sympy.Float)}).doit()
    return exact if exact.is_Rational else reading


def _as_sets(truth, answer) -> tuple:
    """An inequality beside a set, as the set of its solutions."""
    for one, other in ((truth, answer), (answer, truth)):
        if isinstance(one, sympy.Set) and _region(one) is None and _region(other) is not None:
            return (truth, _region(answer)) if one is truth else (_region(truth), answer)
    if isinstance(truth, sympy.And) and isinstance(answer, sympy.And) and truth.free_symbols == answer.free_symbols:
        one, other = _region(truth), _region(answer)
        return (truth, answer) if one is None or other is None else (one, other)
    return truth, answer


def _region(reading) -> sympy.Set | None:
    """The solutions of an inequality, or of one of several; None for anything else."""
    conditions = reading.args if isinstance(reading, sympy.FiniteSet) else (reading,)
    wanted = (sympy.StrictLessThan, sympy.LessThan, sympy.StrictGreaterThan, sympy.GreaterThan, sympy.Ne, sympy.And)
    if not conditions or not all(isinstance(one, wanted) and len(one.free_symbols) == 1 for one in conditions):
        return None
    try:
        return sympy.Union(*(one.as_set() for one in conditions))
    except (TypeError, ValueError, NotImplementedError, AttributeError):  # sympy cannot solve it
        return None


def _decimals(readings: list) -> int:
    """Digits behind the point of an answer that is a decimal number; 0 for any other."""
    numbers = (re.fullmatch(r"[+-]?\d+\.(\d+)", one.strip()) for one in readings if isinstance(one, str))
    return max((len(number[1]) for number in numbers if number), default=0)


def _leading_zeros(readings: Iterable) -> int:
    """Zeros behind the point of the smallest number in some readings: math-verify counts decimals, not digits."""
    zeros = 0
    for reading in readings:
        if isinstance(reading, str):
            continue
        for part in sympy.preorder_traversal(reading):
            if isinstance(part, sympy.Mul):
                part = sympy.Mul(*(factor for factor in part.args if not factor.free_symbols))
            if isinstance(part, sympy.Expr) and not part.free_symbols and part.is_number:
                size = abs(part.evalf(4))
                if size.is_Float and size and size < 1:
                    zeros = max(zeros, -int(sympy.floor(sympy.log(size, 10).evalf(6))) - 1)
    return min(zeros, _SMALLEST)
