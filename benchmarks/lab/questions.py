"""Questions, the order in which training visits them, and DAPO's penalty on long responses."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Question:
    """One question of a task."""

    ids: tuple[int, ...]
    """(q,) token ids, chat template applied."""

    answer: str
    """What the task's reward compares a response with."""


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
