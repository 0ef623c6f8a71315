"""Finds the place of the final answer in a response: a box, `<answer>`, a line that is marked, or the last sentence."""

import re
from collections import deque
from decimal import Decimal
from typing import NamedTuple

from rpo_verl.rewards.boxed import last_boxed
from rpo_verl.rewards.quantities import SCALES


class Found(NamedTuple):
    """The text of an answer, and whether all of it is the answer; otherwise math-verify looks for one in it."""

    text: str
    whole: bool


_THOUGHT = re.compile(r"<(think|thinking|thought|reasoning)>|</(?:think|thinking|thought|reasoning)>|◁/?think▷")
_TAG = re.compile(r"<answer>(.*?)(?:</answer>|\Z)", re.DOTALL | re.IGNORECASE)
_END = re.compile(r"<\|[^|<>]*\|>|</s>|<eos>|</?answer>", re.IGNORECASE)
_STARS = r"(?:\*\*|\*|__)?"
#: What announces an answer; the last announcement counts.
_MARK = re.compile(
    "|".join(
        (
            r"^[ \t>*]*#{4}[ \t]*(?=\S)",
            rf"\banswers?\b{_STARS}[ \t]*(?:[:：=]|\b(?:is|are|(?:would|will|should|must) be)\b[ \t]*:?){_STARS}",
            r"\banswer\b[^.\n:=]{1,60}?\b(?:is|are)\b[ \t]*:?",
            r"\b(?:correct|right|best)[ \t]+(?:option|choice)\b[^.\n:=]{0,40}?(?:[:=]|\bis\b)[ \t]*:?",
            r"\bI[ \t]+(?:choose|select|pick)\b",
            r"^[ \t>#*]*final[ \t]+answer[ \t*:]*$",
        )
    ),
    re.IGNORECASE | re.MULTILINE,
)
#: Where a sentence ends: not within a number, and not after a short abbreviation.
_SENTENCE_END = re.compile(
    r"(?<!\b[A-Z])(?<!\b[ap]\.m)(?<!\bRs)(?<!\bsq)[.!?](?=[\s*\"')\]]+(?:[A-Z(*#\\$]|$)|\s*$)|\n"
)
#: What follows an answer in the same sentence.
_AFTER = re.compile(
    r"(?:,|;|\s[-–—])\s*(?:since|because|as|so|which|where|for|but|thus|hence|with|when|given|if|i\.e|that|not|rather|the|all)\b"
    r"|\s(?:since|because|which|given that|as required|as desired|and\s+(?:we|this|so|it))\b"
    r"|\s\((?![^()]*,)[A-Za-z][^()]+\)",
    re.IGNORECASE,
)
_FILLER = re.compile(
    r"^(?:\s|\*\*|:|=|(?:simply|clearly|therefore|thus|then|hence|just|exactly|indeed|precisely|equal to|given by|"
    r"option|choice|the|approximately|about|roughly|of course|found to be)\b)+",
    re.IGNORECASE,
)
#: Words around a number that make it another statement, not the answer.
_HEDGE = re.compile(r"\b(?:least|most|more|less|than|not|between|or|to|from|no|until|under|over)\b", re.IGNORECASE)
#: A last sentence that is an answer as a whole: a letter, something in bold, or a statement on a choice.
_ALONE = re.compile(
    r"\*\*([^*\n]+)\*\*\.?|\**(?:option\s+|choice\s+)?(\(?[A-J]\)?)\**\.?"
    r"|(?:.*[\s,])?(?:option|choice)\s+\**(\(?[A-J]\)?)\**\s+is\s+(?:the\s+)?(?:correct|right|best)\b[^\n]*",
    re.IGNORECASE,
)
_PLAIN = re.compile(r"(?<![\w.,\\}])(-?\d+)\s+(\d+)\s*/\s*(\d+)(?![\d/])")


