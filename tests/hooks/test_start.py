"""A prefix travels from the TaskRunner to the rollout worker, and not along with every response."""

import pickle

import numpy as np
import pytest
from ray import cloudpickle
from tensordict import NonTensorData, NonTensorStack, TensorDict
from transfer_queue.utils.serial_utils import decode, encode

from rpo_verl.question import TokenizerIdentity
from rpo_verl.rpo.hooks.injection import Injection
from rpo_verl.rpo.options import RPOConfig
from rpo_verl.rpo.partial_rollouts import PartialRollouts
from rpo_verl.rpo.start import Start

START = Start(b"k" * 16, "prefixed", 8, 12, np.arange(4096, dtype=np.int32), dropped=10, answer_id=77, source_step=3)
ATTRIBUTES = ("question", "kind", "group_size", "room", "dropped", "answer_id", "source_step")


def same(start):
    """Whether all but the prefix is that of `START`."""
    return type(start) is Start and all(getattr(start, name) == getattr(START, name) for name in ATTRIBUTES)


def through_ray(value):
    return pickle.loads(cloudpickle.dumps(value))


def through_the_queue(value):
    return decode([bytes(frame) for frame in encode(value)])


def test_the_worker_gets_the_whole_start():
    at_the_worker = through_ray(START)
    assert same(at_the_worker)
    assert np.array_equal(at_the_worker.prefix, START.prefix)
    assert at_the_worker.prefix.dtype == np.int32
    assert (START.arrived, at_the_worker.arrived) == (False, True)
    assert len(START.prefix) == 4096, "sending does not change what is sent"


@pytest.mark.parametrize("send", [through_ray, through_the_queue])
def test_nobody_after_the_worker_gets_the_prefix(send):
    start = through_ray(START)
    for _ in range(3):
        start = send(start)
        assert same(start)
        assert len(start.prefix) == 0


def test_what_is_passed_on_is_small():
    sent, passed_on = cloudpickle.dumps(START), encode(through_ray(START))
    assert len(sent) > 4 * 4096 > 20 * sum(len(frame) for frame in passed_on)


def test_the_queue_returns_starts_and_not_dictionaries():
    """Dataclasses would come back as dictionaries, with their prefix."""
    start = through_ray(START)
    received = through_the_queue({"rpo_start": [start, None, start], "uid": ["a", "b", "c"]})["rpo_start"]
    assert received[1] is None
    for found in (received[0], received[2]):
        assert same(found)
        assert len(found.prefix) == 0


class Planned:
    """Stands for `PartialRollouts`; says what it was asked."""

    def __init__(self):
        self.asked = []

    def plan(self, ids, step, group_size):
        self.asked.append((ids, step, group_size))
        return Start(bytes(ids), "full", group_size, 100)


def batch(contents, agents=None, **columns):
    fields = {
        "raw_prompt": NonTensorStack(*[[{"role": "user", "content": content}] for content in contents]),
        "global_steps": NonTensorData(1),
        **columns,
    }
    if agents is not None:
        fields["agent_name"] = NonTensorStack(*agents)
    return TensorDict(fields, batch_size=len(contents))


def question_ids(messages):
    return list(messages[0]["content"].encode())


def test_rows_with_images_or_another_agent_pass_through():
    rollouts = PartialRollouts(RPOConfig(), 100, TokenizerIdentity("test", "vocabulary", "template"))
    injection = Injection(rollouts, question_ids, "single_turn_agent", 8)
    image = [{"type": "image"}, {"type": "text", "text": "What is this?"}]
    prompts = batch(["1+1?", image, "2+2?"], ["single_turn_agent", "single_turn_agent", "tool_agent"])
    injection(prompts)
    assert list(prompts["agent_name"]) == ["rpo", "single_turn_agent", "tool_agent"]
    first, *others = prompts["rpo_start"]
    assert (first.kind, first.group_size, first.room) == ("branched", 8, 100)
    assert others == [None, None]
    metrics = injection.pop_metrics()
    assert metrics["timing_s/rpo_injection"] >= metrics["timing_s/rpo_look_up"] > 0
    assert set(injection.pop_metrics().values()) == {0}


def test_every_row_is_planned_with_its_own_group_size():
    rollouts = Planned()
    injection = Injection(rollouts, question_ids, "single_turn_agent", 8)
    injection(batch(["a", "b"]))
    injection(batch(["a", "b"], __rollout_n__=NonTensorStack(4, 2)))
    assert rollouts.asked == [([97], 1, 8), ([98], 1, 8), ([97], 1, 4), ([98], 1, 2)]


def test_without_a_column_of_agents_the_default_one_counts():
    for default, started in (("single_turn_agent", True), ("tool_agent", False)):
        prompts = batch(["a"])
        Injection(Planned(), question_ids, default, 8)(prompts)
        assert (prompts["rpo_start"][0] is not None) is started
        assert list(prompts["agent_name"]) == ["rpo" if started else default]


def test_a_start_knows_its_data_source():
    prompts = batch(["a", "b"], data_source=NonTensorStack("math", "essays"))
    Injection(Planned(), question_ids, "single_turn_agent", 8)(prompts)
    assert [through_ray(start).data_source for start in prompts["rpo_start"]] == ["math", "essays"]


def test_a_column_of_our_name_in_the_data_is_refused():
    injection = Injection(Planned(), question_ids, "single_turn_agent", 8)
    with pytest.raises(ValueError, match="the data set has a column rpo_start"):
        injection(batch(["a"], rpo_start=NonTensorStack("theirs")))
    injection(batch(["a", "b"], rpo_start=NonTensorStack(None, START)))  # our own
