"""pass@k of the tiny reasoner before training, after GRPO, and after GRPO with RPO: table, curves and JSON.

    python -m benchmarks.pass_at_k [--steps N] [--samples N] [--questions N] [hydra overrides …]

The arms are `grpo` and `L0.1` of arms.py. The three checkpoints answer the same held-out questions,
by full rollouts, through `rpo-verl eval`. Called again with the same settings it goes on where it was interrupted. The
figures are in runs/pass-at-k: compare.json, compare.md and pass_at_k.png, and all samples below it.
"""

import argparse
import os
from pathlib import Path

from benchmarks.arms import BASELINES
from benchmarks.tiny import CHECKPOINT, TINY, write_questions
from benchmarks.training import SAVE, claim, rpo_verl, train

ARMS = ("grpo", "L0.1")
MAX_RESPONSE_LENGTH = 208


def evaluate(model: Path, out: Path, data: Path, samples: int, seed: int, max_response_length: int) -> None:
    """Sample from the policy itself, as in training: no top-p, temperature 1."""
    rpo_verl(
        "eval", model, "--data", data / "val.parquet", "--out", out, "--n", samples, "--seed", seed,
        "--temperature", "1.0", "--top-p", "1.0", "--max-response-length", max_response_length,
        "--reward-file", TINY / "reward.py", "--dtype", "float32", "--enforce-eager",
    )  # fmt: skip


def main() -> None:
    """Command line entry."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=60, help="training steps of either arm")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--train-size", type=int, default=192, help="questions to train on")
    parser.add_argument("--questions", type=int, default=128, help="questions to evaluate on, none of them trained on")
    parser.add_argument("--samples", type=int, default=32, help="answers to each of them")
    parser.add_argument("--out", type=Path, default=Path("runs/pass-at-k"))
    args, overrides = parser.parse_known_args()
    if any(override.startswith("--") for override in overrides):
        parser.error(f"unknown options {[o for o in overrides if o.startswith('--')]}")
    # The number of samples is not among them: rpo-verl eval adds to those that are there.
    names = ("steps", "seed", "train_size", "questions")
    claim(args.out, {name: getattr(args, name) for name in names} | {"overrides": overrides})
    if not (args.out / "data" / "val.parquet").exists():
        write_questions(args.out / "data", train=args.train_size, val=args.questions, seed=args.seed)

    # From here, because the results name it.
    checkpoints = {"base": Path(os.path.relpath(CHECKPOINT))}
    length = {"steps": args.steps, "seed": args.seed, "test_freq": args.steps}
    for arm in ARMS:
        checkpoints[arm] = args.out / arm / "checkpoints" / f"global_step_{args.steps}"
        if not (checkpoints[arm] / "actor" / "huggingface" / "model.safetensors").exists():
            known = BASELINES[arm]
            train(arm, args.out / arm, [*known.overrides, *SAVE, *overrides], **length, **known.all_knobs)
    for label, model in checkpoints.items():
        print(f"[{label}] {args.samples} answers to each of {args.questions} questions", flush=True)
        evaluate(model, args.out / "eval" / label, args.out / "data", args.samples, args.seed, MAX_RESPONSE_LENGTH)
    labelled = [f"{label}={args.out / 'eval' / label}" for label in checkpoints]
    rpo_verl("eval-compare", *labelled, "--out", args.out, "--baseline", ARMS[0])


if __name__ == "__main__":
    main()
