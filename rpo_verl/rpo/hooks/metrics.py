"""The `rpo/*` metrics of one training step.

veRL reduces metrics by substrings of their names (`max`, `min`, `sum`, `total`, `mean`): the names here mind that.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any, get_args

import numpy as np

from rpo_verl.rpo.group import Group, differ
from rpo_verl.rpo.hooks.groups import by_prompt
from rpo_verl.rpo.start import Kind
from rpo_verl.upstream import queue


class Discarded:
    """Counts finished groups that veRL discards before they reach a batch."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()

    def add(self, groups: Sequence[Group], updates: Counter[str]) -> None:
        """Count groups and what the cache did with them."""
        self._counts.update(
            groups=len(by_prompt(groups)),
            prefixed=sum(group.prefixed for group in groups),
            tokens=sum(int(group.generated.sum()) for group in groups),
            dropped=updates["dropped"],
        )

    def add_failed(self, groups: int) -> None:
        """Count groups whose rollout or reward failed, and which veRL replaces."""
        self._counts["failed"] += groups

    def pop(self) -> dict[str, int]:
        """The metrics since the last call."""
        counts, self._counts = self._counts, Counter()
        return {
            "rpo/left_out/groups_total": counts["groups"],
            "rpo/left_out/prefixed_total": counts["prefixed"],
            "rpo/left_out/generated_total": counts["tokens"],
            "rpo/left_out/dropped_answers_total": counts["dropped"],
            "rpo/left_out/failed_total": counts["failed"],
        }


def composition_metrics(groups: Sequence[Group], rows: Sequence[str], wanted: int, group_size: int) -> dict[str, int]:
    """Count what a batch is made of: `rpo/groups/*_total` add up to the groups that veRL asked for.

    Args:
        groups: those of the batch that RPO started.
        rows: keys of the batch in veRL's queue, without padding.
        wanted: groups that the batch should have.
        group_size: responses a group should have, where RPO did not start it.
    """
    of_prompts = by_prompt(groups)
    kinds = Counter(branches[0].start.kind for branches in of_prompts.values())
    responses = Counter(queue.prompt_of(session) for session in {f"{queue.session_of(key)}_0" for key in rows})
    # Of a group that branches, the start of a branch knows its own size alone.
    sizes = {
        prompt: group_size if first.branched else first.start.group_size for prompt, (first, *_) in of_prompts.items()
    }
    failed = max(0, wanted - len(responses))
    missing = sum(max(0, sizes.get(prompt, group_size) - count) for prompt, count in responses.items())
    return {
        "rpo/groups/full_total": kinds["full"],
        "rpo/groups/prefixed_total": kinds["prefixed"],
        "rpo/groups/refreshed_total": kinds["refreshed"],
        "rpo/groups/branched_total": kinds["branched"],
        "rpo/groups/passed_through_total": len(responses) - len(sizes),
        "rpo/groups/failed_total": failed,
        "rpo/response/failed_total": missing + failed * group_size,
    }


def batch_metrics(groups: Sequence[Group], updates: Counter[str]) -> dict[str, Any]:
    """Metrics of the groups of a batch that RPO started; empty if there are none.

    Args:
        groups: those of the batch.
        updates: what the cache did with them, by `PartialRollouts.observe`.
    """
    if not groups:
        return {}

    def members(name: str) -> np.ndarray:
        return np.concatenate([getattr(group, name) for group in groups])

    prefix, suffix, response = members("reused"), members("generated"), members("response_tokens")
    of_prompts = by_prompt(groups).values()
    kinds = Counter(branches[0].start.kind for branches in of_prompts)
    on_hit = [group.generated for group in groups if group.prefixed]
    metrics = {
        "rpo/groups/no_signal_share_before_shaping": float(
            np.mean([not any(differ(branch.rewards) for branch in branches) for branches in of_prompts])
        ),
        "rpo/groups/no_signal_share_after_shaping": float(
            np.mean([not any(branch.has_signal for branch in branches) for branches in of_prompts])
        ),
        "rpo/tokens/generated_total": int(suffix.sum()),
        "rpo/tokens/reused_total": int(prefix.sum()),
        "rpo/tokens/saved_share": float(prefix.sum() / response.sum()),
        "rpo/reward/base_mean": float(members("rewards").mean()),
        "rpo/reward/shaped_mean": float(members("shaped").mean()),
        "rpo/reward/correct_share": float(members("correct").mean()),
        "rpo/suffix/capped_share": float(members("capped").mean()),
        "rpo/cache/hit_rate": 1 - (kinds["full"] + kinds["branched"]) / len(of_prompts),
        "rpo/cache/greedy_updates_total": updates["greedy"],
        "rpo/cache/exploratory_updates_total": updates["offered"] - updates["greedy"],
        "rpo/cache/stored_updates_total": updates["stored"],
        "rpo/cache/dropped_total": updates["dropped"],
        "rpo/cache/late_total": updates["late"],
        "rpo/cache/incomplete_total": updates["incomplete"],
    }
    for kind in get_args(Kind):
        tokens = sum(int(group.generated.sum()) for group in groups if group.start.kind == kind)
        metrics[f"rpo/tokens/{kind}_total"] = tokens
    if on_hit:
        metrics["rpo/tokens/generated_per_sample_on_hit"] = float(np.concatenate(on_hit).mean())
    for name, lengths in (("prefix", prefix), ("suffix", suffix), ("response", response)):
        metrics[f"rpo/{name}/length_mean"] = float(lengths.mean())
        metrics[f"rpo/{name}/length_max"] = int(lengths.max())
        metrics[f"rpo/{name}/length_min"] = int(lengths.min())
    return metrics
