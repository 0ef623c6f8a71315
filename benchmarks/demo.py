"""GRPO or DAPO with and without RPO on the tiny reasoner, through veRL's own command line on the CPU.

    python examples/tiny_reasoner/demo.py [--algorithm grpo|dapo] [--arms …] [--steps N] [hydra overrides …]

Prints a table and writes a plot, summary.json and summary.md to runs/demo or runs/demo-dapo. Every arm starts from the
same checkpoint with the same seed, data, group size and number of steps; the arms differ in what `ARMS` lists. The
figures come out of veRL's file logger, those of the `rpo` arms' groups out of RPO's metrics.
"""

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

from summary import Step, plot, read_metrics, summarize, table, write

HERE = Path(__file__).resolve().parent
RECIPE = HERE.parent.parent / "recipes" / "tiny_reasoner" / "run_tiny_reasoner_cpu.sh"
# The paper's loss covers the prefix, whose old log-probabilities only the trainer can compute.
PAPER = ["+rpo=paper", "algorithm.rollout_correction.bypass_mode=false"]
DAPO = [
    "actor_rollout_ref.actor.clip_ratio_high=0.28",
    "reward.reward_manager.name=dapo",
    "+reward.reward_kwargs.overlong_buffer_cfg={enable: true, len: 16, penalty_factor: 1.0, log: false}",
    "+reward.reward_kwargs.max_resp_len=${data.max_response_length}",
    "algorithm.filter_groups.enable=true",
    "algorithm.filter_groups.metric=acc",
    "algorithm.filter_groups.max_inflight_gen_batches=2",
]


def short_cuts(full_every: int) -> list[str]:
    """RPO with cuts near the end, which save most, and which this task allows: all its solutions are equally long."""
    return [
        "+rpo=enabled",
        "rpo.truncation.max_fraction=0.1",
        "rpo.truncation.draw_per=question",
        f"rpo.rollout.full_rollout_every={full_every}",
    ]


# DAPO's groups with a signal come from full rollouts here, so more of its steps are full.
DAPO_RPO = [*DAPO, *short_cuts(full_every=5)]
ARMS = {
    "grpo": {"grpo": [], "rpo": short_cuts(full_every=10), "defaults": ["+rpo=enabled"], "paper": PAPER},
    "dapo": {
        "dapo": DAPO,
        "rpo": DAPO_RPO,
        "defaults": [*DAPO, "+rpo=enabled"],
        "naive-filter": [*DAPO_RPO, "rpo.reward.group_filter=base"],
    },
}
GROUP_SIZE = 8
SILENCE_S = 20


def write_data(folder: Path, train_size: int, val_size: int, seed: int) -> None:
    """Training and validation questions of the training difficulty."""
    command = [sys.executable, str(HERE / "prepare_data.py"), "--out", str(folder)]
    command += ["--train-size", str(train_size), "--val-size", str(val_size), "--seed", str(seed)]
    subprocess.run(command, check=True)


def progress(arm: str, step: Step, steps: int, started: float) -> str:
    """One line for one finished step."""
    if step.number == 0:
        return f"[{arm}] before training: validation accuracy {step.val_accuracy:.3f}"
    left = (time.monotonic() - started) / step.number * (steps - step.number)
    text = (
        f"[{arm}] step {step.number:>3}/{steps}  {step.step_s:5.1f} s (rollout {step.rollout_s:4.1f} s)  "
        f"generated {step.generated_tokens:>6} tokens  reward {step.reward:.2f}"
    )
    if step.val_accuracy is not None:
        text += f"  validation accuracy {step.val_accuracy:.3f}"
    return f"{text}  about {left / 60:.1f} min left"


def train(arm: str, args: argparse.Namespace, overrides: list[str], **knobs: str) -> list[Step]:
    """Run one arm and report its steps as they come.

    Args:
        arm: its name, and that of its folder under `args.out`.
        args: `out`, `steps`, `seed` and `test_freq`.
        overrides: what makes it this arm.
        knobs: further knobs of the recipe.

    Raises:
        SystemExit: if veRL ends with an error; names the log.
    """
    run_dir = (args.out / arm).resolve()
    run_dir.mkdir(parents=True, exist_ok=True)
    metrics, log = run_dir / "metrics.jsonl", run_dir / "verl.log"
    metrics.unlink(missing_ok=True)
    environment = os.environ | {
        "PYTHON": sys.executable,
        "DATA_DIR": str((args.out / "data").resolve()),
        "RUN_DIR": str(run_dir),
        "VERL_FILE_LOGGER_PATH": str(metrics),
        "EXPERIMENT": arm,
        "STEPS": str(args.steps),
        "SEED": str(args.seed),
        "TEST_FREQ": str(args.test_freq),
        "GROUP_SIZE": str(GROUP_SIZE),
        **knobs,
    }
    print(f"[{arm}] veRL with {' '.join(overrides) or 'nothing added'}")
    print(f"[{arm}] starting Ray, FSDP and vLLM (about a minute); everything they say is in {log}", flush=True)
    with log.open("w") as stream:
        process = subprocess.Popen(
            ["bash", str(RECIPE), *overrides], env=environment, stdout=stream, stderr=subprocess.STDOUT
        )
        shown, spoke, started, launched = 0, time.monotonic(), None, time.monotonic()
        while True:
            running = process.poll() is None
            steps = read_metrics(metrics, GROUP_SIZE)
            for step in steps[shown:]:
                # Time left counts from the first step's start, so that the start-up does not blur it.
                started = started or time.monotonic()
                print(progress(arm, step, args.steps, started), flush=True)
                shown, spoke = shown + 1, time.monotonic()
            if not running:
                break
            if time.monotonic() - spoke > SILENCE_S:
                print(f"[{arm}] … {time.monotonic() - launched:.0f} s since the start", flush=True)
                spoke = time.monotonic()
            time.sleep(0.5)
    if process.returncode != 0:
        raise SystemExit(f"[{arm}] veRL ended with status {process.returncode}; see {log}")
    return steps


def main() -> None:
    """Command line entry."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--algorithm", choices=ARMS, default="grpo")
    choices = "; ".join(f"{algorithm}: {', '.join(arms)}" for algorithm, arms in ARMS.items())
    parser.add_argument("--arms", help=f"comma-separated ({choices}). Default: the first two")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--train-size", type=int, default=192, help="questions to train on")
    parser.add_argument("--val-size", type=int, default=512, help="questions to validate on, none of them trained on")
    parser.add_argument("--test-freq", type=int, default=30, help="steps between validations")
    parser.add_argument("--out", type=Path, help="default: runs/demo or runs/demo-dapo")
    args, overrides = parser.parse_known_args()
    known = ARMS[args.algorithm]
    arms = args.arms.split(",") if args.arms else list(known)[:2]
    unknown = [arm for arm in arms if arm not in known]
    if unknown:
        parser.error(f"--arms={args.arms}: {unknown} not among {', '.join(known)}")
    args.out = args.out or Path("runs/demo" if args.algorithm == "grpo" else f"runs/demo-{args.algorithm}")
    if any(override.startswith("--") for override in overrides):
        parser.error(f"unknown options {[o for o in overrides if o.startswith('--')]}")

    write_data(args.out / "data", args.train_size, args.val_size, args.seed)
    runs = {arm: train(arm, args, known[arm] + overrides) for arm in arms}
    summary = {arm: summarize(steps, args.seed) for arm, steps in runs.items()}
    write(summary, args.out)
    plot(runs, args.out / "accuracy.png")
    table(summary)
    print(f"written: summary.json, summary.md and accuracy.png in {args.out}")


if __name__ == "__main__":
    main()
