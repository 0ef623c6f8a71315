"""DAPO's dynamic sampling on shaped rewards, and what RPO learns from the groups that veRL leaves out of the batch.

Behind a good prefix nearly every group is all-correct. DAPO's own filter, on base rewards, would throw nearly all of
them away and generate others for ever, though their lengths still tell them apart.
"""

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np

from rpo_verl.config import RewardConfig
from rpo_verl.integration.groups import Groups, read_groups


class ShapedGroupFilter:
    """Mixin over veRL's replay buffers; `watch_groups` gives a buffer its place."""

    def _dapo_filtered_keys(self, partition_id: str) -> tuple[set[str], Counter]:
        """Finished groups without a learning signal: for those RPO started, all shaped rewards alike.

        Rows that RPO passed through keep veRL's rule.
        """
        judged = self._dapo_classification_cache[partition_id]
        new = self.finished_keys[partition_id] - judged.keys()
        filtered = super()._dapo_filtered_keys(partition_id)
        if partition_id == "val" or self.filter_groups_metric is None or self._rpo_reward.group_filter == "base":
            return filtered
        groups = self._read(partition_id, new)
        for uid, members in groups.members.items():
            rewards = groups.shaped[members]
            alike = len(rewards) > 1 and float(np.ptp(rewards)) == 0.0
            judged[uid] = float(rewards[0]) if alike else None
        without_signal = {uid: reward for uid, reward in judged.items() if reward is not None}
        return set(without_signal), Counter(without_signal.values())

    def _clear_groups(self, partition_id: str, uids: set[str]) -> None:
        """Show finished groups to RPO before they are gone: those without a signal, stale ones, surplus."""
        if partition_id != "val":
            finished = uids & self.finished_keys[partition_id]
            if finished:
                self._rpo_left_out(self._read(partition_id, finished))
        super()._clear_groups(partition_id, uids)

    def _read(self, partition_id: str, uids: set[str]) -> Groups:
        rows = {key: tag for key, tag in self.partitions[partition_id].items() if key.split("_")[0] in uids}
        return read_groups(list(rows), list(rows.values()), partition_id, self._rpo_reward)


def watch_groups(buffer: Any, reward: RewardConfig, left_out: Callable[[Groups], None]) -> None:
    """Put the filter over a replay buffer that veRL has built.

    Args:
        buffer: an instance of veRL's `ReplayBuffer` or of a class that extends it.
        reward: how to shape, and which rewards the filter looks at.
        left_out: called with finished groups that will not be trained on, while they are still in the queue.
    """
    buffer._rpo_reward, buffer._rpo_left_out = reward, left_out
    buffer.__class__ = type(f"RPO{type(buffer).__name__}", (ShapedGroupFilter, type(buffer)), {})