#: Characters that math-verify searches at most.
_SEARCHED = 4096
_EITHER = re.compile(
    r"(?<![\w.])-?\d[\d.,/]*\s+or\s+-?\d[\d.,/]*(?!\w)"
    r"|\b([a-z])\s*=\s*-?\d[\d./]*(?:\s+(?:and|or)|,)\s+\1\s*=\s*-?\d[\d./]*(?<!\.)(?!\w)"
)
_SCALED = re.compile(r"(?<![\w.,\\}])(-?\d[\d,]*(?:\.\d+)?)\s+(thousand|million|billion|trillion)\b")


def final_answer(response: str, tail_chars: int, read_unfinished_thinking: bool) -> Found | None:
    """The place of the answer in a response; None if there is none.

    In order: the last box or `<answer>`, whichever ends later; what stands behind the last `####`, `Answer:` or
    `the answer is`; the last sentence.

    Args:
        tail_chars: characters at the end of the response that are read.
        read_unfinished_thinking: read an answer in a `<think>` that was never closed.
    """
    text = _spoken(response, read_unfinished_thinking)
    if text is None:
        return None
    text = text[-tail_chars:]
    tag = _last(_TAG, text)
    if tag and last_boxed(text[tag.end() :]) is None:
        inner = last_boxed(tag[1])
        return _found(tag[1] if inner is None else inner)
    box = last_boxed(text)
    if box is not None:
        return _found(box)
    text = _END.sub(" ", text).rstrip()
    mark = _last(_MARK, text)
    if mark:
        sentence = _first_sentence(text[mark.end() :])
        answer = _FILLER.sub("", _AFTER.split(sentence, maxsplit=1)[0]).strip()
        if answer:
            return Found(answer, True) if _is_answer(answer) else _found_in(sentence)
    sentence = _last_sentence(text).strip()
    alone = _ALONE.fullmatch(sentence)
    return _found(next(filter(None, alone.groups()))) if alone else _found_in(sentence)


def _spoken(response: str, read_unfinished_thinking: bool) -> str | None:
    """What follows the thinking; None if that never ended."""
    tag = _last(_THOUGHT, response)
    if tag is None:
        return response
    opened = tag[1] is not None or tag[0] == "◁think▷"
    return response[tag.end() :] if not opened or read_unfinished_thinking else None


def _last(pattern: re.Pattern, text: str) -> re.Match | None:
    return next(iter(deque(pattern.finditer(text), maxlen=1)), None)


def _found(text: str) -> Found | None:
    return Found(text.strip(), True) if text.strip() else None


def _found_in(sentence: str) -> Found | None:
    sentence = re.sub(r"\\(?=\$\s*\d)", "", sentence[-_SEARCHED:]).strip()
    if either := _EITHER.search(sentence):
        return Found(either[0], True)
    sentence = _SCALED.sub(_scaled, sentence)
    return Found(_PLAIN.sub(r"$\1\\frac{\2}{\3}$", sentence), False) if sentence else None


def _scaled(match: re.Match) -> str:
    """`36 million` in digits."""
    return f"{Decimal(match[1].replace(',', '')) * SCALES[match[2]]:f}"


def _first_sentence(text: str) -> str:
    text = text.lstrip(" \t\n*_:")
    end = _SENTENCE_END.search(text)
    return text[: end.start()] if end else text


def _last_sentence(text: str) -> str:
    last = len(text.rstrip(" \n\t*_\"')]`-$\\"))
    return text[max((end.end() for end in _SENTENCE_END.finditer(text) if end.end() < last), default=0) :]


def _is_answer(text: str) -> bool:
    """Whether a text is an answer itself: a formula, a number with a unit, or a few words without a number."""
    if re.search(r"[\\$]|^[-+(\[{*`]*[\d√]|^\(?[A-Za-z]\w?\s*[=<>)^+*/-]|^[-+]?[£€₹]", text):
        return not re.match(r"[A-Za-z]+ [A-Za-z]+ [A-Za-z]+ [^=]*[\d$]", text)
    return not re.search(r"\d", text) or bool(_HEDGE.search(text)) or len(text.split()) <= 2
