"""Rewrites an answer into the LaTeX that math-verify reads. Each rule has a name, and none depends on another answer.

Models dress an answer: bold type, thin spaces, a full stop, `Answer:`, Unicode roots, a thousands separator. The table
`RULES` removes the dress. It keeps all that carries meaning, units included (`quantities.py` reads those).
"""

import re
import unicodedata
from collections.abc import Callable
from typing import NamedTuple

#: Unicode signs → LaTeX. What stands here keeps its meaning; NFKC would turn `3²` into `32` and `º` into `o`.
SIGNS = {
    **dict.fromkeys("−﹣－–—‐‑‒", "-"),
    **dict.fromkeys("°º˚", r"^\circ "),
    **dict.fromkeys("×✕⨯", r"\times "),
    **dict.fromkeys("·⋅∙•", r"\cdot "),
    **dict.fromkeys("“”„«»＂", '"'),
    **dict.fromkeys("‘’′＇", "'"),
    **dict.fromkeys("≤⩽≦", r"\le "),
    **dict.fromkeys("≥⩾≧", r"\ge "),
    **dict.fromkeys("≈≃≅∼", r"\approx "),
    **dict.fromkeys("∅⌀", r"\emptyset "),
    **dict.fromkeys("\u200b\u200c\u200d\u2060\ufeff", ""),
    "÷": "/", "⁄": "/", "∕": "/", "∗": "*", "≠": r"\ne ", "≡": r"\equiv ", "±": r"\pm ", "∓": r"\mp ", "∞": r"\infty ",
    "Ω": r"\Omega ",
    "∪": r"\cup ", "∩": r"\cap ", "∈": r"\in ", "ℝ": r"\mathbb{R}", "ℤ": r"\mathbb{Z}", "ℕ": r"\mathbb{N}",
    "ℚ": r"\mathbb{Q}", "ℂ": r"\mathbb{C}", "π": r"\pi ", "¢": r"\text{ cents}", "，": ",", "；": ";", "：": ":",
    "（": "(", "）": ")", "％": r"\%", "。": ".", "→": r"\to ", "∧": r"\land ", "∨": r"\lor ",
    "⟨": r"\langle ", "⟩": r"\rangle ",
}  # fmt: skip
_SIGNS = str.maketrans(SIGNS)
_RAISED = dict(zip("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿ", "0123456789+-n", strict=True))
_LOWERED = dict(zip("₀₁₂₃₄₅₆₇₈₉", "0123456789", strict=True))

#: `{…}` with two levels of braces in it.
_GROUP = r"\{((?:[^{}]|\{(?:[^{}]|\{[^{}]*\})*\})*)\}"
_TEXT = r"\\text\{[^{}]*\}"
_NUMBER = r"\d+(?:\.\d+)?"
_FUNCTIONS = "arcsin|arccos|arctan|arccot|sinh|cosh|tanh|sin|cos|tan|cot|sec|csc|ln|log|exp"
#: Words that lead up to an answer and are no part of it.
_LABEL = (
    r"(?:so|it|this|that|we|get|have|find|obtain|thus|hence|therefore|and|then|is|the|our|your|my|final|correct|exact|"
    r"required|approximate|total|sum|"
    r"number|value|count|result|solution|answer|option|choice|area|volume|length|probability|remainder|product|average|"
    r"mean|cost|price|distance|time|perimeter|ratio|of|approximately|about|roughly|exactly|simply|equals|equal to)"
)

Replacement = str | Callable[[re.Match], str]


class Rule(NamedTuple):
    """What a rule removes or rewrites, as a regular expression and its replacement."""

    name: str
    pattern: re.Pattern
    replacement: Replacement


def _rule(name: str, pattern: str, replacement: Replacement, flags: int = 0) -> Rule:
    return Rule(name, re.compile(pattern, flags), replacement)


def _command(*names: str) -> str:
    """Matches LaTeX commands by their whole names, which are regular expressions."""
    return rf"\\(?:{'|'.join(names)})(?![A-Za-z])"


#: Letters that stand for a unit where they stand in `\text{…}` behind a number.
_UNIT_LETTERS = "AbcCdFghJKlLmNRsStTVW"


