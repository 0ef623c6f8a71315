"""Which settings of veRL rule an algorithm out, each with one message that names the value and the reason."""

from copy import deepcopy
from functools import cache

import pytest
import verl  # noqa: F401 - loads the plug-in, whose groups Hydra has to find
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf, open_dict

from rpo_verl.config import ConfigError
from rpo_verl.rpo.hooks.advantage import UNSUPPORTED
from rpo_verl.rpo.hooks.settings import WRAPPED, take_over, users_config, weighs_tokens
from rpo_verl.rpo.hooks.settings import check as check_rpo
from rpo_verl.rpo.options import MOVED
from rpo_verl.upstream.settings import CheckSettings, check, read_options

ROLLOUT, CORRECTION = "actor_rollout_ref.rollout", "algorithm.rollout_correction"
REFUSED = {f"algorithm.adv_estimator={name}": reason for name, reason in UNSUPPORTED.items()} | {
    f"{ROLLOUT}.agent.default_agent_loop=tool_agent": "RPO would touch no row",
    f"{ROLLOUT}.agent.agent_loop_manager_class=my.Manager": "its own manager",
    f"{ROLLOUT}.n=1": "at least 2",
    "trainer.use_v1=False": "V1 trainer",
    "rpo.cache.path=/nowhere": "/nowhere",
    "rpo.reward.alpha=-1.0": "at least 0",
    "rpo.truncation.min_tokens=512": "below data.max_response_length = 512",
    "lean.poll_interval_s=0.0": "above 0",
}


@cache
def compose_once(*overrides):
    with initialize_config_module("verl.trainer.config", version_base=None):
        return compose("ppo_trainer", list(overrides))


def composed(*overrides, group="rpo"):
    """A configuration of one's own; composing takes a second."""
    return deepcopy(compose_once(f"+{group}=enabled", f"{ROLLOUT}.n=8", *overrides))


def lean_options(*overrides, group="lean"):
    config = composed(*overrides, group=group)
    check(config)
    return read_options(config, "lean")


@pytest.mark.parametrize("override", REFUSED)
def test_refused_with_a_reason(override):
    key, value = override.split("=")
    with pytest.raises(ConfigError) as error:
        check(composed("data.max_response_length=512", override))
    assert f"{key}={value}" in str(error.value)
    assert REFUSED[override] in str(error.value)


def test_imitation_refuses_a_penalty_that_works_through_advantages():
    imitated, penalty = "rpo.credit.rule=imitate", "algorithm.use_kl_in_reward=True"
    with pytest.raises(ConfigError, match=f"{imitated} with {penalty}.*use_kl_loss=true"):
        check(composed(imitated, penalty))
    check(composed(imitated, "actor_rollout_ref.actor.use_kl_loss=True"))
    check(composed("rpo.credit.rule=paid", penalty))


@pytest.mark.parametrize("name", ["rpo", "lean"])
def test_refused_settings_end_the_driver(name):
    with pytest.raises(SystemExit, match=f"trainer.use_v1=False: {name} works with"):
        CheckSettings().on_job_start(composed("trainer.use_v1=False", group=name))


@pytest.mark.parametrize("group", ["rpo", "lean"])
@pytest.mark.parametrize(
    "override",
    ["actor_rollout_ref.actor.ulysses_sequence_parallel_size=2", "actor_rollout_ref.model.use_fused_kernels=True",
     "actor_rollout_ref.actor.calculate_sum_pi_squared=True",
     "actor_rollout_ref.actor.fsdp_config.pad_to_length=True", "actor_rollout_ref.actor.shuffle=True"],
)  # fmt: skip
def test_what_cannot_share_prefixes(override, group):
    with pytest.raises(ConfigError, match=f"lean.share_prefix=True with {override}"):
        lean_options("lean.share_prefix=true", override, group=group)
    assert not lean_options(override, group=group).share_prefix
    assert lean_options("lean.share_prefix=true", group=group).share_prefix


@pytest.mark.parametrize("engine", ["megatron", "veomni", "torchtitan"])
def test_other_engines_cannot_share_prefixes(engine):
    with pytest.raises(ConfigError, match=f"share_prefix=True with actor_rollout_ref.actor.strategy={engine}"):
        lean_options("lean.share_prefix=true", f"model_engine={engine}")


def test_lean_alone_has_its_options_and_none_of_rpo():
    config = composed("lean.poll_interval_s=0.5", group="lean")
    check(config)
    options = read_options(config, "lean")
    assert (options.poll_interval_s, options.skip_zero_advantage, options.share_prefix) == (0.5, True, False)
    assert config.get("rpo") is None
    # Nothing that RPO asks for: critics, one response a question, agents of one's own.
    check(composed("algorithm.adv_estimator=gae", f"{ROLLOUT}.agent.default_agent_loop=tool_agent", group="lean"))


def test_rpo_needs_lean():
    config = composed()
    with open_dict(config):
        del config.lean
    with pytest.raises(ConfigError, match=r"rpo needs lean, which \+rpo=enabled brings along"):
        check(config)


