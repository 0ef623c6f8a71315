"""Which settings of veRL R²PO cannot run with, each refused by name."""

import math

from omegaconf import DictConfig, OmegaConf

from rpo_verl.config import ConfigError
from rpo_verl.r2po.hooks import NAME
from rpo_verl.r2po.options import R2POConfig, validate
from rpo_verl.upstream.settings import read_options

ACTOR, MODEL, ROLLOUT = "actor_rollout_ref.actor", "actor_rollout_ref.model", "actor_rollout_ref.rollout"
CORRECTION = "algorithm.rollout_correction"
EXTENSION = "rpo_verl.r2po.hooks.vllm.RolloutHeadExtension"
WORKER_CLASS = f"{ROLLOUT}.engine_kwargs.vllm.worker_extension_cls"
#: Setting → the values that work, and why no other does.
NEEDS = {
    "trainer.v1.trainer_mode": (
        ("sync",),
        "the head's switch is one for all requests of a server, and elsewhere validation overlaps with rollouts",
    ),
    f"{ROLLOUT}.name": (("vllm",), "the head is added to vLLM's logits"),
    WORKER_CLASS: ((EXTENSION,), "this class adds the head to vLLM"),
    f"{ROLLOUT}.engine_kwargs.vllm.speculative_config": ((None,), "draft tokens would not come from the head"),
    f"{ROLLOUT}.data_parallel_size": ((1,), "the head's switch reaches one shard of a server"),
    f"{ROLLOUT}.pipeline_model_parallel_size": ((1,), "hidden states are on the last stage alone"),
    f"{ROLLOUT}.disaggregation.enabled": ((False,), "prefill and decode servers would need a switch each"),
    f"{ROLLOUT}.calculate_log_probs": ((True,), "both stages need the log-probabilities of what was sampled"),
    f"{ROLLOUT}.top_p": ((1, 1.0), "log-probabilities of a cut distribution are not the head's"),
    f"{ROLLOUT}.top_k": ((-1, 0), "log-probabilities of a cut distribution are not the head's"),
    f"{ROLLOUT}.checkpoint_engine.backend": (("naive",), "the head's weights come with veRL's own weight update"),
    f"{ACTOR}.strategy": (("fsdp", "fsdp2"), "the head hangs on veRL's FSDP engine"),
    f"{ACTOR}.ulysses_sequence_parallel_size": ((1,), "a rank would see a part of each row"),
    f"{ACTOR}.fsdp_config.ulysses_sequence_parallel_size": ((1,), "a rank would see a part of each row"),
    f"{ACTOR}.fsdp_config.pad_to_length": ((False,), "stage 1 counts through rows without padding between them"),
    f"{MODEL}.use_fused_kernels": ((False,), "they compute no logits that a residual could be added to"),
    f"{MODEL}.mtp.enable": ((False,), "draft tokens would not come from the head"),
    "distillation.enabled": ((False,), "its loss is computed from the policy's own rollouts"),
}


def check(config: DictConfig) -> R2POConfig:
    """The typed, validated `r2po` section.

    Raises:
        ConfigError: if it is unsound, or if another part of veRL's configuration rules R²PO out.
    """
    options = read_options(config, NAME)
    validate(options)
    for key, (possible, reason) in NEEDS.items():
        value = OmegaConf.select(config, key)
        if value not in possible and not (value is None and key != WORKER_CLASS):
            allowed = " or ".join("null" if one is None else str(one) for one in possible)
            raise ConfigError(f"{key}={value}: R²PO works with {allowed} alone, because {reason}.")
    temperature, mode = (OmegaConf.select(config, f"{ROLLOUT}.{name}") for name in ("temperature", "logprobs_mode"))
    if isinstance(temperature, bool) or not isinstance(temperature, int | float) or not 0 < temperature < math.inf:
        raise ConfigError(f"{ROLLOUT}.temperature={temperature}: R²PO samples, so it must be a number above 0.")
    if temperature != 1 and mode != "processed_logprobs":
        raise ConfigError(
            f"{ROLLOUT}.logprobs_mode={mode} with temperature={temperature}: the log-probabilities of what was sampled "
            "are those of another temperature. Use processed_logprobs."
        )
    _check_correction(config, options)
    return options


def _check_correction(config: DictConfig, options: R2POConfig) -> None:
    bypass, weights = (OmegaConf.select(config, f"{CORRECTION}.{name}") for name in ("bypass_mode", "rollout_is"))
    if bypass:
        raise ConfigError(
            f"{CORRECTION}.bypass_mode={bypass}: the old log-probabilities would be the head's, and PPO would clip "
            "every token that the head made likelier or rarer. Set it to False."
        )
    if weights not in (None, "token", "sequence"):
        raise ConfigError(f"{CORRECTION}.rollout_is={weights}: must be token, sequence or null")
    if options.correction == "importance" and weights is None:
        raise ConfigError(
            f"r2po.correction=importance with {CORRECTION}.rollout_is=null: nothing would correct for rollouts "
            f"that the head sampled. Set {CORRECTION}.rollout_is=token, or r2po.correction=none."
        )
    if options.correction == "none" and weights is not None:
        raise ConfigError(
            f"r2po.correction=none with {CORRECTION}.rollout_is={weights}: the weights correct. Set "
            f"{CORRECTION}.rollout_is=null, or r2po.correction=importance."
        )
