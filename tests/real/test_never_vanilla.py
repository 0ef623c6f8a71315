"""Nothing that keeps RPO from working lets veRL train on without it: a non-zero status and one message instead."""

import os
import subprocess
import sys
import sysconfig

import pytest
import yaml
from conftest import ROOT, run_main_ppo, run_recipe

PREFLIGHT = ("+rpo=enabled", "--cfg", "job", "-p", "rpo")


def failed_with(run, *fragments):
    assert run.returncode != 0, run.output[-2000:]
    for fragment in fragments:
        assert fragment in run.output, run.output[-2000:]
    assert "Started a local Ray instance" not in run.output, "refused only after Ray had started"


@pytest.mark.parametrize("install", ["editable", "wheel"])
def test_preflight_prints_the_options(tmp_path, wheel_dir, install):
    path = {"PYTHONPATH": str(wheel_dir)} if install == "wheel" else {}
    run = run_main_ppo(tmp_path, "rpo.truncation.max_tokens=500", *PREFLIGHT, **path)
    assert run.returncode == 0
    options = yaml.safe_load(run.output[run.output.index("# @package rpo") :])
    assert options["truncation"]["max_tokens"] == 500
    assert options["reward"]["alpha"] == 0.01


def test_preflight_in_the_root_of_a_checkout(wheel_dir):
    # `python -m` puts the root first, whose package then stands in for the installed one. Without `site` nothing of the
    # editable installation is there that would help.
    path = os.pathsep.join([str(wheel_dir), sysconfig.get_paths()["purelib"]])
    command = [sys.executable, "-S", "-m", "verl.trainer.main_ppo", "hydra.output_subdir=null", *PREFLIGHT]
    environment = os.environ | {"PYTHONPATH": path, "VERL_PLATFORM": "cpu"}
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-2000:]
    assert yaml.safe_load(run.stdout[run.stdout.index("# @package rpo") :])["reward"]["alpha"] == 0.01


def test_the_papers_settings(tmp_path):
    run = run_main_ppo(tmp_path, "+rpo=paper", "--cfg", "job", "-p", "rpo")
    options = yaml.safe_load(run.output[run.output.index("# @package rpo") :])
    assert options["truncation"]["min_tokens"] == 0
    assert options["credit"]["rule"] == "literal"
    assert options["rollout"]["full_rollout_every"] == 0


#: One of every place that refuses: Hydra, the callback of the groups, the entry point. The rest is in
#: tests/upstream/test_refusals.py.
@pytest.mark.parametrize(
    ("overrides", "fragments"),
    [
        (["+rpo=enabled", "rpo.truncation.max_tokns=5"], ["max_tokns"]),
        (["+rpo=enabled", "rpo.reward.lo=2"], ["rpo.reward.lo=2", "in [0, 1]"]),
        (["+rpo.truncation.max_tokens=5"], ["rpo_verl:", "+rpo=enabled"]),
        (["+rpo=enabled", "rpo.loss.share_prefix=true"], ["rpo_verl:", "is lean.share_prefix now"]),
        (["+lean.share_prefix=true"], ["rpo_verl:", "+lean=enabled"]),
    ],
)
def test_bad_settings_end_the_run_before_ray_starts(tmp_path, overrides, fragments):
    failed_with(run_main_ppo(tmp_path, "actor_rollout_ref.rollout.n=4", *overrides), *fragments)


def test_unsupported_verl(tmp_path):
    metadata = tmp_path / "site" / "verl-0.4.0.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: verl\nVersion: 0.4.0\n")
    run = run_main_ppo(tmp_path, "+rpo=enabled", PYTHONPATH=str(tmp_path / "site"))
    failed_with(run, "rpo_verl: found verl 0.4.0", "supports verl==0.9.1", "pip install")


def test_a_plugin_that_half_loads(tmp_path):
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "wrapt.py").write_text("raise ImportError('broken on purpose')\n")
    run = run_main_ppo(tmp_path, "+rpo=enabled", PYTHONPATH=str(tmp_path / "site"))
    failed_with(run, "rpo_verl: the plug-in could not be loaded", "broken on purpose", "pip install")


def test_the_cpu_settings_without_the_platform(tmp_path):
    run = run_main_ppo(tmp_path, "+platform=cpu", VERL_PLATFORM="")
    failed_with(run, "VERL_PLATFORM=cpu")


def test_workers_without_the_plugin(tmp_path, data_dir):
    """Ray's processes get the CPU platform, but not the plug-in: the run must not become vanilla GRPO."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "only_the_cpu_platform.py").write_text(
        "from rpo_verl.cpu import patches, platform\nassert platform\npatches.apply_to_verl()\n"
    )
    environment = "ray_kwargs.ray_init.runtime_env.env_vars"
    run = run_recipe(
        tmp_path,
        "+rpo=enabled",
        f"+{environment}.VERL_USE_EXTERNAL_PLUGINS=none",
        f"+{environment}.VERL_USE_EXTERNAL_MODULES=only_the_cpu_platform",
        "trainer.val_before_train=false",
        STEPS="1",
        DATA_DIR=str(data_dir),
        PYTHONPATH=f"{tmp_path / 'site'}",
    )
    assert run.returncode != 0
    assert "rpo_verl: the plug-in is not loaded in the TaskRunner" in run.output
    assert "VERL_USE_EXTERNAL_PLUGINS" in run.output
    assert run.steps == []


def test_setup_and_contract_agree_on_the_supported_verl():
    from rpo_verl.upstream.contract import SUPPORTED_VERL

    assert f'"verl{SUPPORTED_VERL}"' in (ROOT / "setup.py").read_text()
