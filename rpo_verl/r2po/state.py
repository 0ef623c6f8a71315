"""The head on disk: one safetensors file with weights and Adam's moments, and JSON beside it. Nothing is unpickled."""

import json
import shutil
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save as to_bytes

from rpo_verl.r2po.learner import HeadLearner

SCHEMA_VERSION = 1
TENSORS, STATE = "head.safetensors", "state.json"
MOMENTS = ("exp_avg", "exp_avg_sq")
KEYS = ("schema_version", "step", "updates", "kl_weight", "best_reward")


class HeadError(ValueError):
    """A head that cannot be read or does not belong here; the message names the file and the way on."""


def save(learner: HeadLearner, folder: Path, step: int) -> None:
    """Write head and optimizer to `folder`, replacing what is there in one move.

    Args:
        learner: what to write.
        folder: created; its parent too.
        step: the training step that it belongs to.
    """
    temporary = folder.with_name(f".{folder.name}.writing")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    tensors = {}
    for name, parameter in learner.head.named_parameters():
        tensors[name] = parameter.detach().cpu().contiguous()
        moments = learner.optimizer.state.get(parameter, {})
        tensors |= {f"{moment}.{name}": moments[moment].cpu().contiguous() for moment in MOMENTS if moment in moments}
    (temporary / TENSORS).write_bytes(to_bytes(tensors))
    state = {
        "schema_version": SCHEMA_VERSION,
        "step": step,
        "updates": learner.updates,
        "kl_weight": learner.penalty.weight,
        "best_reward": learner.best_reward,
    }
    (temporary / STATE).write_text(json.dumps(state, indent=2) + "\n", encoding="utf-8")
    shutil.rmtree(folder, ignore_errors=True)
    temporary.rename(folder)


def load(learner: HeadLearner, folder: Path, step: int) -> None:
    """Put the head of a checkpoint into a learner, which goes on exactly where it was.

    Args:
        learner: of the same sizes; its options may differ otherwise.
        folder: from `save`.
        step: the training step that it has to belong to.

    Raises:
        HeadError: if something is missing, damaged, of another size or of another step.
    """
    remedy = "Restore the folder, or begin anew with trainer.resume_mode=disable."
    try:
        state = json.loads((folder / STATE).read_text(encoding="utf-8"))
        tensors = load_file(folder / TENSORS)
        version, found, updates, weight, best = (state[key] for key in KEYS)
    except (OSError, ValueError, LookupError, TypeError, SafetensorError) as error:
        raise HeadError(f"{folder}: no rollout head can be read there ({error}). {remedy}") from error
    if version != SCHEMA_VERSION:
        raise HeadError(f"{folder / STATE}: schema_version {version}, this package reads {SCHEMA_VERSION}. {remedy}")
    if found != step:
        raise HeadError(f"{folder / STATE}: the head of step {found} in a checkpoint of step {step}. {remedy}")
    expected = dict(learner.head.named_parameters())
    for name, parameter in expected.items():
        for stored in (name, *(f"{moment}.{name}" for moment in MOMENTS if updates)):
            if stored not in tensors or tensors[stored].shape != parameter.shape:
                shape = tuple(tensors[stored].shape) if stored in tensors else None
                raise HeadError(
                    f"{folder / TENSORS}: {stored} has the shape {shape}, this run needs {tuple(parameter.shape)}. Set "
                    "r2po.head.rank as in the run that saved it, and use its model."
                )
    with torch.no_grad():
        for name, parameter in expected.items():
            parameter.copy_(tensors[name])
            if updates:
                moments = {moment: tensors[f"{moment}.{name}"].to(parameter.device).clone() for moment in MOMENTS}
                learner.optimizer.state[parameter] = {"step": torch.tensor(float(updates)), **moments}
    learner.updates, learner.penalty.weight, learner.best_reward = updates, weight, best
