"""veRL's custom reward functions, called outside training."""

import asyncio
import importlib
import importlib.util
import inspect
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from rpo_verl.correctness import is_correct
from rpo_verl.tools.errors import CommandError


class Verdict(NamedTuple):
    """The result of a reward function for one answer."""

    score: float
    correct: bool


Score = Callable[[str, Mapping[str, Any]], Verdict]
"""Text of an answer and its data row → verdict."""


def import_reward(place: str) -> ModuleType:
    """Import the module of veRL's `custom_reward_function.path`: a Python file, or `pkg://` and a module name.

    Raises:
        CommandError: if the import fails.
    """
    try:
        if place.startswith("pkg://"):
            return importlib.import_module(place.removeprefix("pkg://").replace("/", "."))
        path = Path(place.removeprefix("file://"))
        spec = importlib.util.spec_from_file_location("rpo_verl_user_reward", path)
        if spec is None or spec.loader is None or not path.is_file():
            raise CommandError(f"--reward-file={place}: not a Python file")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    except CommandError:
        raise
    except Exception as error:
        raise CommandError(f"--reward-file={place}: the import raised {error!r}") from error
    return module


def load_reward(module: ModuleType | None, name: str) -> Score:
    """Load a plain or async reward function of veRL's kind. Without a module every score is NaN, for "unknown".

    Raises:
        CommandError: if the module has no such function.
    """
    if module is None:
        return lambda text, row: Verdict(math.nan, False)
    function = getattr(module, name, None)
    if function is None:
        raise CommandError(f"--reward-name={name}: {module.__file__} has no such function")

    def score(text: str, row: Mapping[str, Any]) -> Verdict:
        result = function(
            data_source=row.get("data_source"),
            solution_str=text,
            ground_truth=_ground_truth(row),
            extra_info=row.get("extra_info"),
        )
        if inspect.iscoroutine(result):
            result = asyncio.run(result)
        reported = result if isinstance(result, dict) else {"score": result}
        if "score" not in reported:
            raise CommandError(f"--reward-name={name}: it returned {reported!r} without a score{_of(row)}")
        number = _number(reported["score"], name, "a score of", row)
        accuracy = reported.get("acc")
        return Verdict(number, is_correct(number, None if accuracy is None else _number(accuracy, name, "acc", row)))

    return score


def _ground_truth(row: Mapping[str, Any]) -> Any:
    """The row's ground truth, None without one.

    Raises:
        CommandError: if `reward_model` is text or a list.
    """
    truth = row.get("reward_model") or {}
    if not isinstance(truth, Mapping):
        raise CommandError(f"--data: reward_model is {truth!r}, not a mapping with ground_truth in it{_of(row)}")
    return truth.get("ground_truth")


def _number(value: Any, name: str, what: str, row: Mapping[str, Any]) -> float:
    """A number that a reward function reported; NaN is for the caller to judge."""
    try:
        if not isinstance(value, str | bytes):
            return float(value)
    except (TypeError, ValueError):
        pass
    raise CommandError(f"--reward-name={name}: it returned {what} {value!r}, which is no number{_of(row)}")


def _of(row: Mapping[str, Any]) -> str:
    """Words that lead to a row."""
    facts = {"data_source": row.get("data_source"), "reward_model": row.get("reward_model")}
    return f" (row: {', '.join(f'{key} {value!r:.120}' for key, value in facts.items())})"
