"""GRPO or DAPO with and without RPO on the tiny reasoner, through veRL's own command line on the CPU.

    python -m benchmarks.demo [--algorithm grpo|dapo] [--arms …] [--steps N] [hydra overrides …]

Prints a table and writes a plot, summary.json and summary.md to runs/demo or runs/demo-dapo. Every arm starts from the
same checkpoint with the same seed, data, group size and number of steps; the arms differ in their overrides (arms.py).
The figures come from veRL's file logger, and for groups of RPO's arms from RPO's metrics.
"""

import argparse
from pathlib import Path

from benchmarks.arms import DEMO
from benchmarks.summary import plot, summarize, table, write
from benchmarks.tiny import write_questions
from benchmarks.training import train


def main() -> None:
    """Command line entry."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--algorithm", choices=DEMO, default="grpo")
    choices = "; ".join(f"{algorithm}: {', '.join(arms)}" for algorithm, arms in DEMO.items())
    parser.add_argument("--arms", help=f"comma-separated ({choices}). Default: the first two")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--train-size", type=int, default=192, help="questions to train on")
    parser.add_argument("--val-size", type=int, default=512, help="questions to validate on, none of them trained on")
    parser.add_argument("--test-freq", type=int, default=30, help="steps between validations")
    parser.add_argument("--out", type=Path, help="default: runs/demo or runs/demo-dapo")
    args, overrides = parser.parse_known_args()
    known = DEMO[args.algorithm]
    arms = args.arms.split(",") if args.arms else list(known)[:2]
    unknown = [arm for arm in arms if arm not in known]
    if unknown:
        parser.error(f"--arms={args.arms}: {unknown} not among {', '.join(known)}")
    out = args.out or Path("runs/demo" if args.algorithm == "grpo" else f"runs/demo-{args.algorithm}")
    if any(override.startswith("--") for override in overrides):
        parser.error(f"unknown options {[o for o in overrides if o.startswith('--')]}")

    write_questions(out / "data", train=args.train_size, val=args.val_size, seed=args.seed)
    length = {"steps": args.steps, "seed": args.seed, "test_freq": args.test_freq}
    runs = {
        arm: train(arm, out / arm, [*known[arm].overrides, *overrides], **length, **known[arm].all_knobs)
        for arm in arms
    }
    summary = {arm: summarize(steps, args.seed) for arm, steps in runs.items()}
    write(summary, out)
    plot(runs, out / "accuracy.png")
    table(summary)
    print(f"written: summary.json, summary.md and accuracy.png in {out}")


if __name__ == "__main__":
    main()
