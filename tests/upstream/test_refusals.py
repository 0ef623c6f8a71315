"""What the callback of the groups refuses before Ray starts, composed as the command line would.

`tests/real/test_never_vanilla.py` shows on the command line itself that a refusal ends the run.
"""

import pytest
import verl  # noqa: F401 - loads the plug-in, whose groups Hydra has to find
from hydra import compose, initialize_config_module
from hydra.errors import ConfigCompositionException, MissingConfigException
from omegaconf import open_dict

from rpo_verl.upstream.settings import CheckSettings

ROLLOUT, CORRECTION = "actor_rollout_ref.rollout", "algorithm.rollout_correction"


def configure(*overrides):
    with initialize_config_module("verl.trainer.config", version_base=None):
        return compose("ppo_trainer", [f"{ROLLOUT}.n=4", f"{ROLLOUT}.name=vllm", *overrides])


def check(*overrides):
    CheckSettings().on_job_start(configure(*overrides))


@pytest.mark.parametrize(
    "overrides",
    [
        ["+rpo=enabled"],
        ["+rpo=paper"],
        ["+lean=enabled"],
        ["+rpo=enabled", "+lean=enabled"],
        ["+r2po=enabled"],
        ["+r2po=paper"],
        ["+r2po=enabled", "+lean=enabled"],
        ["+r2po=enabled", "+rpo=enabled"],
        ["+rpo=enabled", "+r2po=paper"],
    ],
)
def test_the_groups_are_sound(overrides):
    check(*overrides)


@pytest.mark.parametrize(
    ("overrides", "fragments"),
    [
        (["+rpo=enabled", f"{ROLLOUT}.n=1"], ["rollout.n=1", "at least 2"]),
        (["+rpo=enabled", "rpo.reward.lo=2"], ["rpo.reward.lo=2", "in [0, 1]"]),
        (["+rpo=enabled", "rpo.reward.alpha=nan"], ["rpo.reward.alpha=nan"]),
        (["+rpo=enabled", "rpo.reward.alpha=inf"], ["rpo.reward.alpha=inf"]),
        (["+rpo=enabled", "lean.poll_interval_s=0"], ["lean.poll_interval_s=0.0", "above 0"]),
        (["+lean=enabled", "lean.poll_interval_s=-1"], ["lean.poll_interval_s=-1.0", "above 0"]),
        (["+rpo=enabled", "data.max_response_length=64", "rpo.truncation.max_tokens=300"], ["max_tokens=300", "64"]),
        (["+rpo=enabled", "algorithm.adv_estimator=gae"], ["adv_estimator=gae", "critic"]),
        (["+rpo=enabled", "trainer.use_v1=false"], ["use_v1", "V1"]),
        (["+lean=enabled", "trainer.use_v1=false"], ["use_v1", "V1"]),
        (["+lean=enabled", "lean.rows_per_group=5"], ["lean.rows_per_group=5 with actor_rollout_ref.rollout.n=4"]),
        (["+rpo=enabled", "lean.rows_per_group=2"], ["lean.rows_per_group=2 with rpo.credit.rule=paid"]),
        (["+rpo=enabled", "lean.rows_per_group=1"], ["lean.rows_per_group=1"]),
        (["+lean=enabled", "lean.rows_per_group=2", "algorithm.adv_estimator=rloo"],
         ["lean.rows_per_group=2 with algorithm.adv_estimator=rloo"]),
        (["+rpo=enabled", "lean.rows_per_group=2", "rpo.credit.rule=paid"],
         ["lean.rows_per_group=2 with rpo.credit.rule=paid"]),
        (["+rpo=enabled", "lean.rows_per_group=2", "rpo.rollout.trunks=2"],
         ["lean.rows_per_group=2", "rpo.rollout.trunks=2"]),
        (["+rpo=enabled", f"{ROLLOUT}.agent.agent_loop_manager_class=${{nowhere}}"],
         ["'nowhere' not found", f"{ROLLOUT}.agent.agent_loop_manager_class"]),
        (["+lean=enabled", "lean.skip_zero_advantage=7"], ["lean.skip_zero_advantage=7: must be true or false"]),
        (["+rpo=enabled", "rpo.cache.keep_correct=2"], ["rpo.cache.keep_correct=2: must be true or false"]),
        (["+rpo=enabled", "rpo.credit.rule=literal", f"{CORRECTION}.bypass_mode=true"],
         ["bypass_mode=True", "rpo.credit.rule=literal"]),
        (["+rpo=enabled", "rpo.credit.rule=literal", f"{CORRECTION}.rollout_is=token"],
         ["rollout_is=token", "rpo.credit.rule=literal"]),
        (["+rpo=enabled", f"{ROLLOUT}.agent.agent_loop_manager_class=my.Manager"],
         ["agent_loop_manager_class=my.Manager"]),
        (["+rpo=enabled", "+rpo.truncation.max_tokns=5"], ["max_tokns"]),
        (["+rpo=enabled", "+rpo.loss={share_prefix: true}"], ["rpo.loss.share_prefix is lean.share_prefix now"]),
    ],
)  # fmt: skip
def test_bad_settings_are_named(overrides, fragments):
    with pytest.raises(SystemExit) as refusal:
        check(*overrides)
    assert str(refusal.value).startswith("rpo_verl: ")
    for fragment in fragments:
        assert fragment in str(refusal.value)


@pytest.mark.parametrize(
    ("overrides", "fragments"),
    [
        (["+rpo=enabled", "rpo.truncation.max_tokns=5"], ["max_tokns"]),
        (["+rpo=enabled", "rpo.reward.alpha=steep"], ["alpha", "steep"]),
        (["+rpo=enbled"], ["rpo/enbled"]),
    ],
)
def test_hydra_refuses_unknown_keys_and_types(overrides, fragments):
    with pytest.raises((ConfigCompositionException, MissingConfigException)) as refusal:
        check(*overrides)
    texts = []
    error = refusal.value
    while error is not None:
        texts.append(str(error))
        error = error.__cause__
    for fragment in fragments:
        assert fragment in "\n".join(texts)


def test_rpo_needs_lean():
    config = configure("+rpo=enabled")
    with open_dict(config):
        del config.lean
    with pytest.raises(SystemExit, match="rpo needs lean"):
        CheckSettings().on_job_start(config)


def test_lean_takes_a_users_own_manager():
    check("+lean=enabled", f"{ROLLOUT}.agent.agent_loop_manager_class=my.Manager")
