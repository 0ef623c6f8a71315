"""How Hydra and veRL find RPO: a search path, and registrations made when veRL imports the module with the registry.

Registering on import keeps the entry point light: a process that never imports a registry never pays for it.
"""

import importlib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import wrapt
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from hydra.plugins.search_path_plugin import SearchPathPlugin

import rpo_verl
from rpo_verl.rpo.options import RPOConfig
from rpo_verl.upstream import contract


def config_folder() -> Path:
    """Where the groups are: inside the package as its wheel installs it, beside it in a checkout.

    By the package that is imported and not by name: with `python -m` in the root of a checkout, that is the checkout's,
    whatever is installed.
    """
    package = Path(rpo_verl.__file__).parent
    inside = package / "hydra_configs"
    return inside if inside.is_dir() else package.parent / "hydra_configs"


class RPOSearchPath(SearchPathPlugin):
    """Appends `hydra_configs/`, so that a user's own configuration of the same name wins."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        search_path.append(provider="rpo_verl", path=f"file://{config_folder()}")


def add_search_path() -> None:
    """Make the groups `rpo` and `platform` known to Hydra, and the typed options behind `rpo`.

    veRL's plug-in discovery calls this rather than Hydra's: a `hydra_plugins` namespace package is not found under an
    editable install.
    """
    ConfigStore.instance().store(group="rpo", name="options", node=RPOConfig, provider="rpo_verl")
    Plugins.instance().register(RPOSearchPath)


def register_when_imported() -> None:
    """Register RPO's components as soon as this process imports the registries they belong to."""
    for registry, component in (
        ("verl.experimental.agent_loop.agent_loop", _register_agent_loop),
        ("verl.experimental.reward_loop.reward_manager", _import("reward")),
        ("verl.trainer.ppo.core_algos", _import("advantage")),
        ("verl.trainer.ppo.v1", _wrap_trainers),
        ("verl.workers.engine", _wrap_engines),
    ):
        wrapt.register_post_import_hook(_contained(component), registry)


def _contained(register: Callable[[ModuleType], None]) -> Callable[[ModuleType], None]:
    """Keep a failed registration from breaking a run without RPO; a run with RPO ends at the contract check."""

    def hook(module: ModuleType) -> None:
        try:
            register(module)
        except Exception as error:  # noqa: BLE001 - whatever it is, the import of veRL that is under way must succeed
            contract.registration_failed(module.__name__, error)

    return hook


def _register_agent_loop(agent_loop: ModuleType) -> None:
    # By name: the class itself is imported by the workers that run it.
    agent_loop._agent_loop_registry[contract.NAME] = {"_target_": "rpo_verl.rpo.hooks.agent_loop.PrefixAgentLoop"}


def _import(name: str) -> Callable[[ModuleType], None]:
    """The module of that name registers its component itself, with veRL's decorator."""
    return lambda _: importlib.import_module(f"rpo_verl.rpo.hooks.{name}") and None


def _wrap_trainers(v1: ModuleType) -> None:
    from rpo_verl.rpo.hooks.trainer import wrap_registered_trainers

    wrap_registered_trainers(v1.trainer_base.TRAINER_REGISTRY)


def _wrap_engines(engine: ModuleType) -> None:
    from rpo_verl.lean.engine import wrap_registered_engines

    wrap_registered_engines(engine.EngineRegistry._engines)
