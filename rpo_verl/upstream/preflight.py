"""What would end a run, or cost it all its rewards, found before Ray starts: for the run and for `rpo-verl doctor`."""

import ast
import contextlib
import importlib.util
import io
import logging
import math
import os
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from rpo_verl.config import ConfigError
from rpo_verl.upstream.data_files import DataFile, is_local, read_data_file
from rpo_verl.upstream.settings import ended_by_message, whole_number

logger = logging.getLogger(__name__)

#: Rows, files or keys that one message lists.
LISTED = 3
#: Checks that read files.
OF_FILES = ("model", "reward function", "checkpoint", "data")
#: Settings of veRL that are counted with here, and at least 1.
WHOLE_NUMBERS = (
    "data.train_batch_size", "data.max_prompt_length", "data.max_response_length", "actor_rollout_ref.rollout.n",
)  # fmt: skip
#: Settings that name files.
FILES = ("data.train_files", "data.val_files")
REWARD_FUNCTION, REWARD_MANAGER = "reward.custom_reward_function", "reward.reward_manager"


@dataclass(frozen=True)
class Finding:
    """The result of one check."""

    ok: bool
    check: str
    details: str
    warning: bool = False
    """Whether a check that is ok has a remark all the same."""


class CheckInputs(Callback):
    """Hydra callback of the groups: ends a run before Ray starts where it would end later.

    A run on a Ray cluster that is there already may have its files on another machine. For it, findings on files are
    warnings.
    """

    def on_job_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Raises SystemExit with every problem, which Hydra does not turn into a warning; logs the warnings."""
        with ended_by_message():
            self._check(config)

    def _check(self, config: DictConfig) -> None:
        problems = []
        elsewhere = os.environ.get("RAY_ADDRESS") or OmegaConf.select(config, "ray_kwargs.ray_init.address")
        for finding in findings(config):
            if not finding.ok and not (elsewhere and finding.check in OF_FILES):
                problems.append(f"{finding.check}: {finding.details}")
            elif finding.warning or not finding.ok:
                logger.warning("rpo_verl: %s: %s", finding.check, finding.details)
        if problems:
            raise SystemExit("rpo_verl: this run would fail:\n  " + "\n  ".join(problems))


def findings(config: DictConfig, files: Sequence[DataFile] | None = None) -> Iterator[Finding]:
    """Check everything that needs no tokenizer and no device. A check without a finding is passed.

    Args:
        config: veRL's configuration.
        files: the training and validation files, where they were read already.
    """
    wrong = list(_values(config))
    yield from (Finding(False, "configuration values", problem) for problem in wrong)
    if wrong:
        # The other checks count with them.
        return
    for check, examine in (
        ("veRL's settings", _verls_settings),
        ("model", _model),
        ("reward function", _reward),
        ("checkpoint", _resume),
    ):
        for problem in examine(config):
            yield Finding(False, check, problem)
    if OmegaConf.select(config, "custom_reward_function.path") or OmegaConf.select(
        config, "reward_model.reward_manager"
    ):
        details = f"veRL ignores these old keys; use {REWARD_FUNCTION}.path and {REWARD_MANAGER}.name"
        yield Finding(True, "custom_reward_function, reward_model.reward_manager", details, warning=True)
    yield from data_findings(config, read_data_files(config) if files is None else files)


def read_data_files(config: DictConfig, sample: int = 0) -> list[DataFile]:
    """Read the local training and validation files; those of a data set class of the user's own are not read.

    Args:
        config: veRL's configuration.
        sample: prompts to keep of each training file.
    """
    data = config.data
    if OmegaConf.select(data, "custom_cls.path"):
        return []
    train, val = _names(data.train_files), _names(data.val_files)
    return [
        read_data_file(name, data.prompt_key, sample if name in train else 0)
        for name in dict.fromkeys([*train, *val])
        if is_local(name)
    ]


def data_findings(config: DictConfig, files: Sequence[DataFile]) -> Iterator[Finding]:
    """Check the data files."""
    data, by_name = config.data, {file.name: file for file in files}
    if OmegaConf.select(data, "custom_cls.path"):
        yield Finding(True, "data", f"not read, because data.custom_cls.path={data.custom_cls.path} reads it", True)
        return
    for key in ("train_files", "val_files"):
        if not _names(data[key]):
            yield Finding(False, "data", f"data.{key}={_shown(data[key])}: veRL needs a file there, in every run")
    filtered = data.get("filter_overlong_prompts", False)
    for file in files:
        for problem in file.problems:
            yield Finding(False, "data", problem)
        if file.unreadable:
            details = _first(file.unreadable) + ("; veRL filters such rows" if filtered else "")
            yield Finding(filtered, "data", details, warning=True)
        if file.without_reward:
            yield from _without_reward(config, file)
    train = _names(data.train_files)
    known = [by_name[name] for name in train if name in by_name]
    if len(known) == len(train) > 0 and not any(file.problems for file in known):
        rows, most = sum(file.rows for file in known), data.get("train_max_samples", -1)
        rows = min(rows, most) if most > 0 else rows
        if rows < data.train_batch_size:
            size = f"data.train_batch_size={data.train_batch_size}, but data.train_files has {rows} rows"
            details = f"{size}: veRL drops incomplete batches, so there would be no step"
            yield Finding(False, "data", details)


def _without_reward(config: DictConfig, file: DataFile) -> Iterator[Finding]:
    """Rows that veRL's own reward managers fail on; one of the user's may not need the columns."""
    own = config.reward.reward_manager.source == "register"
    as_text = [line for line in file.without_reward if "reward_model is " in line]
    broken = own and bool(as_text)
    details = _first(as_text if broken else file.without_reward)
    yield Finding(not broken, "data", f"{details}; veRL's reward managers fail on such rows", warning=True)


def _values(config: DictConfig) -> Iterator[str]:
    """Values that cannot be resolved, and those that are no number where one is meant."""
    own = OmegaConf.masked_copy(config, [key for key in config if key != "hydra"])
    try:
        container = OmegaConf.to_container(own, resolve=True)
    except OmegaConfBaseException as error:
        # What Hydra fills in is there in a run alone.
        if "hydra" not in str(error).lower():
            yield str(error).replace("\n", " ")
        return
    yield from (f"{key}=nan: is no number" for key in _nan_keys(container))
    for key in WHOLE_NUMBERS:
        try:
            whole_number(config, key)
        except ConfigError as error:
            yield str(error)
    for key in FILES:
        files = OmegaConf.select(config, key)
        # A name may be null: that there is no file is for another check to say.
        names = files if OmegaConf.is_list(files) else [files]
        if not all(name is None or isinstance(name, str) for name in names):
            yield f"{key}={files}: must be the path of a file, or a list of paths"


def _nan_keys(section: Any, key: str = "") -> Iterator[str]:
    if isinstance(section, dict):
        for name, value in section.items():
            yield from _nan_keys(value, f"{key}.{name}" if key else str(name))
    elif isinstance(section, list):
        for number, value in enumerate(section):
            yield from _nan_keys(value, f"{key}[{number}]")
    elif isinstance(section, float) and math.isnan(section):
        yield key


def _verls_settings(config: DictConfig) -> Iterator[str]:
    """veRL's own check, and names that it looks up when Ray has started."""
    from verl.trainer.ppo.core_algos import ADV_ESTIMATOR_REGISTRY
    from verl.trainer.ppo.utils import need_critic, need_reference_policy
    from verl.utils.config import validate_config

    try:
        # It prints and warns; veRL's own call does so again.
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            validate_config(
                config=config, use_reference_policy=need_reference_policy(config), use_critic=need_critic(config)
            )
    except Exception as error:  # noqa: BLE001 - whatever it is, veRL would end with it
        yield f"veRL refuses them: {type(error).__name__}: {error}"
    estimator = str(config.algorithm.adv_estimator)
    if estimator not in ADV_ESTIMATOR_REGISTRY and not _registers_elsewhere(config):
        yield f"algorithm.adv_estimator={estimator}: veRL knows {', '.join(sorted(map(str, ADV_ESTIMATOR_REGISTRY)))}"
    yield from _indivisible(config)