def _word_or_symbol(match: re.Match) -> str:
    r"""The content of `\text{…}` if there is no word in it, else the text unchanged."""
    content = match[1].strip()
    if re.fullmatch(r"[A-J](?:\s*(?:,\s*and|,|and|&)\s*[A-J])+", content):
        return ", ".join(re.findall("[A-J]", content))
    behind_number = re.search(r"[\d}]\s*(?:\\cdot|/)?\s*$", match.string[: match.start()])
    behind_number = behind_number and not re.match(r"\s*[+-]", match.string[match.end() :])
    if len(content) == 1 and content in _UNIT_LETTERS and behind_number:
        return match[0]
    return f" {content} " if re.fullmatch(r"[A-Za-z]|[^A-Za-z]*|\(?[A-Z]\)?", content) else match[0]


def _comparison(match: re.Match) -> str:
    r"""`<`, `>`, `\le ` or `\ge `."""
    less = match[0].strip().lstrip("\\")[0] in "l<"
    if match[0].strip() in (r"\lt", r"\gt"):
        return "<" if less else ">"
    return r"\le " if less else r"\ge "


def _interval(match: re.Match) -> str:
    """`]0, 1[`, as it is written in France, as `(0, 1)`."""
    return ("[" if match[1] == "[" else "(") + match[2] + ("]" if match[3] == "]" else ")")


def _set(match: re.Match) -> str:
    r"""`{1, 2}` as `\{1, 2\}`; braces around one tuple are no set."""
    return rf"\{{{match[1]}\}}" if len(parts(match[1])) > 1 else match[1]


def _root(match: re.Match) -> str:
    return rf"\sqrt{_ROOTS[match[1]]}{{{match[2].strip('{}()')}}}"


def _digits(match: re.Match) -> str:
    return re.sub(r"\D", "", match[1])


def _exponent(match: re.Match) -> str:
    """A decimal exponent as a fraction, which keeps `5^{0.5}` exact."""
    sign, whole, decimals = match.groups()
    return rf"^{{{sign}\frac{{{int(whole + decimals)}}}{{{10 ** len(decimals)}}}}}"


def _repeating(match: re.Match) -> str:
    r"""`0.1\overline{6}` as a fraction."""
    whole, fixed, repeated = match.groups()
    top = int(whole + fixed + repeated) - int(whole + fixed)
    return rf"\frac{{{top}}}{{{(10 ** len(repeated) - 1) * 10 ** len(fixed)}}}"


def _dotted(match: re.Match) -> str:
    r"""`0.\dot{1}4285\dot{7}`, whose dots stand over the ends of what is repeated."""
    repeated = re.sub(r"\\dot|[{}\s]", "", match[3])
    return rf"{match[1]}.{match[2]}\overline{{{repeated}}}"


_SIZES = ("tiny", "scriptsize", "footnotesize", "small", "normalsize", "[lL]arge", "LARGE", "[hH]uge", "[bB]igg?[lrm]?")
_FRAMES = ("ensuremath", "underline", "uline", "boxed", "f?box", "framebox", "boldsymbol", "bm", "pmb",
           "math(?:op|ord)", "hbox", "smash", "emph", "displaystyle")  # fmt: skip
_FONTS = ("math(?:rm|bf|it|sf|tt|normal|bfit)", r"math(?:cal|scr|frak)(?=\{\d)",
          "text(?:rm|bf|it|sf|tt|normal|sl|sc|up|md)?", "mbox", "bf", "rm", "it", "sf", "tt")  # fmt: skip

