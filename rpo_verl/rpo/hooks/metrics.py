"""The `rpo/*` metrics of one training step.

veRL reduces metrics by substrings of their names (`max`, `min`, `sum`, `total`, `mean`): the names here mind that.
"""

from collections import Counter
from typing import Any

import numpy as np

from rpo_verl.rpo.hooks.groups import Groups, Updates


class LeftOut:
    """What finished groups cost that RPO started and veRL left out of the batch."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()

    def add(self, groups: Groups, updates: Updates) -> None:
        """Count groups and what the cache did with them."""
        own = (row for row in groups.rows if row is not None)
        self._counts.update(
            groups=len(groups.members),
            prefixed=len(groups.prefixed),
            tokens=sum(row.response_tokens - row.prefix_tokens for row in own),
            dropped=updates.dropped,
        )

    def pop(self) -> dict[str, int]:
        """The metrics since the last call."""
        counts, self._counts = self._counts, Counter()
        return {
            "rpo/left_out/groups_total": counts["groups"],
            "rpo/left_out/prefixed_total": counts["prefixed"],
            "rpo/left_out/generated_total": counts["tokens"],
            "rpo/left_out/dropped_answers_total": counts["dropped"],
        }


def batch_metrics(groups: Groups, updates: Updates) -> dict[str, Any]:
    """Metrics of the groups that RPO started; empty if there were none.

    Args:
        groups: the batch.
        updates: what the cache did with them.
    """
    rows, members_of, shaped = groups.rows, groups.members, groups.shaped
    own = [row for row in rows if row is not None]
    if not own:
        return {}
    prefix = np.array([row.prefix_tokens for row in own])
    response = np.array([row.response_tokens for row in own])
    suffix = response - prefix
    kinds = Counter(rows[members[0]].kind for members in members_of.values())
    hit_suffix = suffix[[row.kind == "prefixed" for row in own]]
    base_flat = [len({rows[i].reward for i in members}) == 1 for members in members_of.values()]
    shaped_flat = [float(np.ptp(shaped[members])) == 0.0 for members in members_of.values()]
    own_shaped = shaped[[row is not None for row in rows]]
    metrics = {
        "rpo/groups/full_total": kinds["full"],
        "rpo/groups/prefixed_total": kinds["prefixed"],
        "rpo/groups/refreshed_total": kinds["refreshed"],
        "rpo/cache/hit_rate": 1 - kinds["full"] / len(members_of),
        "rpo/tokens/generated_total": int(suffix.sum()),
        "rpo/tokens/reused_total": int(prefix.sum()),
        "rpo/tokens/saved_share": float(prefix.sum() / response.sum()),
        "rpo/reward/base_mean": float(np.mean([row.reward for row in own])),
        "rpo/reward/shaped_mean": float(own_shaped.mean()),
        "rpo/reward/correct_share": float(np.mean([row.correct for row in own])),
        "rpo/groups/no_signal_share_before_shaping": float(np.mean(base_flat)),
        "rpo/groups/no_signal_share_after_shaping": float(np.mean(shaped_flat)),
        "rpo/suffix/capped_share": float(np.mean([row.capped for row in own])),
        "rpo/cache/greedy_updates_total": updates.greedy,
        "rpo/cache/exploratory_updates_total": updates.offered - updates.greedy,
        "rpo/cache/stored_updates_total": updates.stored,
        "rpo/cache/dropped_total": updates.dropped,
    }
    if hit_suffix.size:
        metrics["rpo/tokens/generated_per_sample_on_hit"] = float(hit_suffix.mean())
    for name, lengths in (("prefix", prefix), ("suffix", suffix), ("response", response)):
        metrics[f"rpo/{name}/length_mean"] = float(lengths.mean())
        metrics[f"rpo/{name}/length_max"] = int(lengths.max())
        metrics[f"rpo/{name}/length_min"] = int(lengths.min())
    return metrics
