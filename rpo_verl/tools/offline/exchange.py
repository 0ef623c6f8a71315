"""Answers as JSONL or Parquet: one record per answer, as text or as token ids.

A record has the question as `prompt_ids` or as `prompt`: chat messages, or the text of a single user message. It has
the answer as `answer_ids` or as `answer`, which is text. `reward`, `correct` and `step` are optional. Ids take
precedence over text.
"""

import json
import math
import re
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from rpo_verl.correctness import is_correct
from rpo_verl.rpo.cache import CachedAnswer
from rpo_verl.tools.errors import CommandError
from rpo_verl.tools.json_lines import quoted, read_json_lines

_INT32_MAX = 2**31 - 1
_ROLES = ("system", "developer", "user", "assistant", "tool", "function")
#: Ends of turns and texts that other models write. A tokenizer that lacks one would read it as text.
_FOREIGN_ENDS = (
    "</s>", "<eos>", "<|end|>", "<|endoftext|>", "<|end_of_text|>", "<|eom_id|>", "<|eot_id|>", "<|im_end|>",
    "<|return|>", "<end_of_turn>", "<｜end▁of▁sentence｜>",
)  # fmt: skip
#: What happened to a usable record.
LOST_END, TOO_LONG = "lost an end", "too long"


def read_records(path: Path) -> Iterator[tuple[int, Any]]:
    """Yield line or row numbers, from 1, and the records. A line that is not JSON yields its error.

    Raises:
        CommandError: if the file cannot be read at all.
    """
    if not _is_parquet(path):
        yield from read_json_lines(path)
        return
    try:
        with pq.ParquetFile(path) as file:
            number = 0
            for batch in file.iter_batches(batch_size=4096):
                for record in _rows(batch):
                    number += 1
                    yield number, record
    except (pa.ArrowException, OSError) as error:
        raise CommandError(f"{path} is not a readable Parquet file: {error}") from error


def _is_parquet(path: Path) -> bool:
    if path.suffix == ".parquet" or not path.is_file():
        return path.suffix == ".parquet"
    with path.open("rb") as file:
        return file.read(4) == b"PAR1"


def _rows(batch: pa.RecordBatch) -> Iterator[Any]:
    """Rows of a batch. One whose text is not UTF-8 is its error."""
    try:
        yield from batch.to_pylist()
    except UnicodeDecodeError:
        for number in range(batch.num_rows):
            try:
                yield batch.slice(number, 1).to_pylist()[0]
            except UnicodeDecodeError as error:
                yield CommandError(f"text that is not UTF-8 ({error})")


def count_records(path: Path) -> int | None:
    """Maximum number of records in a file, for a progress bar; None if it is unknown."""
    if not path.is_file():
        # Reading a pipe would empty it.
        return None
    try:
        if _is_parquet(path):
            return pq.read_metadata(path).num_rows
        with path.open("rb") as file:
            return sum(1 for _ in file)
    except (pa.ArrowException, OSError):
        return None


class RecordReader:
    """Converts records to answers.

    Args:
        tokenizer: of the training run.
        question_ids: chat messages → token ids.
        max_prompt_length: tokens. Longer texts lose their head, as in veRL; ids stay as they are.
        end_ids: ids at which generation ends. The cache keeps answers without a final one, and without padding.
    """

    def __init__(
        self,
        tokenizer: Any,
        question_ids: Callable[[list[dict[str, Any]]], list[int]],
        max_prompt_length: int,
        end_ids: Collection[int],
    ) -> None:
        self._tokenizer, self._question_ids, self._max_prompt_length = tokenizer, question_ids, max_prompt_length
        self._vocabulary_size, self._end_ids = len(tokenizer), {*end_ids, tokenizer.pad_token_id} - {None}
        own = (tokenizer.convert_ids_to_tokens(index) for index in self._end_ids)
        ends = "|".join(map(re.escape, sorted({*_FOREIGN_ENDS, *filter(None, own)})))
        self._ends = re.compile(rf"(?:(?:{ends})\s*)+\Z")

    def read(self, record: Any) -> tuple[CachedAnswer, list[str]]:
        """Convert one record.

        Args:
            record: from `read_records`.

        Returns:
            the answer, and what happened to the record: any of `LOST_END` and `TOO_LONG`.

        Raises:
            CommandError: if it is malformed.
        """
        if isinstance(record, CommandError):
            raise record
        if not isinstance(record, dict):
            raise CommandError(f"a record is an object with named fields, not {quoted(record)}")
        question, (lost_end, tokens) = self._question(record), self._answer(record)
        remarks = [LOST_END] if lost_end else []
        if len(question) > self._max_prompt_length:
            remarks.append(TOO_LONG)
            if record.get("prompt_ids") is None:
                question = question[-self._max_prompt_length :]
        if not len(question) or not len(tokens):
            raise CommandError("an empty question or answer")
        reward, correct = _reward(record), _correct(record)
        return CachedAnswer(tokens, is_correct(reward, correct), reward, _step(record), question), remarks

    def _question(self, record: dict[str, Any]) -> np.ndarray:
        if record.get("prompt_ids") is not None:
            return _ids(record, "prompt_ids", self._vocabulary_size)
        if _missing(record.get("prompt")):
            raise CommandError("neither prompt nor prompt_ids in it")
        messages = _messages(record["prompt"])
        try:
            ids = self._question_ids(messages)
        except Exception as error:
            # A chat template is a program of the model's authors and raises what it likes.
            raise CommandError(f"the chat template does not take this prompt: {error}") from error
        return np.array(ids, dtype=np.int32)

    def _answer(self, record: dict[str, Any]) -> tuple[bool, np.ndarray]:
        """Whether an EOS was removed, and the token ids."""
        text, removed = record.get("answer"), False
        if record.get("answer_ids") is not None:
            ids = _ids(record, "answer_ids", self._vocabulary_size)
        elif isinstance(text, str):
            _check_text("answer", text)
            shorter = self._ends.sub("", text)
            ids = np.array(self._tokenizer.encode(shorter, add_special_tokens=False), dtype=np.int32)
            removed = shorter != text
        elif _missing(text):
            raise CommandError("neither answer (text) nor answer_ids in it")
        else:
            raise CommandError(f"answer={quoted(text)} is not text")
        end = len(ids)
        while end and int(ids[end - 1]) in self._end_ids:
            end -= 1
        return removed or end < len(ids), ids[:end]


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


