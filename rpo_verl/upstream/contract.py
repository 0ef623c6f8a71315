"""What RPO takes for granted of veRL: the supported versions, every upstream name it touches, and what a process has
to have registered. When something is missing there is one error, and it says what was found, what is supported and
what to do.
"""

import importlib
import importlib.metadata
import inspect
import sys
import warnings
from dataclasses import dataclass

from packaging.specifiers import SpecifierSet

SUPPORTED_VERL = SpecifierSet("==0.9.1")

#: Name under which RPO's components stand in veRL's registries.
NAME = "rpo"

#: veRL's agent loop whose rows get prefixes; rows that name another one pass through untouched.
SINGLE_TURN = "single_turn_agent"

#: Key in the `extra_info` of a batch for the workers: its rows may share what they begin with.
SHARE_PREFIX = "rpo_share_prefix"
#: Metric of a worker's update: tokens computed of those in the rows. veRL puts `actor/` before it.
COMPUTED_SHARE = "rpo_computed_share"


_failed_registrations: list[str] = []


class ContractError(RuntimeError):
    """veRL is not what RPO was written for, or the plug-in is not loaded where it has to be."""


@dataclass(frozen=True)
class UpstreamName:
    """A name of veRL that RPO calls, overrides or wraps."""

    module: str
    name: str
    used_for: str
    parameters: tuple[str, ...] = ()
    """Parameters RPO relies on, where the name is callable."""

    sets: tuple[str, ...] = ()
    """Attributes RPO relies on that the name, an `__init__`, gives to its object."""


