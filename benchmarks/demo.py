"""GRPO or DAPO with and without RPO, in a quarter of an hour, through veRL's own command line on the CPU.

    python -m benchmarks.demo [--algorithm grpo|dapo] [--arms …] [--steps N] [hydra overrides …]

The arms are runs of bench.py's suite `biased` with one seed: the same policy, questions, group size and number of
steps. Two train at a time, each on a core of its own. Prints a table, and writes summary.md, results.json and
accuracy.png to runs/demo or runs/demo-dapo.
"""

import argparse
import json
import os
from dataclasses import replace
from pathlib import Path

import torch

from benchmarks import bench, summary
from benchmarks.arms import DEMO, SUITES, on
from benchmarks.policies import biased
from benchmarks.results import plot_curves
from benchmarks.tables import show
from rpo_verl.tools.evaluation.results import markdown


def main() -> None:
    """Command line entry."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--algorithm", choices=DEMO, default="grpo")
    choices = "; ".join(f"{algorithm}: {', '.join(arms)}" for algorithm, arms in DEMO.items())
    parser.add_argument("--arms", help=f"comma-separated ({choices}). Default: the first two")
    parser.add_argument("--steps", type=int, default=SUITES["biased"].steps)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--lanes", type=int, default=2, help="runs at a time, each on a core of its own; default: 2")
    parser.add_argument("--out", type=Path, help="default: runs/demo or runs/demo-dapo")
    args, overrides = parser.parse_known_args()
    known = DEMO[args.algorithm]
    arms = args.arms.split(",") if args.arms else list(known)[:2]
    if unknown := [arm for arm in arms if arm not in known]:
        parser.error(f"--arms={args.arms}: {unknown} not among {', '.join(known)}")
    if any(override.startswith("--") for override in overrides):
        parser.error(f"unknown options {[o for o in overrides if o.startswith('--')]}")
    if args.steps < 1:
        parser.error(f"--steps={args.steps}: must be at least 1")
    if args.lanes < 1:
        parser.error(f"--lanes={args.lanes}: must be at least 1")
    out = args.out or Path("runs/demo" if args.algorithm == "grpo" else f"runs/demo-{args.algorithm}")

    chosen = {name: replace(known[name], overrides=(*known[name].overrides, *overrides)) for name in arms}
    suite = replace(SUITES["biased"].of_length(args.steps), arms=on(biased, chosen), seeds=(args.seed,))
    out.mkdir(parents=True, exist_ok=True)
    print("making the biased policy, once: some minutes", flush=True)
    bench.prepare(suite, list(suite.arms.values()), [args.seed], out)
    # A lane measures exports on its own core.
    torch.set_num_threads(1)
    lanes = min(args.lanes, len(os.sched_getaffinity(0)))
    bench.run_in_lanes([(name, args.seed) for name in arms], suite, out, lanes, lambda: None)
    results = bench.collect("biased", suite, out, {})
    (out / "results.json").write_text(json.dumps(results, indent=2) + "\n")
    (out / "summary.md").write_text(markdown(summary.rows(results)))
    plot_curves(results, out / "accuracy.png", summary.AXES)
    show(f"biased policy, {args.steps} steps, seed {args.seed}", summary.rows(results))
    print(f"written: summary.md, results.json and accuracy.png in {out}")


if __name__ == "__main__":
    main()