#: In this order, from the outside of an answer to its inside.
RULES = (
    # Layout.
    _rule("space between rows", r"(\\\\)\s*\[-?[\d.]+\s*(?:pt|ex|em|mm|cm|in)\]", r"\1"),
    _rule("line break at the end", r"(?:(?:\\\\|\\)\s*)+$", ""),
    _rule("negative space", r"\\!", ""),
    _rule("space between digits", r"(?<=\d)(?:(?<!\\)\\[,;: ]|~)(?=\d{3}(?!\d))", " "),
    _rule("space", r"(?<!\\)\\[,;:> ]|(?<=.)~(?!\d)|(?<=\D)~|[\s\u00a0\u2000-\u200a\u202f]+", " "),
    _rule("named space", _command("q?quad", "(?:thin|med|thick|en)space") + r"|\\[hv]space\*?\{[^{}]*\}", " "),
    _rule(
        "invisible",
        r"\\(?:[hv]?phantom|label|tag)\s*\{[^{}]*\}|" + _command("nonumber", "(?:no)?limits", "(?:math)?strut"),
        "",
    ),
    _rule("environment", r"\\(?:begin|end)\s*\{(?:align(?:ed)?|gather(?:ed)?|equation|split|center)\*?\}|&(?==)", ""),
    _rule("operator as an index", r"_\s*\{?\s*\\(?:text\{\s*)?(max|min)(?![A-Za-z])\s*\}?", r"_{\1}"),
    _rule(
        "ornament", _command("hfill", "checkmark", "(?:black)?square", "Box", "qed", "therefore") + "|[✓✔∎■□∴✅]", ""
    ),
    _rule("markup", r"</?(?:b|i|u|em|strong|span|p|code)\s*/?>", ""),
    _rule("size", _command("(?:display|text|script)style", *_SIZES), ""),
    _rule("named brace", r"\\([lr])brace(?![A-Za-z])", lambda match: r"\{" if match[1] == "l" else r"\}"),
    _rule("named bar", _command("[lr]?vert"), "|"),
    _rule("colon", r"\\colon(?![A-Za-z])|\\math(?:bin|rel|punct)\s*\{\s*:\s*\}", ":"),
    _rule("named parenthesis", r"\\([lr])paren(?![A-Za-z])", lambda match: "(" if match[1] == "l" else ")"),
    _rule("dots", _command("dots[cbmio]?", "cdots"), r"\\ldots"),
    _rule("size of brackets", r"\\m?(?:left|right)\s*(?=[()\[\]|.\\])\.?", ""),
    # Dress.
    _rule("old font", _command("bf(?:series)?", "rm", "it(?:shape)?", "sf", "tt", "sl", "em") + r"(?!\s*\{)\s*", ""),
    _rule("colour", r"\\color\s*(?:\[[^\]]*\])?\{[^{}]*\}|\\textcolor\s*(?:\[[^\]]*\])?\{[^{}]*\}(?=\s*\{)", ""),
    _rule("frame", rf"(?:{_command(*_FRAMES)}|\\f?colorbox(?:\{{[^{{}}]*\}}){{1,2}}(?=\{{))\s*{_GROUP}", r"{\1}"),
    _rule(
        "font of a formula",
        rf"(?:{_command('(?:math|text)(?:bf|it|rm|sf|tt|normal)', 'text')})\s*"
        rf"(?=\{{\s*-?\s*(?:[\d.]+\s*)?\\(?:[dt]?frac|sqrt|times|cdot|pi|text)(?![A-Za-z])){_GROUP}",
        r"{\1}",
    ),
    _rule("bold letter", r"\\(?:math|text)(?:bf|it|cal)\s*\{\s*([A-Za-z])\s*\}", r" \1 "),
    _rule("font", rf"(?:{_command(*_FONTS)}|\\operatorname\*?(?=\{{(?!{_FUNCTIONS})))\s*\{{", r"\\text{"),
    _rule("font of one sign", rf"(?:{_command(*_FONTS)})\s*(\d+|[A-Za-z](?![A-Za-z]))", r"\\text{\1}"),
    _rule("accent of one sign", r"\\(mathbb|vec|hat|bar|tilde)\s*([A-Za-z])(?![A-Za-z])", r"\\\1{\2}"),
    _rule("nested text", r"\\text\{\s*\\text\{([^{}]*)\}\s*\}", r"\\text{\1}"),
    _rule("power in text", r"(\\text\{[^{}]*\^)\{(-?\d)\}", r"\1\2"),
    _rule(
        "fraction of units",
        r"\\[dtc]?frac\s*\{\s*(\\text\{[^{}]*\}[^{}]*)\}\s*\{\s*(\\text\{[^{}]*\}[^{}]*)\}",
        r"\1/\2",
    ),
    _rule("micro", r"(?:\\mu(?![A-Za-z])|μ)\s*\\text\{\s*", r"\\text{ micro"),
    _rule("micro sign", r"(?<=[\d\s])μ([A-Za-z])(?![A-Za-z])", r"\\text{ micro\1}"),
    _rule("ohm", r"(?<=[\d}\s])\\Omega\s*$|\\text\{\s*\\Omega\s*\}$", r"\\text{ ohm}"),
    _rule("modulus in text", r"\\text\{\s*mod(?:ulo)?\s*\}", r"\\bmod "),
    _rule("text without words", r"\\text\{([^{}]*)\}", _word_or_symbol),
    _rule("mathematics delimiters", r"\\[()\[\]]|\$\$|(?<!\\)\$(?!\s*\d)|(?<!\\)\$(?=[^$]*\$)", ""),
    _rule("Markdown", r"\*\*(?=[^*]+\*\*)|(?<=\S)\*\*$|^\*(?=[^*]+\*$)|(?<=[^*])\*$|`|^_+(?=\w)|(?<=\S)_+$", ""),
    _rule("quotation marks", r'"|``|\'\'|^\'|\'$', ""),
    _rule("heading or the mark of GSM8K", r"^\s*#{1,6}\s*", ""),
    # Synonyms.
    _rule("degree", _command("(?:text)?degree") + r"|\^\s*\{?\s*\\circ\s*\}?|\^\s*\{?o\}?(?![A-Za-z])", r"^\\circ "),
    _rule("percent in text", r"\s*\\text\{\s*(?:per\s?cent(?:age)?|pct)\.?\s*\}", r"\\%"),
    _rule("percent", r"(?<=[\d}])\s*(?:per\s?cent|pct)\b|\s*\\?%", r"\\%"),
    _rule("text with a number", r"^\\text\{\s*(-?[\d.,]+(?::\d\d)?(?:\\%)?)(?=[\s}\\])([^{}\d]*)\}$", r"\1\\text{\2}"),
    _rule("fraction", _command("(?:[dtcs]|nice)frac"), r"\\frac"),
    _rule("binomial", r"\{?([\w+-]+)\s*\\choose(?![A-Za-z])\s*([\w+-]+)\}?", r"\\binom{\1}{\2}"),
    _rule("ratio", r"^(?:\\text\{\s*)?(\d+)\s*(?:\\text\{\s*to\s*\}|\bto\b)\s*(\d+)[\s}]*$", r"\1:\2"),
    _rule(
        "exponent without braces", r"\^\s*((?<=[\dexyzn)}]\^)-\d+|\\frac\s*(?:\d\d|\{[^{}]*\}\s*\{[^{}]*\}))", r"^{\1}"
    ),
    _rule(
        "set builder",
        r"^(?:\\\{)?\s*([A-Za-z])(?:\s*\\in\s*\\mathbb\{R\})?\s*(?:\\mid(?![A-Za-z])|\||:)\s*(?=[^|:]*\1)"
        r"([^|:]*(?:[<>]|\\(?:[lg]e|neq?)(?![A-Za-z]))[^|:]*?)(?:\\\})?$",
        r"\2",
    ),
    _rule(
        "exception",
        r"^([A-Za-z])(\s*(?:[<>]|\\[lg]e(?![A-Za-z]))[^,;]*),\s*\1(?=\s*\\neq?(?![A-Za-z]))",
        r"\1\2 \\land \1",
    ),
    _rule("power of ten behind x", r"(?<=\d)\s*[xX]\s*(?=10\s*\^)", r"\\times "),
    _rule("common logarithm", _command("lg"), r"\\log_{10}"),
    _rule(
        "degrees in a function",
        r"(\\(?:sin|cos|tan|cot|sec|csc)(?:\^\{?\d\}?)?)\s*(\()?\s*(\d+(?:\.\d+)?)\s*\^\\circ\s*(?(2)\))",
        r"\1(\\frac{\3\\pi}{180})",
    ),
    _rule("decimal exponent", r"\^\{\s*(-?)\s*(\d*)\.(\d+)\s*\}", _exponent),
    _rule(
        "argument of a function",
        rf"(\\(?:{_FUNCTIONS})(?:\^\{{?\d\}}?)?)\s*(\d*(?:[a-z]|\\(?:alpha|beta|gamma|theta|phi|pi))(?![A-Za-z]))\s*"
        rf"(?=\\cdot|\\times|\*|\\(?:{_FUNCTIONS}))",
        r"\1(\2)",
    ),
    _rule("comparison", _command("[lg](?:eqslant|eqq|eq|t|e)") + r"\s*|[<>]=", _comparison),
    _rule("angle brackets", r"\\langle\s*(.*?)\s*\\rangle", r"(\1)"),
    _rule("reversed brackets", r"([\[\]])\s*([^\[\]()]*[,;][^\[\]()]*?)\s*([\[\]])", _interval),
    _rule("empty set", _command("varnothing", "O") + r"|\\text\{\s*empty set\s*\}|\\\{\s*\\\}", r"\\emptyset "),
    _rule("infinity", r"\\?\b(?:[Ii]nfinity|infty|infin|inf|oo)\b\s*", r"\\infty "),
    _rule("imaginary unit", _command("[ij]math"), "i"),
    _rule("product sign", _command("ast"), r"\\cdot "),
    _rule("alternative", _command("lor", "vee"), r"\\text{ or }"),
    _rule("comma in braces", r"(?<=\d)\{,\}(?=\d{3}(?!\d))", ","),
    _rule("decimal comma in braces", r"(?<=\d)\{,\}(?=\d)", "."),
    # Notations of programs.
    _rule("library", r"\b(?:np|numpy|math|sympy|sp|cmath)\.(?=[A-Za-z])", ""),
    _rule("power", r"\*\*", "^"),
    _rule("function", rf"(?<![\\A-Za-z])({_FUNCTIONS})(?=\s*(?:\(|\\|[a-zα-ω]\b|\d))", r"\\\1"),
    _rule("absolute value", r"(?<![\\A-Za-z])abs\(([^()]*)\)", r"|\1|"),
    _rule("root", r"(?<![\\A-Za-z])\\?sqrt\s*\(([^()]*(?:\([^()]*\)[^()]*)*)\)", r"\\sqrt{\1}"),
    _rule("root without parentheses", r"(?<![\\A-Za-z])sqrt(?=\s*[\d{])", r"\\sqrt"),
    _rule("pi", r"(?<![\\A-Za-z])pi(?![A-Za-z])|\\text\{\s*pi\s*\}", r"\\pi "),
    _rule("power of ten", rf"(?<![\w.\\])([+-]?{_NUMBER})\s*[eE]\s*([+-]?\d+)(?![\w.])", r"\1\\times 10^{\2}"),
    # Roots.
    _rule("root sign", r"([√∛∜])\s*(\([^()]*\)|\d+(?:\.\d+)?|[A-Za-z]|\{[^{}]*\})", _root),
    _rule("root of a digit", r"\\sqrt\s*(\d)", r"\\sqrt{\1}"),
    # What leads up to an answer, and what follows it.
    _rule("arrow", r"^\s*(?:" + _command("(?:Long)?[Rr]ightarrow", "implies", "to") + r"|⇒|⟹)\s*", ""),
    _rule("option", r"^(?:\\text\{\s*)?(?:option|choice)\s+(\(?[A-J]\)?)\s*\}?$", r"\1", re.I),
    _rule(
        "label in text",
        rf"^\s*\\text\{{\s*(?:{_LABEL}\s+)*{_LABEL}(?:\s*[:=]|(?<=\bis)\s)\s*([^{{}}]+)\}}$",
        r"\\text{\1}",
        re.I,
    ),
    _rule("leading text", rf"^\s*\\text\{{\s*(?:{_LABEL}[\s,]*)+[:=]?\s*\}}\s*[:=]?\s*(?=\S)", "", re.I),
    _rule(
        "leading clause",
        r"^\s*\\text\{(?![^{}]*\b(?:not|least|most|no|less|more|than)\b)[^{}]*\b(?:is|are|equals?)\s*\}\s*(?=[\d\\($\[-])",
        "",
    ),
    _rule("leading words", rf"^\s*(?:{_LABEL}\s+)*{_LABEL}\s*(?:[:=]|\bis\b:?)\s*(?=\S)", "", re.I),
    _rule("label", r"^\s*\\text\{[^{}]*[:=]\s*\}\s*(?=\S)|^\s*[A-Za-z][A-Za-z ]{2,40}:\s*(?=\S)|^\s*[:=]\s*", ""),
    _rule("named total", r"^\s*\\text\{[^{}]*\}\s*=\s*(?=\S)", ""),
    _rule("named tuple", r"^\s*\(\s*[A-Za-z]\w*(?:\s*,\s*[A-Za-z]\w*)+\s*\)\s*=\s*(?=\()", ""),
    _rule("approximation", rf"^\s*(?:[A-Za-z]\w*\s*)?(?:{_command('approx', 'sim(?:eq)?', 'cong', 'doteq')}|~)\s*", ""),
    _rule("congruence", r"^\s*[A-Za-z]\w*\s*\\equiv(?![A-Za-z])\s*", ""),
    _rule("digits that go on", r"(?<![\d.])(\d+)\.(\d*?)(\d+?)\3{2,}(?:\.{3}|\\[lc]?dots)", r"\1.\2\\overline{\3}"),
    _rule("trailing mark", r"(?:\s|\\ |[,;:!](?<!\d!)(?<![A-Za-z)}]!)|\\\\|(?<!\.)\.)+$", ""),
    _rule("trailing mark in text", r"\\text\{([^{}]*?)[.,;:!]+\s*\}$", r"\\text{\1}"),
    # Numbers.
    _rule("sign in braces", r"\{\s*([-+:=])\s*\}", r"\1"),
    _rule("stray backslash", r"(?<!\\)\\(?=\d)", ""),
    _rule("thousands with points", r"(?<![\d.,])(\d{1,3}(?:\.\d{3}){2,})(?![\d.])", _digits),
    _rule("thousands with spaces", r"(?<![\d.,^_\\}])([1-9]\d{0,2}(?: \d{3})+)(?! ?\d)", _digits),
    _rule("thousands with apostrophes", r"(?<![\d.,])(\d{1,3}(?:'\d{3})+)(?!\d)", _digits),
    _rule("decimal comma behind thousands", r"^(-?\d{4,}),(\d{1,2})$", r"\1.\2"),
    _rule("point behind a number", r"(?<=\d)\.(?![\d.\\])", ""),
    _rule("point before a number", r"(?<![\d.])\.(?=\d)", "0."),
    _rule("mixed number", r"(?<![\d.}^_/*+\\])(\d+)\s+(\d+)\s*/\s*(\d+)(?![\d.])", r"\1\\frac{\2}{\3}"),
    _rule("dotted digits", r"(?<![\d.])(\d+)\.(\d*)(\\dot\s*\{?\d\}?(?:\d*\\dot\s*\{?\d\}?)?)", _dotted),
    _rule("repeated digits", r"(?<![\d.])(\d+)\.(\d*)\\(?:overline|bar)\s*\{?(\d+)\}?", _repeating),
    _rule("base behind parentheses", r"\(([\dA-F]+)\)(?=_\{?\d)", r"\1"),
    # Braces.
    _rule("set in plain braces", r"^\s*\{\s*\{?([^{}]+,[^{}]+)\}?\s*\}\s*$", _set),
)
_ROOTS = {"√": "", "∛": "[3]", "∜": "[4]"}


