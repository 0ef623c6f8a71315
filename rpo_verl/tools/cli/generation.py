"""What commands that generate have in common: data sets, options to be repeated, the reward function, vLLM offline."""

import asyncio
import importlib
import importlib.util
import inspect
import json
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import pyarrow.parquet as pq

from rpo_verl.rpo.store import StoreError
from rpo_verl.tools.evaluation.summary import write_text


class Verdict(NamedTuple):
    """What a reward function says of one answer."""

    score: float
    correct: bool
    """By `acc` where the function reports it, else whether the score exceeds 0."""


Score = Callable[[str, Mapping[str, Any]], Verdict]
"""From the text of an answer and its data row."""


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


def repeat_options(folder: Path, options: Mapping[str, Any]) -> None:
    """Write `options.json` to `folder`, or make sure that an earlier call had the same options.

    Raises:
        StoreError: if it had others; names each that differs.
    """
    path, given = folder / "options.json", json.loads(json.dumps(options))
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps(given, indent=2))
        return
    begun = json.loads(path.read_text())
    differing = [
        f"{name}: {begun.get(name)!r} then, {value!r} now" for name, value in given.items() if begun.get(name) != value
    ]
    if differing:
        raise StoreError(
            f"{folder} was begun with other options ({'; '.join(differing)}). Call again with those, or delete it."
        )


def import_reward(place: str) -> ModuleType:
    """The module that veRL's `custom_reward_function.path` names: a Python file, or `pkg://` and a module's name.

    Raises:
        StoreError: if it cannot be imported.
    """
    try:
        if place.startswith("pkg://"):
            return importlib.import_module(place.removeprefix("pkg://").replace("/", "."))
        path = Path(place.removeprefix("file://"))
        spec = importlib.util.spec_from_file_location("rpo_verl_user_reward", path)
        if spec is None or spec.loader is None or not path.is_file():
            raise StoreError(f"--reward-file={place}: not a Python file")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    except StoreError:
        raise
    except Exception as error:
        raise StoreError(f"--reward-file={place}: importing it ended with {error!r}") from error
    return module


def load_reward(module: ModuleType | None, name: str) -> Score:
    """A reward function of veRL's kind, plain or async; without a module every score is NaN, which means unknown.

    Raises:
        StoreError: if the module has no such function.
    """
    if module is None:
        return lambda text, row: Verdict(math.nan, False)
    function = getattr(module, name, None)
    if function is None:
        raise StoreError(f"--reward-name={name}: {module.__file__} has no such function")

    def score(text: str, row: Mapping[str, Any]) -> Verdict:
        result = function(
            data_source=row.get("data_source"),
            solution_str=text,
            ground_truth=(row.get("reward_model") or {}).get("ground_truth"),
            extra_info=row.get("extra_info"),
        )
        if inspect.iscoroutine(result):
            result = asyncio.run(result)
        reported = result if isinstance(result, dict) else {"score": result}
        number = float(reported["score"])
        accuracy = reported.get("acc")
        return Verdict(number, (number if accuracy is None else float(accuracy)) > 0)

    return score


def start_vllm(
    model: str,
    *,
    max_model_len: int,
    dtype: str,
    gpus: int,
    gpu_memory_utilization: float,
    trust_remote_code: bool,
    seed: int,
    **more: Any,
) -> Any:
    """vLLM's offline engine.

    Args:
        model: folder or hub id.
        max_model_len: tokens of the longest question and its answer together.
        dtype: vLLM's.
        gpus: tensor parallel size.
        gpu_memory_utilization: share of a device's memory.
        trust_remote_code: run code that comes with the model.
        seed: of the engine; requests may bring their own.
        more: further arguments of `vllm.LLM`.
    """
    from vllm import LLM

    return LLM(
        model=model,
        dtype=dtype,
        tensor_parallel_size=gpus,
        gpu_memory_utilization=gpu_memory_utilization,
        max_model_len=max_model_len,
        trust_remote_code=trust_remote_code,
        seed=seed,
        **more,
    )


def stream_answers(
    engine: Any, prompts: list[list[int]], parameters: list[Any]
) -> Iterator[tuple[int, list[int], bool]]:
    """Answers in the order in which they finish: batches would wait for their longest.

    Args:
        engine: from `start_vllm`.
        prompts: token ids of the questions.
        parameters: a `vllm.SamplingParams` for each.

    Yields:
        position in `prompts`, the answer's token ids, whether the limit of tokens cut it off.
    """
    for number, (ids, own) in enumerate(zip(prompts, parameters, strict=True)):
        engine.llm_engine.add_request(str(number), {"prompt_token_ids": ids}, own)
    while engine.llm_engine.has_unfinished_requests():
        for output in engine.llm_engine.step():
            if output.finished:
                (answer,) = output.outputs
                yield int(output.request_id), list(answer.token_ids), answer.finish_reason == "length"
