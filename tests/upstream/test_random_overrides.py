"""Random overrides on a command line: each either runs the checks, or ends in one message that names its key.

`FUZZ_EXAMPLES` says how many command lines are drawn; `make test-slow` draws 2,000. An exception of any other kind than
those below would be a warning in Hydra, and the run would go on.
"""

import os
import pickle
from functools import cache

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import verl  # noqa: F401 - loads the plug-in, whose groups Hydra has to find
from conftest import TINY
from hydra import compose, initialize_config_module
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from rpo_verl import algorithms
from rpo_verl.r2po.hooks.settings import NEEDS
from rpo_verl.rpo.hooks.settings import WRAPPED, take_over
from rpo_verl.upstream.preflight import CheckInputs
from rpo_verl.upstream.settings import MANAGER, CheckSettings, read_options

ROLLOUT = "actor_rollout_ref.rollout"
#: Settings of veRL that something of ours looks at.
VERLS = (
    "algorithm.adv_estimator", "algorithm.filter_groups.enable", "algorithm.rollout_correction.bypass_mode",
    "algorithm.rollout_correction.rollout_is", "algorithm.use_kl_in_reward", f"{ROLLOUT}.n", f"{ROLLOUT}.temperature",
    f"{ROLLOUT}.top_p", f"{ROLLOUT}.top_k", f"{ROLLOUT}.calculate_log_probs", f"{ROLLOUT}.logprobs_mode",
    f"{ROLLOUT}.agent.default_agent_loop", f"{ROLLOUT}.agent.agent_loop_manager_class",
    "actor_rollout_ref.actor.loss_agg_mode", "actor_rollout_ref.actor.policy_loss.loss_mode",
    "actor_rollout_ref.model.path", "data.max_response_length", "data.train_batch_size", "data.train_files",
    "data.prompt_key", "reward.custom_reward_function.path", "reward.custom_reward_function.name",
    "reward.reward_manager.name", "reward.reward_manager.source", "trainer.use_v1", "trainer.resume_mode",
    "trainer.resume_from_path",
)  # fmt: skip
VALUES = (
    "null", "true", "false", "0", "1", "-1", "2", "7", "0.5", "2.5", "-0.001", "1e30", "99999999999999999999", "nan",
    "inf", "-inf", "''", "abc", "none", "paid", "value", "literal", "grpo", "rloo", "gae", "enabled", "'0.5'", "[1,2]",
    "[]", "{a: 1}", "{}", "${rpo.seed}", "${nowhere}", "/nowhere", "é", "gspo", "sync",
)  # fmt: skip


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """Overrides of a command that runs."""
    data = tmp_path_factory.mktemp("data") / "train.parquet"
    row = {
        "prompt": [{"role": "user", "content": "1+1"}], "data_source": "tiny_reasoner",
        "reward_model": {"style": "rule", "ground_truth": "2"},
    }  # fmt: skip
    pq.write_table(pa.Table.from_pylist([row] * 32), data)
    return (
        "+rpo=enabled", f"{ROLLOUT}.n=4", f"{ROLLOUT}.name=vllm", f"data.train_files={data}", f"data.val_files={data}",
        "data.train_batch_size=8", "data.max_response_length=64", f"actor_rollout_ref.model.path={TINY / 'checkpoint'}",
        f"reward.custom_reward_function.path={TINY / 'reward.py'}", "actor_rollout_ref.actor.ppo_mini_batch_size=8",
        "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=8", f"{ROLLOUT}.log_prob_micro_batch_size_per_gpu=8",
        "actor_rollout_ref.ref.log_prob_micro_batch_size_per_gpu=8", "trainer.n_gpus_per_node=1",
    )  # fmt: skip


@cache
def composed(overrides):
    with initialize_config_module("verl.trainer.config", version_base=None):
        # A copy by way of pickle takes a tenth of the time.
        return pickle.dumps(compose("ppo_trainer", list(overrides)))


def leaves(section, prefix):
    for key, value in section.items():
        name = f"{prefix}.{key}"
        yield name
        if OmegaConf.is_dict(value):
            yield from leaves(value, name)


def keys_of(base, sections=("rpo", "lean"), verls=VERLS):
    config = pickle.loads(composed(base))
    # Hydra takes the names of sections themselves for the choice of a group.
    own = [name for section in sections for name in leaves(config[section], section)]
    misspelt = [f"{name}s" for name in own] + [name.replace("po.", "po.other_") for name in own if "." in name]
    # Ours more often than veRL's.
    return st.one_of(st.sampled_from(own), st.sampled_from(own), st.sampled_from(verls), st.sampled_from(misspelt))


