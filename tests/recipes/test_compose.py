"""Every recipe composes to a configuration that veRL accepts, on every scale; with RPO it differs in RPO alone."""

import subprocess
import warnings
from pathlib import Path

import pytest
import verl  # noqa: F401 - loads the plug-in, whose groups Hydra has to find
from conftest import ROOT
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf
from scripts import SCALES, SCRIPTS, arguments
from verl.trainer.ppo.utils import need_critic, need_reference_policy
from verl.utils.config import omega_conf_to_dataclass, validate_config

from rpo_verl.rpo.hooks.settings import check

#: What a plus sign may add: RPO's group, what veRL's DAPO reward manager reads and veRL's configuration lacks, and what
#: Ray hands to its workers.
ADDED = ("+rpo=", "+reward.reward_kwargs.", "+ray_kwargs.ray_init.runtime_env.env_vars.")
#: Accepted by veRL 0.9.1 and not read by the trainer that runs, or deprecated there.
IGNORED = (
    "reward_model.",
    "custom_reward_function.",
    "sandbox_fusion.",
    "data.val_batch_size",
    "data.truncation",
    "actor_rollout_ref.ref.fsdp_config.param_offload",
    "algorithm.filter_groups.max_num_gen_batches",
    "actor_rollout_ref.rollout.mode",
    "actor_rollout_ref.rollout.log_prob_micro_batch_size=",
    "actor_rollout_ref.ref.log_prob_micro_batch_size=",
    "actor_rollout_ref.actor.ppo_micro_batch_size=",
    "actor_rollout_ref.actor.grad_clip",
    "actor_rollout_ref.actor.ulysses_sequence_parallel_size",
    "actor_rollout_ref.actor.optim.warmup_style",
    "critic.",
)
SECTIONS = (
    "actor_rollout_ref.actor",
    "actor_rollout_ref.actor.optim",
    "actor_rollout_ref.actor.fsdp_config",
    "actor_rollout_ref.rollout",
    "algorithm",
)


def composed(overrides):
    with initialize_config_module("verl.trainer.config", version_base=None):
        return compose("ppo_trainer", overrides)


def overrides_of(script, folder, scale="one_node"):
    module, *overrides = arguments(script, folder, scale=scale)[1:]
    assert module == "verl.trainer.main_ppo"
    return overrides


def test_the_recipes_are_all_there():
    names = {str(script) for script in SCRIPTS}
    for size in ("1.5b", "7b"):
        for algorithm in ("grpo", "dapo"):
            for ending in ("", "_rpo"):
                assert f"open_rs/run_deepseek_r1_distill_qwen_{size}_{algorithm}{ending}.sh" in names
    assert len(names) == 12


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("script", SCRIPTS, ids=str)
def test_veRL_accepts_it(script, scale, tmp_path):
    overrides = overrides_of(script, tmp_path, scale)
    with warnings.catch_warnings():
        warnings.simplefilter("error", DeprecationWarning)
        config = composed(overrides)
        for section in SECTIONS:
            omega_conf_to_dataclass(OmegaConf.select(config, section))
        validate_config(config, need_reference_policy(config), need_critic(config))
    devices = {"one_gpu": 1, "one_node": 8, "many_nodes": 32}[scale]
    assert config.trainer.nnodes * config.trainer.n_gpus_per_node == devices
    assert devices % config.actor_rollout_ref.rollout.tensor_model_parallel_size == 0
    assert config.data.train_batch_size % config.actor_rollout_ref.actor.ppo_mini_batch_size == 0
    longest = config.data.max_prompt_length + config.data.max_response_length
    assert config.actor_rollout_ref.actor.ppo_max_token_len_per_gpu >= longest
    if config.get("rpo") is not None:
        check(config)


@pytest.mark.parametrize("script", SCRIPTS, ids=str)
def test_every_key_is_one_that_veRL_reads(script, tmp_path):
    for override in overrides_of(script, tmp_path):
        # Without a plus sign Hydra itself refuses what is not in veRL's configuration.
        assert not override.startswith("+") or override.startswith(ADDED), override
        assert not override.removeprefix("+").startswith(IGNORED), override
    config = composed(overrides_of(script, tmp_path))
    keys = " ".join(overrides_of(script, tmp_path))
    assert ("kl_loss_coef" in keys) == config.actor_rollout_ref.actor.use_kl_loss


