"""The `cpu` platform: veRL's device abstraction answered by the host's own processor.

It is chosen by `VERL_PLATFORM=cpu` alone. `is_platform_available` says no to auto-detection, because a head node
without a GPU must not turn a GPU cluster into a CPU one.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import psutil
import torch
from verl.plugin.platform import PlatformBase, PlatformRegistry


def _device_module() -> ModuleType:
    """`torch.cpu` plus what veRL asks of `torch.cuda` and the CPU has another name, or no use, for.

    Memory figures are the process's resident set (bytes), free and total memory the host's.
    """
    module = ModuleType("rpo_verl.cpu.device", "torch.cpu, completed to the part of torch.cuda that veRL calls")
    module.__dict__.update({name: getattr(torch.cpu, name) for name in torch.cpu.__all__})

    def resident_bytes(*_: Any) -> int:
        return psutil.Process().memory_info().rss

    def mem_get_info(*_: Any) -> tuple[int, int]:
        memory = psutil.virtual_memory()
        return memory.available, memory.total

    def nothing(*_: Any) -> None:
        """Caches, IPC handles and peak counters do not exist on the CPU."""

    module.__dict__.update(
        memory_allocated=resident_bytes,
        max_memory_allocated=resident_bytes,
        memory_reserved=resident_bytes,
        max_memory_reserved=resident_bytes,
        mem_get_info=mem_get_info,
        reset_peak_memory_stats=nothing,
        empty_cache=nothing,
        ipc_collect=nothing,
        get_rng_state=lambda *_: torch.get_rng_state(),
        set_rng_state=lambda state, *_: torch.set_rng_state(state),
        manual_seed=torch.manual_seed,
        manual_seed_all=torch.manual_seed,
        get_device_name=lambda *_: "cpu",
        current_device=lambda: "cpu",
    )
    return module


@PlatformRegistry.register(platform="cpu")
class PlatformCPU(PlatformBase):
    """One logical device per Ray `GPU` resource, computed by the host's cores; collectives over gloo.

    The Ray resource keeps the name `GPU` so that veRL's placement groups work unchanged; the `platform=cpu` Hydra
    group tells Ray how many of these logical devices there are.
    """

    _module = _device_module()

    @property
    def device_name(self) -> str:
        return "cpu"

    @property
    def vendor_name(self) -> str:
        return "cpu"

    @property
    def device_module(self) -> ModuleType:
        return self._module

    def is_available(self) -> bool:
        return True

    def is_platform_available(self, use_smi_check: bool = False) -> bool:
        """Opt-in only: never the answer to auto-detection."""
        return os.environ.get("VERL_PLATFORM", "").strip().lower() == "cpu"

    def current_device(self) -> str:
        return "cpu"

    def device_count(self) -> int:
        return 1

    def set_device(self, device_index: int) -> None:
        """The CPU is the only device there is."""

    def synchronize(self, device_index: int | None = None) -> None:
        """CPU work is synchronous."""

    def manual_seed(self, seed: int) -> None:
        torch.manual_seed(seed)

    def manual_seed_all(self, seed: int) -> None:
        torch.manual_seed(seed)

    def set_allocator_settings(self, settings: str) -> None:
        """The CPU allocator has no such settings."""

    def empty_cache(self) -> None:
        """The CPU allocator keeps no cache."""

    def get_device_capability(self, device_index: int = 0) -> tuple[int | None, int | None]:
        return None, None

    def communication_backend_name(self) -> str:
        return "gloo"

    def visible_devices_envvar(self) -> str:
        return "CUDA_VISIBLE_DEVICES"

    @contextmanager
    def nvtx_range(self, msg: str) -> Iterator[None]:
        yield

    def profiler_start(self) -> None:
        """No device profiler."""

    def profiler_stop(self) -> None:
        """No device profiler."""

    def ray_resource_name(self) -> str:
        return "GPU"

    def ray_noset_envvars(self) -> list[str]:
        return ["RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES"]

    def is_ipc_supported(self) -> bool:
        """No device IPC: weights travel from FSDP to vLLM through shared memory."""
        return False

    def cudart(self) -> None:
        return None
