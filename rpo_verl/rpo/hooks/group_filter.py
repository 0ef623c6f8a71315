"""DAPO's dynamic sampling on shaped rewards, and what RPO learns from the groups that veRL leaves out of the batch.

Behind a long prefix nearly every group is all-correct. DAPO's own filter, on base rewards, would throw nearly all of
them away and generate others for ever, though their lengths may still tell them apart. Where they do not either, a
step leaves out a limited number of them.
"""

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np

from rpo_verl.rpo.hooks.groups import Groups, read_groups
from rpo_verl.rpo.options import RewardConfig


class ShapedGroupFilter:
    """Mixin over veRL's replay buffers; `watch_groups` gives a buffer its place."""

    def _terminal_eviction_reasons(self, global_steps: int, partition_id: str) -> tuple[Any, ...]:
        """As veRL's, every way to sample goes through here; each training step has a limit of its own."""
        if partition_id != "val" and global_steps != self._rpo_step:
            self._rpo_step, self._rpo_left_out_for_want_of_signal = global_steps, 0
        return super()._terminal_eviction_reasons(global_steps, partition_id)

    def _dapo_filtered_keys(self, partition_id: str) -> tuple[set[str], Counter]:
        """Finished groups to leave out: for those RPO started, all shaped rewards alike, and the limit not reached.

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
        self._rpo_prefixed = (self._rpo_prefixed | groups.prefixed) & judged.keys()
        without_signal = {uid: reward for uid, reward in judged.items() if reward is not None}
        if self._rpo_limit is not None:
            allowed = max(0, self._rpo_limit - self._rpo_left_out_for_want_of_signal)
            for uid in self._oldest_first(partition_id, without_signal.keys() & self._rpo_prefixed)[allowed:]:
                del without_signal[uid]
        return set(without_signal), Counter(without_signal.values())

    def _select_prompt_uids(self, partition_id: str, sampleable_keys: set[str], batch_size: int) -> Any:
        """Groups with a signal first; where they are too few, others fill the batch."""
        idle = self._oldest_first(partition_id, self._without_signal(partition_id, sampleable_keys))
        missing = max(0, batch_size - (len(sampleable_keys) - len(idle)))
        return super()._select_prompt_uids(partition_id, sampleable_keys - set(idle[missing:]), batch_size)

    def _clear_groups(self, partition_id: str, uids: set[str]) -> None:
        """Show finished groups to RPO before they are gone: those without a signal, stale ones, surplus."""
        if partition_id != "val":
            finished = uids & self.finished_keys[partition_id]
            if finished:
                idle = self._without_signal(partition_id, finished & self._rpo_prefixed)
                self._rpo_left_out_for_want_of_signal += len(idle)
                self._rpo_left_out(self._read(partition_id, finished))
        super()._clear_groups(partition_id, uids)

    def _without_signal(self, partition_id: str, uids: set[str]) -> set[str]:
        judged = self._dapo_classification_cache[partition_id]
        return {uid for uid in uids if judged.get(uid) is not None}

    def _oldest_first(self, partition_id: str, uids: set[str]) -> list[str]:
        steps = self.prompt_global_steps[partition_id]
        return sorted(uids, key=lambda uid: (steps.get(uid, 0), uid))

    def _read(self, partition_id: str, uids: set[str]) -> Groups:
        rows = {key: tag for key, tag in self.partitions[partition_id].items() if key.split("_")[0] in uids}
        return read_groups(list(rows), list(rows.values()), partition_id, self._rpo_reward)


def watch_groups(buffer: Any, reward: RewardConfig, train_batch_size: int, left_out: Callable[[Groups], None]) -> None:
    """Put the filter over a replay buffer that veRL has built.

    Args:
        buffer: an instance of veRL's `ReplayBuffer` or of a class that extends it.
        reward: how to shape, which rewards the filter looks at, and how many groups it may leave out.
        train_batch_size: groups a step trains on.
        left_out: called with finished groups that will not be trained on, while they are still in the queue.
    """
    buffer._rpo_reward, buffer._rpo_left_out = reward, left_out
    at_most = reward.filter_at_most
    buffer._rpo_limit = None if at_most is None else round(at_most * train_batch_size)
    buffer._rpo_step, buffer._rpo_left_out_for_want_of_signal, buffer._rpo_prefixed = None, 0, set()
    buffer.__class__ = type(f"RPO{type(buffer).__name__}", (ShapedGroupFilter, type(buffer)), {})
