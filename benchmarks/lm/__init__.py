"""The laboratory's real language model: SmolLM2-135M-Instruct on tasks of reasoning-gym. README.md has the commands."""

from pathlib import Path

#: Where the converted model lies, from the root of a checkout.
SMOLLM2 = Path("runs/lm/smollm2")


def start_of(task: str) -> Path:
    """The model that trainings of a task begin with."""
    return SMOLLM2.with_name(task)
