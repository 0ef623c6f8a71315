"""`rpo-verl doctor`: what it finds, in a process of its own as users call it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import TINY

COMMAND = Path(sys.executable).parent / "rpo-verl"


def examine(data_dir, *overrides, expect, platform="cpu"):
    fitting = {
        "data.train_files": f"{data_dir}/train.parquet",
        "data.val_files": f"{data_dir}/val.parquet",
        "data.max_prompt_length": "72",
        "data.max_response_length": "208",
        "actor_rollout_ref.model.path": str(TINY / "checkpoint"),
        "actor_rollout_ref.rollout.n": "8",
    }
    fitting |= dict(override.split("=", 1) for override in overrides)
    command = [str(COMMAND), "doctor", "--json", "+platform=cpu", *(f"{key}={value}" for key, value in fitting.items())]
    environment = os.environ | {"VERL_PLATFORM": platform}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == expect, done.stdout + done.stderr
    return json.loads(done.stdout)


def failures(findings):
    return {finding["check"]: finding["details"] for finding in findings if not finding["ok"]}


def test_a_training_that_would_run(data_dir):
    findings = examine(data_dir, expect=0)
    assert not failures(findings)
    details = {finding["check"]: finding["details"] for finding in findings}
    assert {"python", "verl", "plug-in loaded by veRL", "upstream names", "devices", "memory"} <= set(details)
    assert details["data"].startswith("8 questions; of the first 8 the longest has")
    # 8 questions, 300 + 4 * (question + 208) bytes each.
    assert "kB" in details["experience cache"]


@pytest.mark.parametrize(
    ("override", "check", "fragment"),
    [
        ("rpo.reward.lo=7", "configuration", "Could not override 'rpo.reward.lo'"),
        ("+rpo.reward.lo=0", "plug-in", "nothing selects RPO"),
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
def test_a_training_that_would_not(data_dir, override, check, fragment):
    found = failures(examine(data_dir, override, expect=1))
    assert list(found) == [check]
    assert fragment in found[check]


def test_what_hydra_would_refuse(data_dir):
    overrides = ["+rpo=enabled", "rpo.reward.lo=7"]
    assert "rpo.reward.lo=7" in failures(examine(data_dir, *overrides, expect=1))["configuration"]
    found = failures(examine(data_dir, expect=1, platform="nvidia"))
    assert "VERL_PLATFORM=cpu" in found["configuration"]


def test_questions_that_verl_leaves_out(data_dir):
    overrides = ["data.max_prompt_length=20", "data.filter_overlong_prompts=true"]
    details = {finding["check"]: finding["details"] for finding in examine(data_dir, *overrides, expect=0)}
    assert "8 are longer than data.max_prompt_length=20 and left out" in details["data"]
