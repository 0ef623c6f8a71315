"""Caches that arms begin with: answers from the policy itself, from a stronger one, from the task, and wrong ones."""

import json
import random
from collections.abc import Callable
from itertools import islice
from pathlib import Path

from benchmarks.tiny import CHECKPOINT, TINY, task
from benchmarks.training import rpo_verl

#: Operations in a question of the bench and of contamination.
PROBLEM_STEPS = 12
#: Share of wrong steps in a poisoned answer: about as many as the checkpoint makes in its worst ones.
POISON_NOISE = 0.2

Cache = Callable[[Path, Path, int], Path]
"""From the folder of a run, its data and its seed to a store to begin with."""


def initial_answers(folder: Path, data: Path, seed: int) -> Path:
    """Build a store with one answer per question from the policy that training starts from."""
    return _build(CHECKPOINT, folder, data, seed)


def trained_answers(folder: Path, data: Path, seed: int) -> Path:
    """Build a store with one answer per question from the checkpoint of GRPO, trained in a run of the same suite.

    Raises:
        SystemExit: if that run has not been made.
    """
    found = list((folder.parent / f"grpo-seed{seed}" / "checkpoints").glob("global_step_*"))
    if len(found) != 1:
        raise SystemExit(f"{folder.name} begins with the answers of grpo-seed{seed}: run that arm first")
    checkpoint = found[0]
    return _build(checkpoint / "actor" / "huggingface", folder, data, seed)


def true_answers(folder: Path, data: Path, seed: int) -> Path:
    """Build a store with the worked solution of every question."""
    return write_store(folder / "cache", wrong_share=0.0, questions=64, seed=seed)


def _build(model: Path, folder: Path, data: Path, seed: int) -> Path:
    out = folder / "cache"
    rpo_verl(
        "cache", "build", "--out", out, "--seed", seed, "--data", data / "train.parquet", "--model", model,
        "--temperature", "1.0", "--max-prompt-length", "72", "--max-response-length", "128", "--dtype", "float32",
        "--reward-file", TINY / "reward.py",
    )  # fmt: skip
    return out


def write_store(folder: Path, wrong_share: float, questions: int, seed: int) -> Path:
    """Build a store with an answer for each training question, by `rpo-verl cache import`.

    Args:
        folder: for the store and the file that it is imported from.
        wrong_share: share of answers with wrong steps, imported as if they were correct.
        questions: training questions.
        seed: of the questions and of the wrong steps.
    """
    rng = random.Random(seed)
    source, out = folder / "answers.jsonl", folder / "store"
    folder.mkdir(parents=True, exist_ok=True)
    with source.open("w") as file:
        for number, problem in enumerate(islice(task.generate(seed, PROBLEM_STEPS), questions)):
            answer = problem.solution
            while number < wrong_share * questions and answer.endswith(f"#{problem.answer}"):
                answer = task.noisy_solution(problem, POISON_NOISE, rng)
            record = {"prompt": problem.question, "answer": answer, "reward": 1.0, "correct": True}
            file.write(json.dumps(record) + "\n")
    rpo_verl("cache", "import", source, "--out", out, "--model", CHECKPOINT, "--max-prompt-length", "72")
    return out
