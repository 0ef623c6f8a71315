"""Registering the algorithms' components with veRL, as soon as a process imports the registry they belong to.

Registering on import keeps the entry point light: a process that never imports a registry never pays for it.
"""

import importlib
import sys
import warnings
from collections.abc import Callable, Iterable, Sequence
from types import ModuleType
from typing import Any

import wrapt

from rpo_verl import algorithms
from rpo_verl.algorithms import Algorithm
from rpo_verl.upstream.contract import ContractError

AGENT_LOOPS = "verl.experimental.agent_loop.agent_loop"
REWARD_MANAGERS = "verl.experimental.reward_loop.reward_manager"
ESTIMATORS = "verl.trainer.ppo.core_algos"
TRAINERS = "verl.trainer.ppo.v1"

#: Name of the algorithm → why its registration failed in this process.
_failed: dict[str, str] = {}


def register_when_imported() -> None:
    """Register the components of every known algorithm when veRL imports the registries."""
    for entry in algorithms.known():
        if entry.agent_loop:
            _on_import(AGENT_LOOPS, entry, _agent_loop)
        if entry.reward_manager:
            _on_import(REWARD_MANAGERS, entry, lambda entry, _: importlib.import_module(entry.reward_manager))
        if entry.estimator:
            _on_import(ESTIMATORS, entry, lambda entry, _: importlib.import_module(entry.estimator))
    wrapt.register_post_import_hook(lambda v1: wrap_trainers(v1.trainer_base.TRAINER_REGISTRY), TRAINERS)


def _on_import(registry: str, entry: Algorithm, register: Callable[[Algorithm, ModuleType], Any]) -> None:
    def hook(module: ModuleType) -> None:
        try:
            register(entry, module)
        except Exception as error:  # noqa: BLE001 - the import of veRL that is under way must succeed all the same
            _failed[entry.name] = f"{type(error).__name__} while registering with {registry}: {error}"
            warnings.warn(
                f"rpo_verl: {entry.name} is not registered in this process: {_failed[entry.name]}", stacklevel=2
            )

    wrapt.register_post_import_hook(hook, registry)


def _agent_loop(entry: Algorithm, module: ModuleType) -> None:
    # By name: the class itself is imported by the workers that run it.
    module._agent_loop_registry[entry.name] = {"_target_": entry.agent_loop.replace(":", ".")}


def wrap_trainers(registry: dict[str, type]) -> None:
    """Put a stand-in over every registered trainer; it adds the mixins of the algorithms that the configuration
    selects.

    Without any, exactly the registered class is instantiated.
    """
    for mode, trainer in list(registry.items()):
        registry[mode] = _choose_by_config(trainer)


def _choose_by_config(trainer: type) -> type:
    class ByConfig(trainer):
        """Stands in the registry. The mode's name stays, because veRL takes any other for asynchronous."""

        def __new__(cls, config: Any) -> Any:
            if not algorithms.selected(config):
                return trainer(config=config)
            from rpo_verl.upstream.trainer import compose

            return compose(trainer, config)(config=config)

    ByConfig.__name__ = ByConfig.__qualname__ = trainer.__name__
    return ByConfig


def missing_components(names: Iterable[str]) -> list[str]:
    """The components of these algorithms that this process should have registered by now, and has not.

    A registry counts once its module has been imported here; a process that never touches it has nothing to register.
    """
    registries = (
        (AGENT_LOOPS, "_agent_loop_registry", "agent_loop"),
        (f"{REWARD_MANAGERS}.registry", "REWARD_MANAGER", "reward_manager"),
        (ESTIMATORS, "ADV_ESTIMATOR_REGISTRY", "estimator"),
    )
    chosen = [entry for entry in algorithms.known() if entry.name in set(names)]
    return [_failed[entry.name] for entry in chosen if entry.name in _failed] + [
        f"{part.replace('_', ' ')} {entry.name!r}"
        for module, registry, part in registries
        for entry in chosen
        if getattr(entry, part) and module in sys.modules and entry.name not in getattr(sys.modules[module], registry)
    ]


def missing_in_worker(worker: object, names: Sequence[str]) -> list[str]:
    """`missing_components` in the process of a Ray actor, for its `__ray_call__`."""
    return missing_components(names)


def plugin_not_loaded(where: str, details: str) -> ContractError:
    """The error for a process in which the plug-in is missing or only half there."""
    return ContractError(
        f"rpo_verl: the plug-in is not loaded in {where} ({details}). It has to be installed, at one version, in the "
        "environment of every node, and veRL's plug-in discovery switched on: VERL_USE_EXTERNAL_PLUGINS unset, 'auto', "
        "or a list with 'rpo_verl'. Or train without it: remove the overrides of rpo, r2po and lean."
    )