def _indivisible(config: DictConfig) -> Iterator[str]:
    """Micro-batches that a device's rows do not divide into. veRL ends with an assertion after the first rollout."""
    actor, rollout, trainer = config.actor_rollout_ref.actor, config.actor_rollout_ref.rollout, config.trainer
    devices = trainer.nnodes * trainer.n_gpus_per_node // (actor.get("ulysses_sequence_parallel_size") or 1)
    # Other engines divide the devices in more ways.
    if actor.strategy not in ("fsdp", "fsdp2") or not devices or actor.ppo_mini_batch_size * rollout.n % devices:
        return
    rows, size = actor.ppo_mini_batch_size * rollout.n // devices, actor.ppo_micro_batch_size_per_gpu
    if size and not actor.use_dynamic_bsz and rows % size:
        yield (
            f"actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu={size}: a device gets {rows} rows of a mini-batch "
            f"(actor.ppo_mini_batch_size={actor.ppo_mini_batch_size} x rollout.n={rollout.n}, over {devices} devices), "
            f"and they must be a multiple of it. Set {math.gcd(rows, size)}, or actor.use_dynamic_bsz=true"
        )


def _registers_elsewhere(config: DictConfig) -> bool:
    """Whether the run's processes import modules of the user's that this one need not have imported."""
    variables = OmegaConf.select(config, "ray_kwargs.ray_init.runtime_env.env_vars") or {}
    return bool(config.actor_rollout_ref.model.get("external_lib")) or any(
        name in variables for name in ("VERL_USE_EXTERNAL_MODULES", "VERL_USE_EXTERNAL_PLUGINS")
    )


