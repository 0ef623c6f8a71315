"""Which settings of veRL rule RPO out, each with one message that names the value and the reason."""

import pytest
import verl  # noqa: F401 - loads the plug-in, whose groups Hydra has to find
from hydra import compose, initialize_config_module

from rpo_verl.config import ConfigError
from rpo_verl.rpo.hooks.advantage import UNSUPPORTED
from rpo_verl.rpo.hooks.settings import read_options

ROLLOUT = "actor_rollout_ref.rollout"
REFUSED = {f"algorithm.adv_estimator={name}": reason for name, reason in UNSUPPORTED.items()} | {
    f"{ROLLOUT}.agent.default_agent_loop=tool_agent": "RPO would touch no row",
    f"{ROLLOUT}.agent.agent_loop_manager_class=my.Manager": "its own manager",
    f"{ROLLOUT}.n=1": "at least 2",
    "trainer.use_v1=False": "V1 trainer",
    "rpo.cache.path=/nowhere": "/nowhere",
}


def options(*overrides):
    with initialize_config_module("verl.trainer.config", version_base=None):
        return read_options(compose("ppo_trainer", ["+rpo=enabled", f"{ROLLOUT}.n=8", *overrides]))


@pytest.mark.parametrize("override", REFUSED)
def test_refused_with_a_reason(override):
    key, value = override.split("=")
    with pytest.raises(ConfigError) as error:
        options(override)
    assert f"{key}={value}" in str(error.value)
    assert REFUSED[override] in str(error.value)


@pytest.mark.parametrize(
    "override",
    ["actor_rollout_ref.actor.ulysses_sequence_parallel_size=2", "actor_rollout_ref.model.use_fused_kernels=True",
     "actor_rollout_ref.actor.calculate_sum_pi_squared=True",
     "actor_rollout_ref.actor.fsdp_config.pad_to_length=True", "actor_rollout_ref.actor.shuffle=True"],
)  # fmt: skip
def test_what_cannot_share_prefixes(override):
    with pytest.raises(ConfigError, match=f"rpo.loss.share_prefix=True with {override}"):
        options("rpo.loss.share_prefix=true", override)
    assert options("rpo.loss.share_prefix=true").loss.share_prefix


@pytest.mark.parametrize("engine", ["megatron", "veomni", "torchtitan"])
def test_other_engines_cannot_share_prefixes(engine):
    with pytest.raises(ConfigError, match=f"share_prefix=True with actor_rollout_ref.actor.strategy={engine}"):
        options("rpo.loss.share_prefix=true", f"model_engine={engine}")


@pytest.mark.parametrize("estimator", ["grpo", "rloo", "reinforce_plus_plus", "opo", "gpg", "grpo_passk"])
def test_taken(estimator):
    assert options(f"algorithm.adv_estimator={estimator}").upstream.adv_estimator is None
