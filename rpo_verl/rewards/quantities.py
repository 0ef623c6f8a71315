r"""Splits an answer into value and unit: `1.5\text{ km}` into 1.5 and 1000 metres, `24 ways` into 24 and a word.

math-verify drops units by a list that holds single letters, so that `3m` equals 3 and an hour equals a minute. Here a
unit is what stands in `\text{…}`, or a word behind a number; single letters remain variables.
"""

import math
import re
from typing import NamedTuple

from rpo_verl.rewards.normalization import parts
from rpo_verl.rewards.units import Unit, measured, named, read_unit, words

#: Words that multiply the number before them.
SCALES = {
    "dozen": 12, "hundred": 10**2, "thousand": 10**3, "lakh": 10**5, "million": 10**6, "crore": 10**7, "billion": 10**9,
    "trillion": 10**12,
}  # fmt: skip
#: Abbreviations that are units also close behind a number, as letters of a product hardly are; and those apart from it.
CLOSE = words(
    "cm mm km kg mL lbs hr hrs min mins sec mph kmh kph km/h m/s Hz kHz MHz GHz kW kJ eV kPa USD EUR GBP INR "
    "KB MB GB TB dB"
)
APART = CLOSE | words("mg ml ft lb cc dm sq cu AM PM am pm A.M P.M a.m p.m rad deg Pa mol")

_RAISED = r"(?:\s*\^\s*\{?-?\d\}?)?"
_WORD = r"[A-Za-z][A-Za-z.'-]*"
_CODES = r"(?:Rs|USD|EUR|GBP|INR)\.?"
_COMMANDS = r"\\(?:pounds|textsterling|(?:text)?euro)(?![A-Za-z])"
_CURRENCY = rf"(?:US)?\\?\$|[€£₹¥]|{_COMMANDS}|\\text\{{\s*{_CODES}\s*\}}|{_CODES}(?!\w)"
_BEFORE = re.compile(rf"^((?:[A-Za-z]\w*\s*=)?\s*[-+]?)\s*({_CURRENCY})\s*(?=[-+\d.\\(])")
_CURRENCY_BEHIND = re.compile(rf"(?<=[\d}}])\s*({_CURRENCY})\s*$")
_DEGREES = re.compile(r"(?<=[\d})])\s*\^\s*\\circ\s*(?:\\?(?:text\{)?\s*([CF])\s*\}?)?\s*$")
_TEXT_BEHIND = re.compile(rf"((?:\s|\\cdot|/)*(?:\\text\{{[^{{}}]*\}}{_RAISED}\s*(?:/|\\cdot)?\s*)+)$")
_WORDS_BEHIND = re.compile(rf"(?<![A-Za-z.'\\{{-])({_WORD}{_RAISED}(?:(?:\s*(?:/|\\cdot)\s*|\s+){_WORD}{_RAISED})*)$")
_MODULUS = re.compile(r" ?(?:\\text\{ ?)?\(? ?(?:\\[pb]?mod|\bmod(?:ulo)?) ?\{? ?(\w[\w ]*?) ?\}? ?\)? ?\}?$")
_ORDINAL = re.compile(
    r"^(\d*(?:1(?<!11)(?=\D*st)|2(?<!12)(?=\D*nd)|3(?<!13)(?=\D*rd)|\d(?=\D*th)))\s*\^?\s*\{?\s*(?:\\text\{\s*)?"
    r"(?:st|nd|rd|th)[\s}]*$"
)
_PIECE = re.compile(
    r"(-?[\d.,]+(?:\\frac\{\d+\}\{\d+\})?)\s*(?:\\text\{\s*([^{}]*?)(?:\s*\band)?\s*\}|([A-Za-z.]+))"
    r"\s*(?:\\text\{\s*and\s*\}|\band\b|,)?\s*"
)
#: A number with commas between its thousands: no list.
_GROUPED = re.compile(r"^[-+$\\£€₹]*\d{1,3}(?:,\d{3})+(?!\d|,)")


class Quantity(NamedTuple):
    """The LaTeX of a value, and its unit."""

    value: str
    unit: Unit = Unit()


