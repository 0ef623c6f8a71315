"""The laboratory's real language model: SmolLM2-135M-Instruct on tasks of reasoning-gym. README.md has the commands."""

from pathlib import Path

#: Where the converted model lies, from the root of a checkout.
SMOLLM2 = Path("runs/lm/smollm2")