UPSTREAM_NAMES = (
    UpstreamName("verl.trainer.ppo.v1.trainer_base", "TRAINER_REGISTRY", "wrap the registered trainers"),
    UpstreamName("verl.trainer.ppo.v1.trainer_base", "PPOTrainer.__init__", "take over the user's components",
                 ("config",)),
    UpstreamName("verl.trainer.ppo.v1.trainer_base", "PPOTrainer.fit", "connect cache and rollout",
                 ("agent_loop_manager",)),
    UpstreamName("verl.trainer.ppo.v1.trainer_base", "PPOTrainer._compute_advantage", "shape rewards, update the cache",
                 ("batch", "metrics")),
    UpstreamName("verl.trainer.ppo.v1.trainer_base", "PPOTrainer._update_actor", "leave out rows without signal",
                 ("batch", "metrics")),
    UpstreamName("verl.trainer.ppo.v1.trainer_base", "PPOTrainer._balance_batch", "balance the rows left",
                 ("batch", "metrics", "logging_prefix")),
    UpstreamName("verl.trainer.ppo.v1.trainer_base", "PPOTrainer._save_checkpoint", "save the cache with it"),
    UpstreamName("verl.trainer.ppo.v1.trainer_base", "PPOTrainer._load_checkpoint", "load the cache with it"),
    UpstreamName("verl.trainer.ppo.v1.trainer_base", "PPOTrainer._dump_generations", "dump rollouts",
                 ("reward_extra_infos_dict", "dump_path")),
    UpstreamName("verl.trainer.ppo.v1.trainer_base", "PPOTrainer._compute_metrics", "report generated tokens",
                 ("batch", "metrics", "timing_raw")),
    UpstreamName("verl.trainer.ppo.v1.trainer_base", "PPOTrainer._get_n_gpus_for_throughput", "report throughput"),
    UpstreamName("verl.utils.debug", "marked_timer", "time the saving of the cache", ("name", "timing_raw")),
    UpstreamName("verl.utils.checkpoint.checkpoint_manager", "find_latest_ckpt_path", "find the cache to resume with",
                 ("path",)),
    UpstreamName("verl.trainer.ppo.v1.agent_loop_tq", "AgentLoopManagerTQ.generate_sequences", "inject prefixes",
                 ("prompts",)),
    UpstreamName("verl.trainer.ppo.v1.replay_buffer", "ReplayBuffer.__init__",
                 "shorten the poll interval, filter by shaped rewards", ("poll_interval",),
                 ("partitions", "finished_keys", "filter_groups_metric", "prompt_global_steps",
                  "_dapo_classification_cache")),
    UpstreamName("verl.experimental.reward_loop.reward_loop", "RewardLoopManager.__init__",
                 "lay out scores as the user's manager does", (), ("reward_manager_cls",)),
    UpstreamName("verl.trainer.ppo.v1.replay_buffer", "ReplayBuffer._dapo_filtered_keys", "filter by shaped rewards",
                 ("partition_id",)),
    UpstreamName("verl.trainer.ppo.v1.replay_buffer", "ReplayBuffer._clear_groups", "learn from groups left out",
                 ("partition_id", "uids")),
    UpstreamName("verl.trainer.ppo.v1.replay_buffer", "ReplayBuffer._terminal_eviction_reasons",
                 "limit how many groups a step leaves out", ("global_steps", "partition_id")),
    UpstreamName("verl.trainer.ppo.v1.replay_buffer", "ReplayBuffer._select_prompt_uids", "prefer groups with a signal",
                 ("partition_id", "sampleable_keys", "batch_size")),
    UpstreamName("verl.trainer.ppo.v1.trainer_base", "PPOTrainer._build_replay_buffer", "watch groups"),
    UpstreamName("verl.trainer.ppo.v1.utils", "compute_advantage_for_multi_trajectories", "reach the estimator"),
    UpstreamName("verl.experimental.agent_loop.agent_loop", "_agent_loop_registry", "register the agent loop"),
    UpstreamName("verl.experimental.agent_loop.agent_loop", "AgentLoopOutput", "return prefix and suffix"),
    UpstreamName("verl.experimental.agent_loop.agent_loop", "AgentLoopBase.ct_build_initial_tokens",
                 "put the prefix behind the question", ("messages",)),
    UpstreamName("verl.experimental.agent_loop.agent_loop", "AgentLoopManager.__init__", "look into the workers", (),
                 ("rollout_config", "reward_loop_worker_handles")),
    UpstreamName("verl.experimental.agent_loop.single_turn_agent_loop", "SingleTurnAgentLoop.run",
                 "run the rollout", ("sampling_params", "priority", "kwargs")),
    UpstreamName("verl.utils.tokenizer.continuous_token_wiring", "create_continuous_token_builder",
                 "tokenize questions as the rollout does", ("tokenizer", "hf_model_type", "chat_template_kwargs")),
    UpstreamName("verl.experimental.reward_loop.reward_manager.registry", "register", "register the reward manager",
                 ("name",)),
    UpstreamName("verl.experimental.reward_loop.reward_manager.registry", "REWARD_MANAGER",
                 "see that the reward manager is registered"),
    UpstreamName("verl.experimental.reward_loop.reward_manager.base", "RewardManagerBase.run_single",
                 "wrap the user's reward", ("data",)),
    UpstreamName("verl.trainer.ppo.reward", "load_reward_manager", "build the user's reward manager",
                 ("config", "tokenizer")),
    UpstreamName("verl.trainer.ppo.reward", "resolve_reward_manager_cls", "lay out scores as the user's manager does",
                 ("config",)),
    UpstreamName("verl.trainer.ppo.core_algos", "register_adv_est", "register the estimator", ("name_or_enum",)),
    UpstreamName("verl.trainer.ppo.core_algos", "ADV_ESTIMATOR_REGISTRY", "see that the estimator is registered"),
    UpstreamName("verl.trainer.ppo.core_algos", "get_adv_estimator_fn", "call the user's estimator", ("name_or_enum",)),
    UpstreamName("verl.trainer.ppo.v1.trainer_base", "PPOTrainer._init_tokenizer", "learn where answers end"),
    UpstreamName("verl.utils.model", "get_generation_config", "learn where answers end", ("model",)),
    UpstreamName("verl.utils.fs", "copy_to_local", "read the generation config"),
    UpstreamName("verl.utils.tensordict_utils", "get_tensordict", "write fields back"),
    # What sharing prefixes in log-probabilities and update takes.
    UpstreamName("verl.trainer.ppo.v1.trainer_base", "PPOTrainer._compute_old_log_prob", "share prefixes",
                 ("batch", "metrics")),
    UpstreamName("verl.trainer.ppo.v1.trainer_base", "PPOTrainer._compute_ref_log_prob", "share prefixes",
                 ("batch", "metrics")),
    UpstreamName("verl.workers.engine", "EngineRegistry._engines", "put the sharing over the engines"),
    UpstreamName("verl.workers.engine.fsdp", "FSDPEngineWithLMHead.forward_backward_batch", "keep groups together",
                 ("data", "loss_function", "forward_only")),
    UpstreamName("verl.utils.tensordict_utils", "assign_non_tensor", "say how large micro-batches are",
                 ("tensor_dict",)),
    UpstreamName("verl.utils.device", "get_device_id", "have ranks agree on a size"),
    UpstreamName("verl.workers.engine.fsdp", "FSDPEngineWithLMHead.forward_step", "say how much is shared",
                 ("micro_batch", "loss_function", "forward_only")),
    UpstreamName("verl.workers.engine.fsdp", "FSDPEngineWithLMHead.prepare_model_inputs", "pack rows",
                 ("micro_batch",)),
    UpstreamName("verl.workers.engine.fsdp", "FSDPEngineWithLMHead.prepare_model_outputs", "unpack what comes out",
                 ("output", "output_args", "micro_batch", "logits_processor_func")),
    UpstreamName("verl.utils.tensordict_utils", "get_non_tensor_data", "see that rows may be packed",
                 ("data", "key", "default")),
    UpstreamName("verl.utils.torch_functional", "logprobs_from_logits", "log-probabilities of packed rows",
                 ("logits", "labels", "inplace_backward")),
    # The CPU platform's.
    UpstreamName("verl.plugin.platform", "PlatformBase", "be a platform"),
    UpstreamName("verl.plugin.platform", "PlatformRegistry.register", "be found as a platform", ("platform",)),
    UpstreamName("verl.utils.distributed", "initialize_global_process_group_ray", "collectives over gloo",
                 ("timeout_second", "backend")),
    UpstreamName("verl.checkpoint_engine.base", "CheckpointEngineRegistry.register", "weights over TCP", ("backend",)),
    UpstreamName("verl.checkpoint_engine.base", "CheckpointEngine.receive_weights", "weights over TCP",
                 ("global_steps",)),
    UpstreamName("verl.checkpoint_engine.base", "CheckpointEngine.build_topology", "weights over TCP",
                 ("actor_wg_world_size", "rollout_world_size", "metadata")),
)  # fmt: skip


