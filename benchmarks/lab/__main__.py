"""Train one arm of the fast lane, or a suite of them.

    python -m benchmarks.lab [--arm grpo] [--model tiny] [--seed 1] … [rpo.KEY=VALUE …]
    python -m benchmarks.lab --suite lr|competitors|reuse|long|r2po|lm [--arms …] [--seeds 1,2,3] [--lanes 2]
        [--continue-from RESULTS] [-- OPTION …]

A run writes its record to runs/lab/ARM-seedSEED.json, a suite to runs/lab/SUITE/, with results.json and results.md of
all its runs. Called again, a suite goes on where it was interrupted.
"""

import argparse
import os
import sys
from pathlib import Path

from benchmarks.lab import publish
from benchmarks.lab.options import parser
from benchmarks.lab.runs import OUT, run_suite, train
from benchmarks.lab.suites import SUITES
from benchmarks.training import claim
from rpo_verl.config import ConfigError


def suite_parser() -> argparse.ArgumentParser:
    """The options of a suite."""
    made = argparse.ArgumentParser(prog="python -m benchmarks.lab")
    made.add_argument("--suite", choices=SUITES, required=True)
    made.add_argument("--arms", help="comma-separated; default: all of the suite")
    made.add_argument("--seeds", help="comma-separated; default: those of the suite")
    made.add_argument("--lanes", type=int, default=2, help="runs at a time, each on a core of its own; default: 2")
    made.add_argument("--continue-from", type=Path, help="published results of the suite, of a call on another machine")
    made.add_argument("--out", type=Path, help="default: runs/lab/SUITE")
    made.add_argument("extra", nargs="*", help="behind --: options for every run")
    return made


def main(argv: list[str] | None = None) -> None:
    """Command line entry."""
    argv = sys.argv[1:] if argv is None else argv
    if any(argument.split("=")[0] == "--suite" for argument in argv):
        options = suite_parser()
        args = options.parse_args(argv)
        suite = SUITES[args.suite]
        names = args.arms.split(",") if args.arms else list(suite.arms)
        if unknown := [name for name in names if name not in suite.arms]:
            options.error(f"--arms={args.arms}: {unknown} not among {', '.join(suite.arms)}")
        if not 1 <= args.lanes <= (cores := len(os.sched_getaffinity(0))):
            options.error(f"--lanes={args.lanes}: there are {cores} cores, and each lane takes one")
        seeds = [int(seed) for seed in args.seeds.split(",")] if args.seeds else list(suite.seeds)
        out = args.out or OUT / args.suite
        try:
            parser().parse_args(args.extra)
            claim(out, {"suite": args.suite})
            earlier = publish.read(args.continue_from, args.suite) if args.continue_from else publish.NOTHING
            chosen = {name: suite.arms[name] for name in names}
            run_suite(chosen, seeds, args.extra, out, args.lanes, earlier, list(suite.arms))
        except ConfigError as error:
            options.error(str(error))
        return
    options = parser()
    args = options.parse_args(argv)
    args.out = args.out or OUT / f"{args.arm}-seed{args.seed}.json"
    try:
        train(args)
    except ConfigError as error:
        options.error(str(error))
    print(f"written: {args.out}")


if __name__ == "__main__":
    main()
