"""The experience cache: one answer per question."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class CachedAnswer:
    """The answer kept for a question."""

    tokens: np.ndarray
    """(l,) int32 response token ids without the final EOS."""

    correct: bool
    reward: float
    """Base reward `r` of the response it came from."""

    step: int
    """Training step whose rollout wrote its last tokens: the age of the policy behind it."""


class ExperienceCache:
    """Maps question keys to answers; a correct answer gives way to a wrong one only if `keep_correct` is off."""

    def __init__(self, keep_correct: bool = True) -> None:
        self.keep_correct = keep_correct
        self._answers: dict[bytes, CachedAnswer] = {}
        self._token_bytes = 0

    def __len__(self) -> int:
        return len(self._answers)

    def get(self, key: bytes) -> CachedAnswer | None:
        """The question's answer, or None if it has none."""
        return self._answers.get(key)

    def put(self, key: bytes, answer: CachedAnswer) -> bool:
        """Make `answer` the question's answer; False if `keep_correct` keeps the old one."""
        old = self._answers.get(key)
        if old is not None:
            if self.keep_correct and old.correct and not answer.correct:
                return False
            self._token_bytes -= old.tokens.nbytes
        self._answers[key] = answer
        self._token_bytes += answer.tokens.nbytes
        return True

    def metrics(self) -> dict[str, float]:
        """Entries, bytes of cached tokens, and the share of entries that are correct."""
        correct = sum(answer.correct for answer in self._answers.values())
        return {
            "rpo/cache/entries": len(self._answers),
            "rpo/cache/token_bytes": self._token_bytes,
            "rpo/cache/correct_share": correct / len(self._answers) if self._answers else 0.0,
        }
