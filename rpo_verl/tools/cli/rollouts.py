"""`rpo-verl rollouts`: inspect the rollouts of a training run, and their prefixes."""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, get_args

import typer

from rpo_verl.correctness import is_correct
from rpo_verl.rpo.start import Kind
from rpo_verl.tools.cli.boundary import opens, split_at_boundary
from rpo_verl.tools.cli.common import new_app
from rpo_verl.tools.cli.screen import errors, screen
from rpo_verl.tools.errors import CommandError
from rpo_verl.tools.json_lines import quoted, read_json_lines

#: How the `uid` of a row begins that veRL adds to fill up a batch.
PADDING = re.compile(r"pad[0-9a-f]{32}(_|$)")

KINDS = get_args(Kind)

app = new_app("Rollouts in veRL's trainer.rollout_data_dir.")


@app.callback()
def _root() -> None:
    """Keep `show` a sub-command while it is the only one."""


@app.command()
def show(
    folder: Annotated[Path, typer.Argument(exists=True, file_okay=False, help="veRL's trainer.rollout_data_dir.")],
    step: Annotated[list[int] | None, typer.Option(help="Only this training step. Repeat for several.")] = None,
    question: Annotated[str, typer.Option(help="Only questions that contain this text.")] = "",
    kind: Annotated[str, typer.Option(help=f"Only groups of this kind: {', '.join(KINDS)}.")] = "",
    min_reward: Annotated[float | None, typer.Option(help="Only base rewards of at least this.")] = None,
    max_reward: Annotated[float | None, typer.Option(help="Only base rewards of at most this.")] = None,
    count: Annotated[int, typer.Option(min=1, help="Number of responses.")] = 8,
) -> None:
    """Print responses, newest step first.

    The prefix is dim and the suffix bright: green if correct, else red.
    """
    if kind and kind not in KINDS:
        raise CommandError(f"--kind={kind}: must be one of {', '.join(KINDS)}")
    lowest = -math.inf if min_reward is None else min_reward
    highest = math.inf if max_reward is None else max_reward
    read = shown = 0
    for rollout in _rollouts(folder, step):
        read += 1
        if question not in rollout.question or (kind and rollout.kind != kind):
            continue
        if (min_reward, max_reward) != (None, None) and not lowest <= rollout.reward <= highest:
            continue
        _print(rollout)
        shown += 1
        if shown == count:
            return
    if not shown:
        raise CommandError(f"no rollout in {folder} {'passes these filters' if read else 'can be read'}")


@dataclass(frozen=True)
class Rollout:
    """One dumped response. None stands for what the record lacks."""

    step: int
    question: str
    response: str
    reward: float
    """Base reward; NaN if it is unknown."""

    correct: bool | None
    """None if it is unknown."""

    kind: str | None
    shaped: float | None
    advantage: float | None
    prefix_advantage: float | None
    prefix: str
    prefix_tokens: int | None
    source_step: int | None
    dropped: int | None


class _Fields:
    """The fields of a record by type, and what is wrong with them."""

    def __init__(self, record: dict[str, Any]) -> None:
        self._record, self.problems = record, list[str]()

    def text(self, name: str) -> str:
        value = self._record.get(name)
        if not isinstance(value, str):
            self._blame(name, "not text")
            return "" if value is None else quoted(value)
        return value

    def number(self, name: str) -> float | None:
        """A finite number, also one that is written as text, as numpy's booleans are."""
        value = self._record.get(name)
        plain = {"true": 1.0, "false": 0.0}.get(value.strip().lower(), value) if isinstance(value, str) else value
        try:
            number = float(plain)
        except (TypeError, ValueError, OverflowError):
            number = math.nan
        if not math.isfinite(number):
            self._blame(name, "not a finite number")
            return None
        if isinstance(value, str):
            self._blame(name, f"text, read as {number:g}")
        return number

    def optional(self, name: str) -> float | None:
        return None if self._record.get(name) is None else self.number(name)

    def whole(self, name: str) -> int | None:
        number = self.optional(name)
        return None if number is None else int(number)

    def _blame(self, name: str, what: str) -> None:
        known = name in self._record
        self.problems.append(f"{name}={quoted(self._record[name])} is {what}" if known else f"{name} is missing")