def _model(config: DictConfig) -> Iterator[str]:
    for key in ("path", "tokenizer_path", "hf_config_path"):
        name = config.actor_rollout_ref.model.get(key)
        # Others may be the name of a model on the hub.
        if isinstance(name, str) and name.startswith(("/", "~", ".")) and not Path(name).expanduser().exists():
            yield f"actor_rollout_ref.model.{key}={name}: no such folder"


def _reward(config: DictConfig) -> Iterator[str]:
    from verl.experimental.reward_loop.reward_manager.registry import REWARD_MANAGER as MANAGERS

    function, manager = config.reward.custom_reward_function, config.reward.reward_manager
    if function.path:
        yield from _missing_in_file(f"{REWARD_FUNCTION}.path", function.path, f"{REWARD_FUNCTION}.name", function.name)
    if manager.source == "importlib":
        path = OmegaConf.select(manager, "module.path")
        yield from _missing_in_file(f"{REWARD_MANAGER}.module.path", path, f"{REWARD_MANAGER}.name", manager.name)
    elif manager.source != "register":
        yield f"{REWARD_MANAGER}.source={manager.source}: must be register or importlib"
    elif not isinstance(manager.name, str):
        yield f"{REWARD_MANAGER}.name={_shown(manager.name)}: must be the name of a manager, such as naive"
    elif manager.name not in MANAGERS and not function.path and not _registers_elsewhere(config):
        yield f"{REWARD_MANAGER}.name={manager.name}: veRL knows {', '.join(sorted(MANAGERS))}"


def _missing_in_file(path_key: str, place: str | None, name_key: str, name: str | None) -> Iterator[str]:
    """Whether a Python file or module defines a name, as far as its text tells: nothing of it is run."""
    if not place or not name:
        yield f"{path_key}={_shown(place)} and {name_key}={_shown(name)}: set both"
        return
    if mistyped := [f"{key}={value}" for key, value in ((path_key, place), (name_key, name)) if type(value) is not str]:
        yield f"{' and '.join(mistyped)}: must be text"
        return
    if place.startswith("pkg://"):
        module = place.removeprefix("pkg://").replace("/", ".")
        try:
            spec = importlib.util.find_spec(module)
        except (ImportError, ValueError):
            spec = None
        if spec is None:
            yield f"{path_key}={place}: there is no module {module}"
            return
        path = Path(spec.origin) if spec.origin else None
    elif "://" in place and not place.startswith("file://"):
        return
    else:
        path = Path(place.removeprefix("file://")).expanduser()
        if not path.is_file():
            yield f"{path_key}={place}: no such file"
            return
    if path is None or path.suffix != ".py":
        return
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError) as error:
        yield f"{path_key}={place}: not Python ({error})"
        return
    defined = _defined(tree)
    if name not in defined and "*" not in defined:
        yield f"{name_key}={name}: {place} defines no such name"


def _defined(tree: ast.Module) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif isinstance(node, ast.ImportFrom | ast.Import):
            names |= {(alias.asname or alias.name).split(".")[0] for alias in node.names}
    # A module may make up its names.
    return names | {"*"} if names & {"__getattr__"} else names


def _resume(config: DictConfig) -> Iterator[str]:
    trainer = config.trainer
    if trainer.resume_mode not in ("auto", "disable", "resume_path"):
        yield f"trainer.resume_mode={trainer.resume_mode}: must be auto, disable or resume_path"
    if trainer.resume_mode != "resume_path":
        return
    path = trainer.resume_from_path
    if not isinstance(path, str) or "global_step_" not in path:
        yield f"trainer.resume_from_path={_shown(path)}: must lead to a folder global_step_N"
    elif not Path(path).is_dir():
        yield f"trainer.resume_from_path={path}: no such folder"


def _names(files: Any) -> list[str]:
    """veRL's data.train_files or val_files as a list; a name may be null, and no name is anything but text."""
    listed = files if OmegaConf.is_list(files) else [files]
    return [name for name in listed if name and isinstance(name, str)]


def _shown(value: Any) -> str:
    return "null" if value is None else str(value)


def _first(lines: Sequence[str]) -> str:
    more = f"; and {len(lines) - LISTED} more" if len(lines) > LISTED else ""
    return "; ".join(lines[:LISTED]) + more
