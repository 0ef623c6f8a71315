"""The table of upstream names: every name of veRL, vLLM, TransferQueue and Ray's internals that this package uses.

A trainer checks it before it trains; a test checks that it is complete. Where veRL has moved there is one error, and
it says what was found, what is supported and what to do.
"""

import importlib
import importlib.metadata
import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from types import CodeType

from packaging.specifiers import SpecifierSet

SUPPORTED_VERL = SpecifierSet("==0.9.1")


class ContractError(RuntimeError):
    """veRL is not what this package was written for, or the plug-in is not loaded where it has to be."""


@dataclass(frozen=True)
class UpstreamName:
    """A name that this package calls, overrides or wraps."""

    module: str
    name: str
    used_for: str
    parameters: tuple[str, ...] = ()
    """Parameters relied on, where the name is callable."""

    sets: tuple[str, ...] = ()
    """Attributes relied on that the name, a method, gives to its object."""

    at_start: bool = True
    """Whether a trainer checks the name before it trains. Tests check those of vLLM, whose import takes seconds."""


def _of(module: str, *rows: tuple[str, ...], at_start: bool = True) -> Iterator[UpstreamName]:
    """Names of one module: name, what it is used for, parameters, attributes it sets; the last two with spaces."""
    for name, used_for, *lists in rows:
        parameters, sets = (tuple(text.split()) for text in (*lists, "", "")[:2])
        yield UpstreamName(module, name, used_for, parameters, sets, at_start)


