"""A prefix travels from the TaskRunner to the rollout worker, and not along with every response."""

import pickle
from types import SimpleNamespace

import numpy as np
from ray import cloudpickle
from rpo_verl.rpo.hooks.shipment import Shipment
from tensordict import NonTensorData, NonTensorStack, TensorDict

from rpo_verl.rpo.hooks.injection import PrefixAgentLoopManager
from rpo_verl.rpo.options import RPOConfig
from rpo_verl.rpo.partial_rollouts import PartialRollouts, Start

START = Start(b"k" * 16, "prefixed", np.arange(4096, dtype=np.int32), 10, 12, 3)


def test_the_worker_gets_the_whole_start():
    shipment = pickle.loads(cloudpickle.dumps(Shipment(START, 8)))
    start = shipment.start
    assert shipment.group_size == 8
    assert np.array_equal(start.prefix, START.prefix)
    assert (start.key, start.kind, start.dropped, start.suffix_max_tokens) == (START.key, "prefixed", 10, 12)


def test_nobody_after_the_worker_gets_the_prefix():
    sent = cloudpickle.dumps(Shipment(START, 8))
    at_the_worker = pickle.loads(sent)
    passed_on = cloudpickle.dumps(at_the_worker)
    assert len(sent) > 4 * 4096 > 20 * len(passed_on)
    assert len(at_the_worker.start.prefix) == 4096
    for _ in range(2):
        received = pickle.loads(passed_on)
        assert (received.start.key, received.start.source_step, len(received.start.prefix)) == (START.key, 3, 0)
        passed_on = cloudpickle.dumps(received)


def test_rows_with_images_or_another_agent_pass_through():
    manager = object.__new__(PrefixAgentLoopManager)
    manager.rollout_config = SimpleNamespace(n=8, agent=SimpleNamespace(default_agent_loop="single_turn_agent"))
    manager.agent_loop_workers, manager.reward_loop_worker_handles = [], None
    manager.connect(PartialRollouts(RPOConfig(), 100), lambda messages: messages[0]["content"].encode())
    image = [{"type": "image"}, {"type": "text", "text": "What is this?"}]
    contents = ["1+1?", image, "2+2?"]
    batch = {
        "raw_prompt": NonTensorStack(*[[{"role": "user", "content": content}] for content in contents]),
        "agent_name": NonTensorStack("single_turn_agent", "single_turn_agent", "tool_agent"),
        "global_steps": NonTensorData(1),
    }
    prompts = TensorDict(batch, batch_size=3)
    manager._inject(prompts)
    assert list(prompts["agent_name"]) == ["rpo", "single_turn_agent", "tool_agent"]
    assert [start is None for start in prompts["rpo_start"]] == [False, True, True]
    assert manager.pop_metrics()["rpo/groups/passed_through_total"] == 2
