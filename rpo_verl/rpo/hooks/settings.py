"""Which settings RPO cannot run with, and taking over the user's own components."""

from dataclasses import dataclass
from pathlib import Path

from omegaconf import DictConfig, OmegaConf, open_dict

from rpo_verl.config import ConfigError
from rpo_verl.rpo.hooks import NAME, SINGLE_TURN
from rpo_verl.rpo.hooks.advantage import UNSUPPORTED
from rpo_verl.rpo.options import CreditConfig, RPOConfig, validate
from rpo_verl.rpo.store import StoreError, read_manifest
from rpo_verl.upstream.settings import MANAGER, read_options, whole_number

#: Losses of veRL with one ratio for a whole response.
SEQUENCE_LOSSES = ("gspo", "geo_mean")
#: Section that RPO adds to the configuration in the TaskRunner; reward workers read it.
WRAPPED = "rpo_wrapped"


@dataclass
class Wrapped:
    """The user's own components, which RPO's wrap."""

    adv_estimator: str
    reward_manager: str
    reward_manager_source: str


def check(config: DictConfig) -> RPOConfig:
    """The typed, validated `rpo` section.

    Raises:
        ConfigError: if it is unsound, or if another part of veRL's configuration rules RPO out.
    """
    options, agent = read_options(config, "rpo"), config.actor_rollout_ref.rollout.agent
    if agent.agent_loop_manager_class != MANAGER:
        raise ConfigError(
            f"actor_rollout_ref.rollout.agent.agent_loop_manager_class={agent.agent_loop_manager_class}: RPO injects "
            f"prefixes through its own manager, {MANAGER}. Leave the key to +rpo=enabled."
        )
    if agent.default_agent_loop != SINGLE_TURN:
        raise ConfigError(
            f"actor_rollout_ref.rollout.agent.default_agent_loop={agent.default_agent_loop}: RPO would touch no row. "
            "Use single_turn_agent, and name the agent of other rows in their column agent_name."
        )
    estimator = str(config.algorithm.adv_estimator)
    if estimator == NAME:
        raise ConfigError(
            f"algorithm.adv_estimator={NAME}: that is RPO itself, which takes the place of the estimator it builds on. "
            "Name that one, such as grpo, or leave the key alone."
        )
    if estimator in UNSUPPORTED:
        raise ConfigError(
            f"algorithm.adv_estimator={estimator}: RPO does not build on it, {UNSUPPORTED[estimator]}. "
            "Use an outcome-based, group-relative one such as grpo or rloo."
        )
    rows = OmegaConf.select(config, "lean.rows_per_group")
    if rows is not None and (options.credit.rule != "none" or options.rollout.trunks):
        raise ConfigError(
            f"lean.rows_per_group={rows} with rpo.credit.rule={options.credit.rule} and rpo.rollout.trunks="
            f"{options.rollout.trunks}: credit and trunks need every member of a group. Set lean.rows_per_group=null, "
            "or rpo.credit.rule=none and rpo.rollout.trunks=0."
        )
    if options.credit.rule != "none":
        _refuse_what_needs_the_prefix(config, options.credit)
    if options.cache.path is not None:
        try:
            read_manifest(Path(options.cache.path))
        except StoreError as error:
            raise ConfigError(f"rpo.cache.path={options.cache.path}: {error}") from error
    validate(
        options,
        max_response_length=whole_number(config, "data.max_response_length"),
        group_size=whole_number(config, "actor_rollout_ref.rollout.n"),
    )
    return options


