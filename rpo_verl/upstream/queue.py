"""veRL's TransferQueue: every read and write of this package, and the formats of veRL's keys and tags."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import transfer_queue as tq
from tensordict import TensorDict
from transfer_queue import KVBatchMeta

#: What names a batch of rows: their keys, tags and partition.
Batch = KVBatchMeta

TRAIN, VALIDATION = "train", "val"


def read(keys: Sequence[str], partition_id: str, *fields: str) -> tuple[list[Any], ...]:
    """Fetch fields of rows.

    Args:
        keys: (B,) names of the rows.
        partition_id: `TRAIN` or `VALIDATION`.
        fields: names.

    Returns:
        For each field (B,) values: tensors of a row's own length, or whatever objects were put there.
    """
    if not keys:
        return tuple([] for _ in fields)
    data = tq.kv_batch_get(keys=list(keys), partition_id=partition_id, select_fields=list(fields))
    # The queue returns other fields than tensors in containers that differ with their content.
    return tuple(
        list(data[name].unbind()) if isinstance(data[name], torch.Tensor) else list(data[name]) for name in fields
    )


def write(keys: Sequence[str], partition_id: str, **columns: Iterable[torch.Tensor]) -> None:
    """Overwrite fields of rows.

    Args:
        keys: (B,) names of the rows.
        partition_id: `TRAIN` or `VALIDATION`.
        columns: field → (B,) tensors of (length of the row's response,).
    """
    nested = {name: torch.nested.as_nested_tensor(list(rows), layout=torch.jagged) for name, rows in columns.items()}
    fields = TensorDict(nested, batch_size=len(keys))
    tq.kv_batch_put(keys=list(keys), partition_id=partition_id, fields=fields)


def prompt_of(key: str) -> str:
    """The `uid` of the prompt in a row's key, `{uid}_{session}_{output}`; rows of a group share it."""
    return key.rsplit("_", 2)[0]


def session_of(key: str) -> str:
    """The part of a row's key that names its rollout; the outputs of one rollout share it."""
    return key.rsplit("_", 1)[0]


def member_of(key: str) -> int:
    """Number of a rollout among those of its prompt, in a row's key."""
    return int(key.rsplit("_", 2)[1])


def final_rows(keys: Sequence[str]) -> np.ndarray:
    """For every row, the one that holds the last output of its session: agent loops may return several.

    Args:
        keys: (B,) names of the rows.

    Returns:
        (B,) int.
    """
    sessions = [key.rsplit("_", 1) for key in keys]
    last: dict[str, tuple[int, int]] = {}
    for row, (session, output) in enumerate(sessions):
        last[session] = max(last.get(session, (-1, -1)), (int(output), row))
    return np.array([last[session][1] for session, _ in sessions], dtype=int)


def is_padding(tag: Mapping[str, Any]) -> bool:
    """Whether a row only fills up a batch."""
    return bool(tag.get("is_padding", False))


def response_tokens(tag: Mapping[str, Any]) -> int:
    """Tokens of a row's response."""
    return tag["response_len"]


def row_tokens(tag: Mapping[str, Any]) -> int:
    """Tokens of a row's prompt and response."""
    return tag["seq_len"]


def oldest_policy(tag: Mapping[str, Any]) -> int:
    """Step of the oldest weights behind a row's response."""
    return tag["min_global_steps"]
