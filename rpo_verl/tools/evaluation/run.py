"""The samples that are missing → generated, scored and stored, one by one as they finish."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rpo_verl.tools.evaluation.dataset import Question, sample_seed
from rpo_verl.tools.evaluation.errors import EvaluationError
from rpo_verl.tools.evaluation.store import Sample, SampleStore


@dataclass(frozen=True)
class Request:
    """One answer to be generated."""

    question: Question
    index: int
    seed: int


@dataclass(frozen=True)
class Answer:
    """One answer as it was generated."""

    text: str
    tokens: int
    truncated: bool


Generate = Callable[[list[Request]], Iterable[tuple[Request, Answer]]]
"""Answers requests, in any order."""

Score = Callable[[str, Mapping[str, Any]], tuple[float, bool]]
"""From text and data row to score and verdict."""


def missing_requests(questions: Sequence[Question], store: SampleStore, samples: int, seed: int) -> list[Request]:
    """What is not in the store yet; a question's samples stand together, to share their prompt's KV cache."""
    return [
        Request(question, index, sample_seed(seed, question.key, index))
        for question in questions
        for index in range(samples)
        if (question.key, index) not in store
    ]


def finish(
    requests: list[Request], store: SampleStore, generate: Generate, score: Score, keep_texts: bool
) -> Iterator[Sample]:
    """Store each requested sample as soon as it is there, and yield it; `generate` is left alone if none is missing.

    Raises:
        EvaluationError: if the reward function raises, or returns something else than a finite number. What is
            finished stays in the store.
    """
    for request, answer in generate(requests) if requests else ():
        question = request.question
        where = f"sample {request.index} of question {question.key} ({question.data_source})"
        way_on = "What is finished is kept: mend the function, and the same command goes on"
        try:
            number, correct = score(answer.text, question.row)
        except Exception as error:
            raise EvaluationError(f"the reward function ended with {error!r} on {where}. {way_on}") from error
        if not math.isfinite(number):
            raise EvaluationError(f"the reward function returned {number!r} for {where}. {way_on}")
        sample = Sample(
            data_source=question.data_source,
            question=question.key,
            index=request.index,
            tokens=answer.tokens,
            truncated=answer.truncated,
            score=number,
            correct=correct,
            text=answer.text if keep_texts else None,
        )
        store.append(sample)
        yield sample
