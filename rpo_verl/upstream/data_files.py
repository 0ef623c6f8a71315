"""veRL's data files as its data set reads them: enough to tell before a run what would end it, or cost its rewards."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

#: Rows of a file that are looked at.
MOST_ROWS = 100_000
#: Columns that veRL's reward managers read.
REWARD_COLUMNS = ("data_source", "reward_model")


@dataclass
class DataFile:
    """What a file holds, and what is wrong with it."""

    name: str
    rows: int = 0
    problems: list[str] = field(default_factory=list)
    """Each would end a run; they name the file and the row, the first of which is row 1."""

    unreadable: list[str] = field(default_factory=list)
    """Rows whose prompt cannot be read: a problem, unless veRL filters such rows."""

    without_reward: list[str] = field(default_factory=list)
    """What veRL's reward managers miss in it."""

    prompts: list[tuple[int, list[dict[str, Any]]]] = field(default_factory=list)
    """Row and messages of the readable prompts among the first rows."""

    truths: list[tuple[int, Any]] = field(default_factory=list)
    """Row and ground truth of the first rows that have one."""


def is_local(name: str) -> bool:
    """Whether a name is no address of a remote file."""
    return "://" not in name


def read_data_file(name: str, prompt_key: str, sample: int) -> DataFile:
    """Read a local Parquet, JSON or JSON-lines file.

    Args:
        name: as in `data.train_files`.
        prompt_key: veRL's `data.prompt_key`.
        sample: prompts, and ground truths, to keep.
    """
    found, path = DataFile(name), Path(name).expanduser()
    if not path.is_file():
        found.problems.append(f"{name}: no such file")
        return found
    reader = {".parquet": _parquet, ".json": _json, ".jsonl": _json}.get(path.suffix)
    if reader is None:
        found.problems.append(f"{name}: veRL reads .parquet, .json and .jsonl files")
        return found
    try:
        found.rows, columns, rows = reader(path, [prompt_key, *REWARD_COLUMNS])
        if found.rows == 0:
            found.problems.append(f"{name}: has no rows")
        elif prompt_key not in columns:
            found.problems.append(f"{name} has no column {prompt_key} (data.prompt_key)")
        else:
            missing = [column for column in REWARD_COLUMNS if column not in columns]
            if missing:
                found.without_reward.append(f"{name}: no column {' or '.join(missing)}")
            _examine(found, rows, prompt_key, sample)
    except (OSError, ValueError) as error:
        found.problems.append(f"{name}: cannot be read ({error})")
    return found


def _examine(found: DataFile, rows: Iterable[dict[str, Any]], prompt_key: str, sample: int) -> None:
    for number, row in enumerate(rows, start=1):
        problem = prompt_problem(row.get(prompt_key))
        if problem is not None:
            found.unreadable.append(f"{found.name}: row {number}: {prompt_key} {problem}")
        elif len(found.prompts) < sample:
            found.prompts.append((number, row[prompt_key]))
        truth = row.get("reward_model")
        if "reward_model" in row and not isinstance(truth, dict):
            text = repr(truth) if len(repr(truth)) <= 60 else f"{repr(truth)[:60]}…"
            found.without_reward.append(
                f"{found.name}: row {number}: reward_model is {text}, not a mapping with ground_truth in it"
            )
        elif isinstance(truth, dict) and truth.get("ground_truth") is None:
            found.without_reward.append(f"{found.name}: row {number}: reward_model has no ground_truth")
        elif isinstance(truth, dict) and len(found.truths) < sample:
            found.truths.append((number, truth["ground_truth"]))


def prompt_problem(messages: Any) -> str | None:
    """Say why a prompt cannot be read; None if it can."""
    if messages is None:
        return "is null"
    if not isinstance(messages, list):
        return f"is {type(messages).__name__} {str(messages)[:60]!r}, not a list of messages"
    if not messages:
        return "has no messages"
    for number, message in enumerate(messages, start=1):
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            return f"has no role in message {number}"
        content = message.get("content")
        if content is None and not message.get("tool_calls"):
            return f"has no content in message {number} ({message['role']})"
        if not isinstance(content, str | list | None):
            return f"has content {content!r} in message {number} ({message['role']}), which is no text"
    return None


def _parquet(path: Path, wanted: list[str]) -> tuple[int, list[str], Iterator[dict[str, Any]]]:
    import pyarrow.parquet as pq

    file = pq.ParquetFile(path)
    columns = file.schema_arrow.names

    def rows() -> Iterator[dict[str, Any]]:
        seen = 0
        for batch in file.iter_batches(batch_size=2000, columns=[name for name in wanted if name in columns]):
            yield from batch.to_pylist()
            seen += len(batch)
            if seen >= MOST_ROWS:
                return

    return file.metadata.num_rows, columns, rows()


def _json(path: Path, wanted: list[str]) -> tuple[int, list[str], Iterator[dict[str, Any]]]:
    text = path.read_text(encoding="utf-8-sig")
    if text.lstrip().startswith("["):
        records = json.loads(text)
    else:
        records = [_parse(line, number) for number, line in enumerate(text.split("\n"), start=1) if line.strip()]
    for number, record in enumerate(records, start=1):
        if not isinstance(record, dict):
            raise ValueError(f"row {number} is {type(record).__name__}, not an object")
    columns = {name for record in records for name in record}
    return len(records), sorted(columns), ({k: r[k] for k in wanted if k in r} for r in records[:MOST_ROWS])


def _parse(line: str, number: int) -> Any:
    try:
        return json.loads(line)
    except ValueError as error:
        raise ValueError(f"line {number} is no JSON: {error}") from error