UPSTREAM_NAMES = (
    # The trainers.
    *_of("verl.trainer.ppo.v1.trainer_base",
        ("TRAINER_REGISTRY", "wrap the registered trainers"),
        ("PPOTrainer.__init__", "add mixins", "config", "config parameter_sync_step use_reference_policy"),
        ("PPOTrainer._setup", "reach workers and managers", "",
         "actor_rollout_wg ref_policy_wg reward_loop_manager llm_server_manager"),
        ("PPOTrainer.on_train_begin", "sample with R²PO's head"),
        ("PPOTrainer.on_validate_begin", "validate without R²PO's head"),
        ("PPOTrainer.on_validate_end", "sample with R²PO's head again"),
        ("PPOTrainer.fit", "connect cache and rollout", "agent_loop_manager", "timing_raw"),
        ("PPOTrainer._init_tokenizer", "learn the tokens of questions and where answers end", "",
         "tokenizer processor"),
        ("PPOTrainer._init_dataloader", "know the length of an epoch", "", "steps_per_epoch"),
        ("PPOTrainer._build_replay_buffer", "shorten the poll interval, watch groups"),
        ("PPOTrainer._compute_advantage", "shape rewards, write credit, update the cache", "batch metrics"),
        ("PPOTrainer._compute_old_log_prob", "share prefixes", "batch metrics"),
        ("PPOTrainer._compute_ref_log_prob", "share prefixes", "batch metrics"),
        ("PPOTrainer._update_actor", "skip zero-advantage rows, train R²PO's head", "batch metrics"),
        ("PPOTrainer._balance_batch", "keep groups together", "batch metrics logging_prefix"),
        ("PPOTrainer._save_checkpoint", "save the cache with it"),
        ("PPOTrainer._load_checkpoint", "load the cache with it", "", "global_steps"),
        ("PPOTrainer._dump_generations", "dump rollouts", "reward_extra_infos_dict dump_path"),
        ("PPOTrainer._compute_metrics", "report generated tokens", "batch metrics timing_raw"),
        ("PPOTrainer._get_n_gpus_for_throughput", "report throughput")),
    *_of("verl.single_controller.base.worker_group",
        ("WorkerGroup.__init__", "count the ranks of the actor", "", "_dispatch_info")),
    *_of("verl.utils.config",
        ("validate_config", "find what veRL refuses", "config use_reference_policy use_critic")),
    *_of("verl.trainer.ppo.utils",
        ("need_critic", "find what veRL refuses", "config"),
        ("need_reference_policy", "find what veRL refuses", "config")),
    *_of("verl.utils.debug", ("marked_timer", "time the saving of the cache", "name timing_raw")),
    *_of("verl.utils.checkpoint.checkpoint_manager",
        ("find_latest_ckpt_path", "find the cache to resume with", "path")),
    *_of("verl.utils.seqlen_balancing",
        ("log_seqlen_unbalance", "report how the smaller update is balanced", "seqlen_list partitions prefix")),
    # The replay buffer.
    *_of("verl.trainer.ppo.v1.replay_buffer",
        ("ReplayBuffer.__init__", "shorten the poll interval, filter by shaped rewards", "poll_interval",
         "partitions finished_keys failure_keys filter_groups_metric prompt_global_steps _dapo_classification_cache"),
        ("ReplayBuffer._dapo_filtered_keys", "filter by shaped rewards", "partition_id"),
        ("ReplayBuffer._clear_groups", "learn from discarded groups", "partition_id uids"),
        ("ReplayBuffer._terminal_eviction_reasons", "limit how many groups a step discards",
         "global_steps partition_id"),
        ("ReplayBuffer._select_prompt_uids", "prefer groups with a signal", "partition_id sampleable_keys batch_size")),
    # The queue.
    *_of("transfer_queue",
        ("kv_batch_get", "read rows", "keys partition_id select_fields"),
        ("kv_batch_put", "write fields back", "keys partition_id fields"),
        ("KVBatchMeta", "handle a batch of rows", "keys tags partition_id extra_info"),
        ("KVBatchMeta.select_keys", "skip rows", "keys_to_select"),
        ("KVBatchMeta.reorder", "keep groups together", "indexes")),
    # Rollouts.
    *_of("verl.trainer.ppo.v1.agent_loop_tq",
        ("AgentLoopManagerTQ.generate_sequences", "prepare training rows", "prompts")),
    *_of("verl.experimental.agent_loop.agent_loop",
        ("AgentLoopManager.__init__", "look into the workers", "", "reward_loop_worker_handles"),
        ("AgentLoopManager._init_agent_loop_workers", "look into the workers", "", "agent_loop_workers"),
        ("_agent_loop_registry", "register agent loops"),
        ("AgentLoopOutput", "return prefix and suffix"),
        ("AgentLoopBase.ct_build_initial_tokens", "put the prefix behind the question", "messages")),
    *_of("verl.experimental.agent_loop.single_turn_agent_loop",
        ("SingleTurnAgentLoop.run", "run the rollout", "sampling_params priority kwargs")),
    *_of("verl.utils.tokenizer.continuous_token_wiring",
        ("create_continuous_token_builder", "tokenize questions as the rollout does",
         "tokenizer hf_model_type chat_template_kwargs")),
    *_of("verl.utils.tokenizer", ("hf_tokenizer", "load the tokenizer as veRL does", "name_or_path")),
    *_of("verl.utils.model", ("get_generation_config", "learn where answers end", "model")),
    *_of("verl.utils.fs", ("copy_to_local", "read model files")),
    *_of("ray.actor", ("_modify_class", "look into the workers", "", "__ray_call__")),
    # Rewards and advantages.
    *_of("verl.experimental.reward_loop.reward_loop",
        ("RewardLoopManager.reward_loop_worker_handles", "learn why rewards failed"),
        ("RewardLoopManager.__init__", "lay out scores as the user's manager does", "", "reward_manager_cls")),
    *_of("verl.experimental.reward_loop.reward_manager.registry",
        ("register", "register the reward manager", "name"),
        ("REWARD_MANAGER", "see that the reward manager is registered")),
    *_of("verl.experimental.reward_loop.reward_manager.base",
        ("RewardManagerBase.run_single", "wrap the user's reward", "data")),
    *_of("verl", ("DataProto", "read the row to reward")),
    *_of("verl.trainer.ppo.reward",
        ("load_reward_manager", "build the user's reward manager", "config tokenizer"),
        ("resolve_reward_manager_cls", "lay out scores as the user's manager does", "config")),
    *_of("verl.trainer.ppo.core_algos",
        ("register_adv_est", "register the estimator", "name_or_enum"),
        ("ADV_ESTIMATOR_REGISTRY", "see that the estimator is registered"),
        ("get_adv_estimator_fn", "call the user's estimator", "name_or_enum"),
        ("register_policy_loss", "register MinPRO", "name"),
        ("get_policy_loss_fn", "build MinPRO on veRL's loss", "name")),
    *_of("verl.trainer.ppo.v1.utils", ("compute_advantage_for_multi_trajectories", "reach the estimator")),
    # R²PO's head in the rollout servers.
    *_of("verl.workers.rollout.llm_server", ("LLMServerManager.get_replicas", "switch R²PO's head")),
    *_of("verl.workers.rollout.replica", ("RolloutReplica.__init__", "switch R²PO's head", "", "servers")),
    # Shared prefixes in log-probabilities and update, and R²PO's head in the engines.
    *_of("verl.single_controller.ray.base",
        ("RayWorkerGroup.workers", "reach the actor workers"),
        ("create_colocated_worker_cls", "reach workers that share a process", "", "worker_dict")),
    *_of("verl.workers.engine_workers",
        ("ActorRolloutRefWorker.init_model", "reach the engines", "", "actor ref"),
        ("TrainingWorker.__init__", "reach the engines", "", "engine")),
    *_of("verl.workers.engine.fsdp",
        ("FSDPEngineWithLMHead", "put mixins over the engines"),
        ("FSDPEngineWithLMHead.__init__", "be configured", "",
         "engine_config compute_entropy_from_logits rank"),
        ("FSDPEngineWithLMHead.initialize", "reach the model", "", "module"),
        ("FSDPEngineWithLMHead.train_batch", "train R²PO's head", "data loss_function"),
        ("FSDPEngineWithLMHead.eval_mode", "train R²PO's head without dropout"),
        ("FSDPEngineWithLMHead.lr_scheduler_step", "leave the policy's learning rate alone in stage 1"),
        ("FSDPEngineWithLMHead.get_per_tensor_param", "send R²PO's head to the rollout servers"),
        ("FSDPEngineWithLMHead.save_checkpoint", "save R²PO's head", "local_path"),
        ("FSDPEngineWithLMHead.load_checkpoint", "load R²PO's head", "local_path"),
        ("FSDPEngineWithLMHead.forward_backward_batch", "keep groups together", "data loss_function forward_only"),
        ("FSDPEngineWithLMHead.forward_step", "report computed tokens", "micro_batch loss_function forward_only"),
        ("FSDPEngineWithLMHead.get_data_parallel_group", "agree on micro-batches"),
        ("FSDPEngineWithLMHead.prepare_model_inputs", "pack rows", "micro_batch"),
        ("FSDPEngineWithLMHead.prepare_model_outputs", "unpack outputs",
         "output output_args micro_batch logits_processor_func")),
    *_of("verl.utils.tensordict_utils",
        ("assign_non_tensor", "say how large micro-batches are", "tensor_dict"),
        ("get_non_tensor_data", "see that rows may be packed", "data key default")),
    *_of("verl.utils.device", ("get_device_id", "agree on micro-batches")),
    *_of("verl.utils.torch_functional",
        ("logprobs_from_logits", "log-probabilities of packed rows", "logits labels inplace_backward")),
    # The CPU platform.
    *_of("verl.plugin.platform",
        ("PlatformBase", "be a platform"),
        ("PlatformRegistry.register", "be found as a platform", "platform")),
    *_of("verl.utils.distributed",
        ("initialize_global_process_group_ray", "collectives over gloo", "timeout_second backend")),
    *_of("verl.workers.engine.fsdp.transformer_impl",
        ("CPUOffloadPolicy", "leave the reference model unpinned", "pin_memory")),
    *_of("verl.checkpoint_engine.base",
        ("CheckpointEngineRegistry.register", "weights over TCP", "backend"),
        ("CheckpointEngine.receive_weights", "weights over TCP", "global_steps"),
        ("CheckpointEngine.build_topology", "weights over TCP", "actor_wg_world_size rollout_world_size metadata")),
    # vLLM, in its own processes and offline.
    *_of("vllm",
        ("LLM", "generate offline", "model"),
        ("SamplingParams", "generate offline", "temperature top_p top_k max_tokens seed"), at_start=False),
    *_of("vllm.sampling_params", ("RequestOutputKind", "generate offline"), at_start=False),
    *_of("verl.workers.rollout.vllm_rollout.vllm_async_server",
        ("vLLMHttpServer.__init__", "tell trainings on one machine apart"), at_start=False),
    *_of("verl.workers.rollout.vllm_rollout.vllm_rollout",
        ("ServerAdapter.__init__", "tell trainings on one machine apart", "", "zmq_handle"), at_start=False),
    *_of("verl.model_merger.__main__", ("main", "merge the shards of a checkpoint"), at_start=False),
    *_of("verl.trainer.config", ("AlgoConfig", "compose the configuration in the doctor")),
    *_of("verl.workers.rollout.vllm_rollout.utils",
        ("vLLMColocateWorkerExtension.monkey_patch_model", "add R²PO's head to the logits",
         "vocab_size banned_token_ids"),
        ("vLLMColocateWorkerExtension._update_weights", "receive R²PO's head", "weights peft_config base_sync_done"),
        ("vLLMColocateWorkerExtension.update_weights_from_ipc", "receive R²PO's head", "",
         "device model_runner _update_weights"), at_start=False),
    *_of("verl.workers.rollout.vllm_rollout.vllm_async_server",
        ("vLLMHttpServer.collective_rpc", "switch R²PO's head", "method args"), at_start=False),
    *_of("vllm.v1.worker.gpu_model_runner",
        ("GPUModelRunner._get_prompt_logprobs_dict", "read prompts without R²PO's head"), at_start=False),
    *_of("vllm.v1.worker.gpu.sample.prompt_logprob",
        ("PromptLogprobsWorker.compute_prompt_logprobs", "read prompts without R²PO's head"), at_start=False),
    *_of("vllm.v1.worker.gpu.model_runner",
        ("GPUModelRunner.__init__", "read prompts without R²PO's head", "", "prompt_logprobs_worker"), at_start=False),
    *_of("vllm.model_executor.layers.utils",
        ("dispatch_cpu_unquantized_gemm", "keep weights unpacked on the CPU"), at_start=False),
    *_of("vllm.v1.worker.cpu_model_runner", ("CPUModelRunner.sample_tokens", "keep seeds on the CPU"), at_start=False),
)  # fmt: skip


