"""Accuracy of a checkpoint: the share of problems whose sampled or greedy solution ends in the right answer."""

from __future__ import annotations

import argparse
import time
from itertools import islice
from pathlib import Path

import torch
from char_tokenizer import prompt_ids
from reward import compute_score
from task import LEVELS, TRAIN_STEPS, Problem, generate
from transformers import AutoModelForCausalLM, AutoTokenizer

# Any seed other than pretraining's will do: with 20 operations per step, questions of 7 or more steps never coincide.
EVAL_SEED = 900_000_000


def solve(model, tokenizer, problems: list[Problem], sample: bool, batch_size: int = 128) -> list[str]:
    """Solutions written by the model, sampled at temperature 1.0 or greedy, in batches of equal prompt length."""
    texts = []
    limit = 12 + max(len(problem.solution) for problem in problems)
    for start in range(0, len(problems), batch_size):
        ids = torch.tensor([prompt_ids(tokenizer, p.question) for p in problems[start : start + batch_size]])
        # No top-k or top-p: RL samples from the full distribution, so accuracy has to be measured on it.
        options = {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0} if sample else {"do_sample": False}
        with torch.inference_mode():
            out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=limit, **options)
        texts += tokenizer.batch_decode(out[:, ids.shape[1] :], skip_special_tokens=True)
    return texts


def accuracy(model, tokenizer, steps: int, count: int, sample: bool, seed: int = EVAL_SEED) -> float:
    """Share of right final answers over `count` problems with `steps` steps."""
    problems = list(islice(generate(seed, steps), count))
    was_training = model.training
    model.eval()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        texts = solve(model, tokenizer, problems, sample)
    model.train(was_training)
    scores = [compute_score("tiny_reasoner", text, p.answer) for text, p in zip(texts, problems, strict=True)]
    return sum(scores) / count


def evaluate_levels(model, tokenizer, count: int, names: list[str] | None = None) -> dict[str, dict[str, float]]:
    """Sampled and greedy accuracy per named difficulty: `count` problems at the training one, a quarter elsewhere."""
    levels = {}
    for name in names or LEVELS:
        steps = LEVELS[name]
        size = count if steps == TRAIN_STEPS else count // 4
        start = time.monotonic()
        sampled = accuracy(model, tokenizer, steps, size, sample=True)
        greedy = accuracy(model, tokenizer, steps, size, sample=False)
        levels[name] = {"sampled": sampled, "greedy": greedy, "problems": size}
        print(f"{name}: {levels[name]} in {time.monotonic() - start:.0f} s", flush=True)
    return levels


def main() -> None:
    """Command line entry."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=Path(__file__).parent / "checkpoint")
    parser.add_argument("--levels", nargs="*", choices=LEVELS, help="default: all")
    parser.add_argument("--count", type=int, default=1024, help="problems at the training difficulty")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    evaluate_levels(model, tokenizer, args.count, args.levels)


if __name__ == "__main__":
    main()
