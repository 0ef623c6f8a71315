"""Start RPO from caches poisoned with wrong answers, with and without its control: table, plot, contamination.json.

    python -m benchmarks.contamination [--arms clean,wrong100,…] [--steps N] [--out runs/contamination]

A poisoned answer is a solution with wrong steps, imported as if it were correct: the worst case of a file from
elsewhere. Every arm is `L0.1` of arms.py with another cache and other control: cuts are near the end, so the head of a
poisoned answer stays. All start from the same checkpoint, seed and questions.
"""

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.arms import tenth
from benchmarks.bench import curve
from benchmarks.results import plot_curves
from benchmarks.steps import Step
from benchmarks.stores import PROBLEM_STEPS, write_store
from benchmarks.tables import show
from benchmarks.tiny import write_questions
from benchmarks.training import train

NO_CONTROL = ("rpo.cache.max_failures=null", "rpo.cache.keep_correct=false", "rpo.rollout.full_rollout_every=0")


@dataclass(frozen=True)
class Arm:
    """A cache to begin with, and the control of it."""

    wrong_share: float | None
    """Share of poisoned answers; None begins with no cache."""

    overrides: tuple[str, ...] = ()


ARMS = {
    "clean": Arm(0.0),
    "wrong100": Arm(1.0),
    "wrong100-off": Arm(1.0, NO_CONTROL),
    "wrong50": Arm(0.5),
    "wrong50-off": Arm(0.5, NO_CONTROL),
    "clean-2": Arm(0.0, ("rpo.cache.max_failures=2",)),
    "wrong100-2": Arm(1.0, ("rpo.cache.max_failures=2",)),
    "wrong50-2": Arm(0.5, ("rpo.cache.max_failures=2",)),
    "wrong100-full": Arm(1.0, ("rpo.cache.max_failures=null",)),
    "L0.1": Arm(None),
}


def summarize(steps: list[Step]) -> dict[str, Any]:
    """Accuracy by step, and what the run cost."""
    trained = [step for step in steps if step.number > 0]
    return {
        "accuracy": {step.number: step.val_accuracy for step in steps if step.val_accuracy is not None},
        "reward_last_10": sum(step.reward for step in trained[-10:]) / len(trained[-10:]),
        "generated_tokens": sum(step.generated_tokens for step in trained),
        "prefixed_groups": sum(step.prefixed_groups for step in trained),
        "groups": sum(step.groups for step in trained),
    }


def rows(summary: dict[str, dict]) -> list[list[str]]:
    """The arms, one a row, head first."""
    validated = list(next(iter(summary.values()))["accuracy"])
    found = [["arm", *(f"step {number}" for number in validated), "tokens", "prefixed groups", "last 10 rewards"]]
    for arm, values in summary.items():
        accuracy = (f"{a:.3f}" for a in values["accuracy"].values())
        share = values["prefixed_groups"] / values["groups"]
        found.append(
            [arm, *accuracy, f"{values['generated_tokens']:,}", f"{share:.0%}", f"{values['reward_last_10']:.2f}"]
        )
    return found


def main() -> None:
    """Command line entry."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arms", default=",".join(ARMS), help=f"comma-separated, of {', '.join(ARMS)}")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--train-size", type=int, default=64, help="questions to train on")
    parser.add_argument("--val-size", type=int, default=512, help="questions to validate on, none of them trained on")
    parser.add_argument("--test-freq", type=int, default=15, help="steps between validations")
    parser.add_argument("--out", type=Path, default=Path("runs/contamination"))
    args = parser.parse_args()
    arms = args.arms.split(",")
    unknown = [arm for arm in arms if arm not in ARMS]
    if unknown:
        parser.error(f"--arms={args.arms}: {unknown} not among {', '.join(ARMS)}")
    if args.out.exists():
        parser.error(f"--out={args.out} exists; delete it or choose another folder")

    write_questions(args.out / "data", train=args.train_size, val=args.val_size, seed=args.seed, steps=PROBLEM_STEPS)
    length = {"steps": args.steps, "seed": args.seed, "test_freq": args.test_freq}
    runs: dict[str, list[Step]] = {}
    for name in arms:
        arm, folder = ARMS[name], args.out / name
        training = tenth(*arm.overrides)
        overrides = [*training.overrides]
        if arm.wrong_share is not None:
            store = write_store(folder / "cache", arm.wrong_share, args.train_size, args.seed)
            overrides.append(f"rpo.cache.path={store.resolve()}")
        runs[name] = train(name, folder, overrides, **length, MAX_RESPONSE_LENGTH="128", **training.all_knobs)
        # After every arm, so that an interruption loses none.
        summary = {arm: summarize(steps) for arm, steps in runs.items()}
        (args.out / "contamination.json").write_text(json.dumps(summary, indent=2) + "\n")
    curves = {arm: {str(args.seed): {"curve": curve(steps, summary[arm]["accuracy"])}} for arm, steps in runs.items()}
    plot_curves({"runs": curves}, args.out / "contamination.png")
    show("training from poisoned caches", rows(summary))


if __name__ == "__main__":
    main()
