"""What a language model can do on a task's held-out questions: the figures of the fast lane.

    python -m benchmarks.lm.measure FOLDER_OF_MODEL [--task chain_sum] [--questions 256] [--answers 32]

`rpo-verl eval` measures accuracy and pass@k of any model and data with vLLM. This one has what the fast lane has
besides: greedy accuracy, entropy, distinct answers, format errors. All are on the same questions for every model.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.lab.evaluation import Evaluation
from benchmarks.lab.policy import Policy
from benchmarks.lab.tasks import LANGUAGE, Language
from rpo_verl.tools.files import write_text


def measure(folder: Path, task: str, *, questions: int, answers: int) -> dict[str, Any]:
    """Accuracy at temperature 1 on `questions`, and the other figures from `answers` to each of some of them.

    Args:
        folder: Hugging Face folder of the model; it computes in bfloat16.
        task: one of reasoning-gym's.
        questions: held-out ones, the same for every model.
        answers: to each of the first 64.
    """
    of = Language(task)
    evaluation = Evaluation(Policy.load(folder, bfloat16=True), of, of.max_response_length, questions)
    return evaluation.accuracy() | evaluation.figures(answers)


def main() -> None:
    """Command line entry."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--task", choices=LANGUAGE, default="chain_sum")
    parser.add_argument("--questions", type=int, default=256, help="for the accuracy; default: 256")
    parser.add_argument("--answers", type=int, default=32, help="to each of 64 questions; default: 32")
    parser.add_argument("--out", type=Path, help="JSON file for the figures")
    args = parser.parse_args()
    torch.set_num_threads(1)
    began = time.monotonic()
    results = measure(args.model, args.task, questions=args.questions, answers=args.answers)
    print(json.dumps(results | {"seconds": round(time.monotonic() - began)}, indent=2))
    if args.out:
        write_text(args.out, json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