@pytest.mark.parametrize("name", ["rpo", "lean"])
@pytest.mark.parametrize("section", ["enabled", {"seed": 1}])
def test_a_section_without_its_group_is_refused(name, section):
    config = deepcopy(compose_once())
    with open_dict(config):
        config[name] = section
    with pytest.raises(ConfigError, match=rf"without the configuration group. Select it with \+{name}=enabled"):
        read_options(config, name)


@pytest.mark.parametrize("key", [key for key in MOVED if key != "rpo.upstream"])
def test_a_moved_option_in_a_section_is_answered_with_its_new_place(key):
    """As a configuration file of an earlier version has it."""
    config = composed()
    own = OmegaConf.to_container(config.rpo)
    *sections, last = key.split(".")[1:]
    section = own
    for name in sections:
        section = section.setdefault(name, {})
    section[last] = 1
    with open_dict(config):
        config.rpo = OmegaConf.create(own)
    with pytest.raises(ConfigError) as error:
        read_options(config, "rpo")
    assert f"{key} {MOVED[key]}" in str(error.value)


def test_an_unknown_option_in_a_section_is_named():
    config = composed()
    own = OmegaConf.to_container(config.rpo)
    own["cache"]["colour"] = "red"
    with open_dict(config):
        config.rpo = OmegaConf.create(own)
    with pytest.raises(ConfigError, match=r"unknown or mistyped option in rpo: .*colour"):
        read_options(config, "rpo")


@pytest.mark.parametrize(
    "override",
    [f"{CORRECTION}.bypass_mode=True", f"{CORRECTION}.rollout_is=token", f"{CORRECTION}.rollout_rs=token_k1"],
)
def test_what_the_literal_rule_cannot_run_with(override):
    with pytest.raises(ConfigError, match=f"rpo.credit.rule=literal with {override}"):
        check(composed("rpo.credit.rule=literal", override))
    check(composed(override))
    check(composed("rpo.credit.rule=literal"))


@pytest.mark.parametrize("estimator", ["grpo", "rloo", "reinforce_plus_plus", "opo", "gpg", "grpo_passk"])
def test_taken(estimator):
    config = composed(f"algorithm.adv_estimator={estimator}")
    check_rpo(config)
    assert WRAPPED not in config
    take_over(config)
    assert (config.algorithm.adv_estimator, config[WRAPPED].adv_estimator) == ("rpo", estimator)


def test_the_users_reward_manager_is_wrapped():
    config = composed("reward.reward_manager.name=dapo")
    take_over(config)
    manager = config.reward.reward_manager
    assert (manager.name, manager.source) == ("rpo", "register")
    assert (config[WRAPPED].reward_manager, config[WRAPPED].reward_manager_source) == ("dapo", "register")
    own = users_config(config).reward.reward_manager
    assert (own.name, own.source) == ("dapo", "register")
    assert manager.name == "rpo", "on a copy"


def test_a_paid_prefix_needs_log_probabilities():
    with pytest.raises(ConfigError, match=r"rpo.credit.rule=paid with .*calculate_log_probs=False"):
        check(composed("rpo.credit.rule=paid", "actor_rollout_ref.rollout.calculate_log_probs=false"))
    for setting in ("bypass_mode=true", "rollout_is=token", "rollout_rs=token_k1"):
        check(composed("rpo.credit.rule=paid", f"{CORRECTION}.{setting}"))


def test_when_veRL_weighs_tokens():
    assert not weighs_tokens(composed())
    assert weighs_tokens(composed(f"{CORRECTION}.rollout_is=sequence"))
    assert not weighs_tokens(composed(f"{CORRECTION}.rollout_is=token", f"{CORRECTION}.bypass_mode=true"))


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        (["top_p=0.9"], "top_p=0.9"),
        (["top_k=20"], "top_k=20"),
        (["temperature=0.7", "logprobs_mode=raw_logprobs"], "logprobs_mode=raw_logprobs and temperature=0.7"),
    ],
)
def test_a_paid_prefix_needs_the_whole_distribution(overrides, named):
    overrides = [f"actor_rollout_ref.rollout.{override}" for override in overrides]
    with pytest.raises(ConfigError, match=f"rpo.credit.rule=paid with actor_rollout_ref.rollout.{named}"):
        check(composed("rpo.credit.rule=paid", *overrides))
    check(composed("rpo.credit.rule=none", *overrides))


@pytest.mark.parametrize("loss", ["gspo", "geo_mean"])
def test_a_paid_prefix_needs_a_ratio_for_each_token(loss):
    override = f"actor_rollout_ref.actor.policy_loss.loss_mode={loss}"
    with pytest.raises(ConfigError, match=f"rpo.credit.rule=paid with {override}"):
        check(composed("rpo.credit.rule=paid", override))
    check(composed("rpo.credit.rule=none", override))
    check(composed("rpo.credit.rule=paid", "actor_rollout_ref.actor.policy_loss.loss_mode=clip_cov"))


def test_rules_that_weigh_a_prefix_work_at_any_temperature():
    check(composed("rpo.credit.rule=paid", "actor_rollout_ref.rollout.temperature=0.7"))
