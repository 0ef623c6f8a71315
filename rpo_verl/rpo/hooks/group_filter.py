"""DAPO's dynamic sampling on shaped rewards; RPO also learns from the groups that veRL discards.

Behind a long prefix nearly every group is all-correct. DAPO's own filter, on base rewards, would discard nearly all of
them and generate others for ever, although their lengths may still tell members apart. Where lengths do not either, a
step discards a limited number of groups.
"""

from collections import Counter
from collections.abc import Callable
from typing import Any

from rpo_verl.correctness import RewardScale
from rpo_verl.rpo.group import Group
from rpo_verl.rpo.hooks.groups import by_prompt, read_groups
from rpo_verl.rpo.options import RewardConfig
from rpo_verl.upstream import queue


class ShapedGroupFilter:
    """Mixin over veRL's replay buffers; `watch_groups` gives a buffer its place."""

    def _terminal_eviction_reasons(self, global_steps: int, partition_id: str) -> tuple[Any, ...]:
        """veRL's; every way to sample goes through here, and each training step has a limit of its own."""
        if partition_id != queue.VALIDATION and global_steps != self._rpo_step:
            self._rpo_step, self._rpo_filtered = global_steps, 0
        return super()._terminal_eviction_reasons(global_steps, partition_id)

    def _dapo_filtered_keys(self, partition_id: str) -> tuple[set[str], Counter]:
        """Finished groups to discard: those RPO started that teach nothing, as long as the limit is not reached.

        Rows that RPO passed through keep veRL's rule.
        """
        judged = self._dapo_classification_cache[partition_id]
        new = self.finished_keys[partition_id] - judged.keys()
        filtered = super()._dapo_filtered_keys(partition_id)
        if partition_id == queue.VALIDATION or self.filter_groups_metric is None:
            return filtered
        groups = self._read(partition_id, new)
        for uid, branches in groups.items():
            idle = all(len(group) > 1 and not self._rpo_teaches(group) for group in branches)
            judged[uid] = float(branches[0].shaped[0]) if idle else None
        prefixed = {uid for uid, branches in groups.items() if branches[0].prefixed}
        self._rpo_prefixed = (self._rpo_prefixed | prefixed) & judged.keys()
        without_signal = {uid: reward for uid, reward in judged.items() if reward is not None}
        if self._rpo_limit is not None:
            allowed = max(0, self._rpo_limit - self._rpo_filtered)
            for uid in self._oldest_first(partition_id, without_signal.keys() & self._rpo_prefixed)[allowed:]:
                del without_signal[uid]
        return set(without_signal), Counter(without_signal.values())

    def _select_prompt_uids(self, partition_id: str, sampleable_keys: set[str], batch_size: int) -> Any:
        """Groups with a signal first; where they are too few, others fill the batch."""
        self._rpo_speak_up_if_all_failed(partition_id, sampleable_keys)
        idle = self._oldest_first(partition_id, self._without_signal(partition_id, sampleable_keys))
        missing = max(0, batch_size - (len(sampleable_keys) - len(idle)))
        selected = super()._select_prompt_uids(partition_id, sampleable_keys - set(idle[missing:]), batch_size)
        if partition_id != queue.VALIDATION and self.finished_keys[partition_id] & set(selected[0]):
            self._rpo_failed_in_a_row = 0
        return selected

    def _clear_groups(self, partition_id: str, uids: set[str]) -> None:
        """Show finished groups to RPO before they are gone: those without a signal, stale ones, surplus."""
        if partition_id != queue.VALIDATION:
            finished, failed = uids & self.finished_keys[partition_id], uids & self.failure_keys[partition_id]
            self._rpo_failed_in_a_row = 0 if finished else self._rpo_failed_in_a_row + len(failed)
            if failed:
                self._rpo_on_failure(len(failed), self._rpo_failed_in_a_row)
            if finished:
                self._rpo_filtered += len(self._without_signal(partition_id, finished & self._rpo_prefixed))
                groups = [group for branches in self._read(partition_id, finished).values() for group in branches]
                self._rpo_on_discard(groups, partition_id)
        super()._clear_groups(partition_id, uids)

    def _rpo_speak_up_if_all_failed(self, partition_id: str, sampleable_keys: set[str]) -> None:
        """Before veRL ends a step in which nothing is left to train on."""
        if partition_id == queue.VALIDATION or not sampleable_keys <= self.failure_keys[partition_id]:
            return
        if not any(queue.prompt_of(key) in sampleable_keys for key in self.partitions[partition_id]):
            self._rpo_on_failure(len(sampleable_keys), None)

    def _without_signal(self, partition_id: str, uids: set[str]) -> set[str]:
        judged = self._dapo_classification_cache[partition_id]
        return {uid for uid in uids if judged.get(uid) is not None}

    def _oldest_first(self, partition_id: str, uids: set[str]) -> list[str]:
        steps = self.prompt_global_steps[partition_id]
        return sorted(uids, key=lambda uid: (steps.get(uid, 0), uid))

    def _read(self, partition_id: str, uids: set[str]) -> dict[str, list[Group]]:
        rows = {key: tag for key, tag in self.partitions[partition_id].items() if queue.prompt_of(key) in uids}
        return by_prompt(read_groups(list(rows), list(rows.values()), partition_id, self._rpo_reward, self._rpo_scale))


def watch_groups(
    buffer: Any,
    reward: RewardConfig,
    train_batch_size: int,
    on_discard: Callable[[list[Group], str], None],
    on_failure: Callable[[int, int | None], None] = lambda groups, in_a_row: None,
    scale: RewardScale | None = None,
    teaches: Callable[[Group], bool] = lambda group: group.has_signal,
) -> None:
    """Put the filter over a replay buffer that veRL has built.

    Args:
        buffer: an instance of veRL's `ReplayBuffer` or of a class that extends it.
        reward: how to shape, and how many groups the filter may discard.
        train_batch_size: groups a step trains on.
        on_discard: called with finished groups that will not be trained on, and their partition, while they are still
            in the queue.
        on_failure: called with a number of groups whose rollout or reward failed and which veRL replaces, and how many
            have failed in a row; and with all groups of a step and None where nothing is left to train on.
        scale: of the run's rewards.
        teaches: whether a group is worth training on.
    """
    buffer._rpo_teaches = teaches
    buffer._rpo_reward, buffer._rpo_on_discard = reward, on_discard
    buffer._rpo_on_failure, buffer._rpo_scale, buffer._rpo_failed_in_a_row = on_failure, scale, 0
    at_most = reward.filter_at_most
    buffer._rpo_limit = None if at_most is None else round(at_most * train_batch_size)
    buffer._rpo_step, buffer._rpo_filtered, buffer._rpo_prefixed = None, 0, set()
    buffer.__class__ = type(f"RPO{type(buffer).__name__}", (ShapedGroupFilter, type(buffer)), {})
