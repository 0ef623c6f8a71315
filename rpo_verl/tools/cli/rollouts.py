"""`rpo-verl rollouts`: inspect the rollouts of a training run, and their prefixes."""

import json
import math
import re
from collections.abc import Iterator
from itertools import takewhile
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.text import Text

from rpo_verl.rpo.shaping import is_correct
from rpo_verl.tools.cli.common import console, errors, new_app
from rpo_verl.tools.errors import CommandError

#: How the `uid` of a row begins that veRL adds to fill up a batch.
PADDING = re.compile(r"pad[0-9a-f]{32}(_|$)")

app = new_app("Rollouts in veRL's trainer.rollout_data_dir.")


@app.callback()
def _root() -> None:
    """Keep `show` a sub-command while it is the only one."""


@app.command()
def show(
    folder: Annotated[Path, typer.Argument(exists=True, file_okay=False, help="veRL's trainer.rollout_data_dir.")],
    step: Annotated[list[int] | None, typer.Option(help="Only this training step. Repeat for several.")] = None,
    question: Annotated[str, typer.Option(help="Only questions that contain this text.")] = "",
    kind: Annotated[str, typer.Option(help="Only groups of this kind: full, prefixed or refreshed.")] = "",
    min_reward: Annotated[float | None, typer.Option(help="Only base rewards of at least this.")] = None,
    max_reward: Annotated[float | None, typer.Option(help="Only base rewards of at most this.")] = None,
    count: Annotated[int, typer.Option(min=1, help="Number of responses.")] = 8,
) -> None:
    """Print responses, newest step first.

    The prefix is dim and the suffix bright: green if correct, else red.
    """
    lowest = -math.inf if min_reward is None else min_reward
    highest = math.inf if max_reward is None else max_reward
    shown = 0
    for record in _records(folder, step):
        if question not in record["input"] or (kind and record.get("rpo_kind") != kind):
            continue
        if not lowest <= record["score"] <= highest:
            continue
        _print(record)
        shown += 1
        if shown == count:
            return
    if not shown:
        raise CommandError(f"no rollout in {folder} passes these filters")


def _records(folder: Path, steps: list[int] | None) -> Iterator[dict[str, Any]]:
    files = {int(path.stem): path for path in folder.glob("*.jsonl") if path.stem.isdigit()}
    if not files:
        raise CommandError(f"{folder} has no files N.jsonl; train with trainer.rollout_data_dir={folder}")
    for number in sorted(files if steps is None else set(steps) & set(files), reverse=True):
        with files[number].open(encoding="utf-8") as file:
            for line, text in enumerate(file, start=1):
                try:
                    record = json.loads(text)
                except ValueError:
                    # veRL is writing this line, or was killed while it did.
                    errors.print(f"{files[number]}:{line}: not JSON, skipped", style="yellow", soft_wrap=True)
                    continue
                # veRL fills batches up with rows that are no rollouts.
                if not (isinstance(record, dict) and PADDING.match(str(record.get("uid", "")))):
                    yield record


def _print(record: dict[str, Any]) -> None:
    correct = is_correct(record["score"], record.get("rpo_correct"))
    verdict = ("correct", "green") if correct else ("wrong", "red")
    head = f"step {record['step']}  reward {record['score']:g}"
    if record.get("rpo_kind") is not None:
        head += f" → {record['rpo_shaped_reward']:.3f}  {record['rpo_kind']}"
        if record["rpo_advantage"] is not None:
            head += f"  advantage {record['rpo_advantage']:+.3f}"
        if record["rpo_prefix_tokens"]:
            head += (
                f"  prefix {record['rpo_prefix_tokens']} tokens of step {record['rpo_source_step']}, "
                f"m = {record['rpo_dropped']}"
            )
    console.print(Text.assemble((f"{head}  ", "bold"), verdict), soft_wrap=True)
    console.print(Text(record["input"], style="cyan"), soft_wrap=True)
    prefix, output = record.get("rpo_prefix_text") or "", record["output"]
    # A character that spans the boundary is in neither half alone.
    boundary = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(prefix, output, strict=False)))
    suffix = (output[boundary:], "bold green" if correct else "bold red")
    body = Text.assemble((output[:boundary], "dim"), ("│" if boundary else "", "bold yellow"), suffix)
    console.print(body, soft_wrap=True)
    console.print()
