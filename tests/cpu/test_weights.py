"""Weights over TCP, from a sender to a receiver in another thread, as between trainer and rollout server."""

import asyncio
import threading

import pytest
import torch

from rpo_verl.cpu import weights as module
from rpo_verl.cpu.weights import TCPStoreWeights


@pytest.fixture
def host(monkeypatch):
    """Without Ray."""
    monkeypatch.setattr(module.ray.util, "get_node_ip_address", lambda: "127.0.0.1")


def test_every_tensor_arrives_in_order_whatever_its_size(host):
    tensors = {
        "large": torch.arange(3 * 2**20, dtype=torch.float32),
        "transposed": torch.arange(6.0).reshape(2, 3).T,
        "half": torch.tensor([1.5], dtype=torch.bfloat16),
        "empty": torch.empty(0),
    }
    sender, idle, receiver = (TCPStoreWeights(1, is_master=first) for first in (True, False, False))
    metadata = [sender.prepare(), idle.prepare(), receiver.prepare()]
    trainer, servers = TCPStoreWeights.build_topology(2, 1, metadata)
    received = []

    async def receive():
        receiver.init_process_group(servers["endpoint"][0])
        received.extend([item async for item in receiver.receive_weights()])

    thread = threading.Thread(target=lambda: asyncio.run(receive()), daemon=True)
    thread.start()
    walked = []
    for engine, endpoint in zip((sender, idle), trainer["endpoint"], strict=True):
        engine.init_process_group(endpoint)
        asyncio.run(engine.send_weights((walked.append(name) or (name, tensor)) for name, tensor in tensors.items()))
    thread.join(60)
    assert walked == [*tensors, *tensors]
    assert [name for name, _ in received] == list(tensors)
    for (_, tensor), sent in zip(received, tensors.values(), strict=True):
        assert tensor.dtype == sent.dtype
        assert torch.equal(tensor, sent)
    for engine in (sender, idle, receiver):
        engine.finalize()
