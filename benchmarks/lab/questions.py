"""Questions of the tiny reasoner's task, their reward, and the order in which training visits them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from benchmarks.tiny import compute_score, prompt_ids, task


@dataclass(frozen=True)
class Question:
    """One question of the task."""

    ids: tuple[int, ...]
    """(q,) token ids, chat template applied."""

    answer: str


def draw(tokenizer: PreTrainedTokenizerBase, seed: int, steps: int, count: int) -> list[Question]:
    """Draw questions of `steps` operations: for a seed the same ones that prepare_data.py writes to train.parquet."""
    return [
        Question(tuple(prompt_ids(tokenizer, problem.question)), problem.answer)
        for problem in islice(task.generate(seed, steps), count)
    ]


def reward(tokenizer: PreTrainedTokenizerBase, question: Question, response: np.ndarray) -> float:
    """The task's reward of a response (t,), decoded as veRL decodes it."""
    return compute_score("tiny_reasoner", tokenizer.decode(response, skip_special_tokens=True), question.answer)


def states_answer(tokenizer: PreTrainedTokenizerBase, response: np.ndarray) -> bool:
    """Whether the reward finds a final answer in a response (t,), right or wrong; where not, its format is at fault."""
    _, mark, answer = tokenizer.decode(response, skip_special_tokens=True).rpartition("#")
    return bool(mark) and answer.strip().isdigit()


def overlong_penalty(length: int, max_response_length: int, buffer: int) -> float:
    """DAPO's soft penalty on a long response, as veRL's reward manager has it, with a factor of 1.

    Args:
        length: tokens of the response.
        max_response_length: tokens that a response may have.
        buffer: tokens before that limit in which the penalty grows from 0 to -1; 0 switches it off.
    """
    return min(0.0, (max_response_length - buffer - length) / buffer) if buffer else 0.0


class Visits:
    """Visits all questions once an epoch, each epoch in another order.

    Args:
        questions: those to train on.
        seed: of the orders.
    """

    def __init__(self, questions: Sequence[Question], seed: int) -> None:
        self._questions, self._generator = questions, torch.Generator().manual_seed(seed)
        self._ahead: list[int] = []
        self.started = 0
        """Epochs that were begun."""
        self.skipped = 0
        """Visits that were skipped."""

    def take(self, count: int, skip: Callable[[Question], bool] = lambda question: False) -> list[Question]:
        """The next `count` questions that are not to be skipped; an epoch may begin among them.

        No more than an epoch is skipped in one call.
        """
        taken, skipped = [], 0
        while len(taken) < count:
            if not self._ahead:
                self._ahead = torch.randperm(len(self._questions), generator=self._generator).tolist()
                self.started += 1
            question = self._questions[self._ahead.pop()]
            if skipped < len(self._questions) and skip(question):
                skipped += 1
            else:
                taken.append(question)
        self.skipped += skipped
        return taken
