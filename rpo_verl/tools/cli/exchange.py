"""Answers in files that people exchange: JSONL or Parquet, one record an answer, as text or as token ids.

A record has the question as `prompt_ids` or as `prompt` (chat messages, or the text of a single user message), the
answer as `answer_ids` or as `answer` (text), and may have `reward`, `correct` and `step`. Ids win over text.
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

_INT32_MAX = 2**31 - 1


class RecordError(ValueError):
    """A record that is no answer; the message says what is wrong with it."""


def read_records(path: Path) -> Iterator[tuple[int, Any]]:
    """Line or row numbers, from 1, with what stands there; a line that is not JSON yields its error.

    Raises:
        RecordError: if the file as a whole cannot be read.
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
            raise RecordError(f"{path} is not a Parquet file that can be read: {error}") from error
        return
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                yield number, json.loads(line)
            except (ValueError, RecursionError) as error:
                yield number, RecordError(f"not JSON: {error}")


def count_records(path: Path) -> int | None:
    """How many records `read_records` will yield at most, for a progress bar; None if that cannot be known."""
    if not path.is_file():
        # Of a pipe nothing would be left to read.
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
    """One record as an answer.

    Args:
        record: what `read_records` yielded.
        question_ids: chat messages → token ids.
        encode: text → token ids, without special tokens.
        vocabulary_size: ids have to be below it.

    Raises:
        RecordError: if it is malformed.
    """
    if isinstance(record, RecordError):
        raise record
    if not isinstance(record, dict):
        raise RecordError(f"a record is an object with named fields, this is {type(record).__name__}")
    if record.get("prompt_ids") is not None:
        question = _ids(record, "prompt_ids", vocabulary_size)
    elif record.get("prompt") is not None:
        question = np.array(question_ids(_messages(record["prompt"])), dtype=np.int32)
    else:
        raise RecordError("neither prompt nor prompt_ids in it")
    if record.get("answer_ids") is not None:
        tokens = _ids(record, "answer_ids", vocabulary_size)
    elif isinstance(record.get("answer"), str):
        tokens = np.array(encode(record["answer"]), dtype=np.int32)
    else:
        raise RecordError("neither answer (text) nor answer_ids in it")
    if not len(question) or not len(tokens):
        raise RecordError("an empty question or answer")
    reward = record.get("reward")
    if reward is not None and (isinstance(reward, bool) or not isinstance(reward, int | float)):
        raise RecordError(f"reward={reward!r} is not a number")
    correct = record.get("correct")
    if correct is not None and not isinstance(correct, bool):
        raise RecordError(f"correct={correct!r} is not true or false")
    step = record.get("step") or 0
    if isinstance(step, bool) or not isinstance(step, int) or not 0 <= step <= _INT32_MAX:
        raise RecordError(f"step={step!r} is not a training step")
    reward = math.nan if reward is None else float(reward)
    return CachedAnswer(tokens, reward > 0 if correct is None else correct, reward, step, question)


def write_records(path: Path, records: Iterable[dict[str, Any]]) -> int:
    """Write records as JSONL, or as Parquet where the name says so; returns how many."""
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
    raise RecordError("prompt is neither text nor a list of messages with role and content")


def _ids(record: dict[str, Any], name: str, vocabulary_size: int) -> np.ndarray:
    ids = record[name]
    if not isinstance(ids, list) or not all(isinstance(i, int) and not isinstance(i, bool) for i in ids):
        raise RecordError(f"{name} is not a list of token ids")
    outside = [i for i in ids if not 0 <= i < vocabulary_size]
    if outside:
        raise RecordError(f"{name} has {outside[0]}, outside the vocabulary of {vocabulary_size} tokens")
    return np.array(ids, dtype=np.int32)
