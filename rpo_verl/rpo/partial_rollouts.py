"""RPO around one experience cache: what a group starts from, and what the cache learns from finished groups."""

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path

import numpy as np

from rpo_verl.question import TokenizerIdentity, question_key
from rpo_verl.rpo import store
from rpo_verl.rpo.cache import CachedAnswer, ExperienceCache
from rpo_verl.rpo.cut import draw_share, dropped_tokens, prefix_length
from rpo_verl.rpo.group import Group, joined
from rpo_verl.rpo.options import RPOConfig
from rpo_verl.rpo.selection import choose_response
from rpo_verl.rpo.start import NO_LOGPROBS, Kind, Start, storable

Row = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Token ids of a question and of its response, and the log-probabilities of the response, empty if not recorded."""

Fetch = Callable[[Sequence[str]], Sequence[Row]]
"""Names of rows → rows."""


class PartialRollouts:
    """Owns the experience cache: plans groups, observes them, saves and loads.

    Args:
        config: the options.
        max_response_length: veRL's `data.max_response_length`, tokens.
        identity: of the tokenizer and chat template; keys and stores depend on it.
        end_ids: ids at which generation ends; cached answers do without a final one.
        cache: the cache to begin with; None: an empty one with the bounds of the options.
        temperature: at which responses are sampled.
    """

    def __init__(
        self,
        config: RPOConfig,
        max_response_length: int,
        identity: TokenizerIdentity,
        end_ids: Collection[int] = (),
        cache: ExperienceCache | None = None,
        temperature: float = 1.0,
    ) -> None:
        self._config, self._max_response_length = config, max_response_length
        self._temperature = temperature
        self._identity, self._fingerprint, self._end_ids = identity, identity.fingerprint, frozenset(end_ids)
        self._cache = ExperienceCache(**self._bounds) if cache is None else cache
        self._plans: Counter[str] = Counter()

    @property
    def _bounds(self) -> dict[str, bool | int | None]:
        cache = self._config.cache
        return {"keep_correct": cache.keep_correct, "max_entries": cache.max_entries, "max_bytes": cache.max_bytes}

    @property
    def keeps_logprobs(self) -> bool:
        """Whether the rule of credit needs the log-probabilities of cached answers."""
        return self._config.credit.needs_logprobs

    @property
    def _logprobs(self) -> float | None:
        """Temperature of the log-probabilities in the cache; None where it keeps none."""
        return self._temperature if self.keeps_logprobs else None

    def plan(self, question_ids: Sequence[int], step: int, group_size: int) -> Start:
        """Decide what a question's group starts from; a function of the cache and of (seed, step, question).

        An answer longer than the limit is not started from: wherever it is cut, its rest has more tokens than there is
        room behind the prefix.

        Args:
            question_ids: (q,) token ids of the question, chat template applied.
            step: the training step.
            group_size: responses the group is to have.
        """
        question = question_key(question_ids, self._fingerprint)

        def full(kind: Kind, reason: str) -> Start:
            self._plans[reason] += 1
            return Start(question, kind, group_size, self._max_response_length)

        answer = self._cache.get(question)
        share = draw_share(self._config.truncation, self._config.seed, step, question)
        if answer is None:
            trunks = min(self._config.rollout.trunks, group_size // 2)
            if not trunks:
                return full("full", "full")
            self._plans["full"] += 1
            return Start(question, "branched", group_size, self._max_response_length, trunks=trunks, share=share)
        every = self._config.rollout.full_rollout_every
        if every and step // every > (step - 1) // every:
            return full("refreshed", "full_step")
        length = len(answer.tokens)
        if length > self._max_response_length:
            return full("refreshed", "too_long")
        dropped = dropped_tokens(length, self._config.truncation, share)
        kept = prefix_length(length, dropped, self._max_response_length)
        if kept == 0:
            return full("refreshed", "whole_cut")
        self._plans["prefixed"] += 1
        room = self._max_response_length - kept
        prefix = answer.tokens[:kept]
        return Start(
            question,
            "prefixed",
            group_size,
            room,
            prefix,
            length - kept,
            answer.id,
            answer.step,
            prefix_logprobs=answer.logprobs[:kept],
        )

    def pop_plans(self) -> Counter[str]:
        """Count the plans since the last call by their reason: `full` (nothing cached), `prefixed`, and for the full
        rollouts of questions with an answer `full_step`, `too_long` (longer than the limit) and `whole_cut`.
        """
        plans, self._plans = self._plans, Counter()
        return plans

    def observe(self, groups: Sequence[Group], step: int, fetch: Fetch) -> Counter[str]:
        """Update the cache with finished groups (paper, section 3, cache update).

        Incomplete groups prove nothing about their prefix and are ignored. Branches of one question are one group: it
        offers one of all their responses.

        Args:
            groups: finished groups, in the order in which the cache is to see them.
            step: the training step.
            fetch: called once, with a row of every complete group; must return what they hold.

        Returns:
            Counts of groups: `incomplete` and `offered`, of these `greedy`; and what became of them: `stored`, `kept`
            (the old answer stays), `dropped` (the old answer goes), `late`.

        Raises:
            RuntimeError: if a group has another question than the one it was planned for.
        """
        complete = joined(group for group in groups if group.complete)
        counts = Counter(offered=len(complete), incomplete=len(joined(groups)) - len(complete))
        if not complete:
            return counts
        choices = [
            choose_response(group.shaped, self._config.cache.greedy_prob, self._config.seed, step, group.start.question)
            for group in complete
        ]
        rows = fetch([group.keys[member] for group, (member, _) in zip(complete, choices, strict=True)])
        for group, (member, greedy), row in zip(complete, choices, rows, strict=True):
            counts["greedy"] += greedy
            counts[self._learn(group, member, row)] += 1
        return counts

    def end_step(self, step: int) -> dict[str, float]:
        """Evict what exceeds the cache's bounds; returns its metrics."""
        self._cache.evict()
        return self._cache.metrics(step)

    def save(self, folder: Path, step: int, run: str = "", best_rewards: Mapping[str, float] = store.NOTHING) -> None:
        """Write the cache to `folder`, as of the training step of a run and the best reward of every data source."""
        store.save(self._cache, folder, self._identity, step, run, self._logprobs, best_rewards)

    def too_long(self) -> int:
        """Count the cached answers that are longer than the limit."""
        return sum(len(answer.tokens) > self._max_response_length for _, answer in self._cache.items())

    @property
    def cached(self) -> int:
        """Number of cached answers."""
        return len(self._cache)

    def load(self, folder: Path, step: int | None = None) -> store.Manifest:
        """Replace the cache by the store in `folder`, at a training step. Later steps in it are another run's.

        Raises:
            StoreError: if the store is damaged or belongs to another tokenizer.
        """
        self._cache, manifest = store.load(folder, self._identity, step, self._logprobs, **self._bounds)
        return manifest

    def without_logprobs(self) -> int:
        """Count the cached answers whose log-probabilities are not known."""
        return sum(not len(answer.logprobs) for _, answer in self._cache.items())

    def _learn(self, group: Group, member: int, row: Row) -> str:
        """Offer one response of a group to the cache; returns what became of it."""
        start, (question, response, logprobs) = group.start, row
        if question_key(question, self._fingerprint) != start.question:
            raise RuntimeError(
                f"rpo_verl: veRL rolled out {len(question)} question tokens that are not those the question was looked "
                "up by. Please report this with your data.apply_chat_template_kwargs and model."
            )
        old = self._cache.get(start.question)
        failures = 0
        if group.prefixed:
            if old is None or old.id != start.answer_id:
                # In flight, the answer that the group started from was replaced or dropped.
                return "late"
            failures = 0 if group.correct.any() else old.failures + 1
            max_failures = self._config.cache.max_failures
            if max_failures is not None and failures >= max_failures:
                self._cache.drop(start.question)
                return "dropped"
        tokens = response[:-1] if len(response) and int(response[-1]) in self._end_ids else response
        answer = CachedAnswer(
            tokens=tokens,
            correct=bool(group.correct[member]),
            reward=float(group.rewards[member]),
            step=int(group.oldest_policy[member]),
            question=question,
            failures=failures,
            logprobs=self._known(logprobs[: len(tokens)], int(group.prefix_tokens[member])),
        )
        if self._cache.put(start.question, answer):
            return "stored"
        self._cache.amend(start.question, failures if group.prefixed else old.failures)
        return "kept"

    def _known(self, logprobs: np.ndarray, prefix: int) -> np.ndarray:
        """What the cache keeps of the log-probabilities of an answer: all of them, or none."""
        # Rollouts have zeros where nobody knows those of the prefix.
        if not self.keeps_logprobs or (prefix and not logprobs[:prefix].any()):
            return NO_LOGPROBS
        return storable(logprobs)