def require_supported_verl() -> None:
    """Raises ContractError if the installed veRL is outside the supported range."""
    try:
        found = importlib.metadata.version("verl")
    except importlib.metadata.PackageNotFoundError:
        found = "none"
    if found == "none" or not SUPPORTED_VERL.contains(found, prereleases=True):
        raise ContractError(
            f"rpo_verl: found verl {found}; this package supports verl{SUPPORTED_VERL}. Install a supported version "
            f"(pip install 'verl{SUPPORTED_VERL}'), or train without it: remove the overrides of rpo, r2po and lean."
        )


def missing_upstream_names(everything: bool = False) -> list[str]:
    """Describe every upstream name that is gone or lacks a parameter, a line each; empty if veRL is as expected.

    Imports the trainer modules of veRL (seconds, hundreds of MB): for the trainer's process and for tests.

    Args:
        everything: whether to look at names that a trainer does not check at its start, too.
    """
    problems = []
    for upstream in UPSTREAM_NAMES:
        if not (upstream.at_start or everything):
            continue
        target = f"{upstream.module}.{upstream.name}"
        try:
            found = importlib.import_module(upstream.module)
            for part in upstream.name.split("."):
                found = getattr(found, part)
        except (ImportError, AttributeError, ValueError) as error:
            problems.append(f"{target} is gone ({error}); used to {upstream.used_for}")
            continue
        if upstream.parameters:
            parameters = inspect.signature(inspect.unwrap(found)).parameters
            absent = [name for name in upstream.parameters if name not in parameters]
            if absent:
                problems.append(f"{target} lost the parameters {absent}; used to {upstream.used_for}")
        absent = sorted(set(upstream.sets) - _names(inspect.unwrap(found).__code__)) if upstream.sets else []
        if absent:
            problems.append(f"{target} no longer sets {absent}; used to {upstream.used_for}")
    return problems


def _names(code: CodeType) -> set[str]:
    """The names that a function uses or defines, those of functions within it included."""
    inner = [constant for constant in code.co_consts if isinstance(constant, CodeType)]
    return {*code.co_names, *(part.co_name for part in inner)}.union(*map(_names, inner))


def require_upstream_names() -> None:
    """Raises ContractError with the list of upstream names that are missing."""
    problems = missing_upstream_names()
    if problems:
        found = importlib.metadata.version("verl")
        raise ContractError(
            f"rpo_verl: verl {found} lacks names in use here (supported: verl{SUPPORTED_VERL}):\n  "
            + "\n  ".join(problems)
        )


def main() -> None:
    """Hold the table against the veRL on the path (`python -m rpo_verl.upstream.contract`); status 1 if it moved."""
    found, problems = importlib.metadata.version("verl"), missing_upstream_names(everything=True)
    print(f"verl {found}: {len(UPSTREAM_NAMES) - len(problems)} of {len(UPSTREAM_NAMES)} upstream names as expected")
    if problems:
        raise SystemExit("\n".join(problems))


if __name__ == "__main__":
    main()