def normalize(answer: str) -> str:
    """The same answer in plain LaTeX, without what is only presentation."""
    text = unicodedata.normalize("NFKC", _runs(answer).translate(_SIGNS)).translate(_SIGNS)
    for _ in range(4):
        before = text
        for rule in RULES:
            text = rule.pattern.sub(rule.replacement, text)
        text = _joined(_unwrapped(text.strip()))
        if text == before:
            break
    return text


_JOINT = re.compile(r"\s*,?\s*\\text\{\s*(and|or)\s*\}\s*|\s*,?\s+(and|or)\s+|\s*(?<=[)}\]])(and|or)(?=[(\\\[])\s*")


def _joined(text: str) -> str:
    r"""`2 and 3` as `2, 3`, and conditions that hold together with `\land`; words stay as they are."""
    pieces = _JOINT.split(text)
    values, joints = pieces[::4], ["and" in pieces[at : at + 3] for at in range(1, len(pieces), 4)]
    if (
        len(values) < 2
        or not all(values)
        or any(re.match(r"(?:\\text\{)?\s*(?:[A-Za-z]{2}|a\s)", value) for value in values)
    ):
        return text
    conditions = all(re.search(r"[<>]|\\(?:[lg]e|neq?)(?![A-Za-z])", value) for value in values)
    values = [value.replace(",", "") if re.fullmatch(r"-?\d{1,3}(?:,\d{3})+", value) else value for value in values]
    return (r" \land " if conditions and all(joints) else ", ").join(values)


