"""What RPO adds to the records of `trainer.rollout_data_dir`: the prefix, where it came from, what the row earned."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import transfer_queue as tq

from rpo_verl.rpo.hooks.groups import Groups

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
)


def dump_records(groups: Groups, step: int, tokenizer: Any, weights: np.ndarray) -> dict[str, dict[str, Any]]:
    """Key of the row → what its record gains.

    Args:
        groups: the batch, its advantages computed and in the queue.
        step: the training step.
        tokenizer: decodes the prefix, which opens the record's `output` unless a character spans the boundary.
        weights: (B,) float, what the advantages in the queue were scaled with; records have those of the estimator.
    """
    own = [i for members in groups.members.values() for i in members]
    if not own:
        return {}
    data = tq.kv_batch_get(
        keys=[groups.keys[i] for i in own],
        partition_id=groups.partition_id,
        select_fields=["responses", "advantages", "response_mask"],
    )
    columns = (data[name].unbind() for name in ("responses", "advantages", "response_mask"))
    records = {}
    for i, response, advantages, mask in zip(own, *columns, strict=True):
        row = groups.rows[i]
        generated = advantages[mask.bool()]
        values = (
            row.kind,
            row.prefix_tokens,
            tokenizer.decode(response[: row.prefix_tokens], skip_special_tokens=True),
            row.dropped,
            row.source_step if row.prefix_tokens else None,
            step - row.source_step if row.prefix_tokens else None,
            row.correct,
            row.reward,
            float(groups.shaped[i]),
            float(generated[0]) / float(weights[i]) if len(generated) else None,
        )
        records[groups.keys[i]] = dict(zip(COLUMNS, values, strict=True))
    return records


def as_columns(keys: Sequence[str], records: dict[str, dict[str, Any]]) -> dict[str, list[Any]]:
    """The records as veRL's writer takes them: one list a column, in the order of `keys`."""
    return {column: [records.get(key, {}).get(column) for key in keys] for column in COLUMNS}
