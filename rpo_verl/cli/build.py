"""One answer per question from a model, with vLLM offline, in batches that survive an interruption."""

import importlib.util
import json
import math
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from tqdm import tqdm

from rpo_verl.core import store
from rpo_verl.core.cache import CachedAnswer, ExperienceCache
from rpo_verl.core.store import StoreError
from rpo_verl.integration.questions import read_end_ids

_OPTIONS = "options.json"


@dataclass(frozen=True)
class Sampling:
    """What answers depend on; a build can only go on with what it began with."""

    model: str
    temperature: float
    top_p: float
    top_k: int
    seed: int
    max_response_length: int
    dtype: str
    gpus: int
    gpu_memory_utilization: float
    trust_remote_code: bool


def read_rows(paths: list[Path], prompt_key: str, limit: int | None = None) -> list[tuple[list[dict], dict[str, Any]]]:
    """Chat messages and whole rows of veRL data sets.

    Raises:
        StoreError: if a file is missing, is no Parquet file, or has no column of prompts.
    """
    rows: list[dict[str, Any]] = []
    for path in paths:
        try:
            table = pq.read_table(path)
        except (OSError, ValueError) as error:
            raise StoreError(f"--data={path}: not a Parquet file that can be read ({error})") from error
        if prompt_key not in table.column_names:
            raise StoreError(f"--prompt-key={prompt_key}: {path} has the columns {', '.join(table.column_names)}")
        rows += table.to_pylist()
    return [(row[prompt_key], row) for row in rows[:limit]]


def generate_answers(
    rows: list[tuple[list[dict], dict[str, Any]]],
    questions: Any,
    tokenizer: Any,
    sampling: Sampling,
    out: Path,
    batch_size: int,
    reward_file: Path | None,
    reward_name: str,
) -> ExperienceCache:
    """Answer every distinct question of `rows` and save the store to `out`.

    Finished batches wait in the folder `<out>.partial`, each a store of its own.

    Raises:
        StoreError: if an interrupted build had other options, or the reward function cannot be loaded.
    """
    score = _load_reward(reward_file, reward_name)
    partial = out.with_name(f"{out.name}.partial")
    _check_options(partial, sampling)
    cache = ExperienceCache()
    for part in sorted(partial.glob("part-*")):
        finished, _ = store.load(part, questions.identity)
        for key, answer in finished.items():
            cache.put(key, answer)
    todo = {}
    for messages, row in rows:
        ids = questions.ids(messages)
        key = questions.key(ids)
        if cache.get(key) is None:
            todo.setdefault(key, (ids, row))
    todo = list(todo.items())
    if todo:
        generate = _start_vllm(sampling, questions.max_prompt_length)
        end_ids = read_end_ids(sampling.model, sampling.trust_remote_code, tokenizer)
        with tqdm(desc="answers", total=len(cache) + len(todo), initial=len(cache)) as bar:
            for start in range(0, len(todo), batch_size):
                batch = todo[start : start + batch_size]
                part = ExperienceCache()
                for (key, (ids, row)), tokens in zip(batch, generate([ids for _, (ids, _) in batch]), strict=True):
                    tokens = tokens[:-1] if tokens and tokens[-1] in end_ids else tokens
                    reward = score(tokenizer.decode(tokens, skip_special_tokens=True), row)
                    answer = CachedAnswer(
                        np.array(tokens, dtype=np.int32), reward > 0, reward, 0, np.array(ids, dtype=np.int32)
                    )
                    part.put(key, answer)
                    cache.put(key, answer)
                store.save(part, partial / f"part-{len(cache):09d}", questions.identity, step=0)
                bar.update(len(batch))
    store.save(cache, out, questions.identity, step=0)
    shutil.rmtree(partial)
    return cache


def _check_options(partial: Path, sampling: Sampling) -> None:
    path, options = partial / _OPTIONS, asdict(sampling)
    if not path.exists():
        partial.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(options, indent=2))
        return
    begun = json.loads(path.read_text())
    differing = [f"{name}: {begun.get(name)!r} then, {value!r} now" for name, value in options.items()
                 if begun.get(name) != value]  # fmt: skip
    if differing:
        raise StoreError(
            f"{partial} was begun with other options ({'; '.join(differing)}). Call again with those, or delete it."
        )


def _start_vllm(sampling: Sampling, max_prompt_length: int) -> Callable[[list[list[int]]], list[list[int]]]:
    from vllm import LLM, SamplingParams

    engine = LLM(
        model=sampling.model,
        dtype=sampling.dtype,
        tensor_parallel_size=sampling.gpus,
        gpu_memory_utilization=sampling.gpu_memory_utilization,
        max_model_len=max_prompt_length + sampling.max_response_length,
        trust_remote_code=sampling.trust_remote_code,
        seed=sampling.seed,
    )
    parameters = SamplingParams(
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        top_k=sampling.top_k,
        max_tokens=sampling.max_response_length,
    )

    def generate(prompts: list[list[int]]) -> list[list[int]]:
        outputs = engine.generate(
            [{"prompt_token_ids": ids} for ids in prompts], parameters, use_tqdm=partial(tqdm, leave=False)
        )
        return [list(output.outputs[0].token_ids) for output in outputs]

    return generate


def _load_reward(path: Path | None, name: str) -> Callable[[str, dict[str, Any]], float]:
    """A function from (answer text, data row) to reward; without a file every reward is NaN, which means unknown."""
    if path is None:
        return lambda text, row: math.nan
    spec = importlib.util.spec_from_file_location("rpo_verl_user_reward", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    function = getattr(module, name, None)
    if function is None:
        raise StoreError(f"--reward-name={name}: {path} has no such function")

    def score(text: str, row: dict[str, Any]) -> float:
        result = function(
            data_source=row.get("data_source"),
            solution_str=text,
            ground_truth=(row.get("reward_model") or {}).get("ground_truth"),
            extra_info=row.get("extra_info"),
        )
        return float(result["score"] if isinstance(result, dict) else result)

    return score
