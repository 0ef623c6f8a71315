"""The tiny reasoner as the laboratory uses it: its scripts, its checkpoint, its recipe and questions for a run."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TINY = ROOT / "examples" / "tiny_reasoner"
CHECKPOINT = TINY / "checkpoint"
RECIPE = ROOT / "recipes" / "tiny_reasoner" / "run_tiny_reasoner_cpu.sh"

# The scripts there import each other by bare names, as copies of them would; nothing else shall find them so.
sys.path.insert(0, str(TINY))
try:
    import task
    from char_tokenizer import prompt_ids
    from reward import compute_score
finally:
    sys.path.remove(str(TINY))

__all__ = ["CHECKPOINT", "RECIPE", "ROOT", "TINY", "compute_score", "prompt_ids", "task", "write_questions"]


def write_questions(folder: Path, *, train: int, val: int, seed: int, steps: int = task.TRAIN_STEPS) -> None:
    """Write train.parquet and val.parquet to `folder`, with `steps` operations in every question."""
    command = [sys.executable, str(TINY / "prepare_data.py"), "--out", str(folder), "--seed", str(seed)]
    command += ["--train-size", str(train), "--val-size", str(val), "--steps", str(steps)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
