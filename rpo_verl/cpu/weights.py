"""Weights from a trainer to rollout servers of their own, where there is neither NCCL nor NIXL.

`trainer_mode=separate_async` cannot do without such a transfer. veRL imports this module by
`actor_rollout_ref.rollout.checkpoint_engine.custom_backend_module`, which the `platform=cpu` group sets.
"""

from collections.abc import AsyncIterator, Iterator
from datetime import timedelta
from typing import Any

import ray
import torch
from safetensors.torch import load, save
from torch.distributed import TCPStore
from verl.checkpoint_engine.base import CheckpointEngine, CheckpointEngineRegistry

#: What a receiver waits for a tensor at most.
TIMEOUT = timedelta(minutes=10)
_END = b"end"


@CheckpointEngineRegistry.register("tcp_store")
class TCPStoreWeights(CheckpointEngine):
    """The trainer's first worker puts one tensor after the other into a `TCPStore`, from which all servers take them.

    Every transfer has a store of its own. Made for small models: the whole model passes through the host's memory.
    Not over libuv, whose server takes no more than 8 MiB at once.

    Args:
        bucket_size: veRL's, not used.
        is_master: whether this worker sends.
    """

    def __init__(self, bucket_size: int, is_master: bool = False) -> None:
        self.is_master = is_master
        self._store: TCPStore | None = None

    def prepare(self) -> tuple[str, int] | None:
        """Address and port of the sender's store; None elsewhere."""
        if not self.is_master:
            return None
        host = ray.util.get_node_ip_address()
        self._store = TCPStore(host, 0, is_master=True, wait_for_workers=False, timeout=TIMEOUT, use_libuv=False)
        return host, self._store.port

    @classmethod
    def build_topology(
        cls, actor_wg_world_size: int, rollout_world_size: int, metadata: list[Any]
    ) -> tuple[dict[str, list[Any]], dict[str, list[Any]]]:
        """Only the servers connect; the trainer's other workers have nothing to send."""
        return {"endpoint": [None] * actor_wg_world_size}, {"endpoint": [metadata[0]] * rollout_world_size}

    def init_process_group(self, endpoint: tuple[str, int] | None) -> None:
        """Connect to the sender's store."""
        if endpoint is not None:
            host, port = endpoint
            self._store = TCPStore(host, port, is_master=False, timeout=TIMEOUT, use_libuv=False)

    def finalize(self) -> None:
        """Close the store, and with it free what it held."""
        self._store = None

    async def send_weights(self, weights: Iterator[tuple[str, torch.Tensor]], global_steps: int | None = None) -> None:
        """Send all tensors, in order. Workers that do not send walk through them too: gathering one is collective."""
        number = 0
        for name, tensor in weights:
            if self.is_master:
                self._store.set(str(number), save({name: tensor.detach().cpu().contiguous()}))
                number += 1
        if self.is_master:
            self._store.set(str(number), _END)

    async def receive_weights(self, global_steps: int | None = None) -> AsyncIterator[tuple[str, torch.Tensor]]:
        """Name and tensor, in the order they are sent."""
        number = 0
        while (payload := self._store.get(str(number))) != _END:
            for name, tensor in load(payload).items():
                yield name, tensor
            number += 1