def _refuse_what_needs_the_prefix(config: DictConfig, credit: CreditConfig) -> None:
    correction = config.algorithm.get("rollout_correction") or {}
    loss = config.actor_rollout_ref.actor.policy_loss.loss_mode
    if credit.needs_logprobs and loss in SEQUENCE_LOSSES:
        raise ConfigError(
            f"rpo.credit.rule={credit.rule} with actor_rollout_ref.actor.policy_loss.loss_mode={loss}: that loss has "
            "one ratio for a whole response, and an older policy wrote its prefix. Use a loss with a ratio for each "
            "token, such as vanilla, or rpo.credit.rule=none."
        )
    if credit.needs_logprobs:
        _refuse_unknown_log_probs(config, credit.rule)
    if credit.rule == "imitate" and config.algorithm.use_kl_in_reward:
        raise ConfigError(
            "rpo.credit.rule=imitate with algorithm.use_kl_in_reward=True: imitation takes the place of the advantages "
            "that the penalty works through. Use actor_rollout_ref.actor.use_kl_loss=true, or rpo.credit.rule=paid."
        )
    if credit.rule != "literal":
        return
    if correction.get("bypass_mode", False):
        raise ConfigError(
            "rpo.credit.rule=literal with algorithm.rollout_correction.bypass_mode=True: the old log-probabilities of "
            "the prefix would be missing. Switch one of them off."
        )
    for key in ("rollout_is", "rollout_rs"):
        if correction.get(key):
            raise ConfigError(
                f"rpo.credit.rule=literal with algorithm.rollout_correction.{key}={correction[key]}: veRL weighs and "
                "rejects tokens of the suffix alone, so the prefix would count in the mean and have no gradient. "
                "Switch one of them off."
            )


def weighs_tokens(config: DictConfig) -> bool:
    """Whether veRL writes importance weights of tokens beside the advantages."""
    correction = config.algorithm.get("rollout_correction") or {}
    return bool(correction.get("rollout_is")) and not correction.get("bypass_mode", False)


def _refuse_unknown_log_probs(config: DictConfig, rule: str) -> None:
    rollout = config.actor_rollout_ref.rollout
    if not rollout.calculate_log_probs:
        raise ConfigError(
            f"rpo.credit.rule={rule} with actor_rollout_ref.rollout.calculate_log_probs=False: the rule needs the "
            "log-probabilities of generated tokens. Switch them on, or use rpo.credit.rule=none."
        )
    cut = next((name for name, off in (("top_p", (1,)), ("top_k", (-1, 0))) if rollout[name] not in off), None)
    if cut is not None:
        raise ConfigError(
            f"rpo.credit.rule={rule} with actor_rollout_ref.rollout.{cut}={rollout[cut]}: the rollout's "
            "log-probabilities are those of a cut distribution, and the weights of prefixes would be wrong. Sample "
            "from the whole distribution, or use rpo.credit.rule=none."
        )
    mode = rollout.logprobs_mode
    if rollout.temperature != 1 and mode != "processed_logprobs":
        raise ConfigError(
            f"rpo.credit.rule={rule} with actor_rollout_ref.rollout.logprobs_mode={mode} and temperature="
            f"{rollout.temperature}: the rollout's log-probabilities are those of another temperature. Use "
            "processed_logprobs, or rpo.credit.rule=none."
        )


def take_over(config: DictConfig) -> RPOConfig:
    """Put RPO's estimator and reward manager in the place of the user's, which they wrap. Changes `config`.

    Runs in the TaskRunner, before any worker is given the configuration: whatever the user chose on the command line,
    the group, or veRL's defaults is what gets wrapped.
    """
    options, manager = check(config), config.reward.reward_manager
    with open_dict(config):
        config[WRAPPED] = OmegaConf.structured(
            Wrapped(str(config.algorithm.adv_estimator), manager.name, manager.source)
        )
    config.algorithm.adv_estimator = NAME
    manager.name, manager.source = NAME, "register"
    return options


def users_config(config: DictConfig) -> DictConfig:
    """A copy of veRL's configuration that names the reward manager the user chose, which RPO's wraps."""
    own, wrapped = OmegaConf.create(OmegaConf.to_container(config, resolve=True)), config[WRAPPED]
    with open_dict(own):
        own.reward.reward_manager.name = wrapped.reward_manager
        own.reward.reward_manager.source = wrapped.reward_manager_source
    return own
