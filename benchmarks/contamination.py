"""Start RPO from caches poisoned with wrong answers, with and without its control: table, plot, contamination.json.

    python examples/tiny_reasoner/contamination.py [--arms clean,wrong100,…] [--steps N] [--out runs/contamination]

A poisoned answer is a solution with wrong steps, imported as if it were correct: the worst that a file of somebody
else's answers can do. Cuts are near the end, so that the head of one stays. Every arm starts from the same checkpoint,
seed and questions.
"""

import argparse
import json
import random
import subprocess
import sys
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from demo import short_cuts, train
from summary import Step, plot, show
from task import generate, noisy_solution

HERE = Path(__file__).resolve().parent
PROBLEM_STEPS = 12
#: Wrong steps in a poisoned answer: about as many as the checkpoint makes in its worst ones.
POISON_NOISE = 0.2
KNOBS = {"MAX_RESPONSE_LENGTH": "128"}
NO_CONTROL = ("rpo.cache.max_failures=null", "rpo.cache.keep_correct=false", "rpo.rollout.full_rollout_every=0")


@dataclass(frozen=True)
class Arm:
    """A cache to begin with and what is done about it."""

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
    "cold": Arm(None),
}


def write_store(folder: Path, wrong_share: float, questions: int, seed: int) -> Path:
    """A store with an answer for each training question, made by `rpo-verl cache import`."""
    rng = random.Random(seed)
    source, out = folder / "answers.jsonl", folder / "store"
    folder.mkdir(parents=True, exist_ok=True)
    with source.open("w") as file:
        for number, problem in enumerate(islice(generate(seed, PROBLEM_STEPS), questions)):
            answer = problem.solution
            while number < wrong_share * questions and answer.endswith(f"#{problem.answer}"):
                answer = noisy_solution(problem, POISON_NOISE, rng)
            record = {"prompt": problem.question, "answer": answer, "reward": 1.0, "correct": True}
            file.write(json.dumps(record) + "\n")
    command = [str(Path(sys.executable).parent / "rpo-verl"), "cache", "import", str(source), "--out", str(out)]
    subprocess.run([*command, "--model", str(HERE / "checkpoint"), "--max-prompt-length", "72"], check=True)
    return out


def summarize(steps: list[Step]) -> dict[str, object]:
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

    command = [sys.executable, str(HERE / "prepare_data.py"), "--out", str(args.out / "data"), "--seed", str(args.seed)]
    command += ["--train-size", str(args.train_size), "--val-size", str(args.val_size), "--steps", str(PROBLEM_STEPS)]
    subprocess.run(command, check=True)
    runs: dict[str, list[Step]] = {}
    for name in arms:
        arm, overrides = ARMS[name], [*short_cuts(full_every=10), *ARMS[name].overrides]
        if arm.wrong_share is not None:
            store = write_store(args.out / name / "cache", arm.wrong_share, args.train_size, args.seed)
            overrides.append(f"rpo.cache.path={store.resolve()}")
        runs[name] = train(name, args, overrides, **KNOBS)
        # After every arm, so that an interruption loses none.
        summary = {arm: summarize(steps) for arm, steps in runs.items()}
        (args.out / "contamination.json").write_text(json.dumps(summary, indent=2) + "\n")
    plot(runs, args.out / "contamination.png")
    show(rows(summary))


if __name__ == "__main__":
    main()
