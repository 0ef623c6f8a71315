"""How Hydra finds the groups: a search path for `hydra_configs/`, and the typed options of every algorithm."""

from pathlib import Path
from typing import Any

from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from hydra.plugins.search_path_plugin import SearchPathPlugin

import rpo_verl
from rpo_verl import algorithms
from rpo_verl.algorithms import Algorithm

PROVIDER = "rpo_verl"


def config_folder() -> Path:
    """Where the groups are: inside the package as its wheel installs it, beside it in a checkout.

    By the package that is imported and not by name: with `python -m` in the root of a checkout, that is the checkout's,
    whatever is installed.
    """
    package = Path(rpo_verl.__file__).parent
    inside = package / "hydra_configs"
    return inside if inside.is_dir() else package.parent / "hydra_configs"


class SearchPath(SearchPathPlugin):
    """Appends `hydra_configs/`, so that a user's own configuration of the same name wins."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        search_path.append(provider=PROVIDER, path=f"file://{config_folder()}")


def add_groups() -> None:
    """Make the groups known to Hydra, and the typed options behind those of algorithms.

    veRL's plug-in discovery calls this rather than Hydra's: a `hydra_plugins` namespace package is not found under an
    editable install.
    """
    Plugins.instance().register(SearchPath)
    for entry in algorithms.known():
        store = ConfigStore.instance().store
        store(group=entry.name, name="options", node=algorithms.load(entry.options), provider=PROVIDER)
        if not (config_folder() / entry.name).is_dir():
            store(group=entry.name, name="enabled", node=_enabled(entry), package="_global_", provider=PROVIDER)


def _enabled(entry: Algorithm) -> dict[str, Any]:
    """The group `+name=enabled` of an algorithm from elsewhere, in the form of those in `hydra_configs/`."""
    settings: dict[str, Any] = {
        "hydra.callbacks.rpo_verl._target_": "rpo_verl.upstream.settings.CheckSettings",
        "hydra.callbacks.rpo_verl_inputs._target_": "rpo_verl.upstream.preflight.CheckInputs",
        "actor_rollout_ref.rollout.agent.agent_loop_manager_class": "rpo_verl.upstream.manager.AgentLoopManager",
        **entry.settings,
    }
    node: dict[str, Any] = {"defaults": [f"/{name}/options@{name}" for name in (*entry.needs, entry.name)]}
    for key, value in settings.items():
        *sections, last = key.split(".")
        section = node
        for name in sections:
            section = section.setdefault(name, {})
        section[last] = value
    return node