def quantity(answer: str, letters: bool = False) -> Quantity:
    """An answer that `normalize` returned, split into value and unit; of a list, the unit that its elements share.

    Args:
        letters: one letter behind a number is a unit, as in `5 m`, and no variable.
    """
    if letters:
        answer = re.sub(rf"(?<=[\d}}])\s*([A-Za-z])({_RAISED})$", r"\\text{ \1}\2", answer)
    elements = [answer] if _GROUPED.match(answer) else parts(answer)
    whole = _sum(answer)
    if whole or len(elements) == 1:
        return whole or _single(answer)
    split = [_single(element) for element in elements]
    units = {one.unit for one in split} - {Unit()}
    return Quantity(", ".join(one.value for one in split), units.pop()) if len(units) == 1 else Quantity(answer)


def _sum(answer: str) -> Quantity | None:
    """`3 hours and 20 minutes`, in the first unit."""
    pieces, end = [], 0
    for piece in _PIECE.finditer(answer):
        unit = read_unit(piece[2] or piece[3] or "")
        if piece.start() != end or unit is None or not unit.kind:
            return None
        pieces.append((piece[1].replace(",", ""), unit))
        end = piece.end()
    if end != len(answer) or len({unit for _, unit in pieces}) < max(2, len(pieces)):
        return None
    first = pieces[0][1]
    terms = [multiplied(value, unit.ratio(first)) for value, unit in pieces if unit.ratio(first) is not None]
    return Quantity("+".join(terms), first) if len(terms) == len(pieces) else None


def multiplied(value: str, factor) -> str:
    """The LaTeX of a value times a fraction."""
    return value if factor == 1 else rf"({value})\cdot\frac{{{factor.numerator}}}{{{factor.denominator}}}"


def _single(answer: str) -> Quantity:
    modulus = _MODULUS.search(answer)
    if modulus and modulus.start():
        return Quantity(answer[: modulus.start()].strip(), named(f"modulo {modulus[1].strip()}"))
    if ordinal := _ORDINAL.match(answer):
        return Quantity(ordinal[1], Unit(labels=frozenset({"ordinal"})))
    currency = _BEFORE.match(answer)
    if currency:
        answer = currency[1] + answer[currency.end() :]
    found = _scaled(_unit_behind(answer))
    return Quantity(found.value, read_unit(currency[2])) if currency else found


def _unit_behind(answer: str) -> Quantity:
    if degrees := _DEGREES.search(answer):
        names = {"C": "celsius", "F": "fahrenheit"}
        return Quantity(answer[: degrees.start()].strip(), named(names.get(degrees[1], "degree")))
    if currency := _CURRENCY_BEHIND.search(answer):
        return Quantity(answer[: currency.start()].strip(), read_unit(currency[1]))
    text = _TEXT_BEHIND.search(answer)
    bare = _WORDS_BEHIND.search(answer)
    if text and re.search(r"[\w})%!]$", answer[: text.start()].rstrip()):
        match = text
    elif bare and _is_number(answer[: bare.start()]) and _are_units(bare[1].strip(), bare.start(), answer):
        match = bare
    else:
        return Quantity(answer)
    unit = read_unit(match[1])
    return Quantity(answer) if unit is None else Quantity(answer[: match.start()].strip(), unit)


def _is_number(value: str) -> bool:
    """Whether a value ends in a number and has no variable in it but its name, as in `n=3`."""
    letters = re.search(r"[A-Za-z]", re.sub(r"\\[A-Za-z]+|^[A-Za-z]\w*\s*=", "", value))
    return not letters and bool(re.search(r"[\d})%!]$|\\pi$", value.rstrip()))


def _are_units(text: str, start: int, answer: str) -> bool:
    """Whether bare words are a unit: known abbreviations, or longer words that stand apart from the number."""
    apart = answer[start - 1].isspace() or ":" in answer
    abbreviations = APART if apart else CLOSE

    def is_unit(word: str) -> bool:
        return (
            word in abbreviations
            or word in ("of", "in", "a")
            or (len(word) > 2 and (apart or measured(word) is not None))
        )

    if apart and "/" in text and all(map(measured, re.findall(_WORD, text))):
        return True
    return text in abbreviations or all(map(is_unit, re.findall(_WORD, text)))


def _scaled(found: Quantity) -> Quantity:
    """`5` and `million` as 5·10⁶."""
    scales = found.unit.labels & SCALES.keys()
    if not scales:
        return found
    unit = Unit(found.unit.size, found.unit.kind, found.unit.labels - scales)
    return Quantity(rf"({found.value})\cdot {math.prod(SCALES[scale] for scale in scales)}", unit)
