"""veRL's manager of rollout workers, with a door for algorithms and a check that the plug-in is loaded everywhere."""

from collections.abc import Callable

import ray
from tensordict import TensorDict
from verl.trainer.ppo.v1.agent_loop_tq import AgentLoopManagerTQ

from rpo_verl.upstream import registration


class AgentLoopManager(AgentLoopManagerTQ):
    """Lets algorithms prepare training rows before they go to the rollout workers.

    The Hydra groups name this class by its path, so it is there even in a TaskRunner where the plug-in was not loaded.
    There no trainer of ours connects it, and it ends the run at the first batch.
    """

    _connected = False

    def connect(self, algorithms: list[str]) -> None:
        """Make sure that every worker has what the algorithms registered; called before the first rollout.

        Raises:
            ContractError: if a rollout or reward worker has not registered an algorithm's components.
        """
        workers = {f"rollout worker {i}": worker for i, worker in enumerate(self.agent_loop_workers)}
        workers |= {f"reward worker {i}": worker for i, worker in enumerate(self.reward_loop_worker_handles or [])}
        checks = [worker.__ray_call__.remote(registration.missing_in_worker, algorithms) for worker in workers.values()]
        for name, missing in zip(workers, ray.get(checks), strict=True):
            if missing:
                raise registration.plugin_not_loaded(name, f"not registered there: {', '.join(missing)}")
        self._connected = True
        self._preparations: list[Callable[[TensorDict], None]] = []

    def prepare_with(self, preparation: Callable[[TensorDict], None]) -> None:
        """Call `preparation` with every batch of (B,) training rows. It may change their columns, not their number."""
        self._preparations.append(preparation)

    def generate_sequences(self, prompts: TensorDict) -> None:
        """Dispatch (B,) rows of the data set to the rollout workers; validation rows are never touched."""
        if not self._connected:
            raise registration.plugin_not_loaded("the TaskRunner", "the trainer there is veRL's own")
        if not ("validate" in prompts and bool(prompts["validate"])):
            for prepare in self._preparations:
                prepare(prompts)
        super().generate_sequences(prompts)
