"""How options are declared and checked: type, default, range and meaning stand side by side, each written once.

An option is a field of a dataclass: `name: type = option(default, range)`, and below it a docstring that says what the
option means, then where its default comes from. Hydra refuses unknown keys and values of the wrong type while it
composes the configuration; `out_of_range` finds values that have the right type but lie outside their range.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any


class ConfigError(ValueError):
    """A configuration that cannot run; the message names the offending key and value, and the fix."""


@dataclass(frozen=True)
class Range:
    """The values an option may have."""

    text: str
    """Completes the sentence "must be …"."""

    holds: Callable[[Any], bool]


def at_least(low: float) -> Range:
    """Numbers from `low`."""
    return Range(f"at least {low}", lambda value: value >= low)


def above(low: float) -> Range:
    """Numbers greater than `low`."""
    return Range(f"above {low}", lambda value: value > low)


def within(low: float, high: float) -> Range:
    """Numbers from `low` to `high`, both included."""
    return Range(f"in [{low}, {high}]", lambda value: low <= value <= high)


def one_of(*names: str) -> Range:
    """Any of these words."""
    return Range(" or ".join(names), names.__contains__)


ANY = Range("a finite number", lambda value: True)
#: Of a field of the type `bool | int`: OmegaConf would take any number for true where the type is `bool`.
SWITCH = Range("true or false", lambda value: value in (False, True))


def option(default: Any, allowed: Range | None = None) -> Any:
    """A dataclass field with its range; null is allowed where the type says so."""
    return field(default=default, metadata={} if allowed is None else {"range": allowed})


def out_of_range(options: Any, section: str) -> Iterator[str]:
    """One line for every value outside its range, non-finite numbers included.

    Args:
        options: an instance of an options dataclass; sections nest.
        section: its key in the configuration, such as `rpo`.
    """
    for declared in fields(options):
        key, value = f"{section}.{declared.name}", getattr(options, declared.name)
        if is_dataclass(value):
            yield from out_of_range(value, key)
            continue
        allowed = declared.metadata.get("range")
        if allowed is None or value is None:
            continue
        finite = not isinstance(value, float) or math.isfinite(value)
        if not finite or not allowed.holds(value):
            yield f"{key}={value}: must be {allowed.text}"


def refuse(problems: list[str]) -> None:
    """Raises ConfigError with every problem on a line of its own, if there is any."""
    if problems:
        raise ConfigError("these settings cannot run:\n  " + "\n  ".join(problems))
