"""Compares an answer with the ground truth by math-verify.

What a policy writes can keep a computer algebra system busy for ever or fill the memory, so these functions run in
processes that may be killed (`workers.py`).
"""

import logging
import re

try:
    from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse, verify
except ImportError as error:
    raise ImportError(
        "The reward function of rpo_verl needs math-verify and pebble: pip install 'rpo-verl[math]'."
    ) from error

#: math-verify warns of the time limit that is not its own here.
logging.getLogger("math_verify").setLevel(logging.ERROR)

#: Characters of an answer that are passed on to be logged.
_SHOWN = 200

_BOXED = [LatexExtractionConfig(boxed_match_priority=0)]
_ANYWHERE = [LatexExtractionConfig(), ExprExtractionConfig()]
_SCIENTIFIC = re.compile(r"([+-]?\d+(?:\.\d+)?)[eE]([+-]?\d+)")
_PERCENT = re.compile(r"([^%$]+?)\s*\\?%")


def unreadable(ground_truth: str) -> bool:
    """Whether a ground truth has no meaning: nothing in it, or LaTeX that breaks off.

    It is also compared once, so that one whose value cannot be computed uses up the time here, and not with every
    response.
    """
    readings = _read(ground_truth)
    verify(readings, _read("7"), timeout_seconds=None)
    only_text = all(isinstance(reading, str) for reading in readings)
    return only_text and (not readings or ground_truth.count("{") != ground_truth.count("}"))


def compare(ground_truth: str, text: str, boxed: bool) -> tuple[bool, str | None]:
    """Whether `text` gives the answer `ground_truth`.

    Args:
        boxed: `text` is the content of a box; otherwise math-verify looks for an answer in it.

    Returns:
        the verdict, and the answer as it was read, None if there is none.
    """
    readings = _read(text) if boxed else parse(text, _ANYWHERE, parsing_timeout=None)
    if not readings:
        return False, None
    answer = text if boxed else next((reading for reading in readings if isinstance(reading, str)), "")
    return verify(_read(ground_truth), readings, timeout_seconds=None), answer[:_SHOWN]


def _read(answer: str) -> list:
    """Readings of an answer; 4.5e33 is a number here and not Euler's, 50% is a percentage."""
    if match := _SCIENTIFIC.fullmatch(answer.strip()):
        text = rf"\boxed{{{match[1]}\times 10^{{{match[2]}}}}}"
    elif match := _PERCENT.fullmatch(answer.strip()):
        text = rf"${match[1]}$\%"
    else:
        text = rf"\boxed{{{answer}}}"
    return parse(text, _BOXED, parsing_timeout=None)
