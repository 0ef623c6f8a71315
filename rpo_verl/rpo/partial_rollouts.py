"""RPO's two decisions about a question: what its next group starts from, and what the cache learns from the group."""

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from rpo_verl.rpo import draws
from rpo_verl.rpo.cache import CachedAnswer, ExperienceCache
from rpo_verl.rpo.cut import adapted_dropped, draw_dropped, prefix_length
from rpo_verl.rpo.difficulty import NO_EVIDENCE, Evidence, mean_rate, rate
from rpo_verl.rpo.options import RPOConfig
from rpo_verl.rpo.selection import choose_response

Kind = Literal["full", "prefixed", "refreshed"]

_NO_TOKENS = np.empty(0, dtype=np.int32)


@dataclass(frozen=True, slots=True)
class Start:
    """What the group of one question starts from in one step; all its members share it."""

    key: bytes
    """The question."""

    kind: Kind
    """`full`: nothing cached; `prefixed`: a cached prefix; `refreshed`: cached, but a full rollout all the same."""

    prefix: np.ndarray
    """(p,) int32 token ids, empty for a full rollout."""

    dropped: int
    """The truncation length `m`, tokens; 0 for a full rollout."""

    suffix_max_tokens: int
    """Most tokens the policy may generate."""

    source_step: int
    """Step whose policy wrote the prefix; -1 for a full rollout."""


@dataclass(frozen=True, slots=True)
class Choice:
    """Which response of a finished group is offered to the cache."""

    member: int
    greedy: bool


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the cache did with it."""

    stored: bool
    dropped: bool
    """The old answer is no longer trusted: `max_failures` groups in a row failed from a prefix of it."""


class PartialRollouts:
    """Plans the start of every group and keeps the experience cache."""

    def __init__(self, config: RPOConfig, max_response_length: int) -> None:
        self.config = config
        self.max_response_length = max_response_length
        self.cache = ExperienceCache(**self.bounds)

    @property
    def bounds(self) -> dict[str, bool | int | None]:
        """What the cache is created with, here and from a store."""
        cache = self.config.cache
        return {"keep_correct": cache.keep_correct, "max_entries": cache.max_entries, "max_bytes": cache.max_bytes}

    def plan(self, key: bytes, step: int) -> Start:
        """Decide what the question's group starts from; a function of the cache and of (seed, step, question).

        Args:
            key: the question.
            step: the training step.
        """
        answer = self.cache.get(key)
        if answer is None:
            return self._full(key, "full")
        max_age = self.config.cache.max_age
        if max_age is not None and step - answer.step > max_age:
            return self._full(key, "refreshed")
        draw_key = (self.config.seed, step, key)
        every = self.config.rollout.full_rollout_every
        if (every and step // every > (step - 1) // every) or draws.uniform(
            *draw_key, "full"
        ) < self.config.rollout.full_rollout_prob:
            return self._full(key, "refreshed")
        length = len(answer.tokens)
        dropped = self._dropped(answer, step, key)
        kept = prefix_length(length, dropped, self.max_response_length, self.config.truncation)
        if kept == 0:
            return self._full(key, "refreshed")
        return Start(key, "prefixed", answer.tokens[:kept], length - kept, self._room(kept, length - kept), answer.step)

    def choose(self, key: bytes, step: int, shaped: np.ndarray) -> Choice:
        """The response of a finished group that may become the question's answer.

        Args:
            key: the question.
            step: the step that trains on the group.
            shaped: (G,) float, shaped rewards `R`.
        """
        return Choice(*choose_response(shaped, self.config.cache.greedy_prob, self.config.seed, step, key))

    def observe(
        self, key: bytes, answer: CachedAnswer, correct: np.ndarray, generated: np.ndarray, prefix_tokens: int
    ) -> Outcome:
        """Update the cache with a finished group (paper, section 3, cache update).

        Args:
            key: the question.
            answer: the response of its choice.
            correct: (G,) bool, of its members.
            generated: (G,) int, tokens behind the prefix.
            prefix_tokens: how many tokens of it are the prefix that its group started from; 0 for a full rollout.
        """
        old = self.cache.get(key)
        if prefix_tokens > 0 and (old is None or not _same_head(old, answer, prefix_tokens)):
            # In flight, the answer that the group started from was replaced or dropped: the group comes too late.
            return Outcome(stored=False, dropped=False)
        failures = 0
        if prefix_tokens > 0:
            failures = 0 if correct.any() else old.failures + 1
            max_failures = self.config.cache.max_failures
            if max_failures is not None and failures >= max_failures:
                self.cache.drop(key)
                return Outcome(stored=False, dropped=True)
        before = NO_EVIDENCE if old is None else old.evidence
        evidence = before.after(correct, generated, self._rate(before))
        finite = bool(np.isfinite(answer.reward))
        stored = finite and self.cache.put(key, replace(answer, failures=failures, evidence=evidence))
        if not stored and old is not None:
            self.cache.amend(key, failures if prefix_tokens > 0 else old.failures, evidence)
        return Outcome(stored, dropped=False)

    def _rate(self, own: Evidence) -> float | None:
        """At which the policy goes wrong on a question, per token; None before it was seen on any."""
        mean = mean_rate(self.cache.evidence)
        return None if mean is None else rate(own, mean)

    def _dropped(self, answer: CachedAnswer, step: int, key: bytes) -> int:
        """The truncation length `m`."""
        length, truncation, seed = len(answer.tokens), self.config.truncation, self.config.seed
        mean = mean_rate(self.cache.evidence)
        if not truncation.adaptive or mean is None:
            return draw_dropped(length, truncation, seed, step, key)
        return adapted_dropped(length, rate(answer.evidence, mean), mean, truncation, seed, step)

    def _full(self, key: bytes, kind: Kind) -> Start:
        return Start(key, kind, _NO_TOKENS, 0, self.max_response_length, -1)

    def _room(self, prefix_tokens: int, dropped: int) -> int:
        """What is left of the response budget after the prefix, within the optional caps; at least one token."""
        rollout = self.config.rollout
        room = self.max_response_length - prefix_tokens
        if rollout.suffix_max_tokens is not None:
            room = min(room, rollout.suffix_max_tokens)
        if rollout.suffix_max_multiple is not None:
            room = min(room, int(np.ceil(rollout.suffix_max_multiple * dropped)))
        return max(1, room)


def _same_head(one: CachedAnswer, other: CachedAnswer, tokens: int) -> bool:
    return np.array_equal(one.tokens[:tokens], other.tokens[:tokens])
