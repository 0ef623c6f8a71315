"""A prefix travels from the TaskRunner to the rollout worker, and not along with every response."""

import pickle

import numpy as np
from ray import cloudpickle

from rpo_verl.core.replay import Start
from rpo_verl.integration.shipment import Shipment

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
