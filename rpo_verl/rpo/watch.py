"""Notices runs that go wrong: RPO is selected and nothing starts from a prefix, or the policy collapses."""

from collections import Counter, deque
from collections.abc import Mapping

from rpo_verl.rpo.options import RPOConfig

#: Steps without a prefix, once there are cached answers, before the watch speaks. Chance explains fewer: full steps and
#: cuts of whole answers come now and then.
PATIENCE = 10
#: Steps over which the share of correct responses is averaged: one epoch's easy and hard batches in one number.
WINDOW = 10
#: A policy has collapsed where that average is below this part of its best, if the best was above `LEAST`.
FALLEN, LEAST = 0.5, 0.1


class PrefixWatch:
    """Says once, with the reason, that no group of a run has started from a prefix.

    Args:
        options: named in the message.
        max_response_length: `data.max_response_length`, tokens.
        cold_steps: steps in which nobody expects a cached answer: an epoch, or 0 where a cache was loaded.
    """

    def __init__(self, options: RPOConfig, max_response_length: int, cold_steps: int) -> None:
        self._options, self._limit, self._cold_steps = options, max_response_length, cold_steps
        self._planned: Counter[str] = Counter()
        self._steps = self._steps_with_answers = 0
        self._silent = False

    def end_step(self, planned: Mapping[str, int], cache: Mapping[str, float]) -> str | None:
        """Look at the plans of one step.

        Args:
            planned: plans by `PartialRollouts.pop_plans`.
            cache: the cache's metrics.

        Returns:
            the message, in the step in which it is certain; else None.
        """
        self._silent = self._silent or bool(planned.get("prefixed"))
        if self._silent:
            return None
        self._planned.update(planned)
        self._steps += 1
        self._steps_with_answers += any(planned.get(reason) for reason in ("full_step", "whole_cut", "too_long"))
        if self._steps_with_answers >= PATIENCE:
            reason = self._with_answers()
        elif self._steps >= self._cold_steps + PATIENCE and not self._steps_with_answers:
            reason = self._without_answers(cache)
        else:
            return None
        self._silent = True
        return (
            f"RPO: NO GROUP HAS STARTED FROM A PREFIX in {self._steps} steps. The run trains as it would without RPO. "
            f"{reason}"
        )

    def _with_answers(self) -> str:
        truncation, rollout = self._options.truncation, self._options.rollout
        reasons = {
            "full_step": f"rpo.rollout.full_rollout_every={rollout.full_rollout_every} makes the steps full. Raise it, "
            "or set it to 0.",
            "whole_cut": "Every cut drops the whole answer. Lower "
            f"rpo.truncation.min_tokens={truncation.min_tokens} below the length of the answers.",
            "too_long": f"The cached answers are longer than data.max_response_length={self._limit}. Raise it, or "
            "begin with another cache.",
        }
        return reasons[max(reasons, key=lambda reason: self._planned[reason])]

    def _without_answers(self, cache: Mapping[str, float]) -> str:
        bounds = self._options.cache
        if not self._planned["full"]:
            return (
                "No row is one that RPO can start: all name another agent loop than single_turn_agent in agent_name, "
                "or their messages are not plain text."
            )
        if cache.get("rpo/cache/evictions"):
            return (
                f"Answers are evicted before their question comes again. Raise rpo.cache.max_entries="
                f"{bounds.max_entries} or rpo.cache.max_bytes={bounds.max_bytes}."
            )
        if cache.get("rpo/cache/entries"):
            return (
                "No question has a cached answer, though there are some. Do prompts change between visits, or does the "
                "cache belong to other data, another chat template or data.max_prompt_length?"
            )
        return "The cache is empty: no group was complete, or every answer was dropped again."


class CollapseWatch:
    """Says once that the share of correct responses has fallen far below what it was.

    Args:
        options: named in the message.
        learning_rate: of the actor, named in the message.
    """

    def __init__(self, options: RPOConfig, learning_rate: float) -> None:
        self._options, self._learning_rate = options, learning_rate
        self._shares: deque[float] = deque(maxlen=WINDOW)
        self._best = 0.0
        self._silent = False

    def end_step(self, step: int, correct_share: float | None) -> str | None:
        """Look at one step.

        Args:
            step: the training step, named in the message.
            correct_share: of its responses; None if RPO started no group.

        Returns:
            the message, in the step in which it is certain; else None.
        """
        if correct_share is None or self._silent:
            return None
        self._shares.append(correct_share)
        if len(self._shares) < WINDOW:
            return None
        mean = sum(self._shares) / WINDOW
        self._best = max(self._best, mean)
        if self._best <= LEAST or mean >= FALLEN * self._best:
            return None
        self._silent = True
        every, credit = self._options.rollout.full_rollout_every, ""
        if self._options.credit.rule != "none":
            credit = f" Credit makes a larger step: try rpo.credit.rule=none (now {self._options.credit.rule})."
        return (
            f"RPO: THE POLICY HAS COLLAPSED by step {step}: {mean:.0%} of the responses of {WINDOW} steps are correct, "
            f"and {self._best:.0%} were. Resume from an earlier checkpoint with a lower learning rate "
            f"(actor_rollout_ref.actor.optim.lr={self._learning_rate:g}), or with more full rollouts "
            f"(rpo.rollout.full_rollout_every={every}).{credit} Where the data are sorted by difficulty this is no "
            "collapse."
        )
