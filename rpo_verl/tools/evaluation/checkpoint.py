"""The model of an evaluation → a folder that vLLM loads.

veRL saves FSDP weights as shards, which are torch pickles. With `hf_model` among
`actor_rollout_ref.actor.checkpoint.save_contents` it also saves a Hugging Face folder, which takes precedence here.
veRL's merger converts shards, and rounds them to bfloat16.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

from rpo_verl.tools.errors import CommandError

MERGED = "model"
_WEIGHTS = ("*.safetensors", "pytorch_model*.bin")
_SHARDS = "model_world_size_*_rank_*.pt"
#: Files that determine the answers of a model: weights, configuration, tokenizer, chat template.
_FILES = ("*.json", "*.jinja", "*.model", "*.txt", *_WEIGHTS, _SHARDS)
_END_BYTES = 1 << 20


@dataclass(frozen=True)
class Checkpoint:
    """A model to evaluate."""

    name: str
    """Folder or hub id."""

    fingerprint: str
    """Changes with every file that determines the answers. For a hub model, its id."""

    sharded: bool = False
    """The folder has only FSDP shards."""


def find_checkpoint(model: str) -> Checkpoint:
    """Find the files of a model.

    Args:
        model: a Hugging Face folder or hub id; a veRL checkpoint `global_step_N`, or its `actor`.

    Raises:
        CommandError: for any other folder, such as a LoRA or Megatron checkpoint.
    """
    folder = Path(model).expanduser()
    if not folder.exists():
        return Checkpoint(model, f"hub {model}")
    if (folder / "actor").is_dir():
        folder = folder / "actor"
    if (folder / "lora_train_meta.json").exists():
        raise CommandError(
            f"{folder} is a LoRA checkpoint, whose weights lack the adapter. Run python -m verl.model_merger merge "
            f"--backend fsdp --local_dir {folder} --target_dir MERGED, merge MERGED/lora_adapter into MERGED with "
            "PEFT's merge_and_unload, and evaluate that"
        )
    for candidate in (folder, folder / "huggingface"):
        if _matches(candidate, *_WEIGHTS) and (candidate / "config.json").is_file():
            return Checkpoint(str(candidate), f"files {_fingerprint(candidate)}")
    if _matches(folder, _SHARDS) and (folder / "fsdp_config.json").is_file():
        own = _fingerprint(folder) + _fingerprint(folder / "huggingface")
        return Checkpoint(str(folder), f"files {blake2b(own.encode(), digest_size=8).hexdigest()}", sharded=True)
    raise CommandError(
        f"{folder} holds neither a Hugging Face model (config.json and *.safetensors) nor veRL's FSDP shards "
        f"({_SHARDS} and fsdp_config.json). Convert other checkpoints first: python -m verl.model_merger merge "
        f"--backend megatron --local_dir {folder} --target_dir MERGED"
    )


def merge_shards(checkpoint: Checkpoint, out: Path, trust_remote_code: bool) -> Path:
    """Convert FSDP shards to a Hugging Face folder, with veRL's merger in a separate process.

    The merger unpickles the shards. An environment variable of torch restricts it to tensors and the parts of DTensors,
    so that a foreign shard cannot run code.

    Args:
        checkpoint: with `sharded`.
        out: folder of the evaluation. The model becomes a subfolder, in one move. A later call reuses it.
        trust_remote_code: run code that comes with the model.

    Raises:
        CommandError: if the merger fails; has the end of its output.
    """
    target = out / MERGED
    if target.exists():
        return target
    temporary = out / f".{MERGED}.writing"
    shutil.rmtree(temporary, ignore_errors=True)
    command = [sys.executable, "-m", "verl.model_merger", "merge", "--backend", "fsdp"]
    command += ["--local_dir", checkpoint.name, "--target_dir", str(temporary)]
    command += ["--trust-remote-code"] if trust_remote_code else []
    result = subprocess.run(
        command, env=os.environ | {"TORCH_FORCE_WEIGHTS_ONLY_LOAD": "1"}, capture_output=True, text=True
    )
    if result.returncode != 0:
        shutil.rmtree(temporary, ignore_errors=True)
        lines = (result.stderr or result.stdout).strip().splitlines()[-3:]
        ending, *_ = " ".join(map(str.strip, lines)).partition(". ")
        raise CommandError(
            f"{checkpoint.name}: veRL's merger cannot put the shards together ({ending}). Save the checkpoint with "
            "actor_rollout_ref.actor.checkpoint.save_contents=[model,optimizer,extra,hf_model], which needs no merger"
        )
    temporary.rename(target)
    return target


def _matches(folder: Path, *patterns: str) -> bool:
    return any(next(folder.glob(pattern), None) is not None for pattern in patterns)


def _fingerprint(folder: Path) -> str:
    """Hex digest over names, sizes and both ends of the files. Reading them whole would take minutes."""
    content = blake2b(digest_size=8)
    for path in sorted({path for pattern in _FILES for path in folder.glob(pattern)}):
        content.update(f"{path.name}\0{path.stat().st_size}\0".encode())
        for block in _ends(path):
            content.update(block)
    return content.hexdigest()


def _ends(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        yield file.read(_END_BYTES)
        file.seek(max(file.tell(), path.stat().st_size - _END_BYTES))
        yield file.read()
