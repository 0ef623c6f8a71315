"""Which settings of veRL rule R²PO out, each with one message that names value, alternative and reason."""

from copy import deepcopy
from functools import cache

import pytest
import verl  # noqa: F401 - loads the plug-in, whose groups Hydra has to find
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf, open_dict

from rpo_verl.config import ConfigError
from rpo_verl.r2po.hooks.settings import CORRECTION, EXTENSION, NEEDS, ROLLOUT, WORKER_CLASS
from rpo_verl.upstream.settings import check, read_options

#: Setting → a value that does not work.
BAD = {
    "trainer.v1.trainer_mode": "colocate_async",
    f"{ROLLOUT}.name": "sglang",
    WORKER_CLASS: "my.Extension",
    f"{ROLLOUT}.engine_kwargs.vllm.speculative_config": {"method": "ngram"},
    f"{ROLLOUT}.data_parallel_size": 2,
    f"{ROLLOUT}.pipeline_model_parallel_size": 2,
    f"{ROLLOUT}.disaggregation.enabled": True,
    f"{ROLLOUT}.calculate_log_probs": False,
    f"{ROLLOUT}.top_p": 0.9,
    f"{ROLLOUT}.top_k": 20,
    f"{ROLLOUT}.checkpoint_engine.backend": "nccl",
    "actor_rollout_ref.actor.strategy": "megatron",
    "actor_rollout_ref.actor.ulysses_sequence_parallel_size": 2,
    "actor_rollout_ref.actor.fsdp_config.ulysses_sequence_parallel_size": 2,
    "actor_rollout_ref.actor.fsdp_config.pad_to_length": True,
    "actor_rollout_ref.model.use_fused_kernels": True,
    "actor_rollout_ref.model.mtp.enable": True,
    "distillation.enabled": True,
}


@cache
def compose_once(*overrides):
    with initialize_config_module("verl.trainer.config", version_base=None):
        return compose("ppo_trainer", [f"{ROLLOUT}.n=8", f"{ROLLOUT}.name=vllm", *overrides])


def composed(*overrides, **settings):
    """A configuration of one's own, with single settings by dotted key."""
    config = deepcopy(compose_once(*(overrides or ("+r2po=enabled",))))
    with open_dict(config):
        for key, value in settings.items():
            OmegaConf.update(config, key, value, force_add=True)
    return config


def test_every_setting_that_is_refused_is_tested_here():
    assert BAD.keys() == NEEDS.keys()


@pytest.mark.parametrize("key", NEEDS)
def test_refused_by_name_with_a_reason(key):
    with pytest.raises(ConfigError) as error:
        check(composed(**{key: BAD[key]}))
    text, (possible, reason) = str(error.value), NEEDS[key]
    assert text.startswith(f"{key}={BAD[key]}: R²PO works with ")
    assert reason in text
    assert ("null" if possible[0] is None else str(possible[0])) in text


@pytest.mark.parametrize("key", [key for key in NEEDS if key != WORKER_CLASS])
def test_verls_own_value_is_fine(key):
    """Each setting exists in veRL, or is one that a user may add, and its value there works."""
    config = composed()
    assert OmegaConf.select(config, key) in (*NEEDS[key][0], None)
    check(config)


def test_vllm_without_the_head_is_refused():
    with pytest.raises(ConfigError, match=f"worker_extension_cls=None: R²PO works with {EXTENSION} alone"):
        check(composed(**{WORKER_CLASS: None}))


@pytest.mark.parametrize(
    ("overrides", "settings", "fragment"),
    [
        (["+r2po=enabled"], {f"{CORRECTION}.bypass_mode": True}, "bypass_mode=True"),
        (["+r2po=enabled"], {f"{CORRECTION}.rollout_is": None}, "rollout_is=null: nothing would correct"),
        (["+r2po=enabled"], {"r2po.correction": "none"}, "r2po.correction=none with algorithm.rollout_correction"),
        (["+r2po=paper"], {f"{CORRECTION}.rollout_is": "token"}, "r2po.correction=none with"),
        (["+r2po=enabled"], {f"{ROLLOUT}.temperature": 0.7, f"{ROLLOUT}.logprobs_mode": "raw_logprobs"},
         "logprobs_mode=raw_logprobs with temperature=0.7"),
        (["+r2po=enabled"], {f"{ROLLOUT}.temperature": 0}, "temperature=0"),
        (["+r2po=enabled"], {"r2po.head_steps": 20}, "r2po.head_steps=20: must be below"),
        (["+r2po=enabled"], {"trainer.use_v1": False}, "trainer.use_v1=False: r2po works with"),
    ],
)  # fmt: skip
def test_what_does_not_fit_together(overrides, settings, fragment):
    with pytest.raises(ConfigError) as error:
        check(composed(*overrides, **settings))
    assert fragment in str(error.value)


def test_what_users_may_choose():
    check(composed(**{f"{ROLLOUT}.temperature": 0.7}))
    check(composed(**{f"{CORRECTION}.rollout_is": "sequence"}))
    check(composed(**{f"{CORRECTION}.rollout_is": None, "r2po.correction": "none"}))
    check(composed(**{"actor_rollout_ref.actor.strategy": "fsdp2"}))


def test_the_authors_settings():
    options = read_options(composed("+r2po=paper"), "r2po")
    assert (options.head.rank, options.head.init_std, options.rarity.by) == (None, 1e-6, "reward")
    assert (options.correction, options.stage1.kl_bound, options.stage1.kl_weight) == ("none", None, 0.04)
    # What the yaml does not name is the default's.
    assert options.stage1.clip_grad == read_options(composed(), "r2po").stage1.clip_grad


@pytest.mark.parametrize("rule", ["none", "paid"])
def test_beside_rpo(rule):
    check(composed("+rpo=enabled", "+r2po=enabled", **{"rpo.credit.rule": rule}))