def _vulgar(match: re.Match) -> str:
    """`½` as a fraction, apart from the digit before it in `1½`."""
    return r"\frac{{{}}}{{{}}}".format(*unicodedata.normalize("NFKC", match[0]).split("⁄"))


def _runs(text: str) -> str:
    r"""`x²³` as `x^{23}`, `x₁` as `x_{1}`, and `3 m²` with its unit in `\text{…}`."""
    text = re.sub(r"(?<=\d)\s+(m|in)(?=[²³])", r"\\text{ \1}", text)
    text = re.sub("[¼½¾⅐-⅞]", _vulgar, text)
    text = re.sub("([⁰-⁹²³¹]+)⁄([₀-₉]+)", lambda m: unicodedata.normalize("NFKC", rf"\frac{{{m[1]}}}{{{m[2]}}}"), text)
    for table, sign in ((_RAISED, "^"), (_LOWERED, "_")):
        text = re.sub(f"[{''.join(table)}]+", lambda m, t=table, s=sign: f"{s}{{{''.join(t[c] for c in m[0])}}}", text)
    return text


def _unwrapped(text: str) -> str:
    """Without braces around the whole, which show nothing in LaTeX, and without those around one number."""
    while text.startswith("{") and text.endswith("}") and closing(text, 0) == len(text) - 1:
        text = text[1:-1].strip()
    return re.sub(r"(?<![\\}\]\w^_)])\{(-?\d+(?:\.\d+)?)\}(?!\s*\{)", r"\1", text)


