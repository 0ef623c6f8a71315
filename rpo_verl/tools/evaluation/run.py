"""Missing samples → generated, scored and stored, one by one as they finish."""

import math
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rpo_verl.tools.errors import CommandError
from rpo_verl.tools.evaluation.dataset import Question, sample_seed
from rpo_verl.tools.evaluation.samples import Sample, SampleStore
from rpo_verl.tools.offline.data import load_questions
from rpo_verl.tools.offline.engine import Sampling, start_vllm, stream_answers
from rpo_verl.tools.offline.scoring import Score


@dataclass(frozen=True)
class Request:
    """One answer to generate."""

    question: Question
    index: int
    seed: int


@dataclass(frozen=True)
class Answer:
    """One generated answer."""

    text: str
    tokens: int
    truncated: bool


Generate = Callable[[list[Request]], Iterable[tuple[Request, Answer]]]
"""Answers requests, in any order."""


def missing_requests(questions: Sequence[Question], store: SampleStore, samples: int, seed: int) -> list[Request]:
    """The samples that the store lacks. Those of a question are adjacent and share their prompt's KV cache."""
    return [
        Request(question, index, sample_seed(seed, question.key, index))
        for question in questions
        for index in range(samples)
        if (question.key, index) not in store
    ]


def generate_with_vllm(
    requests: list[Request],
    model: str,
    template_options: Mapping[str, Any],
    sampling: Sampling,
    engine: Mapping[str, Any],
) -> Iterator[tuple[Request, Answer]]:
    """Answer requests with vLLM offline, and yield them in the order in which they finish.

    Questions become token ids as in training. None is truncated: vLLM is started for the longest.

    Args:
        requests: at least one.
        model: folder or hub id.
        template_options: veRL's `data.apply_chat_template_kwargs`.
        sampling: the same for every request. Only the seed is the request's own.
        engine: arguments of `start_vllm`.

    Raises:
        CommandError: if vLLM refuses the options, such as more tokens than the model has positions for.
    """
    tokenizer, builder = load_questions(model, sys.maxsize, template_options, engine["trust_remote_code"])
    prompts = [builder.ids(request.question.messages) for request in requests]
    parameters = [sampling.parameters(request.seed) for request in requests]
    longest = max(map(len, prompts))
    try:
        llm = start_vllm(model, max_model_len=longest + sampling.max_response_length, **engine)
    except ValueError as error:
        raise CommandError(
            f"vLLM does not start for questions of up to {longest} tokens and --max-response-length="
            f"{sampling.max_response_length}: {error}"
        ) from error
    for position, ids, truncated, _ in stream_answers(llm, prompts, parameters):
        text = tokenizer.decode(ids, skip_special_tokens=True)
        yield requests[position], Answer(text, len(ids), truncated)


def finish(
    requests: list[Request], store: SampleStore, generate: Generate, score: Score, keep_texts: bool
) -> Iterator[Sample]:
    """Store and yield each requested sample as soon as it finishes. Without requests, `generate` is not called.

    Raises:
        CommandError: if the reward function raises, or returns a number that is not finite. Finished samples stay in
            the store.
    """
    for request, answer in generate(requests) if requests else ():
        question = request.question
        where = f"sample {request.index} of question {question.key} ({question.data_source})"
        fix = "Finished samples are kept: repair the function, and call the same command again"
        try:
            number, correct = score(answer.text, question.row)
        except Exception as error:
            raise CommandError(f"the reward function ended with {error!r} on {where}. {fix}") from error
        if not math.isfinite(number):
            raise CommandError(f"the reward function returned {number!r} for {where}. {fix}")
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
