"""veRL's registered trainers with the mixins of the selected algorithms around them."""

from typing import Any

import ray
from omegaconf import DictConfig

from rpo_verl import algorithms
from rpo_verl.upstream import contract, engines, registration
from rpo_verl.upstream.settings import MANAGER, check


class Connected:
    """Innermost mixin: makes sure that the plug-in is loaded in every process before the first rollout."""

    def fit(self, agent_loop_manager: Any) -> None:
        """Check every process, let the algorithms prepare, then train."""
        names = [entry.name for entry in algorithms.selected(self.config)]
        missing = registration.missing_components(names)
        if missing:
            raise registration.plugin_not_loaded("the TaskRunner", f"not registered there: {', '.join(missing)}")
        self._extend_engines(names)
        if self.config.actor_rollout_ref.rollout.agent.agent_loop_manager_class == MANAGER:
            agent_loop_manager.connect(names)
            self._prepare_rollouts(agent_loop_manager)
        super().fit(agent_loop_manager)

    def _extend_engines(self, names: list[str]) -> None:
        """Put the algorithms' mixins over the engines in the actor workers."""
        if not any(entry.engine for entry in algorithms.selected(self.config)):
            return
        groups = [self.actor_rollout_wg, *([self.ref_policy_wg] if self.use_reference_policy else [])]
        # Actor and reference model may share their workers.
        workers = {worker for group in groups for worker in group.workers}
        counts = ray.get([worker.__ray_call__.remote(engines.extend_engines, names) for worker in workers])
        strategy = self.config.actor_rollout_ref.actor.strategy
        if strategy in ("fsdp", "fsdp2") and not all(counts):
            raise contract.ContractError(
                f"rpo_verl: an actor worker has no FSDP engine for language models, though "
                f"actor_rollout_ref.actor.strategy={strategy}. Please report this with your configuration."
            )

    def _prepare_rollouts(self, agent_loop_manager: Any) -> None:
        """For mixins to extend: hand the manager what prepares training rows."""


def compose(trainer: type, config: DictConfig) -> type:
    """A registered trainer with the mixins of the algorithms that `config` selects.

    Raises:
        ContractError: if veRL is not what the algorithms were written for.
        ConfigError: if one of them cannot run with this configuration.
    """
    contract.require_supported_verl()
    contract.require_upstream_names()
    check(config)
    chosen = [entry for entry in algorithms.selected(config) if entry.trainer]
    mixins = [algorithms.load(entry.trainer) for entry in chosen]
    name = "".join(entry.name.capitalize() for entry in chosen) + trainer.__name__
    return type(name, (*mixins, Connected, trainer), {"__doc__": trainer.__doc__})
