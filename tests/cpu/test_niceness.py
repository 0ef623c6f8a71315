"""Ray's workers are as nice as the command that starts them, on the CPU platform."""

import os
import subprocess
import sys

import yaml
from conftest import ROOT

CODE = """
import os, ray
ray.init(num_cpus=1, include_dashboard=False, logging_level="ERROR")
niceness = ray.remote(lambda: os.nice(0))
print(os.nice(0), ray.get(niceness.remote()))
"""


def test_workers_are_not_niced_behind_everything_else():
    settings = yaml.safe_load((ROOT / "hydra_configs" / "platform" / "cpu.yaml").read_text())["hydra"]["job"]["env_set"]
    (name,) = (name for name in settings if "nice" in name)
    assert settings[name] == f"${{oc.env:{name},0}}"
    found = subprocess.run(
        [sys.executable, "-c", CODE], env=os.environ | {name: "0"}, capture_output=True, text=True, timeout=200
    )
    own, workers = found.stdout.split()
    assert own == workers
