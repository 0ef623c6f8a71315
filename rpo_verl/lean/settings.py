"""Which settings of veRL the lean layer cannot run with."""

from omegaconf import DictConfig, OmegaConf

from rpo_verl.config import ConfigError, out_of_range, refuse
from rpo_verl.lean.options import LeanConfig
from rpo_verl.upstream.settings import read_options, whole_number

ACTOR, MODEL = "actor_rollout_ref.actor", "actor_rollout_ref.model"
#: Setting → values under which the members of a group are neighbours in one micro-batch of veRL's FSDP engine.
SHARING_NEEDS = {
    f"{ACTOR}.strategy": ("fsdp", "fsdp2"),
    f"{ACTOR}.ulysses_sequence_parallel_size": (1,),
    f"{ACTOR}.fsdp_config.ulysses_sequence_parallel_size": (1,),
    f"{ACTOR}.fsdp_config.pad_to_length": (False,),
    f"{MODEL}.use_fused_kernels": (False,),
    f"{ACTOR}.calculate_sum_pi_squared": (False,),
    "distillation.enabled": (False,),
    # Spreads a group over micro-batches.
    f"{ACTOR}.shuffle": (False,),
}


def check(config: DictConfig) -> None:
    """Raises ConfigError for options that are unsound, or that rule out another setting of veRL."""
    options = read_options(config, "lean")
    refuse(list(out_of_range(options, "lean")))
    _check_subset(config, options)
    if not options.share_prefix:
        return
    for key, possible in SHARING_NEEDS.items():
        value = OmegaConf.select(config, key)
        if value is not None and value not in possible:
            raise ConfigError(
                f"lean.share_prefix=True with {key}={value}: prefixes are shared within a micro-batch of veRL's FSDP "
                f"engine, where the rows of a group are neighbours. Set {key}={possible[0]}, or "
                "lean.share_prefix=false."
            )


def _check_subset(config: DictConfig, options: LeanConfig) -> None:
    rows, group_size = options.rows_per_group, whole_number(config, "actor_rollout_ref.rollout.n")
    if rows is None:
        return
    if rows > group_size:
        raise ConfigError(
            f"lean.rows_per_group={rows} with actor_rollout_ref.rollout.n={group_size}: a group has not so many rows. "
            "Choose fewer, or null for all."
        )
    if (estimator := config.algorithm.adv_estimator) != "grpo":
        raise ConfigError(
            f"lean.rows_per_group={rows} with algorithm.adv_estimator={estimator}: advantages within a part of a group "
            "are known for grpo alone. Use it, or lean.rows_per_group=null."
        )
