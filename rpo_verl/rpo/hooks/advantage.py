"""The registered advantage estimator: length-aware shaping, then the estimator the user configured."""

from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig
from verl.trainer.ppo.core_algos import get_adv_estimator_fn, register_adv_est

from rpo_verl.rpo.hooks import NAME

#: Estimators of veRL that RPO does not wrap, and why.
UNSUPPORTED = {
    "gae": "it needs a critic, whose values on prefixes nobody generated in this step would be trained on too",
    "remax": "its greedy baseline rollout would have to share the group's prefix",
    "gdpo": "it reads several reward dimensions, and shaping is defined for one",
    "optimal_token_baseline": "it weights every token of a response, also those of the prefix",
    "tir_optimal_token_baseline": "it weights every token of a response, also those of the prefix",
}


@dataclass(frozen=True)
class Shaping:
    """What the estimator has to know of the batch whose advantages veRL computes."""

    bonus: np.ndarray
    """(B,) float, `R - r` of every row."""

    last_token: np.ndarray
    """(B,) int, index of the last token of every response."""

    estimator: str
    """Name of the user's estimator."""

    final_row: np.ndarray
    """(B,) int, row of the last output of every row's session; a row of its own where sessions have one output each."""

    branches: np.ndarray | None = None
    """(B,) int, the trunk of every row's group that the row branches from; rewards are compared within a branch. None:
    no group branches."""


#: Set by the trainer around veRL's advantage computation, which has no argument for it.
SHAPING: ContextVar[Shaping] = ContextVar("rpo_shaping")


@register_adv_est(NAME)
def compute_shaped_advantage(
    token_level_rewards: torch.Tensor,
    response_mask: torch.Tensor,
    config: DictConfig,
    **kwargs: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Add `R - r` on the last token of each response, and call the user's estimator.

    Args:
        token_level_rewards: (B, T) float, base reward on the last token of the response, minus a KL penalty if any.
        response_mask: (B, T), 0 on prefix and padding, 1 on the suffix.
        config: veRL's `algorithm` section.
        kwargs: what veRL passes to estimators besides, such as the group `index`.

    Returns:
        (advantages, returns), both (B, T) float.

    Raises:
        RuntimeError: if called outside RPO's trainer.
    """
    try:
        shaping = SHAPING.get()
    except LookupError:
        raise RuntimeError(
            "algorithm.adv_estimator=rpo works only inside RPO's trainer. Select RPO with +rpo=enabled and leave "
            "algorithm.adv_estimator to the estimator RPO shall build on (grpo, rloo, …)."
        ) from None
    shaped = token_level_rewards.clone()
    rows = torch.arange(len(shaped))
    shaped[rows, torch.as_tensor(shaping.last_token)] += torch.as_tensor(shaping.bonus, dtype=shaped.dtype)
    estimator = get_adv_estimator_fn(shaping.estimator)
    if shaping.branches is not None:
        pairs = zip(kwargs["index"], shaping.branches, strict=True)
        kwargs["index"] = np.array([f"{group}/{branch}" for group, branch in pairs], dtype=object)
    if shaping.estimator != "grpo":
        return estimator(token_level_rewards=shaped, response_mask=response_mask, config=config, **kwargs)
    # What veRL does on a path of its own for GRPO, and for no registered estimator: an option, one vote a session.
    kwargs["norm_adv_by_std_in_grpo"] = config.get("norm_adv_by_std_in_grpo", True)
    finals, session = np.unique(shaping.final_row, return_inverse=True)
    final, _ = estimator(
        token_level_rewards=shaped[finals],
        response_mask=response_mask[finals],
        config=config,
        **{**kwargs, "index": kwargs["index"][finals]},
    )
    first = response_mask[finals].argmax(dim=-1)
    advantages = final[torch.arange(len(finals)), first][session].unsqueeze(-1) * response_mask
    return advantages, advantages
