"""From veRL's configuration to typed options, and the checks before Ray starts."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import InterpolationKeyError, OmegaConfBaseException

from rpo_verl import algorithms
from rpo_verl.config import ConfigError, out_of_range, refuse
from rpo_verl.upstream import contract

MANAGER_KEY = "actor_rollout_ref.rollout.agent.agent_loop_manager_class"
MANAGER = "rpo_verl.upstream.manager.AgentLoopManager"


def read_options(config: DictConfig, name: str) -> Any:
    """The typed section of an algorithm.

    Raises:
        ConfigError: if the section did not come from the algorithm's group, or has unknown keys or values of the wrong
            type.
    """
    entry = next(entry for entry in algorithms.known() if entry.name == name)
    section, manager = config[name], config.actor_rollout_ref.rollout.agent.get("agent_loop_manager_class")
    if not isinstance(section, DictConfig) or manager is None:
        raise ConfigError(
            f"{name}={section!r} was set without the configuration group. Select it with +{name}=enabled, and override "
            f"single options without a plus sign. Do not delete what the group sets, as {MANAGER_KEY}."
        )
    try:
        typed = OmegaConf.structured(algorithms.load(entry.options))
        return OmegaConf.to_object(OmegaConf.merge(typed, OmegaConf.to_container(section, resolve=True)))
    except OmegaConfBaseException as error:
        gone = [f"{name}.{key}" for key in _leaves(section)]
        hints = [f"{key} {hint}" for key, hint in moved_options(entry).items() if key in gone]
        raise ConfigError(f"unknown or mistyped option in {name}: {'; '.join(hints) or error}") from error


def whole_number(config: DictConfig, key: str) -> int:
    """The value of a setting of veRL that is a whole number of at least 1.

    Raises:
        ConfigError: if it is none.
    """
    value = OmegaConf.select(config, key)
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ConfigError(f"{key}={value}: must be a whole number of at least 1")
    return value


def _leaves(section: DictConfig, prefix: str = "") -> list[str]:
    found = []
    for key, value in section.items_ex(resolve=False):
        found += _leaves(value, f"{prefix}{key}.") if isinstance(value, DictConfig) else [f"{prefix}{key}"]
    return found


def moved_options(entry: algorithms.Algorithm) -> dict[str, str]:
    """Options that earlier versions of the algorithm had → what to say of them."""
    return algorithms.load(entry.moved) if entry.moved else {}


def check(config: DictConfig) -> None:
    """Check every selected algorithm.

    Raises:
        ConfigError: if one of them cannot run with this configuration.
    """
    chosen = algorithms.selected(config)
    for entry in chosen:
        missing = set(entry.needs) - {other.name for other in chosen}
        if missing:
            raise ConfigError(
                f"{entry.name} needs {', '.join(sorted(missing))}, which +{entry.name}=enabled brings along"
            )
        if not config.trainer.use_v1:
            raise ConfigError(
                f"trainer.use_v1=False: {entry.name} works with veRL's V1 trainer. Leave trainer.use_v1 at True."
            )
        if entry.check:
            algorithms.load(entry.check)(config)
        else:
            refuse(list(out_of_range(read_options(config, entry.name), entry.name)))


class CheckSettings(Callback):
    """Hydra callback of the groups: refuses settings that cannot run before Ray starts."""

    def on_job_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Raises SystemExit, with one message."""
        with ended_by_message():
            contract.require_supported_verl()
            try:
                check(config)
            except InterpolationKeyError as error:
                if error.full_key is None:
                    # `get` does not say whose value it was.
                    own = [key for key in config if key != "hydra"]
                    OmegaConf.to_container(OmegaConf.masked_copy(config, own), resolve=True)
                raise


@contextmanager
def ended_by_message() -> Iterator[None]:
    """Turn what a check raises into SystemExit; Hydra turns other exceptions of a callback into warnings."""
    try:
        yield
    except contract.ContractError as error:
        raise SystemExit(str(error)) from error
    except ConfigError as error:
        raise SystemExit(f"rpo_verl: {error}") from error
    except OmegaConfBaseException as error:
        # A value that is missing or cannot be resolved; the message has its key.
        raise SystemExit(f"rpo_verl: {' '.join(str(error).split())}") from error
    except Exception as error:
        raise SystemExit(
            f"rpo_verl: these settings could not be checked: {type(error).__name__}: {error}. Look for a value of the "
            "wrong type; if there is none, please report this with the command."
        ) from error
