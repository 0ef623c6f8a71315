"""Runs on disk: one JSON file each, finished ones are kept, and several go on side by side."""

import argparse
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers.utils.logging import disable_progress_bar

from benchmarks.lab.options import check, model_folder
from benchmarks.lab.policy import Policy
from benchmarks.lab.suites import Suite
from benchmarks.lab.training import Training
from benchmarks.lanes import in_lanes, seeds_outermost
from benchmarks.machine import commit, machine, processor
from benchmarks.tiny import ROOT
from rpo_verl.tools.files import write_text

OUT = Path("runs/lab")
#: Folder of the policies that runs begin with.
POLICIES = OUT / "policies"


def train(args: argparse.Namespace) -> dict[str, Any]:
    """Train as the options say and write the record to `args.out`.

    Raises:
        ConfigError: if the options cannot run.
    """
    check(args)
    disable_progress_bar()
    torch.set_num_threads(1)
    training = Training(Policy.load(model_folder(args.model, POLICIES)), args)
    record = training.run(partial(print, flush=True))
    options = {name: value for name, value in vars(args).items() if name not in ("out", "suite", "seeds", "lanes")}
    record |= {"args": options, "commit": commit(), "machine": machine() | {"processor": processor()}}
    args.out.parent.mkdir(parents=True, exist_ok=True)
    write_text(args.out, json.dumps(record, indent=1) + "\n")
    return record


def path_of(out: Path, arm: str, seed: int) -> Path:
    """The record of a run in the folder of a suite."""
    return out / f"{arm}-seed{seed}.json"


def run_suite(suite: Suite, seeds: Sequence[int], extra: Sequence[str], out: Path, lanes: int) -> None:
    """Run every arm with every seed that has no record in `out`, seeds outermost.

    Args:
        suite: the arms.
        seeds: the seeds.
        extra: options behind those of every arm, such as a smaller number of steps.
        out: folder of the records.
        lanes: runs at a time, each on a core of its own.

    Raises:
        SystemExit: if a run fails; its output has said why.
    """
    todo = [(arm, seed) for arm, seed in seeds_outermost(list(suite), seeds) if not path_of(out, arm, seed).exists()]
    print(f"{len(todo)} runs; {len(suite) * len(seeds) - len(todo)} kept from earlier calls", flush=True)
    for model in sorted({model_of(suite[arm]) for arm, _ in todo}):
        # Before there are several runs at a time.
        model_folder(model, POLICIES)

    def one(arm: str, seed: int) -> None:
        command = [sys.executable, "-W", "ignore", "-m", "benchmarks.lab", *suite[arm], "--seed", str(seed), *extra]
        done = subprocess.run([*command, "--out", str(path_of(out, arm, seed).resolve())], cwd=ROOT)
        if done.returncode:
            raise SystemExit(f"[{arm} seed {seed}] ended with status {done.returncode}")

    in_lanes([partial(one, arm, seed) for arm, seed in todo], lanes, lambda: print(table(records(out)), flush=True))
    print(table(records(out)), flush=True)


def model_of(options: Sequence[str]) -> str:
    """The policy that an arm's options name."""
    return options[list(options).index("--model") + 1] if "--model" in options else "tiny"


def records(out: Path) -> dict[str, dict[int, dict[str, Any]]]:
    """Arm → seed → record of the finished runs in a folder."""
    found: dict[str, dict[int, dict[str, Any]]] = {}
    for path in sorted(out.glob("*-seed*.json")):
        arm, _, seed = path.stem.rpartition("-seed")
        found.setdefault(arm, {})[int(seed)] = json.loads(path.read_text())
    return found


def table(found: Mapping[str, Mapping[int, Mapping[str, Any]]]) -> str:
    """Final accuracy of every seed, their mean, tokens and seconds, as lines of text."""
    lines = []
    for arm, by_seed in found.items():
        last = [record["curve"][-1] for _, record in sorted(by_seed.items())]
        accuracies = " ".join(f"{point['accuracy']:.3f}" for point in last)

        def mean(name: str, points: Sequence[Mapping[str, Any]] = last) -> float:
            return sum(point[name] for point in points) / len(points)

        lines.append(
            f"{arm:<28} {mean('accuracy'):.4f}  ({accuracies})  {mean('tokens'):>9,.0f} tokens  "
            f"{mean('seconds'):>5.0f} s"
        )
    return "\n".join(lines)
