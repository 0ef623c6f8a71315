"""From veRL's configuration to RPO's: validation before Ray starts, and taking over the user's own components."""

from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from rpo_verl.config import ConfigError
from rpo_verl.rpo.hooks.advantage import UNSUPPORTED
from rpo_verl.rpo.options import RPOConfig, validate
from rpo_verl.rpo.store import StoreError, read_manifest
from rpo_verl.upstream import contract

MANAGER_CLASS = "rpo_verl.rpo.hooks.injection.PrefixAgentLoopManager"


def is_enabled(config: DictConfig) -> bool:
    """Whether the configuration has an `rpo` section at all; whether it is a sound one is `read_options`' business."""
    return config.get("rpo", None) is not None


def read_options(config: DictConfig) -> RPOConfig:
    """The typed, validated `rpo` section.

    Raises:
        ConfigError: if it did not come from the group, has unknown keys or values of the wrong type or out of range,
            or if another part of veRL's configuration rules RPO out.
    """
    section = config.rpo
    agent = config.actor_rollout_ref.rollout.agent
    manager = agent.get("agent_loop_manager_class")
    if not isinstance(section, DictConfig) or manager is None:
        raise ConfigError(
            f"rpo={section!r} was set without the configuration group. Select it with +rpo=enabled, and override "
            "single options as rpo.truncation.max_tokens=500 (without a plus sign)."
        )
    try:
        options = OmegaConf.to_object(
            OmegaConf.merge(OmegaConf.structured(RPOConfig), OmegaConf.to_container(section, resolve=True))
        )
    except OmegaConfBaseException as error:
        raise ConfigError(f"unknown or mistyped option in rpo: {error}") from error
    if manager != MANAGER_CLASS:
        raise ConfigError(
            f"actor_rollout_ref.rollout.agent.agent_loop_manager_class={manager}: RPO injects prefixes with its own "
            f"manager, {MANAGER_CLASS}. Leave the key to +rpo=enabled."
        )
    if not config.trainer.use_v1:
        raise ConfigError("trainer.use_v1=False: RPO works with veRL's V1 trainer. Leave trainer.use_v1 at True.")
    if agent.default_agent_loop != contract.SINGLE_TURN:
        raise ConfigError(
            f"actor_rollout_ref.rollout.agent.default_agent_loop={agent.default_agent_loop}: RPO would touch no row. "
            "Use single_turn_agent, and name the agent of other rows in their column agent_name."
        )
    estimator = str(config.algorithm.adv_estimator)
    if estimator in UNSUPPORTED:
        raise ConfigError(
            f"algorithm.adv_estimator={estimator}: RPO does not build on it, {UNSUPPORTED[estimator]}. "
            "Use an outcome-based, group-relative one such as grpo or rloo."
        )
    correction = config.algorithm.get("rollout_correction") or {}
    if options.loss.prefix_in_loss and correction.get("bypass_mode", False):
        raise ConfigError(
            "rpo.loss.prefix_in_loss=True with algorithm.rollout_correction.bypass_mode=True: nobody computes the "
            "old log-probabilities of the prefix. Switch one of them off."
        )
    corrected = [key for key in ("rollout_is", "rollout_rs") if correction.get(key)]
    if options.loss.prefix_in_loss and corrected:
        raise ConfigError(
            f"rpo.loss.prefix_in_loss=True with algorithm.rollout_correction.{corrected[0]}="
            f"{correction[corrected[0]]}: veRL weighs and rejects tokens of the suffix alone, so the prefix would "
            "count in the mean and have no gradient. Switch one of them off."
        )
    if options.loss.share_prefix:
        _refuse_what_cannot_share(config)
    if options.cache.path is not None:
        try:
            read_manifest(Path(options.cache.path))
        except StoreError as error:
            raise ConfigError(f"rpo.cache.path={options.cache.path}: {error}") from error
    validate(
        options, max_response_length=config.data.max_response_length, group_size=config.actor_rollout_ref.rollout.n
    )
    return options


def _refuse_what_cannot_share(config: DictConfig) -> None:
    """Raises ConfigError for settings under which rows are laid out in another way, or members of a group part."""
    reference = "actor_rollout_ref"
    settings = {
        f"{reference}.actor.strategy": ("fsdp", "fsdp2"),
        f"{reference}.actor.ulysses_sequence_parallel_size": (1,),
        f"{reference}.actor.fsdp_config.ulysses_sequence_parallel_size": (1,),
        f"{reference}.actor.fsdp_config.pad_to_length": (False,),
        f"{reference}.model.use_fused_kernels": (False,),
        f"{reference}.actor.calculate_sum_pi_squared": (False,),
        "distillation.enabled": (False,),
        # Spreads a group over micro-batches.
        f"{reference}.actor.shuffle": (False,),
    }
    for key, possible in settings.items():
        value = OmegaConf.select(config, key)
        if value is not None and value not in possible:
            raise ConfigError(
                f"rpo.loss.share_prefix=True with {key}={value}: prefixes are shared within a micro-batch of veRL's "
                f"FSDP engine, where the rows of a group are neighbours. Set {key}={possible[0]}, or leave "
                "rpo.loss.share_prefix at False."
            )


def take_over(config: DictConfig) -> RPOConfig:
    """Put RPO's estimator and reward manager in the place of the user's, which they wrap. Changes `config`.

    Runs in the TaskRunner, before any worker is given the configuration: whatever the user chose on the command line,
    the group, or veRL's defaults is what gets wrapped.
    """
    options = read_options(config)
    upstream = config.rpo.upstream
    upstream.adv_estimator = str(config.algorithm.adv_estimator)
    upstream.reward_manager = config.reward.reward_manager.name
    upstream.reward_manager_source = config.reward.reward_manager.source
    config.algorithm.adv_estimator = contract.NAME
    config.reward.reward_manager.name = contract.NAME
    config.reward.reward_manager.source = "register"
    return options


class CheckSettings(Callback):
    """Hydra callback of the `rpo` group: refuses what RPO cannot run before Ray starts."""

    def on_job_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Raises SystemExit, which Hydra, unlike other exceptions of a callback, does not turn into a warning."""
        try:
            contract.require_supported_verl()
            read_options(config)
        except contract.ContractError as error:
            raise SystemExit(str(error)) from error
        except ConfigError as error:
            raise SystemExit(f"rpo_verl: {error}") from error
