"""Answers as JSONL or Parquet: one record per answer, as text or as token ids.

A record has the question as `prompt_ids` or as `prompt`: chat messages, or the text of a single user message. It has
the answer as `answer_ids` or as `answer`, which is text. `reward`, `correct` and `step` are optional. Ids take
precedence over text.
"""

import json
import math
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from rpo_verl.rpo.cache import CachedAnswer
from rpo_verl.rpo.shaping import is_correct
from rpo_verl.tools.errors import CommandError

_INT32_MAX = 2**31 - 1


def read_records(path: Path) -> Iterator[tuple[int, Any]]:
    """Yield line or row numbers, from 1, and the records. A line that is not JSON yields its error.

    Raises:
        CommandError: if the file cannot be read at all.
    """
    if path.suffix == ".parquet":
        try:
            with pq.ParquetFile(path) as file:
                number = 0
                for batch in file.iter_batches(batch_size=4096):
                    for record in batch.to_pylist():
                        number += 1
                        yield number, record
        except (pa.ArrowException, OSError) as error:
            raise CommandError(f"{path} is not a readable Parquet file: {error}") from error
        return
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                yield number, json.loads(line)
            except (ValueError, RecursionError) as error:
                yield number, CommandError(f"not JSON: {error}")


def count_records(path: Path) -> int | None:
    """Maximum number of records in a file, for a progress bar; None if it is unknown."""
    if not path.is_file():
        # Reading a pipe would empty it.
        return None
    try:
        if path.suffix == ".parquet":
            return pq.read_metadata(path).num_rows
        with path.open("rb") as file:
            return sum(1 for _ in file)
    except (pa.ArrowException, OSError):
        return None


def parse_record(
    record: Any,
    question_ids: Callable[[list[dict[str, Any]]], list[int]],
    encode: Callable[[str], list[int]],
    vocabulary_size: int,
) -> CachedAnswer:
    """Convert one record to an answer.

    Args:
        record: from `read_records`.
        question_ids: chat messages → token ids.
        encode: text → token ids, without special tokens.
        vocabulary_size: exclusive upper bound of ids.

    Raises:
        CommandError: if it is malformed.
    """
    if isinstance(record, CommandError):
        raise record
    if not isinstance(record, dict):
        raise CommandError(f"a record is an object with named fields, not {type(record).__name__}")
    if record.get("prompt_ids") is not None:
        question = _ids(record, "prompt_ids", vocabulary_size)
    elif record.get("prompt") is not None:
        question = np.array(question_ids(_messages(record["prompt"])), dtype=np.int32)
    else:
        raise CommandError("neither prompt nor prompt_ids in it")
    if record.get("answer_ids") is not None:
        tokens = _ids(record, "answer_ids", vocabulary_size)
    elif isinstance(record.get("answer"), str):
        tokens = np.array(encode(record["answer"]), dtype=np.int32)
    else:
        raise CommandError("neither answer (text) nor answer_ids in it")
    if not len(question) or not len(tokens):
        raise CommandError("an empty question or answer")
    reward = record.get("reward")
    if reward is not None and (isinstance(reward, bool) or not isinstance(reward, int | float)):
        raise CommandError(f"reward={reward!r} is not a number")
    correct = record.get("correct")
    if correct is not None and not isinstance(correct, bool):
        raise CommandError(f"correct={correct!r} is not true or false")
    step = record.get("step") or 0
    if isinstance(step, bool) or not isinstance(step, int) or not 0 <= step <= _INT32_MAX:
        raise CommandError(f"step={step!r} is not a training step")
    reward = math.nan if reward is None else float(reward)
    return CachedAnswer(tokens, is_correct(reward, correct), reward, step, question)


def write_records(path: Path, records: Iterable[dict[str, Any]]) -> int:
    """Write records as JSONL, or as Parquet if the suffix is `.parquet`. Returns their number."""
    if path.suffix == ".parquet":
        table = pa.Table.from_pylist(list(records))
        pq.write_table(table, path)
        return table.num_rows
    count = 0
    with path.open("w", encoding="utf-8") as file:
        for record in records:
            file.write(json.dumps(record, ensure_ascii=False) + "\n")
            count += 1
    return count


def _messages(prompt: Any) -> list[dict[str, Any]]:
    if isinstance(prompt, str):
        return [{"role": "user", "content": prompt}]
    if (
        isinstance(prompt, list)
        and prompt
        and all(isinstance(m, dict) and {"role", "content"} <= set(m) for m in prompt)
    ):
        return prompt
    raise CommandError("prompt is neither text nor a list of messages with role and content")


def _ids(record: dict[str, Any], name: str, vocabulary_size: int) -> np.ndarray:
    ids = record[name]
    if not isinstance(ids, list) or not all(isinstance(i, int) and not isinstance(i, bool) for i in ids):
        raise CommandError(f"{name} is not a list of token ids")
    outside = [i for i in ids if not 0 <= i < vocabulary_size]
    if outside:
        raise CommandError(f"{name} has {outside[0]}, outside the vocabulary of {vocabulary_size} tokens")
    return np.array(ids, dtype=np.int32)
