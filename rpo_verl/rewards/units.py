"""Units of measurement, by their names: sympy's, and those that it lacks.

Two units agree if one is a multiple of the other, so that 1.5 km is 1500 m, and an hour is no minute.
"""

import re
from dataclasses import dataclass
from fractions import Fraction

from sympy.physics import units as sympy_units
from sympy.physics.units.systems import SI

#: Word → sympy's name.
ALIASES = {
    "sec": "second", "min": "minute", "hr": "hour", "wk": "week", "yr": "year", "metre": "meter", "litre": "liter",
    "kilometre": "kilometer", "centimetre": "centimeter", "millimetre": "millimeter", "millilitre": "milliliter",
    "lb": "pound", "feet": "foot", "inches": "inch", "gm": "gram", "kilo": "kilogram", "ml": "milliliter",
    "mL": "milliliter", "L": "liter",
    "mi": "mile", "microm": "micrometer", "micros": "microsecond", "microg": "microgram", "mol": "mole",
    "kph": "kmh", "kmph": "kmh",
}  # fmt: skip
#: Sign or word → currency, or another unit of a kind of its own.
KINDS = {
    "$": "dollar", "dollar": "dollar", "usd": "dollar", "buck": "dollar", "€": "euro", "euro": "euro", "eur": "euro",
    "£": "sterling", "gbp": "sterling", "₹": "rupee", "rs": "rupee", "rupee": "rupee", "inr": "rupee", "¥": "yen",
    "yen": "yen", "yuan": "yuan", "am": "before noon", "pm": "after noon", "degree": "degree", "deg": "degree",
    "radian": "radian", "rad": "radian", "celsius": "celsius", "fahrenheit": "fahrenheit",
}  # fmt: skip
#: Word → size in metres, kilograms and seconds, and powers of these.
SIZES = {
    "cent": (Fraction(1, 100), {"dollar": 1}),
    "mph": (Fraction(1397, 3125), {"length": 1, "time": -1}),
    "kmh": (Fraction(5, 18), {"length": 1, "time": -1}),
    "ounce": (Fraction(45359237, 16 * 10**8), {"mass": 1}),
    "ton": (Fraction(1000), {"mass": 1}),
    "week": (Fraction(604800), {"time": 1}),
    "gallon": (Fraction(3785411784, 10**12), {"length": 3}),
    "acre": (Fraction(40468564224, 10**7), {"length": 2}),
}
POWERS = {"square": 2, "sq": 2, "squared": 2, "cubic": 3, "cu": 3, "cubed": 3}


def words(text: str) -> frozenset[str]:
    """The words of a text."""
    return frozenset(text.split())


#: Abbreviations of two letters or fewer that are sympy's.
SHORT = words("m s g h l J N W V A K T C cm mm km kg mg ml dl cl ms us nm ft Hz Pa eV")
#: Prefixes, and the symbols of units that they stand before.
PREFIXES = {
    "n": Fraction(1, 10**9),
    "m": Fraction(1, 1000),
    "k": Fraction(1000),
    "M": Fraction(10**6),
    "G": Fraction(10**9),
}
PREFIXED = words("V A W J N Hz Pa T F C eV mol")
#: Words that say nothing about a quantity.
FILLERS = words("unit total of the a an in all each exactly only different distinct way possible whole")
#: Words that make another statement of a number, so that what they stand in is no unit.
HEDGES = words(
    "or more less least most at to than over under fewer greater and not no between from until up plus minus about nor "
    "but except without if when either both neither approximately remainder through"
)