def closing(text: str, start: int) -> int:
    """Index of the brace that closes the one at `start`; −1 if there is none."""
    depth = 0
    for brace in re.finditer(r"\\[{}\\]|[{}]", text[start:]):
        depth += {"{": 1, "}": -1}.get(brace.group(), 0)
        if depth == 0:
            return start + brace.start()
    return -1


def parts(text: str) -> list[str]:
    """The elements of a list: split at the commas and semicolons outside all brackets."""
    found, depth, start = [], 0, 0
    for mark in re.finditer(r"\\[{}()\[\]\\]|[{}()\[\],;]", text):
        sign = mark.group()[-1]
        if sign in "{([":
            depth += 1
        elif sign in "})]":
            depth -= 1
        elif depth == 0 and sign in ",;":
            found.append(text[start : mark.start()].strip())
            start = mark.end()
    return [*found, text[start:].strip()]


def wrapped(text: str, opening: str, closing: str) -> str | None:
    """What stands between brackets that enclose the whole text; None if none do."""
    text = text.strip()
    if not (text.startswith(opening) and text.endswith(closing) and len(text) >= len(opening) + len(closing)):
        return None
    inside, depth = text[len(opening) : -len(closing)], 0
    for mark in re.finditer(r"\\[{}()\[\]]|[()\[\]]", inside):
        depth += 1 if mark.group()[-1] in "{([" else -1
        if depth < 0:
            return None
    return inside
