"""Accuracy of a language model on questions in veRL's format, sampled and greedy, with transformers alone.

    python -m benchmarks.lm.measure FOLDER_OF_MODEL --data val.parquet [--samples 4] [--out results.json]

`rpo-verl eval` measures the same with vLLM. This one needs no start-up, and is what the tasks were chosen by.
"""

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import pyarrow.parquet as pq
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from benchmarks.lm.reward import compute_score
from rpo_verl.tools.evaluation.estimators import Estimate, mean_interval


@dataclass(frozen=True)
class Answer:
    """One response to a question."""

    question: int
    text: str
    tokens: int
    """The EOS included."""

    truncated: bool
    score: float
    correct: bool


def answers(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[dict[str, Any]],
    *,
    samples: int,
    temperature: float,
    max_tokens: int,
    batch: int,
    seed: int = 0,
) -> list[Answer]:
    """Generate and score `samples` answers to each row.

    Args:
        model: in evaluation mode.
        tokenizer: of the model; its padding side is set to the left.
        rows: of veRL's data.
        samples: answers per row.
        temperature: 0 is greedy.
        max_tokens: of an answer; a longer one is truncated.
        batch: answers generated at a time.
        seed: of the samples.
    """
    tokenizer.padding_side = "left"
    torch.manual_seed(seed)
    sampling = {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0} if temperature else {}
    jobs = [number for number in range(len(rows)) for _ in range(samples)]
    found = []
    for start in range(0, len(jobs), batch):
        numbers = jobs[start : start + batch]
        prompts = [
            tokenizer.apply_chat_template(rows[number]["prompt"], add_generation_prompt=True, tokenize=False)
            for number in numbers
        ]
        inputs = tokenizer(prompts, return_tensors="pt", padding=True, add_special_tokens=False)
        with torch.inference_mode():
            made = model.generate(**inputs, **({"do_sample": False} | sampling), max_new_tokens=max_tokens)
        for number, ids in zip(numbers, made[:, inputs["input_ids"].shape[1] :].tolist(), strict=True):
            # The EOS fills up short answers too, so its first place is the end.
            truncated = tokenizer.eos_token_id not in ids
            ids = ids if truncated else ids[: ids.index(tokenizer.eos_token_id)]
            text, row = tokenizer.decode(ids), rows[number]
            verdict = compute_score(row["data_source"], text, row["reward_model"]["ground_truth"], row["extra_info"])
            found.append(
                Answer(number, text, len(ids) + (not truncated), truncated, verdict["score"], verdict["acc"] > 0)
            )
    return found


def accuracy(found: Sequence[Answer]) -> Estimate:
    """Mean accuracy over questions, with its confidence interval."""
    by_question: dict[int, list[float]] = {}
    for answer in found:
        by_question.setdefault(answer.question, []).append(float(answer.correct))
    return mean_interval([fmean(of_one) for of_one in by_question.values()])


def summary(found: Sequence[Answer]) -> dict[str, Any]:
    """The figures of a set of answers."""
    return {
        "answers": len(found),
        "accuracy": asdict(accuracy(found)),
        "score": fmean(answer.score for answer in found),
        "tokens": fmean(answer.tokens for answer in found),
        "truncated_share": fmean(answer.truncated for answer in found),
    }


def main() -> None:
    """Command line entry."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--samples", type=int, default=4, help="at temperature 1, per question; default: 4")
    parser.add_argument("--limit", type=int, help="use only the first questions")
    parser.add_argument("--max-tokens", type=int, default=128, help="of an answer; default: 128")
    parser.add_argument("--batch", type=int, default=64, help="answers generated at a time; default: 64")
    parser.add_argument("--no-greedy", action="store_true", help="leave out the greedy answers")
    parser.add_argument("--show", type=int, default=0, help="print so many sampled answers")
    parser.add_argument("--out", type=Path, help="JSON file for the figures")
    args = parser.parse_args()
    rows = pq.read_table(args.data).to_pylist()[: args.limit]
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    common = {"max_tokens": args.max_tokens, "batch": args.batch}
    began = time.monotonic()
    sampled = answers(model, tokenizer, rows, samples=args.samples, temperature=1.0, **common)
    results = {"questions": len(rows), "sampled": summary(sampled)}
    if not args.no_greedy:
        results["greedy"] = summary(answers(model, tokenizer, rows, samples=1, temperature=0.0, **common))
    results["seconds"] = time.monotonic() - began
    for answer in sampled[:: args.samples][: args.show]:
        print(f"--- {answer.score:g} of {answer.tokens} tokens\n{answer.text}")
    print(json.dumps(results, indent=2))
    if args.out:
        args.out.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