def test_a_script_makes_the_data_that_each_recipe_reads(tmp_path):
    for script in SCRIPTS:
        config = composed(overrides_of(script, tmp_path))
        for path in map(Path, [*config.data.train_files, *config.data.val_files]):
            assert (ROOT / "examples" / "data_preprocess" / f"{path.parent.name}.py").exists(), path


@pytest.mark.parametrize("script", [script for script in SCRIPTS if script.stem.endswith("_rpo")], ids=str)
def test_rpo_is_one_line_more_than_the_baseline(script, tmp_path):
    baseline = script.with_name(script.name.replace("_rpo.sh", ".sh"))
    named = {"EXPERIMENT": "same"}
    without = arguments(baseline, tmp_path, **named)
    assert arguments(script, tmp_path, **named) == [*without, "+rpo=enabled"]
    assert arguments(script, tmp_path, RPO="paper", **named) == [*without, "+rpo=paper"]
    options = check(composed([*without[2:], "+rpo=paper"]))
    assert options.credit.rule == "literal" and options.truncation.min_tokens == 0
    # What users add comes last, and wins.
    assert arguments(script, tmp_path, "data.seed=7", **named)[-1] == "data.seed=7"


def test_dapo_is_dapo(tmp_path):
    for script in (script for script in SCRIPTS if "dapo" in script.stem):
        config = composed(overrides_of(script, tmp_path))
        actor = config.actor_rollout_ref.actor
        assert (actor.clip_ratio_low, actor.clip_ratio_high) == (0.2, 0.28)
        assert (actor.loss_agg_mode, actor.use_kl_loss, config.algorithm.use_kl_in_reward) == (
            "token-mean",
            False,
            False,
        )
        assert config.algorithm.filter_groups.enable and config.algorithm.filter_groups.metric == "acc"
        kwargs = config.reward.reward_kwargs
        assert config.reward.reward_manager.name == "dapo"
        assert kwargs.max_resp_len == config.data.max_response_length > kwargs.overlong_buffer_cfg.len > 0


def test_open_rs_has_the_papers_settings(tmp_path):
    for script in (script for script in SCRIPTS if script.parts[0] == "open_rs"):
        config = composed(overrides_of(script, tmp_path))
        rollout = config.actor_rollout_ref.rollout
        assert config.data.train_batch_size * rollout.n == 576
        assert (rollout.n, rollout.temperature) == (6, 0.7)
        assert (config.data.max_response_length, config.trainer.total_epochs) == (4096, 4)
        assert config.actor_rollout_ref.actor.ppo_mini_batch_size == config.data.train_batch_size
        assert ("7B" if "7b" in script.stem else "1.5B") in config.actor_rollout_ref.model.path


def test_a_wrong_scale_is_named(tmp_path):
    with pytest.raises(subprocess.CalledProcessError) as error:
        arguments(SCRIPTS[0], tmp_path, SCALE="galaxy")
    assert b"SCALE=galaxy: must be one_gpu" in error.value.stderr


def test_many_nodes_ask_for_ray(tmp_path):
    with pytest.raises(subprocess.CalledProcessError) as error:
        arguments(SCRIPTS[0], tmp_path, scale="many_nodes", RAY_ADDRESS="")
    assert b"RAY_ADDRESS" in error.value.stderr


def test_a_7b_model_on_one_gpu_stays_in_the_machines_memory(tmp_path):
    for script in SCRIPTS:
        fsdp = composed(overrides_of(script, tmp_path, "one_gpu")).actor_rollout_ref.actor.fsdp_config
        assert fsdp.offload_policy == ("7b" in script.stem)
        assert fsdp.param_offload == fsdp.optimizer_offload == ("7b" not in script.stem)


def test_runs_do_not_mix(tmp_path):
    """Each script, and each method of RPO, has a folder of its own, from which veRL resumes."""
    folders = set()
    for script in SCRIPTS:
        for rpo in ("enabled", "paper"):
            config = composed(arguments(script, tmp_path, RPO=rpo)[2:])
            assert Path(config.trainer.default_local_dir).is_absolute()
            environment = config.ray_kwargs.ray_init.runtime_env.env_vars
            assert Path(environment.TENSORBOARD_DIR).parent == Path(config.trainer.default_local_dir).parent
            folders.add(config.trainer.default_local_dir)
    assert len(folders) == len(SCRIPTS) + sum(script.stem.endswith("_rpo") for script in SCRIPTS)


def test_scripts_are_executable():
    assert all((ROOT / "recipes" / script).stat().st_mode & 0o100 for script in SCRIPTS)