def _missing(value: Any) -> bool:
    """Whether a field is absent. pandas writes NaN for that."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _reward(record: dict[str, Any]) -> float:
    """The reward; NaN if it is unknown."""
    reward = record.get("reward")
    if _missing(reward):
        return math.nan
    if not _is_number(reward):
        raise CommandError(f"reward={reward!r} is not a number")
    try:
        number = float(reward)
    except OverflowError:
        number = math.inf
    if math.isinf(number):
        raise CommandError(f"reward={quoted(reward)} is not a finite number")
    return number


def _correct(record: dict[str, Any]) -> bool | None:
    correct = record.get("correct")
    if _missing(correct):
        return None
    if not isinstance(correct, bool):
        raise CommandError(f"correct={correct!r} is not true or false")
    return correct


def _step(record: dict[str, Any]) -> int:
    """The training step. pandas writes whole numbers as 3.0 in a column with gaps."""
    step = record.get("step")
    if _missing(step):
        return 0
    if not _is_number(step) or step != step // 1 or not 0 <= step <= _INT32_MAX:
        raise CommandError(f"step={step!r} is not a training step")
    return int(step)


def _check_text(where: str, text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise CommandError(
            f"{where} has half a character (surrogate U+{ord(text[error.start]):04X}) at {error.start}. "
            "Cut texts between characters"
        ) from error


def _messages(prompt: Any) -> list[dict[str, Any]]:
    if isinstance(prompt, str):
        if _is_message_list(_parsed(prompt)):
            raise CommandError("prompt is a list of messages as JSON text. Write the list itself")
        _check_text("prompt", prompt)
        return [{"role": "user", "content": prompt}]
    if not _is_message_list(prompt):
        raise CommandError("prompt is neither text nor a list of messages with role and content")
    for message in prompt:
        role, content = message["role"], message["content"]
        if not isinstance(role, str) or role not in _ROLES:
            raise CommandError(f"role={quoted(role)} is none of {', '.join(_ROLES)}")
        if not isinstance(content, str):
            kind = "a list of parts" if isinstance(content, list) else quoted(content)
            raise CommandError(f"the content of the {role} message is {kind}, not text")
        _check_text(f"the {role} message", content)
    return prompt


def _is_message_list(prompt: Any) -> bool:
    return (
        isinstance(prompt, list)
        and len(prompt) > 0
        and all(isinstance(message, dict) and {"role", "content"} <= set(message) for message in prompt)
    )


def _parsed(text: str) -> Any:
    if not text.lstrip().startswith("["):
        return None
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _ids(record: dict[str, Any], name: str, vocabulary_size: int) -> np.ndarray:
    ids = record[name]
    if not isinstance(ids, list) or not all(isinstance(i, int) and not isinstance(i, bool) for i in ids):
        raise CommandError(f"{name} is not a list of token ids")
    outside = [i for i in ids if not 0 <= i < vocabulary_size]
    if outside:
        raise CommandError(f"{name} has {outside[0]}, outside the vocabulary of {vocabulary_size} tokens")
    return np.array(ids, dtype=np.int32)