def require_supported_verl() -> None:
    """Raises ContractError if the installed veRL is outside the supported range."""
    try:
        found = importlib.metadata.version("verl")
    except importlib.metadata.PackageNotFoundError:
        found = "none"
    if found == "none" or not SUPPORTED_VERL.contains(found, prereleases=True):
        raise ContractError(
            f"rpo_verl: found verl {found}; RPO supports verl{SUPPORTED_VERL}. "
            f"Install a supported version (pip install 'verl{SUPPORTED_VERL}'), or train without RPO by leaving out "
            "every rpo override."
        )


def missing_upstream_names() -> list[str]:
    """One line for every upstream name that is gone or lacks a parameter; empty if veRL is as expected.

    Imports the trainer modules of veRL (seconds, hundreds of MB): for the trainer's process and for tests.
    """
    problems = []
    for upstream in UPSTREAM_NAMES:
        target = f"{upstream.module}.{upstream.name}"
        try:
            found = importlib.import_module(upstream.module)
            for part in upstream.name.split("."):
                found = getattr(found, part)
        except (ImportError, AttributeError) as error:
            problems.append(f"{target} is gone ({error}); used to {upstream.used_for}")
            continue
        if upstream.parameters:
            parameters = inspect.signature(inspect.unwrap(found)).parameters
            absent = [name for name in upstream.parameters if name not in parameters]
            if absent:
                problems.append(f"{target} lost the parameters {absent}; used to {upstream.used_for}")
        absent = [name for name in upstream.sets if name not in inspect.unwrap(found).__code__.co_names]
        if absent:
            problems.append(f"{target} no longer sets {absent}; used to {upstream.used_for}")
    return problems


def require_upstream_names() -> None:
    """Raises ContractError with the list of upstream names that are missing."""
    problems = missing_upstream_names()
    if problems:
        found = importlib.metadata.version("verl")
        raise ContractError(
            f"rpo_verl: verl {found} lacks what RPO uses (supported: verl{SUPPORTED_VERL}):\n  " + "\n  ".join(problems)
        )


def registration_failed(module: str, error: Exception) -> None:
    """Remember that registering a component with `module` failed in this process, and warn."""
    _failed_registrations.append(f"{type(error).__name__} while registering with {module}: {error}")
    warnings.warn(f"rpo_verl is out of order in this process: {_failed_registrations[-1]}", stacklevel=2)


def unregistered_components() -> list[str]:
    """The RPO components that this process should have registered by now, and has not.

    A registry counts once its module has been imported here; a process that never touches it has nothing to register.
    """
    registries = (
        ("verl.experimental.agent_loop.agent_loop", "_agent_loop_registry", "agent loop"),
        ("verl.experimental.reward_loop.reward_manager.registry", "REWARD_MANAGER", "reward manager"),
        ("verl.trainer.ppo.core_algos", "ADV_ESTIMATOR_REGISTRY", "advantage estimator"),
    )
    return _failed_registrations + [
        f"{component} {NAME!r}"
        for module, registry, component in registries
        if module in sys.modules and NAME not in getattr(sys.modules[module], registry)
    ]


def unregistered_in_worker(worker: object) -> list[str]:
    """`unregistered_components` in the process of a Ray actor, for its `__ray_call__`."""
    return unregistered_components()


def plugin_not_loaded(where: str, details: str) -> ContractError:
    """The error for a process in which the plug-in is missing or only half there."""
    return ContractError(
        f"rpo_verl: the plug-in is not loaded in {where} ({details}). RPO needs the package rpo-verl, at one version, "
        "in the environment of every node, and veRL's plug-in discovery switched on: VERL_USE_EXTERNAL_PLUGINS unset, "
        "'auto', or a list with 'rpo_verl'. Or train without RPO by leaving out every rpo override."
    )


def main() -> None:
    """Hold the table against the veRL on the path (`python -m rpo_verl.upstream.contract`); status 1 if it moved."""
    found, problems = importlib.metadata.version("verl"), missing_upstream_names()
    print(f"verl {found}: {len(UPSTREAM_NAMES) - len(problems)} of {len(UPSTREAM_NAMES)} upstream names as expected")
    if problems:
        raise SystemExit("\n".join(problems))


if __name__ == "__main__":
    main()
