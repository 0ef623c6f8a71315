"""Write train.parquet and val.parquet in veRL's format; no question is in both."""

from __future__ import annotations

import argparse
from itertools import islice
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from task import TRAIN_STEPS, Problem, generate

DATA_SOURCE = "tiny_reasoner"


def to_row(problem: Problem, split: str, index: int) -> dict:
    """One data row as veRL's RLHFDataset reads it."""
    return {
        "data_source": DATA_SOURCE,
        "prompt": [{"role": "user", "content": problem.question}],
        "ability": "math",
        "reward_model": {"style": "rule", "ground_truth": problem.answer},
        "extra_info": {"split": split, "index": index, "steps": problem.steps},
    }


def build_rows(train_size: int, val_size: int, steps: int, seed: int) -> tuple[list[dict], list[dict]]:
    """Train and validation rows, taken one after the other from one stream of distinct problems."""
    stream = generate(seed, steps)
    train = [to_row(problem, "train", index) for index, problem in enumerate(islice(stream, train_size))]
    val = [to_row(problem, "val", index) for index, problem in enumerate(islice(stream, val_size))]
    return train, val


def main(argv: list[str] | None = None) -> None:
    """Command line entry."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder for train.parquet and val.parquet")
    parser.add_argument("--train-size", type=int, default=4096)
    parser.add_argument("--val-size", type=int, default=256)
    parser.add_argument("--steps", type=int, default=TRAIN_STEPS, help="operations per question (1 to 42)")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    args.out.mkdir(parents=True, exist_ok=True)
    train, val = build_rows(args.train_size, args.val_size, args.steps, args.seed)
    for name, rows in (("train", train), ("val", val)):
        path = args.out / f"{name}.parquet"
        pq.write_table(pa.Table.from_pylist(rows), path)
        print(f"{path}: {len(rows)} rows")


if __name__ == "__main__":
    main()
