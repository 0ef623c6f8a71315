"""Runs from veRL's logs: JSON lines of the file logger or tensorboard event files, and Hydra's settings."""

import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from rpo_verl.tools.errors import CommandError
from rpo_verl.tools.json_lines import HalfLine, quoted, read_json_lines
from rpo_verl.tools.visible import visible

Steps = dict[int, dict[str, float]]
"""Step → metric → value. NaN stands for a value that is null or NaN in the log."""

STEP_TIME = "timing_s/step"


@dataclass(frozen=True)
class Run:
    """One training run."""

    label: str
    """Runs with the same label are seeds of one experiment."""

    path: Path
    steps: Steps
    """In step order. Step 0 is the validation before training."""

    settings: dict[str, Any]
    """Dotted keys of the configuration; empty if no `.hydra/config.yaml` was found."""


def load_run(argument: str) -> Run:
    """Read a run given as `PATH` or `LABEL=PATH`.

    Args:
        argument: the path is a JSON-lines file, a tensorboard event file, or a folder with one of them at any depth.
            The default label is the name of the path.

    Raises:
        CommandError: if there is no run, or more than one.
    """
    label, separator, path_text = argument.partition("=")
    if Path(argument).expanduser().exists():
        separator, path_text = "", argument  # a path with an equals sign in it
    path = Path(path_text if separator else argument).expanduser()
    if not path.exists():
        raise CommandError(f"{path} does not exist")
    steps = read_metrics(path) if path.is_file() and not _is_event_file(path) else _read_folder(path)
    if not any(STEP_TIME in metrics for metrics in steps.values()):
        raise CommandError(f"{path} has no training step (no metric {STEP_TIME})")
    name = label if separator else (path.stem if path.is_file() else path.name)
    return Run(visible(name), path, steps, _read_settings(path))


def _is_event_file(path: Path) -> bool:
    return "tfevents" in path.name


def _read_folder(path: Path) -> Steps:
    if path.is_file():
        return _read_events([path])
    # Dumped rollouts are JSON lines too, without "data".
    files = [file for file in sorted(path.rglob("*.jsonl")) if _holds_metrics(file)]
    events = sorted({file.parent for file in path.rglob("*tfevents*")})
    found = [*files, *events]
    if not found:
        raise CommandError(f"{path} holds no metrics: train with file or tensorboard in trainer.logger")
    if len(files) > 1 or (not files and len(events) > 1):
        raise CommandError(f"{path} holds several runs; name one of them: {', '.join(map(str, found))}")
    return read_metrics(files[0]) if files else _read_events(sorted(events[0].glob("*tfevents*")))


def _holds_metrics(path: Path) -> bool:
    try:
        _, record = next(read_json_lines(path), (0, None))
    except CommandError:
        return True  # whoever reads it on gets the message
    return isinstance(record, dict) and record.keys() >= {"step", "data"}


def read_metrics(path: Path) -> Steps:
    """Read the JSON lines of veRL's file logger. A half-written last line is ignored.

    Records of one step are merged. Where a run was resumed and wrote to the same file, its steps take the place of
    those that were lost.

    Returns:
        step → metric → value, in step order. Values that are neither numbers nor null are dropped.

    Raises:
        CommandError: if another line is not a record of the logger; names the line. If the file has two runs.
    """
    attempts: list[Steps] = [{}]
    for number, record in read_json_lines(path):
        if isinstance(record, HalfLine):
            break  # a run is writing this line, or was killed while it did
        if isinstance(record, CommandError):
            raise CommandError(
                f"{path}:{number}: not a record of veRL's file logger ({record}). If a run was killed here, delete the "
                f"line: sed -i {number}d {path}"
            )
        try:
            step, data = _whole(record["step"]), dict(record["data"])
        except (ValueError, KeyError, TypeError) as error:
            raise CommandError(
                f"{path}:{number}: not a record of veRL's file logger, {{step: number, data: metrics}} ({error})"
            ) from error
        metrics = {visible(name): value for name, field in data.items() if (value := _number(field)) is not None}
        known = attempts[-1].get(step, {})
        if STEP_TIME in metrics and STEP_TIME in known and not _repeats(metrics, known):
            attempts.append({})
        attempts[-1].setdefault(step, {}).update(metrics)
    return join_attempts([(f"{path} (part {number})", steps) for number, steps in enumerate(attempts, start=1)])


