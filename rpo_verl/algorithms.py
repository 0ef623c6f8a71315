"""The algorithms of this package and of others: the only room that knows which exist.

An algorithm is a table entry. Its parts are named by path, `module:name`, and imported where veRL needs them, so every
process can afford to know the table. Another package adds its own through an entry point of the group
`rpo_verl.algorithms` that leads to an `Algorithm`.
"""

import importlib
import importlib.metadata
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

GROUP = "rpo_verl.algorithms"


@dataclass(frozen=True)
class Algorithm:
    """An entry of the table. It is selected by `+name=enabled`, and its options are the section `name`."""

    name: str
    """Section of the configuration, Hydra group, and name of the components in veRL's registries."""

    options: str
    """Dataclass of the options."""

    check: str | None = None
    """Function of veRL's configuration; raises ConfigError where the algorithm cannot run. None: options are checked
    for type and range alone."""

    trainer: str | None = None
    """Mixin over veRL's registered trainers. It comes before the mixins of later entries."""

    engine: str | None = None
    """Mixin over the FSDP engines for language models in the actor workers of a run that selects it."""

    losses: str | None = None
    """Module that registers policy losses when it is imported, in the actor workers of a run that selects it."""

    agent_loop: str | None = None
    """Agent loop, registered under the algorithm's name."""

    estimator: str | None = None
    """Module that registers an advantage estimator of the algorithm's name when it is imported."""

    reward_manager: str | None = None
    """Module that registers a reward manager of the algorithm's name when it is imported."""

    needs: tuple[str, ...] = ()
    """Algorithms that have to be selected with it."""

    moved: str | None = None
    """Mapping of options that earlier versions had → what to say of them."""

    settings: Mapping[str, Any] = field(default_factory=dict)
    """Settings of veRL that `+name=enabled` makes, by dotted key, where `hydra_configs/` has no such group."""


BUILT_IN = (
    Algorithm(
        name="rpo",
        options="rpo_verl.rpo.options:RPOConfig",
        check="rpo_verl.rpo.hooks.settings:check",
        trainer="rpo_verl.rpo.hooks.trainer:PartialRolloutTrainer",
        agent_loop="rpo_verl.rpo.hooks.agent_loop:PrefixAgentLoop",
        estimator="rpo_verl.rpo.hooks.advantage",
        reward_manager="rpo_verl.rpo.hooks.reward",
        needs=("lean",),
        moved="rpo_verl.rpo.options:MOVED",
    ),
    Algorithm(
        name="r2po",
        options="rpo_verl.r2po.options:R2POConfig",
        check="rpo_verl.r2po.hooks.settings:check",
        trainer="rpo_verl.r2po.hooks.trainer:RolloutHeadTrainer",
        engine="rpo_verl.r2po.hooks.engine:RolloutHeadEngine",
    ),
    Algorithm(
        name="lean",
        options="rpo_verl.lean.options:LeanConfig",
        check="rpo_verl.lean.settings:check",
        trainer="rpo_verl.lean.trainer:LeanTrainer",
        engine="rpo_verl.lean.engine:SharedPrefixEngine",
        losses="rpo_verl.lean.losses",
    ),
)


@cache
def known() -> tuple[Algorithm, ...]:
    """Every algorithm: those of other packages first, so that their mixins come before ours.

    Raises:
        ValueError: if two have the same name, or an entry point does not lead to an `Algorithm`.
    """
    others = [point.load() for point in importlib.metadata.entry_points(group=GROUP)]
    table = (*others, *BUILT_IN)
    for entry in table:
        if not isinstance(entry, Algorithm):
            raise ValueError(f"an entry point of {GROUP} leads to {entry!r}, which is no Algorithm")
    names = [entry.name for entry in table]
    if len(set(names)) < len(names):
        raise ValueError(f"two algorithms have the same name: {', '.join(sorted(names))}")
    return table


def load(path: str) -> Any:
    """The object that `module:name` leads to."""
    module, _, name = path.partition(":")
    return getattr(importlib.import_module(module), name)


def selected(config: Mapping[str, Any]) -> list[Algorithm]:
    """The algorithms that have a section in veRL's configuration; whether it is a sound one is for `check` to say."""
    return [entry for entry in known() if config.get(entry.name) is not None]
