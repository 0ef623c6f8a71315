"""`recipes/gpu_check.sh` on a machine without a GPU: all of it, with a small shape."""

import json
import os
import subprocess
import sys

from scripts import RECIPES

SAMPLES, LENGTH, TRUNCATION = 24, 128, 12


def test_gpu_check_on_the_cpu(tmp_path):
    arms = "grpo,rpo-12,rpo-12-shared"
    command = ["bash", str(RECIPES / "gpu_check.sh"), "--out", str(tmp_path), "--steps", "2", "--arms", arms]
    environment = os.environ | {"PYTHON": sys.executable, "DEVICE": "cpu", "NO_COLOR": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["tiny_reasoner"]["prefixed_groups"] > 0
    grpo, rpo, shared = summary["arms"].values()
    assert grpo["generated_tokens"] == SAMPLES * LENGTH
    # m is uniform in 1 to L, one draw a group.
    assert 1 <= rpo["generated_tokens_per_sample"] <= TRUNCATION
    # Of six members behind a prefix five have it for nothing.
    assert shared["tokens_computed_in_update"] < 0.4 * rpo["tokens_computed_in_update"]
    assert all(
        values[f"{name}_s"] > 0 for values in (grpo, rpo, shared) for name in ("generation", "update", "whole_step")
    )
    assert rpo["generation_s"] < grpo["generation_s"]
    assert "rpo-12-shared" in done.stdout and "generated tokens per sample" in done.stdout

    # Called again, it keeps what is finished.
    again = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert again.returncode == 0, again.stdout + again.stderr
    assert again.stdout.count("kept:") == 4
    assert json.loads((tmp_path / "summary.json").read_text())["arms"] == summary["arms"]
