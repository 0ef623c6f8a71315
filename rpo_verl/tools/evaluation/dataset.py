"""Rows of veRL data sets → distinct questions."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

from rpo_verl.tools.errors import CommandError


@dataclass(frozen=True)
class Question:
    """One question of an evaluation."""

    key: str
    """Hex digest of messages and ground truth, independent of the model and the order of the rows."""

    data_source: str
    """veRL's name of the data set. Results are grouped by it."""

    messages: list[dict[str, Any]]
    row: dict[str, Any]
    """The whole data row, for the reward function."""


def distinct_questions(rows: Iterable[tuple[Any, dict[str, Any]]], limit: int | None = None) -> list[Question]:
    """Find the distinct questions, in the order of the rows.

    veRL's validation sets repeat rows to get several answers. Here the number of samples decides that.

    Args:
        rows: chat messages and data rows.
        limit: maximum number of questions per data set.

    Raises:
        CommandError: if a row lacks its data set, ground truth or messages, or there is no row.
    """
    found: dict[str, Question] = {}
    counts: dict[str, int] = {}
    for number, (messages, row) in enumerate(rows, start=1):
        source, truth = row.get("data_source"), (row.get("reward_model") or {}).get("ground_truth")
        if not isinstance(source, str) or not source:
            raise CommandError(
                f"row {number} of --data has data_source={source!r}; it must be the name of the data set"
            )
        if truth is None:
            raise CommandError(f"row {number} of --data ({source}) has no reward_model.ground_truth")
        if not isinstance(messages, list) or not messages:
            raise CommandError(f"row {number} of --data ({source}): the prompt is not a list of chat messages")
        content = json.dumps([source, messages, truth], sort_keys=True, default=str)
        key = blake2b(content.encode(), digest_size=16).hexdigest()
        if key not in found and (limit is None or counts.get(source, 0) < limit):
            counts[source] = counts.get(source, 0) + 1
            found[key] = Question(key, source, messages, row)
    if not found:
        raise CommandError("--data has no rows")
    return list(found.values())


def digest(questions: Iterable[Question]) -> str:
    """Hex digest of a set of questions, independent of their order."""
    return blake2b("".join(sorted(question.key for question in questions)).encode(), digest_size=8).hexdigest()


def sample_seed(seed: int, question: str, index: int) -> int:
    """The seed of one sample: 63 bits, a function of these three only.

    It does not depend on interruptions, on the number of samples, or on the model.
    """
    content = f"{seed}\0{question}\0{index}".encode()
    return int.from_bytes(blake2b(content, digest_size=8).digest(), "little") >> 1
