"""Rows of a group are written together, before the tag that their group has ended."""

import asyncio

import pytest
import torch
from tensordict import TensorDict
from verl.trainer.ppo.v1 import agent_loop_tq
from verl.utils.tensordict_utils import list_of_dict_to_tensordict

from rpo_verl.upstream.writes import GroupedWrites, write_groups_at_once


class Queue:
    """Keeps what is put, in order."""

    def __init__(self):
        self.puts = []
        self.closed = False

    async def async_kv_batch_put(self, keys, partition_id, fields=None, tags=None):
        assert isinstance(fields, TensorDict) and len(fields) == len(keys) == len(tags)
        self.puts.append((partition_id, tuple(keys), [tag["status"] for tag in tags]))
        self.fields = fields

    async def async_kv_put(self, key, partition_id, tag):
        self.puts.append((partition_id, key, tag["status"]))

    def close(self):
        self.closed = True


def row(tokens, **others):
    return {"responses": torch.arange(tokens), "uid": "text", "reward_score": torch.tensor(0.5)} | others


@pytest.fixture
def queue():
    return Queue()


@pytest.fixture
def writes(queue):
    return GroupedWrites(queue, list_of_dict_to_tensordict)


def finish(writes, key, fields, partition="train"):
    """What veRL's worker does when a rollout has ended."""
    asyncio.run(
        writes.async_kv_batch_put(keys=[key], fields=[fields], tags=[{"status": "success"}], partition_id=partition)
    )


def end(writes, uid, status="finished", partition="train"):
    asyncio.run(writes.async_kv_put(key=uid, partition_id=partition, tag={"status": status}))


@pytest.mark.parametrize("status", ["finished", "failure"])
def test_rows_wait_for_the_end_of_their_group(queue, writes, status):
    end(writes, "a", "running")
    finish(writes, "a_1_0", row(3))
    finish(writes, "b_0_0", row(3))
    finish(writes, "a_0_0", row(5))
    assert queue.puts == [("train", "a", "running")]
    end(writes, "a", status)
    assert queue.puts[1:] == [("train", ("a_1_0", "a_0_0"), ["success"] * 2), ("train", "a", status)]
    assert [len(tokens) for tokens in queue.fields["responses"].unbind()] == [3, 5]
    assert list(queue.fields["uid"]) == ["text", "text"]
    end(writes, "b")
    end(writes, "a", status)
    assert queue.puts[3:] == [("train", ("b_0_0",), ["success"]), ("train", "b", "finished"), ("train", "a", status)]


def test_partitions_are_apart(queue, writes):
    finish(writes, "a_0_0", row(3))
    end(writes, "a", partition="val")
    assert queue.puts == [("val", "a", "finished")]


def test_rows_of_other_fields_or_forms_go_by_themselves(queue, writes):
    """Agent loops may return an image for one response and none for another."""
    finish(writes, "a_0_0", row(3))
    finish(writes, "a_1_0", row(4, position_ids=torch.zeros(4, 3)))
    finish(writes, "a_2_0", row(4, position_ids=torch.zeros(4, 5)))
    finish(writes, "a_3_0", row(2))
    end(writes, "a")
    assert [keys for _, keys, _ in queue.puts[:-1]] == [("a_0_0", "a_3_0"), ("a_1_0",), ("a_2_0",)]


def test_everything_else_is_the_queues_own(queue, writes):
    writes.close()
    assert queue.closed


def test_verls_worker_writes_through_it_once(monkeypatch, queue):
    monkeypatch.setattr(agent_loop_tq, "tq", queue)
    monkeypatch.setattr(agent_loop_tq, "list_of_dict_to_tensordict", list_of_dict_to_tensordict)
    write_groups_at_once(None)
    installed = agent_loop_tq.tq
    write_groups_at_once(None)
    assert agent_loop_tq.tq is installed
    asyncio.run(
        agent_loop_tq.tq.async_kv_batch_put(
            keys=["a_0_0"],
            fields=agent_loop_tq.list_of_dict_to_tensordict([row(3)]),
            tags=[{"status": "success"}],
            partition_id="train",
        )
    )
    end(installed, "a")
    assert [put[1] for put in queue.puts] == [("a_0_0",), "a"]
