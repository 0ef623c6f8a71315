"""Which finished groups dynamic sampling leaves out of a batch, over veRL's own sampling rules.

The queue is a dictionary here; `tests/real/test_dapo.py` runs with the real one.
"""

from collections import Counter, defaultdict

import numpy as np
import pytest
from verl.trainer.ppo.v1.replay_buffer import ReplayBuffer, ReplayBufferAsync

from rpo_verl.rpo.hooks import group_filter
from rpo_verl.rpo.hooks.groups import Groups, Row
from rpo_verl.rpo.hooks.reward import verdict
from rpo_verl.rpo.options import RewardConfig

BATCH = 4


def row(uid, kind, reward):
    return Row(
        group=uid, key=uid.encode(), kind=kind, group_size=2, prefix_tokens=3 if kind == "prefixed" else 0, dropped=1,
        capped=False, response_tokens=5, oldest_policy=0, source_step=0, reward=reward,
        correct=verdict(reward, {}, RewardConfig()),
    )  # fmt: skip


class Queue:
    """Finished groups of two responses: uid → kind, rewards, the step that asked for it."""

    def __init__(self, **groups):
        self.groups = groups

    def read(self, buffer, partition_id, uids):
        uids = sorted(uids & self.groups.keys())
        rows = [row(uid, self.groups[uid][0], reward) for uid in uids for reward in self.groups[uid][1]]
        rewards = np.array([one.reward for one in rows])
        return Groups(
            keys=[f"{one.group}_{i}" for i, one in enumerate(rows)], partition_id=partition_id, rows=rows,
            members={uid: [2 * i, 2 * i + 1] for i, uid in enumerate(uids)}, base=rewards, shaped=rewards,
        )  # fmt: skip


@pytest.fixture(params=[ReplayBuffer, ReplayBufferAsync])
def make_buffer(request, monkeypatch):
    """A buffer over a `Queue`; what is left out of it is collected."""

    def make(queue, **reward):
        def classify(buffer, partition_id):
            # Base rewards all alike: veRL's own rule would leave out everything.
            judged, finished = buffer._dapo_classification_cache[partition_id], buffer.finished_keys[partition_id]
            for uid in judged.keys() - finished:
                del judged[uid]
            judged.update({uid: 1.0 for uid in finished - judged.keys()})
            return set(judged), Counter(judged.values())

        def clear(buffer, partition_id, uids):
            buffer.finished_keys[partition_id] -= uids
            for uid in uids:
                del queue.groups[uid]

        monkeypatch.setattr(ReplayBuffer, "_dapo_filtered_keys", classify)
        monkeypatch.setattr(ReplayBuffer, "_clear_groups", clear)
        monkeypatch.setattr(group_filter.ShapedGroupFilter, "_read", lambda self, *args: queue.read(self, *args))
        buffer = object.__new__(request.param)
        buffer.filter_groups_metric, buffer.sync_refill_failed_groups = "acc", False
        buffer.max_off_policy_threshold, buffer.max_off_policy_strategy = None, "drop"
        buffer.trainer_mode = "sync"
        for name in ("_dapo_classification_cache", "prompt_global_steps", "partitions"):
            setattr(buffer, name, defaultdict(dict))
        for name in ("finished_keys", "failure_keys", "pending_keys", "running_keys"):
            setattr(buffer, name, defaultdict(set))
        buffer.seen = []
        group_filter.watch_groups(
            buffer, RewardConfig(**reward), BATCH, lambda groups: buffer.seen.extend(sorted(groups.members))
        )
        finish(buffer, queue)
        return buffer

    return make


def finish(buffer, queue, **groups):
    queue.groups.update(groups)
    buffer.finished_keys["train"] |= queue.groups.keys()
    buffer.prompt_global_steps["train"] |= {uid: step for uid, (_, _, step) in queue.groups.items()}


def leave_out(buffer, step):
    reasons = buffer._terminal_eviction_reasons(step, "train")
    return sorted(buffer._evict_terminal_groups(step, "train", reasons)[0])


FLAT, TOLD_APART = [1.0, 1.0], [0.5, 1.0]


def test_each_step_leaves_out_its_limit_oldest_first(make_buffer):
    queue = Queue(a=("prefixed", FLAT, 2), b=("prefixed", FLAT, 1), c=("prefixed", FLAT, 1), d=("prefixed", FLAT, 3),
                  e=("prefixed", TOLD_APART, 0), f=("prefixed", FLAT, 3))  # fmt: skip
    buffer = make_buffer(queue, filter_at_most=0.5)
    assert leave_out(buffer, 3) == ["b", "c"]
    assert leave_out(buffer, 3) == []
    assert leave_out(buffer, 4) == ["a", "d"]
    assert buffer.seen == ["b", "c", "a", "d"]


def test_full_rollouts_have_no_limit(make_buffer):
    queue = Queue(a=("full", FLAT, 1), b=("refreshed", FLAT, 1), c=("prefixed", FLAT, 1), d=("full", TOLD_APART, 1))
    assert leave_out(make_buffer(queue, filter_at_most=0), 1) == ["a", "b"]


def test_without_a_limit_all_that_has_no_signal_goes(make_buffer):
    queue = Queue(a=("prefixed", FLAT, 1), b=("prefixed", FLAT, 1), c=("prefixed", TOLD_APART, 1))
    assert leave_out(make_buffer(queue, filter_at_most=None), 1) == ["a", "b"]


def test_the_base_filter_is_verls(make_buffer):
    queue = Queue(a=("prefixed", FLAT, 1), b=("prefixed", TOLD_APART, 1))
    assert leave_out(make_buffer(queue, group_filter="base", filter_at_most=0), 1) == ["a", "b"]


def test_a_batch_takes_groups_with_a_signal_first(make_buffer):
    queue = Queue(a=("prefixed", FLAT, 1), b=("prefixed", TOLD_APART, 2), c=("prefixed", FLAT, 2),
                  d=("full", TOLD_APART, 3), e=("prefixed", FLAT, 2))  # fmt: skip
    buffer = make_buffer(queue, filter_at_most=0)
    assert leave_out(buffer, 3) == []
    assert sorted(buffer._select_prompt_uids("train", set("abcde"), 2)[0]) == ["b", "d"]
    assert sorted(buffer._select_prompt_uids("train", set("abcde"), 4)[0]) == ["a", "b", "c", "d"]


def test_groups_with_a_signal_that_are_stale_or_surplus_do_not_use_up_the_limit(make_buffer):
    queue = Queue(a=("prefixed", TOLD_APART, 1), b=("prefixed", FLAT, 1), c=("prefixed", FLAT, 1))
    buffer = make_buffer(queue, filter_at_most=0.25)
    buffer._terminal_eviction_reasons(1, "train")
    buffer._clear_groups("train", {"a"})
    assert leave_out(buffer, 1) == ["b"]
    assert leave_out(buffer, 1) == []


def test_nothing_is_remembered_of_groups_that_are_gone(make_buffer):
    queue = Queue(a=("prefixed", FLAT, 1), b=("prefixed", TOLD_APART, 1))
    buffer = make_buffer(queue, filter_at_most=0)
    for step in range(1, 50):
        leave_out(buffer, step)
        assert len(buffer._rpo_prefixed) <= 2
        # Trained on: veRL takes them out of the queue.
        queue.groups.clear()
        buffer.finished_keys["train"].clear()
        finish(buffer, queue, **{f"{step}{name}": ("prefixed", FLAT, step) for name in "ab"})
