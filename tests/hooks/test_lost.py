"""What a batch lost to failed rollouts and rewards is counted, and a step that lost everything says so."""

from collections import Counter, defaultdict
from dataclasses import replace

import numpy as np
import pytest
from verl.trainer.ppo.v1.replay_buffer import ReplayBuffer

from rpo_verl.rpo.group import Group
from rpo_verl.rpo.hooks import group_filter
from rpo_verl.rpo.hooks.metrics import Discarded, batch_metrics, composition_metrics
from rpo_verl.rpo.options import RewardConfig
from rpo_verl.rpo.start import Start


def group(uid, kind, members, group_size=4):
    numbers = np.ones(members)
    return Group(
        Start(uid.encode(), kind, group_size, 100), tuple(f"{uid}_{i}_0" for i in range(members)), numbers * 0,
        numbers * 5, numbers, numbers, numbers > 0, numbers,
    )  # fmt: skip


def composition(groups, others=(), wanted=6):
    rows = [key for one in groups for key in one.keys]
    return composition_metrics(groups, [*rows, *others], wanted, 4)


def test_kinds_of_groups_add_up_to_the_batch():
    groups = [group("a", "full", 4), group("b", "prefixed", 3), group("c", "refreshed", 1)]
    # Two outputs of one rollout, of two others one each, and the fourth failed.
    found = composition(groups, ["d_0_0", "d_0_1", "d_1_0", "d_2_0"])
    assert {name.removeprefix("rpo/groups/"): found[name] for name in found if name.startswith("rpo/groups/")} == {
        "full_total": 1, "prefixed_total": 1, "refreshed_total": 1, "branched_total": 0, "passed_through_total": 1,
        "failed_total": 2,
    }  # fmt: skip
    assert found["rpo/response/failed_total"] == 1 + 3 + 1 + 2 * 4


def test_a_group_of_several_branches_counts_once():
    branches = [replace(group("a", "branched", 2), keys=(f"a_{i}_0", f"a_{i + 1}_0")) for i in (0, 2)]
    branches = [replace(branch, start=Start(b"a" * 16, "branched", 2, 100)) for branch in branches]
    found = composition(branches, wanted=1)
    assert (found["rpo/groups/branched_total"], found["rpo/groups/failed_total"]) == (1, 0)
    assert found["rpo/response/failed_total"] == 0
    # A trunk failed, and the member that waited for it with it.
    assert composition(branches[:1], wanted=1)["rpo/response/failed_total"] == 2
    hits = batch_metrics([*branches, group("b", "prefixed", 4)], Counter())
    assert hits["rpo/cache/hit_rate"] == 0.5
    assert hits["rpo/groups/no_signal_share_after_shaping"] == 1.0


def test_without_failures_nothing_is_lost():
    found = composition([group(uid, "full", 4) for uid in "abcdef"])
    assert (found["rpo/groups/full_total"], found["rpo/groups/failed_total"]) == (6, 0)
    assert found["rpo/response/failed_total"] == 0
    # A row may ask for more responses than others do, or fewer.
    found = composition([group("a", "full", 2, group_size=2), group("b", "full", 7, group_size=8)], wanted=2)
    assert found["rpo/response/failed_total"] == 1


def test_a_batch_without_a_group_of_rpos_is_counted_too():
    assert composition([], ["d_0_0", "e_0_0"], wanted=2)["rpo/groups/passed_through_total"] == 2
    assert batch_metrics([], Counter()) == {}


def test_groups_that_teach_the_cache_nothing_are_counted():
    found = batch_metrics([group("a", "full", 4), group("b", "full", 3)], Counter(offered=1, stored=1, incomplete=1))
    assert found["rpo/cache/incomplete_total"] == 1


@pytest.fixture
def buffer():
    one = object.__new__(ReplayBuffer)
    for name in ("_dapo_classification_cache", "prompt_global_steps", "partitions"):
        setattr(one, name, defaultdict(dict))
    for name in ("finished_keys", "failure_keys", "pending_keys", "running_keys"):
        setattr(one, name, defaultdict(set))
    one.filter_groups_metric = None
    one.told = []
    group_filter.watch_groups(
        one, RewardConfig(), 4, lambda *args: None, lambda groups, in_a_row: one.told.append((groups, in_a_row))
    )
    return one


def test_a_step_in_which_all_failed_is_told_before_verl_ends_it(buffer):
    buffer.failure_keys["train"] = {"a", "b"}
    buffer._select_prompt_uids("train", {"a", "b"}, 2)
    assert buffer.told == [(2, None)]


@pytest.mark.parametrize("survivor", ["response", "group", "validation"])
def test_a_step_with_a_survivor_is_not(buffer, survivor):
    partition = "val" if survivor == "validation" else "train"
    buffer.failure_keys[partition] = {"a", "b"}
    if survivor == "response":
        buffer.partitions["train"]["a_0_0"] = {}
    if survivor == "group":
        buffer.failure_keys["train"].discard("b")
    buffer._select_prompt_uids(partition, {"a", "b"}, 2)
    assert buffer.told == []


def test_groups_that_verl_replaces_are_counted_in_a_row(buffer, monkeypatch):
    def clear(self, partition_id, uids):
        for keys in (self.failure_keys, self.finished_keys):
            keys[partition_id] -= uids

    monkeypatch.setattr(ReplayBuffer, "_clear_groups", clear)
    monkeypatch.setattr(group_filter.ShapedGroupFilter, "_read", lambda self, *args: {})
    for failed in ({"a", "b"}, {"c"}):
        buffer.failure_keys["train"] |= failed
        buffer._clear_groups("train", failed)
    buffer.finished_keys["train"].add("d")
    buffer._clear_groups("train", {"d"})
    buffer.failure_keys["train"].add("e")
    buffer._clear_groups("train", {"e"})
    assert buffer.told == [(2, 2), (1, 3), (1, 1)]
    # A group that is trained on is a success as well.
    buffer.finished_keys["train"].add("f")
    buffer.partitions["train"]["f_0_0"] = {}
    buffer._select_prompt_uids("train", {"f"}, 1)
    buffer.failure_keys["train"].add("g")
    buffer._clear_groups("train", {"g"})
    assert buffer.told[3:] == [(1, 1)]


def test_replaced_groups_have_a_metric():
    discarded = Discarded()
    discarded.add_failed(2)
    discarded.add_failed(1)
    assert discarded.pop()["rpo/left_out/failed_total"] == 3
    assert discarded.pop()["rpo/left_out/failed_total"] == 0