def check(base, overrides):
    """What a run does with these overrides before Ray starts; returns its configuration.

    Raises:
        HydraException, OmegaConfBaseException: where Hydra ends the command.
        SystemExit: where the plug-in does.
    """
    config = pickle.loads(composed(base))
    parsed = OverridesParser.create().parse_overrides(list(overrides))
    # Composing takes a second; this is the part of it that overrides go through.
    ConfigLoaderImpl._apply_overrides_to_config(parsed, config)
    CheckSettings().on_job_start(config)
    CheckInputs().on_job_start(config)
    return config


def test_the_base_runs(base):
    config = check(base, ["rpo.reward.alpha=0.5"])
    assert config.rpo.reward.alpha == 0.5
    with pytest.raises(SystemExit, match=r"rpo\.reward\.alpha=-1"):
        check(base, ["rpo.reward.alpha=-1"])
    with pytest.raises(HydraException, match="alfa"):
        check(base, ["rpo.reward.alfa=1"])


drawn_command_lines = settings(
    max_examples=int(os.environ.get("FUZZ_EXAMPLES", "60")), deadline=None, derandomize=True,
    suppress_health_check=list(HealthCheck), phases=[Phase.generate], report_multiple_bugs=False,
)  # fmt: skip


def checked(base, drawn, ended):
    """The configuration of a command line that passes, with its overrides; None if a message names one of its keys."""
    overrides = [f"~{key}" if sign == "~" else f"{sign}{key}={value}" for sign, key, value in drawn]
    try:
        config = check(base, overrides)
    except (HydraException, OmegaConfBaseException, SystemExit) as error:
        ended["refused"] += 1
        text = f"{error} {error.__cause__ or ''}"
        # Of an unknown section Hydra names the section. veRL's own check speaks for itself.
        named = [part for _, key, _ in drawn for part in key.split(".")[-2:]] + ["veRL refuses them"]
        assert any(part in text for part in named), (overrides, text)
        assert "could not be checked" not in text, (overrides, text)
        return None, overrides
    ended["passed"] += 1
    return config, overrides


def test_random_overrides_run_or_are_named(base, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "")
    ended = {"refused": 0, "passed": 0}
    signs = st.sampled_from(["", "", "", "", "+", "++", "~"])

    @drawn_command_lines
    @given(st.lists(st.tuples(signs, keys_of(base), st.sampled_from(VALUES)), min_size=1, max_size=2))
    def fuzz(drawn):
        config, overrides = checked(base, drawn, ended)
        if config is None:
            return
        # What passes trains with RPO, around the estimator that the command names.
        assert {entry.name for entry in algorithms.selected(config)} == {"rpo", "lean"}, overrides
        assert config.actor_rollout_ref.rollout.agent.agent_loop_manager_class == MANAGER, overrides
        estimator = config.algorithm.adv_estimator
        take_over(config)
        assert (config.algorithm.adv_estimator, config[WRAPPED].adv_estimator) == ("rpo", estimator), overrides
        last = {key: value for sign, key, value in drawn if sign != "~"}
        for key, value in last.items():
            if key.startswith(("rpo.", "lean.")) and value in ("true", "false", "0.5", "7"):
                section, _, inner = key.partition(".")
                options = read_options(config, section)
                for name in inner.split("."):
                    options = getattr(options, name)
                assert str(options).lower() in (value, f"{value}.0"), (overrides, options)

    fuzz()
    assert ended["refused"] and ended["passed"]


def test_random_overrides_of_r2po_run_or_are_named(base, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "")
    base, ended = ("+r2po=enabled", *base[1:]), {"refused": 0, "passed": 0}
    correction = [f"algorithm.rollout_correction{key}" for key in ("", ".rollout_is", ".bypass_mode")]
    others = [f"{ROLLOUT}.temperature", f"{ROLLOUT}.logprobs_mode", f"{ROLLOUT}.n", "trainer.use_v1"]
    keys = keys_of(base, ("r2po",), (*NEEDS, *correction, *others))

    @drawn_command_lines
    @given(st.lists(st.tuples(st.sampled_from(["", "", "", "+", "++", "~"]), keys, st.sampled_from(VALUES)), min_size=1,
                    max_size=2))  # fmt: skip
    def fuzz(drawn):
        config, overrides = checked(base, drawn, ended)
        if config is None:
            return
        # What passes trains with R²PO, under settings that it works with.
        assert {entry.name for entry in algorithms.selected(config)} == {"r2po"}, overrides
        for key, (possible, _) in NEEDS.items():
            assert OmegaConf.select(config, key) in (*possible, None), overrides

    fuzz()
    assert ended["refused"] and ended["passed"]
