"""Where a batch of questions meets the cache: in the TaskRunner, before veRL splits it among the rollout workers."""

import time
from collections.abc import Callable, Sequence
from typing import Any

from tensordict import NonTensorStack, TensorDict

from rpo_verl.rpo.hooks import NAME, SINGLE_TURN
from rpo_verl.rpo.hooks.agent_loop import START
from rpo_verl.rpo.partial_rollouts import PartialRollouts
from rpo_verl.rpo.start import Start


def _is_text_only(messages: Sequence[dict[str, Any]]) -> bool:
    return all(isinstance(message.get("content"), str) for message in messages)


class Injection:
    """Puts the start of its group on every training row that RPO can start; the others pass through.

    Args:
        rollouts: plans the groups.
        question_ids: chat messages of a row → token ids.
        default_agent: veRL's `rollout.agent.default_agent_loop`.
        group_size: veRL's `rollout.n`.
    """

    def __init__(
        self,
        rollouts: PartialRollouts,
        question_ids: Callable[[list[dict[str, Any]]], list[int]],
        default_agent: str,
        group_size: int,
    ) -> None:
        self._rollouts, self._question_ids = rollouts, question_ids
        self._default_agent, self._group_size = default_agent, group_size
        self._reset_metrics()

    def __call__(self, prompts: TensorDict) -> None:
        """Plan the groups of a batch.

        Args:
            prompts: (B,) training rows of the data set; gains the column `rpo_start`, None in rows passed through, and
                the agent that reads it.
        """
        started = time.perf_counter()
        step, rows = int(prompts["global_steps"]), len(prompts)
        sizes = list(prompts["__rollout_n__"]) if "__rollout_n__" in prompts else [self._group_size] * rows
        names = list(prompts["agent_name"]) if "agent_name" in prompts else [self._default_agent] * rows
        messages = [list(row) for row in prompts["raw_prompt"]]
        sources = list(prompts["data_source"]) if "data_source" in prompts else [""] * rows
        self._refuse_a_column_of_our_name(prompts)
        starts = [None] * rows
        for i in range(rows):
            if names[i] == SINGLE_TURN and _is_text_only(messages[i]):
                ids, looked_up = self._question_ids(messages[i]), time.perf_counter()
                starts[i] = self._rollouts.plan(ids, step, sizes[i])
                starts[i].data_source = str(sources[i])
                self._look_up_seconds += time.perf_counter() - looked_up
                names[i] = NAME
        prompts["agent_name"] = NonTensorStack(*names)
        prompts[START] = NonTensorStack(*starts)
        self._seconds += time.perf_counter() - started

    def pop_metrics(self) -> dict[str, float]:
        """Seconds spent on injection and, of these, on look-ups, since the last call."""
        metrics = {
            "timing_s/rpo_injection": self._seconds,
            "timing_s/rpo_look_up": self._look_up_seconds,
        }
        self._reset_metrics()
        return metrics

    @staticmethod
    def _refuse_a_column_of_our_name(prompts: TensorDict) -> None:
        """Rollouts that are issued again after a restart have our column already; a data set must not."""
        if START in prompts and not all(start is None or isinstance(start, Start) for start in prompts[START]):
            raise ValueError(
                f"rpo_verl: the data set has a column {START}, which RPO needs for itself. Rename it in the data files."
            )

    def _reset_metrics(self) -> None:
        self._seconds, self._look_up_seconds = 0.0, 0.0