def _repeats(metrics: dict[str, float], known: dict[str, float]) -> bool:
    # As text, because NaN does not equal itself.
    return all(repr(known.get(name)) == repr(value) for name, value in metrics.items())


def _whole(step: Any) -> int:
    if isinstance(step, bool) or int(step) != float(step):
        raise ValueError(f"step={quoted(step)} is not a whole number")
    return int(step)


def _number(value: Any) -> float | None:
    """A metric; None if it is not one. JSON has null for a NaN."""
    if value is None:
        return math.nan
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value)
    except OverflowError:
        return math.nan


def join_attempts(attempts: Iterable[tuple[str, Steps]]) -> Steps:
    """Join what a run logged before and after it was resumed.

    A resumed run repeats the steps behind its checkpoint. Its own values count from there on.

    Args:
        attempts: name and steps of each, in the order of time.

    Returns:
        in step order.

    Raises:
        CommandError: if a later one begins no later than an earlier one, and so is another run.
    """
    joined: Steps = {}
    last = ""
    for name, steps in attempts:
        trained = [step for step, metrics in steps.items() if STEP_TIME in metrics]
        before = [step for step, metrics in joined.items() if STEP_TIME in metrics]
        if trained and before:
            if min(trained) <= min(before):
                raise CommandError(
                    f"two runs are in one place: steps {min(before)} to {max(before)} in {last}, then steps "
                    f"{min(trained)} to {max(trained)} in {name}. Name one of the files, or move one away."
                )
            joined = {step: metrics for step, metrics in joined.items() if step < min(trained)}
        for step, metrics in steps.items():
            joined.setdefault(step, {}).update(metrics)
        last = name if trained else last
    return dict(sorted(joined.items()))


def _read_events(files: list[Path]) -> Steps:
    try:
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    except ImportError as error:
        raise CommandError(f"{files[0]}: reading event files needs tensorboard (pip install tensorboard)") from error
    attempts = []
    for path in files:
        accumulator = EventAccumulator(str(path), size_guidance={"scalars": 0}).Reload()
        steps: Steps = {}
        for name in accumulator.Tags()["scalars"]:
            for event in accumulator.Scalars(name):
                steps.setdefault(event.step, {})[visible(name)] = event.value
        attempts.append((str(path), steps))
    return join_attempts(attempts)


def _read_settings(path: Path) -> dict[str, Any]:
    """Read Hydra's configuration of a run; empty if there is none, or more than one."""
    if path.is_dir():
        found = list(path.rglob(".hydra/config.yaml"))
    else:
        beside = (path.parent, path.parent / "hydra", path.with_suffix(""))
        found = [file for folder in beside if (file := folder / ".hydra" / "config.yaml").exists()]
    if len(found) != 1:
        return {}
    try:
        return dict(_flatten(OmegaConf.load(found[0])))
    except Exception as error:
        # YAML's parser, OmegaConf and the codec each raise their own.
        raise CommandError(f"{found[0]} is not readable as settings ({error}). Move it away") from error


def _flatten(section: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    container = OmegaConf.to_container(section, resolve=False) if isinstance(section, DictConfig) else section
    for key, value in container.items():
        if isinstance(value, dict) and value:
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def differing_settings(runs: list[Run]) -> dict[str, list[Any]]:
    """Find the keys whose values differ between runs: key → its value in each run."""
    keys = sorted(set().union(*(run.settings for run in runs)))
    values = {key: [run.settings.get(key, "–") for run in runs] for key in keys}
    return {key: column for key, column in values.items() if len({json.dumps(v, default=str) for v in column}) > 1}
