"""Runs from veRL's logs: JSON lines of the file logger or tensorboard event files, and Hydra's settings."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from rpo_verl.tools.errors import CommandError


@dataclass(frozen=True)
class Run:
    """One training run."""

    label: str
    """Runs with the same label are seeds of one experiment."""

    path: Path
    steps: dict[int, dict[str, float]]
    """Step → metric → value, in step order. Step 0 is the validation before training."""

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
    if not any("timing_s/step" in metrics for metrics in steps.values()):
        raise CommandError(f"{path} has no training step (no metric timing_s/step)")
    name = label if separator else (path.stem if path.is_file() else path.name)
    return Run(name, path, steps, _read_settings(path))


def _is_event_file(path: Path) -> bool:
    return "tfevents" in path.name


def _read_folder(path: Path) -> dict[int, dict[str, float]]:
    if path.is_file():
        return _read_events(path)
    # Dumped rollouts are JSON lines too, without "data".
    files = [file for file in sorted(path.rglob("*.jsonl")) if _first_record(file).keys() >= {"step", "data"}]
    events = sorted({file.parent for file in path.rglob("*tfevents*")})
    found = [*files, *events]
    if not found:
        raise CommandError(f"{path} holds no metrics: train with file or tensorboard in trainer.logger")
    if len(files) > 1 or (not files and len(events) > 1):
        raise CommandError(f"{path} holds several runs; name one of them: {', '.join(map(str, found))}")
    return read_metrics(files[0]) if files else _read_events(events[0])


def _first_record(path: Path) -> Mapping[str, Any]:
    with path.open(encoding="utf-8", errors="replace") as file:
        try:
            record = json.loads(file.readline())
        except ValueError:
            return {}
    return record if isinstance(record, dict) else {}


def read_metrics(path: Path) -> dict[int, dict[str, float]]:
    """Read the JSON lines of veRL's file logger. A half-written last line is ignored.

    Returns:
        step → metric → value, in step order. Values that are not numbers are dropped.

    Raises:
        CommandError: if another line is not a record of the logger; names the line.
    """
    steps: dict[int, dict[str, float]] = {}
    lines = path.read_text(encoding="utf-8").split("\n")
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
            step, data = int(record["step"]), dict(record["data"])
        except (ValueError, KeyError, TypeError) as error:
            if number == len(lines):
                break  # a run is writing this line, or was killed while it did
            raise CommandError(f"{path}:{number}: not a record of veRL's file logger ({error})") from error
        steps[step] = {k: float(v) for k, v in data.items() if isinstance(v, int | float) and not isinstance(v, bool)}
    return dict(sorted(steps.items()))


def _read_events(path: Path) -> dict[int, dict[str, float]]:
    try:
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    except ImportError as error:
        raise CommandError(f"{path}: reading event files needs tensorboard (pip install tensorboard)") from error
    accumulator = EventAccumulator(str(path), size_guidance={"scalars": 0}).Reload()
    steps: dict[int, dict[str, float]] = {}
    for name in accumulator.Tags()["scalars"]:
        for event in accumulator.Scalars(name):
            steps.setdefault(event.step, {})[name] = event.value
    return dict(sorted(steps.items()))


def _read_settings(path: Path) -> dict[str, Any]:
    """Read Hydra's configuration of a run; empty if there is none, or more than one."""
    if path.is_dir():
        found = list(path.rglob(".hydra/config.yaml"))
    else:
        beside = (path.parent, path.parent / "hydra", path.with_suffix(""))
        found = [file for folder in beside if (file := folder / ".hydra" / "config.yaml").exists()]
    return dict(_flatten(OmegaConf.load(found[0]))) if len(found) == 1 else {}


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
