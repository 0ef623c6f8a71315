"""`rpo-verl doctor`: its findings. Calls share the tests' process, because importing veRL takes seconds."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import TINY
from typer.testing import CliRunner
from verl.plugin.platform import get_platform

from rpo_verl.tools.cli.main import app

COMMAND = Path(sys.executable).parent / "rpo-verl"


def arguments(data_dir, *overrides):
    fitting = {
        "data.train_files": f"{data_dir}/train.parquet",
        "data.val_files": f"{data_dir}/val.parquet",
        "data.max_prompt_length": "72",
        "data.max_response_length": "208",
        "actor_rollout_ref.model.path": str(TINY / "checkpoint"),
        "actor_rollout_ref.rollout.n": "8",
    }
    fitting |= dict(override.split("=", 1) for override in overrides)
    return ["doctor", "--json", "+platform=cpu", *(f"{key}={value}" for key, value in fitting.items())]


@pytest.fixture
def examine(data_dir, monkeypatch):
    """Call the command, and return its findings."""
    get_platform()  # Settles the platform of this process, which other tests share.

    def call(*overrides, expect, platform="cpu"):
        command = arguments(data_dir, *overrides)
        monkeypatch.setenv("VERL_PLATFORM", platform)
        monkeypatch.setattr(sys, "argv", ["rpo-verl", *command])
        result = CliRunner().invoke(app, command)
        assert result.exit_code == expect, result.output
        return json.loads(result.stdout)

    return call


def failures(findings):
    return {finding["check"]: finding["details"] for finding in findings if not finding["ok"]}


def test_a_training_that_would_run(examine):
    findings = examine(expect=0)
    assert not failures(findings)
    details = {finding["check"]: finding["details"] for finding in findings}
    assert {"python", "verl", "plug-in loaded by veRL", "upstream names", "devices", "memory"} <= set(details)
    assert details["data"].startswith("8 questions; of the first 8 the longest has")
    # 8 questions, 300 + 4 * (question + 208) bytes each.
    assert "kB" in details["experience cache"]


def test_lean_alone(examine):
    findings = examine("+lean=enabled", expect=0)
    details = {finding["check"]: finding["details"] for finding in findings}
    assert details["configuration groups"] == "lean"
    assert "experience cache" not in details
    assert failures(examine("+lean=enabled", "lean.poll_interval_s=0", expect=1))


@pytest.mark.parametrize(
    ("override", "check", "fragment"),
    [
        ("rpo.reward.lo=7", "configuration", "Could not override 'rpo.reward.lo'"),
        ("actor_rollout_ref.rollout.n=1", "configuration", "rollout.n=1"),
        ("+rpo=no_such_group", "configuration", "no_such_group"),
        ("data.max_prompt_length=20", "data", "8 are longer than data.max_prompt_length=20"),
        ("data.train_files=nowhere.parquet", "data", "nowhere.parquet"),
        ("data.val_files=nowhere.parquet", "data", "nowhere.parquet"),
        ("data.prompt_key=question", "data", "no column question"),
        ("trainer.device=cuda", "devices", "but no GPU here"),
        ("algorithm.adv_estimator=gae", "configuration", "critic"),
    ],
)
def test_a_training_that_would_not(examine, override, check, fragment):
    found = failures(examine(override, expect=1))
    assert list(found) == [check]
    assert fragment in found[check]


def test_what_hydra_would_refuse(examine):
    overrides = ["+rpo=enabled", "rpo.reward.lo=7"]
    assert "rpo.reward.lo=7" in failures(examine(*overrides, expect=1))["configuration"]
    found = failures(examine(expect=1, platform="nvidia"))
    assert "VERL_PLATFORM=cpu" in found["configuration"]


def test_questions_that_verl_filters(examine):
    overrides = ["data.max_prompt_length=20", "data.filter_overlong_prompts=true"]
    details = {finding["check"]: finding["details"] for finding in examine(*overrides, expect=0)}
    assert "8 are longer than data.max_prompt_length=20 and filtered" in details["data"]


def test_what_the_plugin_refuses(data_dir):
    """A process of its own, because veRL loads the plug-in once."""
    command = [str(COMMAND), *arguments(data_dir, "+rpo.reward.lo=0")]
    environment = os.environ | {"VERL_PLATFORM": "cpu"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1, done.stdout + done.stderr
    found = failures(json.loads(done.stdout))
    assert list(found) == ["plug-in"]
    assert "nothing selects it" in found["plug-in"]
