"""What RPO adds to the records of `trainer.rollout_data_dir`: the prefix, its source, the row's rewards and
advantages."""

from collections.abc import Sequence
from typing import Any

from rpo_verl.rpo.group import Group
from rpo_verl.rpo.hooks.credit import Credited
from rpo_verl.upstream import queue

#: Columns in the order they are written; None in rows that RPO did not start.
COLUMNS = (
    "rpo_kind",
    "rpo_prefix_tokens",
    "rpo_prefix_text",
    "rpo_dropped",
    "rpo_source_step",
    "rpo_age",
    "rpo_correct",
    "rpo_base_reward",
    "rpo_shaped_reward",
    "rpo_advantage",
    "rpo_prefix_advantage",
)


def dump_records(
    groups: Sequence[Group], partition_id: str, step: int, tokenizer: Any, credited: Credited
) -> dict[str, dict[str, Any]]:
    """Key of the row → what its record gains.

    Args:
        groups: those of the batch.
        partition_id: the batch's.
        step: the training step.
        tokenizer: decodes the prefix, which opens the record's `output` unless a character spans the boundary.
        credited: the advantages.
    """
    keys = [key for group in groups for key in group.keys]
    responses = iter(queue.read(keys, partition_id, "responses")[0])
    records = {}
    for group in groups:
        start = group.start
        for i, key in enumerate(group.keys):
            reused, response = int(group.prefix_tokens[i]), next(responses)
            values = (
                start.kind,
                reused,
                tokenizer.decode(response[:reused], skip_special_tokens=True),
                start.dropped,
                start.source_step if reused else None,
                step - start.source_step if reused else None,
                bool(group.correct[i]),
                float(group.rewards[i]),
                float(group.shaped[i]),
                credited.generated[key],
                credited.prefixes.get(key),
            )
            records[key] = dict(zip(COLUMNS, values, strict=True))
    return records


def as_columns(keys: Sequence[str], records: dict[str, dict[str, Any]]) -> dict[str, list[Any]]:
    """The records as veRL's writer takes them: one list a column, in the order of `keys`."""
    return {column: [records.get(key, {}).get(column) for key in keys] for column in COLUMNS}
