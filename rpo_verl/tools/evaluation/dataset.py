"""Rows of veRL data sets → distinct questions."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

from rpo_verl.tools.evaluation.errors import EvaluationError


@dataclass(frozen=True)
class Question:
    """One question of an evaluation."""

    key: str
    """Hex digest of what is asked and what the answer is: the same for every model and every order of the rows."""

    data_source: str
    """veRL's name of the data set; results are grouped by it."""

    messages: list[dict[str, Any]]
    row: dict[str, Any]
    """The whole data row, for the reward function."""


def distinct_questions(rows: Iterable[tuple[Any, dict[str, Any]]], limit: int | None = None) -> list[Question]:
    """Every question once, in the order of the rows.

    Data sets made for veRL's validation repeat each row to get several answers; here the number of samples says how
    many there are.

    Args:
        rows: chat messages and the row they come from.
        limit: only the first so many of each data set.

    Raises:
        EvaluationError: if a row lacks what an evaluation needs, or there is none.
    """
    found: dict[str, Question] = {}
    counts: dict[str, int] = {}
    for number, (messages, row) in enumerate(rows, start=1):
        source, truth = row.get("data_source"), (row.get("reward_model") or {}).get("ground_truth")
        if not isinstance(source, str) or not source:
            raise EvaluationError(f"row {number} of --data has data_source={source!r}; each needs the name of its set")
        if truth is None:
            raise EvaluationError(f"row {number} of --data ({source}) has no reward_model.ground_truth")
        if not isinstance(messages, list) or not messages:
            raise EvaluationError(f"row {number} of --data ({source}): the prompt is no list of chat messages")
        content = json.dumps([source, messages, truth], sort_keys=True, default=str)
        key = blake2b(content.encode(), digest_size=16).hexdigest()
        if key not in found and (limit is None or counts.get(source, 0) < limit):
            counts[source] = counts.get(source, 0) + 1
            found[key] = Question(key, source, messages, row)
    if not found:
        raise EvaluationError("--data has no rows")
    return list(found.values())


def digest(questions: Iterable[Question]) -> str:
    """Hex digest of a set of questions, whatever their order."""
    return blake2b("".join(sorted(question.key for question in questions)).encode(), digest_size=8).hexdigest()


def sample_seed(seed: int, question: str, index: int) -> int:
    """The seed of one sample: 63 bits that depend on nothing but these three.

    So a sample draws the same random numbers wherever an interruption falls, however many samples there are, and for
    every model that is asked.
    """
    content = f"{seed}\0{question}\0{index}".encode()
    return int.from_bytes(blake2b(content, digest_size=8).digest(), "little") >> 1
