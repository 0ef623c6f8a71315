"""`recipes/gpu_check.sh` on a machine without a GPU: all of it, with a small shape."""

import json
import os
import subprocess
import sys

from scripts import RECIPES

SAMPLES, LENGTH, TRUNCATION = 24, 128, 12


def test_gpu_check_on_the_cpu(tmp_path):
    command = ["bash", str(RECIPES / "gpu_check.sh"), "--out", str(tmp_path), "--steps", "2", "--arms", "grpo,rpo-12"]
    environment = os.environ | {"PYTHON": sys.executable, "DEVICE": "cpu", "NO_COLOR": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["tiny_reasoner"]["prefixed_groups"] > 0
    grpo, rpo = summary["arms"]["grpo"], summary["arms"][f"rpo-{TRUNCATION}"]
    assert grpo["generated_tokens"] == SAMPLES * LENGTH
    # m is uniform in 1 to L, one draw a group.
    assert 1 <= rpo["generated_tokens_per_sample"] <= TRUNCATION
    assert all(values[f"{name}_s"] > 0 for values in (grpo, rpo) for name in ("generation", "update", "whole_step"))
    assert rpo["generation_s"] < grpo["generation_s"]
    assert "rpo-12" in done.stdout and "generated tokens per sample" in done.stdout

    # Called again, it keeps what is finished.
    again = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert again.returncode == 0, again.stdout + again.stderr
    assert again.stdout.count("kept:") == 3
    assert json.loads((tmp_path / "summary.json").read_text())["arms"] == summary["arms"]
