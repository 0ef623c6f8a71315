"""How Hydra and veRL find RPO: a search path, and registrations made when veRL imports the module with the registry.

Registering on import keeps the entry point light: a process that never imports a registry never pays for it.
"""

from types import ModuleType

import wrapt
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from hydra.plugins.search_path_plugin import SearchPathPlugin

from rpo_verl.config import RPOConfig
from rpo_verl.integration.contract import NAME


class RPOSearchPath(SearchPathPlugin):
    """Appends `hydra_configs/`, so that a user's own configuration of the same name wins."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        search_path.append(provider="rpo_verl", path="pkg://rpo_verl.hydra_configs")


def add_search_path() -> None:
    """Make the groups `rpo` and `platform` known to Hydra, and the typed options behind `rpo`.

    veRL's plug-in discovery calls this rather than Hydra's: a `hydra_plugins` namespace package is not found under an
    editable install.
    """
    ConfigStore.instance().store(group="rpo", name="options", node=RPOConfig, provider="rpo_verl")
    Plugins.instance().register(RPOSearchPath)


def register_when_imported() -> None:
    """Register RPO's components as soon as this process imports the registries they belong to."""
    wrapt.register_post_import_hook(_register_agent_loop, "verl.experimental.agent_loop.agent_loop")
    wrapt.register_post_import_hook(_register_reward_manager, "verl.experimental.reward_loop.reward_manager")
    wrapt.register_post_import_hook(_register_advantage_estimator, "verl.trainer.ppo.core_algos")
    wrapt.register_post_import_hook(_wrap_trainers, "verl.trainer.ppo.v1")


def _register_agent_loop(agent_loop: ModuleType) -> None:
    # By name: the class itself is imported by the workers that run it.
    agent_loop._agent_loop_registry[NAME] = {"_target_": "rpo_verl.integration.agent_loop.PrefixAgentLoop"}


def _register_reward_manager(reward_manager: ModuleType) -> None:
    from rpo_verl.integration.reward import WholeResponseRewardManager

    reward_manager.register(NAME)(WholeResponseRewardManager)


def _register_advantage_estimator(core_algos: ModuleType) -> None:
    from rpo_verl.integration.advantage import compute_shaped_advantage

    core_algos.register_adv_est(NAME)(compute_shaped_advantage)


def _wrap_trainers(v1: ModuleType) -> None:
    from rpo_verl.integration.trainer import wrap_registered_trainers

    wrap_registered_trainers(v1.trainer_base.TRAINER_REGISTRY)
