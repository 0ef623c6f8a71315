"""Exact accuracy where every question has one right solution: its probability under the policy, without sampling noise.

    python -m benchmarks.exact FOLDER … [--questions 1024] [--problem-steps 12] [--out FILE]

The model reads question and right solution at once (teacher forcing). The product of the solution's token
probabilities, EOS included, is the probability that a rollout at temperature 1 is the solution. The mean over held-out
questions is the accuracy. A rollout may err twice and still end in the right number, so this is a lower bound of what
the reward counts; benchmarks/README.md says by how much.
"""

import argparse
import json
import time
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils.logging import disable_progress_bar

from benchmarks.tiny import prompt_ids, task

#: Numbers of answers that pass@k is computed for.
KS = (1, 2, 4, 8, 16, 32)
QUESTIONS = 1024
#: Of the held-out questions; training draws from other seeds.
HELD_OUT_SEED = 910_000_000


class Solved(NamedTuple):
    """A question and its one right solution."""

    question: list[int]
    """(q,) token ids, chat template applied."""

    solution: list[int]
    """(s,) token ids, EOS included."""


def held_out(
    tokenizer: PreTrainedTokenizerBase, count: int = QUESTIONS, steps: int = 12, seed: int = HELD_OUT_SEED
) -> list[Solved]:
    """Draw `count` questions of `steps` operations with their solutions; the same for every policy."""
    return [solved(tokenizer, problem) for problem in islice(task.generate(seed, steps), count)]


def solved(tokenizer: PreTrainedTokenizerBase, problem: task.Problem) -> Solved:
    """A problem and its solution as token ids."""
    solution = tokenizer.encode(problem.solution, add_special_tokens=False)
    return Solved(prompt_ids(tokenizer, problem.question), [*solution, tokenizer.eos_token_id])


@torch.no_grad()
def measure(model: PreTrainedModel, questions: Sequence[Solved], batch: int = 32) -> dict[str, Any]:
    """Measure a policy at temperature 1 by teacher forcing.

    Args:
        model: a causal language model.
        questions: held-out questions with their solutions.
        batch: questions per forward pass.

    Returns:
        `accuracy`, the mean probability `p` of the solution; `greedy`, the share of questions whose every solution
        token is the most likely one; `pass_at_k`, the mean of `1 - (1 - p)^k`; `entropy`, nats per token on the right
        path; `questions`, their number.

    Raises:
        ValueError: if there are no questions.
    """
    if not questions:
        raise ValueError("questions is empty: exact accuracy needs at least one question")
    probabilities, greedy, entropies, tokens = [], 0, 0.0, 0
    for first in range(0, len(questions), batch):
        part = questions[first : first + batch]
        longest = max(len(question) + len(solution) for question, solution in part)
        # Filled up on the right, where causal attention does not look.
        ids = torch.zeros(len(part), longest, dtype=torch.long)
        for row, (question, solution) in enumerate(part):
            ids[row, : len(question) + len(solution)] = torch.tensor(question + solution)
        hidden = model.base_model(input_ids=ids, use_cache=False).last_hidden_state
        # The state before a token predicts it; only those of solutions are worth the vocabulary.
        before = [hidden[row, len(q) - 1 : len(q) + len(s) - 1] for row, (q, s) in enumerate(part)]
        log_p = model.get_output_embeddings()(torch.cat(before)).float().log_softmax(-1)
        right = torch.tensor([token for _, solution in part for token in solution])
        of_right, most_likely = log_p.gather(1, right[:, None])[:, 0].double(), log_p.argmax(-1) == right
        sizes = [len(solution) for _, solution in part]
        probabilities += [float(row.sum().exp()) for row in of_right.split(sizes)]
        greedy += sum(bool(row.all()) for row in most_likely.split(sizes))
        entropies -= float((log_p.exp() * log_p).sum())
        tokens += len(right)
    p = torch.tensor(probabilities, dtype=torch.float64)
    return {
        "questions": len(questions),
        "accuracy": float(p.mean()),
        "greedy": greedy / len(questions),
        "pass_at_k": {str(k): float((1 - (1 - p) ** k).mean()) for k in KS},
        "entropy": entropies / tokens,
    }


def measure_folder(folder: Path, count: int = QUESTIONS, steps: int = 12) -> dict[str, Any]:
    """Measure the policy in a Hugging Face folder; see `measure`."""
    # A run has many small ones.
    disable_progress_bar()
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    return measure(model, held_out(AutoTokenizer.from_pretrained(folder), count, steps))


def main() -> None:
    """Command line entry."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="+", help="Hugging Face folders")
    parser.add_argument("--questions", type=int, default=QUESTIONS)
    parser.add_argument("--problem-steps", type=int, default=12, help="operations in a question")
    parser.add_argument("--out", type=Path, help="JSON file to write; default: the screen")
    args = parser.parse_args()
    torch.set_num_threads(1)
    measured = {}
    for folder in args.folders:
        started = time.perf_counter()
        found = measure_folder(folder, args.questions, args.problem_steps)
        measured[str(folder)] = found | {"seconds": time.perf_counter() - started}
    text = json.dumps(measured, indent=2) + "\n"
    if args.out:
        args.out.write_text(text)
    else:
        print(text, end="")


if __name__ == "__main__":
    main()
