"""Policies that some arms begin with, made out of the tiny reasoner's checkpoint."""

import random
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from benchmarks.tiny import CHECKPOINT, prompt_ids, task

#: What the talkative policy says after a step, and the share of the steps after which it does.
REMARK, REMARK_SHARE = "well;", 0.5


def weakened(out: Path) -> Path:
    """The tiny reasoner with logits divided by 1.4, so that about a group in two has a right answer."""
    return _with_divided_logits(out / "weakened", 1.4)


def weakest(out: Path) -> Path:
    """The tiny reasoner with logits divided by 2, so that hardly a group has a right answer."""
    return _with_divided_logits(out / "weakest", 2.0)


def talkative(out: Path) -> Path:
    """The tiny reasoner after some minutes of solutions with a remark between steps now and then.

    Right answers of the tiny reasoner itself are all equally long. Those of this one are not, and there are many for a
    question, so that a reward that looks at the length, and what becomes of diversity, have something to show.
    """

    def write(folder: Path) -> None:
        model = AutoModelForCausalLM.from_pretrained(CHECKPOINT, dtype=torch.float32)
        tune(model, AutoTokenizer.from_pretrained(CHECKPOINT), updates=500, seed=1)
        model.save_pretrained(folder)

    return _made_once(out / "talkative", write)


def tune(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, updates: int, seed: int) -> None:
    """Supervised updates on talkative solutions of 12 steps, at the error rate of pretraining's last phase."""
    rng = random.Random(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1e-3, total_steps=updates, pct_start=0.1)
    model.train()
    for _ in range(updates):
        rows, labels = [], []
        for _ in range(16):
            problem = task.draw_problem(rng, steps=12)
            prompt = prompt_ids(tokenizer, problem.question)
            solution = with_remarks(task.noisy_solution(problem, 0.02, rng), REMARK_SHARE, rng)
            ids = [*tokenizer.encode(solution, add_special_tokens=False), tokenizer.eos_token_id]
            rows.append(torch.tensor(prompt + ids))
            labels.append(torch.tensor([-100] * len(prompt) + ids))
        # Filled up on the right, where causal attention does not look.
        batch = pad_sequence(rows, batch_first=True, padding_value=tokenizer.pad_token_id)
        loss = model(input_ids=batch, labels=pad_sequence(labels, batch_first=True, padding_value=-100)).loss
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()


def with_remarks(solution: str, share: float, rng: random.Random) -> str:
    """The solution with a remark, by chance, after each step."""
    *steps, end = solution.split(";")
    if not end.startswith(task.ANSWER_MARK):
        raise ValueError(f"a solution ends with {task.ANSWER_MARK} and its answer, got {solution!r}")
    return "".join(f"{step};{REMARK if rng.random() < share else ''}" for step in steps) + end


def _with_divided_logits(folder: Path, divisor: float) -> Path:
    """The tiny reasoner with logits divided by `divisor`."""

    def write(made: Path) -> None:
        weights = load_file(CHECKPOINT / "model.safetensors")
        weights["model.norm.weight"] = weights["model.norm.weight"] / divisor
        save_file(weights, made / "model.safetensors", metadata={"format": "pt"})

    return _made_once(folder, write)


def _made_once(folder: Path, write: Callable[[Path], None]) -> Path:
    """`folder` with the checkpoint's files and what `write` puts over them."""
    if not folder.exists():
        unfinished = folder.with_name(f".{folder.name}.writing")
        of_these_weights = shutil.ignore_patterns("model.safetensors", "SHA256SUMS", "pretrain_log.jsonl")
        shutil.copytree(CHECKPOINT, unfinished, dirs_exist_ok=True, ignore=of_these_weights)
        write(unfinished)
        unfinished.rename(folder)
    return folder
