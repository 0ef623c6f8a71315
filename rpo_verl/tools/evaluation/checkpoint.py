"""What can be named as the model of an evaluation → a folder that vLLM loads.

veRL saves the weights of FSDP as shards, which are torch pickles, and beside them, with `hf_model` among
`actor_rollout_ref.actor.checkpoint.save_contents`, as a Hugging Face folder. The latter is taken where it is there.
Shards are put together by veRL's own merger, which rounds them to bfloat16.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

from rpo_verl.tools.evaluation.errors import EvaluationError

MERGED = "model"
_WEIGHTS = ("*.safetensors", "pytorch_model*.bin")
_SHARDS = "model_world_size_*_rank_*.pt"
#: What decides the answers of a model: weights, configuration, tokenizer, chat template.
_FILES = ("*.json", "*.jinja", "*.model", "*.txt", *_WEIGHTS, _SHARDS)
_END_BYTES = 1 << 20


@dataclass(frozen=True)
class Checkpoint:
    """A model to evaluate."""

    name: str
    """Folder, or id on the Hugging Face hub."""

    fingerprint: str
    """Changes whenever a file that decides the answers does; the id itself for a model on the hub."""

    sharded: bool = False
    """The folder has FSDP shards only."""


def find_checkpoint(model: str) -> Checkpoint:
    """What `model` names.

    Args:
        model: a Hugging Face folder or hub id; a veRL checkpoint `global_step_N`, or its `actor`.

    Raises:
        EvaluationError: for a folder that is neither, LoRA and Megatron checkpoints among them.
    """
    folder = Path(model).expanduser()
    if not folder.exists():
        return Checkpoint(model, f"hub {model}")
    if (folder / "actor").is_dir():
        folder = folder / "actor"
    if (folder / "lora_train_meta.json").exists():
        raise EvaluationError(
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
    raise EvaluationError(
        f"{folder} holds neither a Hugging Face model (config.json and *.safetensors) nor veRL's FSDP shards "
        f"({_SHARDS} and fsdp_config.json). Convert other checkpoints first: python -m verl.model_merger merge "
        f"--backend megatron --local_dir {folder} --target_dir MERGED"
    )


def merge_shards(checkpoint: Checkpoint, out: Path, trust_remote_code: bool) -> Path:
    """A Hugging Face folder made of FSDP shards, by veRL's merger in a process of its own.

    The merger would unpickle whatever the shards hold. torch's own switch, set for that process, restricts it to
    tensors and what DTensors consist of, so that a shard from elsewhere cannot run code.

    Args:
        checkpoint: a sharded one.
        out: folder of the evaluation; the model is put in a folder in there, in one move, and found again.
        trust_remote_code: run code that comes with the model.

    Raises:
        EvaluationError: with the end of the merger's output, if it fails.
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
        raise EvaluationError(
            f"{checkpoint.name}: veRL's merger cannot put the shards together ({ending}). Save the checkpoint with "
            "actor_rollout_ref.actor.checkpoint.save_contents=[model,optimizer,extra,hf_model], which needs no merger"
        )
    temporary.rename(target)
    return target


def _matches(folder: Path, *patterns: str) -> bool:
    return any(next(folder.glob(pattern), None) is not None for pattern in patterns)


def _fingerprint(folder: Path) -> str:
    """Hex digest over names, sizes and both ends of the files; all of many gigabytes would take minutes to read."""
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