@dataclass(frozen=True)
class Unit:
    """`size` in base units of `kind` (power by dimension), and the words that measure nothing, such as `apple`."""

    size: Fraction = Fraction(1)
    kind: frozenset[tuple[str, int]] = frozenset()
    labels: frozenset[str] = frozenset()

    def of(self, *names: str) -> bool:
        """Whether it is a unit of a kind of its own, by name."""
        return self.kind in [frozenset({(name, 1)}) for name in names]

    def ratio(self, other: "Unit") -> Fraction | None:
        """Factor from values in `self` to values in `other`; None if they do not agree. No unit agrees with all."""
        if self.labels and other.labels and not (self.labels <= other.labels or other.labels <= self.labels):
            return None
        if self.kind and other.kind:
            return self.size / other.size if self.kind == other.kind else None
        return None if (self.kind and other.labels) or (other.kind and self.labels) else Fraction(1)


def named(name: str) -> Unit:
    """A unit of a kind of its own, of size 1."""
    return Unit(kind=frozenset({(name, 1)}))


def read_unit(text: str) -> Unit | None:
    """The unit that a text names; None if its words are none, such as `or more`."""
    text = re.sub(r"\\text\{([^{}]*)\}", r"\1", text)
    text = re.sub(r"^\s*in\b", "inch", text)
    for sign, pattern in (("£", r"\\textsterling\b|\\pounds\b"), ("€", r"\\(?:text)?euro\b"), ("$", r"US\\?\$")):
        text = re.sub(pattern, lambda _, sign=sign: sign, text)
    text = re.sub(r"\b([apAP])\.?\s?([mM])\b\.?", r"\1\2", text.replace("\\", "").replace("cdot", " "))
    if re.search(r"\d", re.sub(r"\^\s*\{?-?\d\}?", "", text)):
        return None
    size, kind, labels, sign, power = Fraction(1), {}, set(), 1, 1
    for slash, name, raised, spelled in re.findall(
        r"(/|\bper\b)|([$€£₹¥]|[A-Za-z]+)\.?(?:\s*\^\s*\{?(-?\d)\}?|\s*(squared|cubed)\b)?", text
    ):
        word = singular(name.lower())
        if slash:
            sign = -1
        elif name.lower() in HEDGES:
            return None
        elif word in POWERS:
            power = POWERS[word]
        elif measure := measured(name):
            exponent = sign * int(raised or POWERS.get(spelled, power))
            size, power = size * measure[0] ** exponent, 1
            for dimension, one in measure[1].items():
                kind[dimension] = kind.get(dimension, 0) + one * exponent
        elif word not in FILLERS:
            labels.add(word)
    return Unit(size, frozenset((name, power) for name, power in kind.items() if power), frozenset(labels))


def measured(word: str) -> tuple[Fraction, dict[str, int]] | None:
    """Size and dimensions of a unit of measurement; None for other words."""
    if word[:1] in PREFIXES and word[1:] in PREFIXED and (unit := measured(word[1:])):
        return unit[0] * PREFIXES[word[0]], unit[1]
    names = [ALIASES.get(name, name) for name in (word, word.lower(), singular(word.lower()))]
    for name in names:
        if name in SIZES:
            return SIZES[name]
        if name in KINDS:
            return Fraction(1), {KINDS[name]: 1}
    for name in names:
        unit = getattr(sympy_units, name, None) if len(name) > 2 or name in SHORT else None
        if isinstance(unit, sympy_units.Quantity) and not unit.is_physical_constant and unit.scale_factor.is_Rational:
            size = Fraction(int(unit.scale_factor.p), int(unit.scale_factor.q))
            powers = SI.get_dimension_system().get_dimensional_dependencies(unit.dimension)
            dimensions = {str(one.name): int(power) for one, power in powers.items()}
            return size / 1000 ** dimensions.get("mass", 0), dimensions  # sympy gives a gram the size 1
    return None


def singular(word: str) -> str:
    """An English noun without its plural s."""
    if word.endswith("ies") and len(word) > 4:
        return word[:-3] + "y"
    if word.endswith(("ches", "shes", "xes")):
        return word[:-2]
    return word[:-1] if word.endswith("s") and len(word) > 2 and not word.endswith("ss") else word
