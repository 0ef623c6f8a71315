"""Writes of the rollout workers to the queue, a group at a time.

veRL's worker writes every response by itself: four messages to the queue's control server and storage, each time. But
nobody reads a response before its group has ended. So the rows may wait until then and go together.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from verl.trainer.ppo.v1 import agent_loop_tq

from rpo_verl.upstream.queue import prompt_of

#: What a prompt's tag says once all of its rollouts have ended.
ENDED = ("finished", "failure")
Fields = Mapping[str, Any]


def write_groups_at_once(worker: object) -> None:
    """Let the rollout workers of this process write group by group; for the `__ray_call__` of one of them."""
    if not isinstance(agent_loop_tq.tq, GroupedWrites):
        agent_loop_tq.tq = GroupedWrites(agent_loop_tq.tq, agent_loop_tq.list_of_dict_to_tensordict)
        # Rows stay as they are until their group is laid out.
        agent_loop_tq.list_of_dict_to_tensordict = list


class GroupedWrites:
    """Stands for the queue in the worker's module. A group's rows are written just before the tag that it has ended.

    Args:
        queue: the queue's client.
        lay_out: makes a batch of rows.
    """

    def __init__(self, queue: Any, lay_out: Any) -> None:
        self._queue, self._lay_out = queue, lay_out
        self._rows: dict[tuple[str, str], list[tuple[str, Fields, Mapping[str, Any]]]] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._queue, name)

    async def async_kv_batch_put(
        self, *, keys: Sequence[str], fields: Sequence[Fields], tags: Sequence[Mapping[str, Any]], partition_id: str
    ) -> None:
        """Keep the rows of one rollout until their group has ended."""
        group = self._rows.setdefault((partition_id, prompt_of(keys[0])), [])
        group += zip(keys, fields, tags, strict=True)

    async def async_kv_put(self, *, key: str, partition_id: str, tag: Mapping[str, Any]) -> None:
        """Write the rows of a prompt that has ended, and then its tag."""
        if tag.get("status") in ENDED:
            for rows in alike(self._rows.pop((partition_id, key), [])):
                keys, fields, tags = map(list, zip(*rows, strict=True))
                batch = self._lay_out(fields)
                await self._queue.async_kv_batch_put(keys=keys, fields=batch, tags=tags, partition_id=partition_id)
        await self._queue.async_kv_put(key=key, partition_id=partition_id, tag=tag)


def alike(rows: Sequence[tuple[str, Fields, Any]]) -> list[list[tuple[str, Fields, Any]]]:
    """Rows in parts that can be laid out together: those of one part have the same fields.

    Tensors of a field may differ in their first dimension, tokens, alone.
    """
    parts: dict[tuple[Any, ...], list[tuple[str, Fields, Any]]] = {}
    for row in rows:
        form = tuple(
            (name, value.dtype, tuple(value.shape[1:]), value.ndim) if isinstance(value, torch.Tensor) else (name,)
            for name, value in sorted(row[1].items())
        )
        parts.setdefault(form, []).append(row)
    return list(parts.values())