def parse_rollout(record: Any, step: int) -> tuple[Rollout, list[str]]:
    """Convert a record of veRL's dump.

    Args:
        record: one JSON value of `trainer.rollout_data_dir`.
        step: of its file.

    Returns:
        the rollout, and what is wrong with the fields of the record.

    Raises:
        CommandError: if it is no record at all.
    """
    if isinstance(record, CommandError):
        raise record
    if not isinstance(record, dict):
        raise CommandError(f"a rollout is an object with named fields, not {quoted(record)}")
    fields = _Fields(record)
    reward = fields.number("score")
    reported = next((name for name in ("rpo_correct", "acc") if record.get(name) is not None), None)
    if reported is not None:
        accuracy = fields.number(reported)
        correct = None if accuracy is None else is_correct(math.nan, accuracy)
    else:
        correct = None if reward is None else is_correct(reward, None)
    rollout = Rollout(
        step=step,
        question=fields.text("input"),
        response=fields.text("output"),
        reward=math.nan if reward is None else reward,
        correct=correct,
        kind=fields.text("rpo_kind") if record.get("rpo_kind") is not None else None,
        shaped=fields.optional("rpo_shaped_reward"),
        advantage=fields.optional("rpo_advantage"),
        prefix_advantage=fields.optional("rpo_prefix_advantage"),
        prefix=fields.text("rpo_prefix_text") if record.get("rpo_prefix_text") is not None else "",
        prefix_tokens=fields.whole("rpo_prefix_tokens"),
        source_step=fields.whole("rpo_source_step"),
        dropped=fields.whole("rpo_dropped"),
    )
    if isinstance(record.get("output"), str) and not opens(rollout.prefix, rollout.response):
        fields.problems.append("output does not begin with rpo_prefix_text, so the boundary is a guess")
    return rollout, fields.problems


def _rollouts(folder: Path, steps: list[int] | None) -> Iterator[Rollout]:
    files = {int(path.stem): path for path in folder.glob("*.jsonl") if path.stem.isdecimal()}
    if not files:
        raise CommandError(f"{folder} has no files N.jsonl; train with trainer.rollout_data_dir={folder}")
    for number in sorted(files if steps is None else set(steps) & set(files), reverse=True):
        for line, record in read_json_lines(files[number]):
            # veRL fills batches up with rows that are no rollouts.
            if isinstance(record, dict) and PADDING.match(str(record.get("uid", ""))):
                continue
            where = f"{files[number]}:{line}"
            try:
                rollout, problems = parse_rollout(record, number)
            except CommandError as error:
                # Perhaps veRL is writing this line, or was killed while it did.
                errors.line(f"{where}: {error}, skipped", style="yellow")
                continue
            for problem in problems:
                errors.line(f"{where}: {problem}", style="yellow")
            yield rollout


def _print(rollout: Rollout) -> None:
    verdict, colour = {True: ("correct", "green"), False: ("wrong", "red"), None: ("unknown", "yellow")}[
        rollout.correct
    ]
    head = f"step {rollout.step}  reward {'unknown' if math.isnan(rollout.reward) else f'{rollout.reward:g}'}"
    if rollout.kind is not None:
        head += f" → {_show(rollout.shaped, '.3f')}  {rollout.kind}"
        if rollout.advantage is not None:
            head += f"  advantage {rollout.advantage:+.3f}"
        if rollout.prefix_tokens:
            head += (
                f"  prefix {rollout.prefix_tokens} tokens of step {_show(rollout.source_step)}, "
                f"m = {_show(rollout.dropped)}"
            )
        if rollout.prefix_advantage is not None:
            head += f", advantage {rollout.prefix_advantage:+.3f}"
    screen.line((f"{head}  ", "bold"), (verdict, colour))
    screen.line((rollout.question, "cyan"))
    prefix, suffix = split_at_boundary(rollout.prefix, rollout.response)
    screen.line((prefix, "dim"), ("│" if rollout.prefix else "", "bold yellow"), (suffix, f"bold {colour}"))
    screen.line()


def _show(value: float | None, form: str = "") -> str:
    return "unknown" if value is None else format(value, form)
