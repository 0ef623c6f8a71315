"""The run scripts of `recipes/`, and what they would pass to veRL."""

import os
import subprocess
from pathlib import Path

from conftest import ROOT

RECIPES = ROOT / "recipes"
SCRIPTS = sorted(
    path.relative_to(RECIPES) for folder in ("open_rs", "qwen2_5") for path in RECIPES.glob(f"{folder}/*.sh")
)
SCALES = {
    "one_gpu": {},
    "one_node": {},
    "many_nodes": {"RAY_ADDRESS": "head:6379"},
}
#: Stands in for Python and writes down its arguments, one a line.
RECORDER = '#!/bin/sh\nprintf "%s\\n" "$@" > "$ARGUMENTS"\n'


def arguments(script: Path, folder: Path, *more: str, scale: str = "one_node", **knobs: str) -> list[str]:
    """What a script passes to `python`, without running it."""
    recorder, written = folder / "python", folder / "arguments"
    recorder.write_text(RECORDER)
    recorder.chmod(0o755)
    settings = {"PYTHON": str(recorder), "ARGUMENTS": str(written), "SCALE": scale} | SCALES[scale] | knobs
    subprocess.run(["bash", str(RECIPES / script), *more], env=os.environ | settings, check=True, capture_output=True)
    return written.read_text().splitlines()
