"""Where a batch of questions meets the cache: in the TaskRunner, before veRL splits it among the rollout workers."""

import time
from collections.abc import Callable, Sequence
from typing import Any

import ray
from tensordict import NonTensorStack, TensorDict
from verl.trainer.ppo.v1.agent_loop_tq import AgentLoopManagerTQ

from rpo_verl.rpo.hooks.shipment import Shipment
from rpo_verl.rpo.partial_rollouts import PartialRollouts
from rpo_verl.upstream import contract


def _is_text_only(messages: Sequence[dict[str, Any]]) -> bool:
    return all(isinstance(message.get("content"), str) for message in messages)


class PrefixAgentLoopManager(AgentLoopManagerTQ):
    """veRL's manager of rollout workers, which puts the start of its group on every row it sends out for training.

    The Hydra group names this class by its path, so it is there even where the plug-in was not loaded; then it ends
    the run, because the trainer has not connected it.
    """

    _rollouts: PartialRollouts | None = None

    def connect(self, rollouts: PartialRollouts, question_key: Callable[[list[dict[str, Any]]], bytes]) -> None:
        """Called by RPO's trainer before the first rollout.

        Args:
            rollouts: decides what a group starts from.
            question_key: chat messages of a row → key of the question.

        Raises:
            ContractError: if a rollout or reward worker has not registered RPO's components.
        """
        workers = {f"rollout worker {i}": worker for i, worker in enumerate(self.agent_loop_workers)}
        workers |= {f"reward worker {i}": worker for i, worker in enumerate(self.reward_loop_worker_handles or [])}
        missing = ray.get([worker.__ray_call__.remote(contract.unregistered_in_worker) for worker in workers.values()])
        for name, components in zip(workers, missing, strict=True):
            if components:
                raise contract.plugin_not_loaded(name, f"not registered there: {', '.join(components)}")
        self._rollouts, self._question_key = rollouts, question_key
        self._reset_metrics()

    def generate_sequences(self, prompts: TensorDict) -> None:
        """Dispatch questions to the rollout workers; those of training rows together with their prefix.

        Args:
            prompts: (B,) rows of the data set. Validation rows are never touched.
        """
        if self._rollouts is None:
            raise contract.plugin_not_loaded("the TaskRunner", "the trainer there is veRL's own, not RPO's")
        validating = bool(prompts["validate"]) if "validate" in prompts else False
        if not validating:
            started = time.perf_counter()
            self._inject(prompts)
            self.seconds += time.perf_counter() - started
        super().generate_sequences(prompts)

    def pop_metrics(self) -> dict[str, float]:
        """Seconds spent on injection, look-ups apart, and questions passed through since the last call."""
        metrics = {
            "timing_s/rpo_injection": self.seconds,
            "timing_s/rpo_look_up": self.look_up_seconds,
            "rpo/groups/passed_through_total": self.passed_through,
        }
        self._reset_metrics()
        return metrics

    def _reset_metrics(self) -> None:
        self.passed_through, self.seconds, self.look_up_seconds = 0, 0.0, 0.0

    def _inject(self, prompts: TensorDict) -> None:
        step = int(prompts["global_steps"])
        rows = len(prompts)
        default = self.rollout_config.agent.default_agent_loop
        sizes = list(prompts["__rollout_n__"]) if "__rollout_n__" in prompts else [self.rollout_config.n] * rows
        names = list(prompts["agent_name"]) if "agent_name" in prompts else [default] * rows
        messages = [list(row) for row in prompts["raw_prompt"]]
        starts = [None] * rows
        for i in range(rows):
            if names[i] == contract.SINGLE_TURN and _is_text_only(messages[i]):
                key, started = self._question_key(messages[i]), time.perf_counter()
                starts[i] = Shipment(self._rollouts.plan(key, step), sizes[i])
                self.look_up_seconds += time.perf_counter() - started
                names[i] = contract.NAME
        self.passed_through += starts.count(None)
        prompts["agent_name"] = NonTensorStack(*names)
        prompts["rpo_start"] = NonTensorStack(*starts)
