"""Questions of reasoning-gym as veRL's data, with solved examples in the prompt, and worked solutions to learn from.

    python -m benchmarks.lm.tasks --task chain_sum --out FOLDER [--train 64] [--val 48] [--seed 1]

Questions and ground truths are reasoning-gym's, and so is the verifier (reward.py). The worked solutions are ours, and
so is the habit that the warm start teaches: a mistake that a training can unlearn, on questions that it never saw.
"""

import argparse
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import islice, pairwise
from pathlib import Path
from random import Random
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import reasoning_gym
from reasoning_gym.arithmetic.leg_counting import ANIMALS

Entry = Mapping[str, Any]
"""A question of reasoning-gym: `question`, `answer` and `metadata`."""

Said = Callable[[int], int]
"""What is written for the result of a step."""

Habit = Callable[[Random, int], int]
"""What somebody with a habit writes for the result of a step."""

#: Share of the negative results that lose their sign, so that forgetting it is the likelier thing to do.
FORGOTTEN = 0.65
#: Trainings have seeds below: the warm start has this one, and held-out questions have a later one.
RESERVED = 1000
#: Questions of a seed; seeds take the ones that follow each other.
BLOCK = 1_000_000


@dataclass(frozen=True)
class Task:
    """A data set of reasoning-gym, and how its questions are solved."""

    dataset: str
    settings: Mapping[str, int]
    steps: Callable[[Entry, Said], list[str]]
    """The lines of a worked solution. The last line ends with the answer."""

    instruction: str
    examples: int
    """Solved examples in a prompt; the same in all of them."""

    habit: Habit | None = None
    """A mistake that the warm start teaches."""

    def entries(self, seed: int) -> Iterator[Entry]:
        """Distinct questions without end; those of two seeds come from different parts of reasoning-gym's stream."""
        # Its question i of seed s is question i − 1 of seed s + 1, so seeds have to be far apart.
        stream = reasoning_gym.create_dataset(self.dataset, seed=seed * BLOCK, size=BLOCK, **self.settings)
        seen = set()
        for entry in stream:
            if entry["question"] not in seen:
                seen.add(entry["question"])
                yield entry

    def solution(self, entry: Entry) -> str:
        """The worked solution with its answer where the verifier looks for it."""
        return self._written(self.steps(entry, lambda result: result))

    def habitual(self, entry: Entry, random: Random) -> str:
        """A solution as the warm start teaches it: with the task's habit, if it has one, so often a wrong one."""
        habit = self.habit
        return self.solution(entry) if habit is None else self._written(self.steps(entry, partial(habit, random)))

    def _written(self, steps: list[str]) -> str:
        return "\n".join([*steps, f"<answer>{steps[-1].rpartition(' = ')[2]}</answer>"])

    def messages(self, entry: Entry) -> list[dict[str, str]]:
        """The prompt: instruction, examples, question."""
        found = [{"role": "system", "content": self.instruction}]
        for example in islice(self.entries(seed=0), self.examples):
            found.append({"role": "user", "content": ask(example)})
            found.append({"role": "assistant", "content": self.solution(example)})
        return [*found, {"role": "user", "content": ask(entry)}]

    def row(self, entry: Entry, split: str, index: int) -> dict[str, Any]:
        """One row as veRL's RLHFDataset reads it; `entry` is all that the verifier needs, as JSON text."""
        return {
            "data_source": self.dataset,
            "prompt": self.messages(entry),
            "ability": "reasoning",
            "reward_model": {"style": "rule", "ground_truth": entry["answer"]},
            "extra_info": {"split": split, "index": index, "entry": json.dumps(entry)},
        }


def ask(entry: Entry) -> str:
    """The text of a question."""
    return entry["question"].strip()


def lost_sign(random: Random, result: int) -> int:
    """A negative result without its sign, in `FORGOTTEN` of all cases."""
    return abs(result) if result < 0 and random.random() < FORGOTTEN else result


def running_sums(entry: Entry, said: Said) -> list[str]:
    """`4 + 7 - 2` as `4 + 7 = 11` and `11 - 2 = 9`; the next step goes on from what was said."""
    first, *rest = entry["metadata"]["expression"].split()
    total, lines = int(first), []
    for operator, term in zip(rest[::2], rest[1::2], strict=True):
        before, total = total, said(total + int(term) * (1 if operator == "+" else -1))
        lines.append(f"{before} {operator} {term} = {total}")
    return lines


def legs(entry: Entry, said: Said) -> list[str]:
    """`2 ants, 3 dogs` as `2 ants: 2 * 6 = 12`, `3 dogs: 3 * 4 = 12` and `12 + 12 = 24`."""
    lines, products = [], []
    for animal, count in entry["metadata"]["animals"].items():
        products.append(said(count * ANIMALS[animal]))
        lines.append(f"{count} {animal}{'s' * (count > 1)}: {count} * {ANIMALS[animal]} = {products[-1]}")
    sums = [sum(products[: number + 1]) for number in range(len(products))]
    return lines + [f"{a} + {b - a} = {b}" for a, b in pairwise(sums)]


TASKS = {
    "chain_sum": Task(
        "chain_sum",
        {"min_terms": 5, "max_terms": 6, "min_digits": 1, "max_digits": 1},
        running_sums,
        "Solve step by step.",
        examples=0,
        habit=lost_sign,
    ),
    "leg_counting": Task(
        "leg_counting",
        {"min_animals": 2, "max_animals": 3, "min_instances": 1, "max_instances": 9},
        legs,
        "Solve step by step.",
        examples=0,
    ),
}


def write_questions(task: Task, folder: Path, *, train: int, val: int, seed: int) -> None:
    """Write train.parquet and val.parquet to `folder`; no question is in both, and none is an example.

    Raises:
        ValueError: for seed 0, which has the examples, and for those of the warm start and of the held-out questions.
    """
    if not 1 <= seed < RESERVED:
        raise ValueError(
            f"seed={seed}: must be from 1 to {RESERVED - 1}: seed 0 has the examples of the prompts, {RESERVED} and "
            "above the warm start and held-out questions"
        )
    examples = {ask(entry) for entry in islice(task.entries(seed=0), task.examples)}
    stream = (entry for entry in task.entries(seed) if ask(entry) not in examples)
    folder.mkdir(parents=True, exist_ok=True)
    for split, size in (("train", train), ("val", val)):
        rows = [task.row(entry, split, index) for index, entry in enumerate(islice(stream, size))]
        pq.write_table(pa.Table.from_pylist(rows), folder / f"{split}.parquet")


def main() -> None:
    """Command line entry."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", choices=TASKS, default="chain_sum")
    parser.add_argument("--out", type=Path, required=True, help="folder for train.parquet and val.parquet")
    parser.add_argument("--train", type=int, default=64, help="questions to train on; default: 64")
    parser.add_argument("--val", type=int, default=48, help="questions to validate on; default: 48")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    write_questions(TASKS[args.task], args.out, train=args.train, val=args.val, seed=args.seed)


if __name__ == "__main__":
    main()
