"""Which finished groups dynamic sampling leaves out of a batch, over veRL's own sampling rules.

The queue is a dictionary here; `tests/real/test_dapo.py` runs with the real one.
"""

from collections import Counter, defaultdict
from dataclasses import replace

import numpy as np
import pytest
from verl.trainer.ppo.v1.replay_buffer import ReplayBuffer, ReplayBufferAsync

from rpo_verl.rpo.group import Group
from rpo_verl.rpo.hooks import group_filter
from rpo_verl.rpo.options import RewardConfig
from rpo_verl.rpo.start import Start

BATCH = 4


def group(uid, kind, rewards):
    """Two finished responses; what they are rewarded for does not matter here."""
    prefix = 3 if kind == "prefixed" else 0
    return Group(
        start=Start(uid.encode(), kind, 2, 100, dropped=1, source_step=0),
        keys=(f"{uid}_0_0", f"{uid}_1_0"),
        prefix_tokens=np.array([prefix] * 2),
        response_tokens=np.array([5, 5]),
        oldest_policy=np.array([0, 0]),
        rewards=np.array(rewards),
        correct=np.array(rewards) > 0,
        shaped=np.array(rewards),
    )


class Queue:
    """Finished groups of two responses: uid → kind, rewards, the step that asked for it."""

    def __init__(self, **groups):
        self.groups = groups

    def read(self, buffer, partition_id, uids):
        return {uid: [group(uid, *self.groups[uid][:2])] for uid in sorted(uids & self.groups.keys())}


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

        def on_discard(groups, partition_id):
            assert partition_id == "train"
            buffer.seen.extend(one.start.question.decode() for one in groups)

        group_filter.watch_groups(buffer, RewardConfig(**reward), BATCH, on_discard)
        finish(buffer, queue)
        return buffer

    return make


def finish(buffer, queue, **groups):
    queue.groups.update(groups)
    buffer.finished_keys["train"] |= queue.groups.keys()
    steps = {uid: found[2] if found else 0 for uid, found in queue.groups.items()}
    buffer.prompt_global_steps["train"] |= steps


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


def test_a_group_of_one_is_not_discarded(make_buffer, monkeypatch):
    """One response has no spread, whatever it earned."""
    queue = Queue(a=("prefixed", FLAT, 1))
    buffer = make_buffer(queue, filter_at_most=None)
    alone = group("a", "prefixed", FLAT)
    alone = replace(alone, keys=alone.keys[:1], rewards=alone.rewards[:1], shaped=alone.shaped[:1])
    monkeypatch.setattr(buffer, "_read", lambda partition_id, uids: {"a": [alone]} if uids else {})
    assert leave_out(buffer, 1) == []


def test_a_group_is_discarded_only_if_no_branch_has_a_signal(make_buffer, monkeypatch):
    queue = Queue(a=("prefixed", FLAT, 1), b=("prefixed", FLAT, 1))
    buffer = make_buffer(queue, filter_at_most=None)
    found = {
        "a": [group("a", "branched", FLAT), group("a", "branched", TOLD_APART)],
        "b": [group("b", "branched", FLAT)] * 2,
    }
    monkeypatch.setattr(buffer, "_read", lambda partition_id, uids: {uid: found[uid] for uid in uids})
    assert leave_out(buffer, 1) == ["b"]


def test_a_group_whose_prefix_earns_credit_is_kept(make_buffer):
    queue = Queue(a=("prefixed", FLAT, 1), b=("prefixed", FLAT, 1))
    buffer = make_buffer(queue, filter_at_most=None)
    buffer._rpo_teaches = lambda group: group.has_signal or group.keys[0].startswith("a")
    assert leave_out(buffer, 1) == ["b"]


def test_groups_that_rpo_passed_through_keep_verls_rule(make_buffer):
    queue = Queue(a=("prefixed", TOLD_APART, 1), b=None, c=("prefixed", FLAT, 1))
    read = queue.read
    queue.read = lambda buffer, partition_id, uids: read(buffer, partition_id, uids - {"b"})
    assert leave_out(make_buffer(queue, filter_at_most=0), 1) == ["b"]


def test_validation_is_verls_own(make_buffer):
    queue = Queue(a=("prefixed", TOLD_APART, 1))
    buffer = make_buffer(queue, filter_at_most=0)
    buffer.finished_keys["val"] |= {"a"}
    assert buffer._dapo_filtered_keys("val") == ({"a"}, Counter({1.0: 1}))
    buffer._clear_groups("val", {"a"})
    assert buffer.seen == []


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


def test_groups_are_read_by_the_prompts_of_their_rows(monkeypatch):
    """Keys and tags of the wanted prompts go to `read_groups`, whose groups are named by them."""
    asked = []

    def read_groups(keys, tags, partition_id, reward, scale):
        assert scale is None
        asked.append((keys, tags, partition_id, reward))
        return [group("u_1", "full", FLAT), group("u_1", "full", TOLD_APART)]

    monkeypatch.setattr(group_filter, "read_groups", read_groups)
    buffer = object.__new__(ReplayBuffer)
    group_filter.watch_groups(buffer, RewardConfig(), BATCH, None)
    buffer.partitions = {"train": {"u_1_0_0": {"n": 0}, "other_0_0": {"n": 1}, "u_1_1_0": {"n": 2}}}
    found = buffer._read("train", {"u_1"})
    assert asked == [(["u_1_0_0", "u_1_1_0"], [{"n": 0}, {"n": 2}], "train", buffer._rpo_reward)]
    assert found.keys() == {"u_1"} and len(found["u_1"]) == 2, "the branches of a group stay together"
