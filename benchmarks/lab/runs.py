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

from benchmarks.lab import publish
from benchmarks.lab.options import check, model_folder, parser
from benchmarks.lab.policy import BrokenDown, Policy
from benchmarks.lab.suites import Suite
from benchmarks.lab.training import Training
from benchmarks.lanes import in_lanes, seeds_outermost
from benchmarks.machine import commit, machine, processor
from benchmarks.policies import sha256
from benchmarks.tiny import ROOT
from rpo_verl.config import ConfigError
from rpo_verl.tools.files import write_text

OUT = Path("runs/lab")
#: Folder of the policies that runs begin with.
POLICIES = OUT / "policies"


def train(args: argparse.Namespace) -> dict[str, Any]:
    """Train as the options say and write the record to `args.out`.

    A training that breaks down has a record too, of what came before: that is a result.

    Raises:
        ConfigError: if the options cannot run.
    """
    check(args)
    disable_progress_bar()
    torch.set_num_threads(1)
    folder = model_folder(args.model, POLICIES)
    origin = {
        "args": options_of(args), "commit": commit(), "policy": sha256(folder),
        "machine": machine() | {"processor": processor()},
    }  # fmt: skip
    training = Training(Policy.load(folder, args.bfloat16), args)
    try:
        record = training.run(partial(print, flush=True))
    except BrokenDown as error:
        print(f"[{args.arm} seed {args.seed}] broke down at step {training.step}: {error}", flush=True)
        record = training.record() | {"broke_down": {"step": training.step, "why": str(error)}}
    record |= origin
    args.out.parent.mkdir(parents=True, exist_ok=True)
    write_text(args.out, json.dumps(record, indent=1) + "\n")
    return record


def options_of(args: argparse.Namespace) -> dict[str, Any]:
    """The options that a record has, checked ones."""
    return {name: value for name, value in vars(args).items() if name != "out"}


def path_of(out: Path, arm: str, seed: int) -> Path:
    """The record of a run in the folder of a suite."""
    return out / f"{arm}-seed{seed}.json"


def run_suite(
    suite: Suite,
    seeds: Sequence[int],
    extra: Sequence[str],
    out: Path,
    lanes: int,
    earlier: Mapping[str, Any] = publish.NOTHING,
    order: Sequence[str] | None = None,
) -> None:
    """Run every arm with every seed that has no record in `out`, seeds outermost; write the results after each.

    Args:
        suite: the arms.
        seeds: the seeds.
        extra: options behind those of every arm, such as a smaller number of steps.
        out: folder of the records.
        lanes: runs at a time, each on a core of its own.
        earlier: published results of the suite. Their runs are not made again, and stay in the results.
        order: all arms of the suite, if `suite` has some of them.

    Raises:
        ConfigError: if `out` or `earlier` has a run of an arm with other options.
        SystemExit: if a run fails; its output has said why.
    """
    then = {(arm, seed): record["args"] for arm, of in records(out).items() for seed, record in of.items()}
    on_disk = set(then)
    for policy, arms in earlier["runs"].items():
        for arm, by_seed in arms.items():
            for seed in map(int, by_seed):
                then.setdefault((f"{policy}-{arm}", seed), earlier["arms"][policy][arm] | {"seed": seed})
    # Options that came later had their defaults.
    defaults = vars(parser().parse_args([]))
    then = {
        run: {key: defaults[key] for key in defaults if key != "out"} | made_with for run, made_with in then.items()
    }
    for (arm, seed), made_with in then.items():
        if arm in suite and made_with != (now := arguments(suite[arm], seed, extra)):
            other = {key: (value, now.get(key)) for key, value in made_with.items() if value != now.get(key)}
            where = path_of(out, arm, seed) if (arm, seed) in on_disk else f"{arm} of the published results"
            raise ConfigError(
                f"{where} was made with other options (then, now): {other}. Delete it to run it again, or choose --out"
            )
    todo = [(arm, seed) for arm, seed in seeds_outermost(list(suite), seeds) if (arm, seed) not in then]
    print(f"{len(todo)} runs; {len(suite) * len(seeds) - len(todo)} kept from earlier calls", flush=True)
    for model in sorted({model_of(suite[arm]) for arm, _ in todo}):
        # Before there are several runs at a time.
        model_folder(model, POLICIES)

    def one(arm: str, seed: int) -> None:
        command = [
            sys.executable,
            "-W",
            "ignore",
            "-m",
            "benchmarks.lab",
            "--out",
            str(path_of(out, arm, seed).resolve()),
        ]
        done = subprocess.run([*command, *command_of(suite[arm], seed, extra)], cwd=ROOT)
        if done.returncode:
            raise SystemExit(f"[{arm} seed {seed}] ended with status {done.returncode}")

    def after() -> None:
        found = records(out)
        if found or earlier["runs"]:
            publish.write(publish.results(out.name, order or list(suite), found, earlier), out)
        print(table(found), flush=True)

    in_lanes([partial(one, arm, seed) for arm, seed in todo], lanes, after)
    after()


def arguments(options: Sequence[str], seed: int, extra: Sequence[str]) -> dict[str, Any]:
    """The checked options of a run of a suite."""
    args = parser().parse_args(command_of(options, seed, extra))
    check(args)
    return options_of(args)


def command_of(options: Sequence[str], seed: int, extra: Sequence[str]) -> list[str]:
    """The arguments of a run of a suite; overrides of RPO come last, in one piece."""
    given = [*options, "--seed", str(seed), *extra]
    overrides = [argument for argument in given if argument.startswith(("rpo.", "r2po."))]
    return [*(argument for argument in given if argument not in overrides), *overrides]


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
    """Final accuracy of every seed, their mean, tokens and processor seconds, as lines of text."""
    lines = []
    for arm, by_seed in found.items():
        last = [record["curve"][-1] for _, record in sorted(by_seed.items())]
        accuracies = " ".join(f"{point['accuracy']:.3f}" for point in last)

        def mean(name: str, points: Sequence[Mapping[str, Any]] = last) -> float:
            return sum(point[name] for point in points) / len(points)

        lines.append(
            f"{arm:<28} {mean('accuracy'):.4f}  ({accuracies})  {mean('tokens'):>9,.0f} tokens  "
            f"{mean('cpu_seconds'):>5.0f} s"
            + "".join(f"  seed {s} broke down" for s, record in sorted(by_seed.items()) if "broke_down" in record)
        )
    return "\n".join(lines)
