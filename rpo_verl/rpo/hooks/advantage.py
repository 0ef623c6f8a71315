"""The registered advantage estimator: length-aware shaping, the estimator the user configured, the paper's mean."""

from collections.abc import Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig
from verl.trainer.ppo.core_algos import get_adv_estimator_fn, register_adv_est

from rpo_verl.upstream import contract

#: Estimators of veRL that RPO does not wrap, and why.
UNSUPPORTED = {
    "gae": "it needs a critic, whose values on prefixes nobody generated in this step would be trained on too",
    "remax": "its greedy baseline rollout would have to share the group's prefix",
    "gdpo": "it reads several reward dimensions, and shaping is defined for one",
    "optimal_token_baseline": "it weights every token of a response, also those of the prefix",
    "tir_optimal_token_baseline": "it weights every token of a response, also those of the prefix",
}


@dataclass
class Shaping:
    """What the estimator has to know of the batch whose advantages are being computed, and what it leaves behind."""

    bonus: np.ndarray
    """(B,) float, `R - r` of every row."""

    last_token: np.ndarray
    """(B,) int, index of the last token of every response."""

    upstream: str
    """Name of the user's estimator."""

    prefix_tokens: np.ndarray
    """(B,) int, tokens of every response that the loss leaves out but its mean counts."""

    loss_agg_mode: str
    """How veRL sums up the loss of single tokens."""

    final_row: np.ndarray
    """(B,) int, row of the last output of every row's session; a row of its own where sessions have one output each."""

    weights: np.ndarray | None = None
    """(B,) float, set by the estimator: by how much it scaled every row's advantage for the mean over responses."""


#: Set by the trainer around veRL's advantage computation, which has no argument for it.
SHAPING: ContextVar[Shaping] = ContextVar("rpo_shaping")


def final_rows(keys: Sequence[str]) -> np.ndarray:
    """For every row the one that holds the last output of its session: agent loops may return several.

    Args:
        keys: (B,) veRL's `{uid}_{session}_{output}`.

    Returns:
        (B,) int.
    """
    sessions = [key.rsplit("_", 1) for key in keys]
    last: dict[str, tuple[int, int]] = {}
    for row, (session, output) in enumerate(sessions):
        last[session] = max(last.get(session, (-1, -1)), (int(output), row))
    return np.array([last[session][1] for session, _ in sessions], dtype=int)


def response_mean_weights(suffix_tokens: torch.Tensor, prefix_tokens: torch.Tensor, loss_agg_mode: str) -> torch.Tensor:
    """Factors that turn veRL's mean over suffix tokens into one over the tokens of whole responses.

    The paper's objective divides by `|o|`, prefix included; the prefix adds nothing to the sum, because the advantages
    of a group that shares it cancel. veRL divides by what `response_mask` covers, which is the suffix. The clipped
    policy losses are linear in the advantages, so a factor on them is a factor on the loss; those that select tokens by
    their covariance with the advantage (`clip_cov`, `kl_cov`) see it scaled. With several mini-batches in a step,
    `token-mean` uses the ratio of the step rather than that of each.

    Args:
        suffix_tokens: (B,) int, tokens in the loss.
        prefix_tokens: (B,) int, tokens that only the mean counts.
        loss_agg_mode: veRL's `actor.loss_agg_mode`. Modes that sum over tokens need no factor.

    Returns:
        (B, 1) float32, in [0, 1].
    """
    whole = suffix_tokens + prefix_tokens
    if loss_agg_mode == "token-mean":
        weights = (suffix_tokens.sum() / whole.sum().clamp(min=1)).expand(len(whole))
    elif loss_agg_mode == "seq-mean-token-mean":
        weights = suffix_tokens / whole.clamp(min=1)
    else:
        weights = torch.ones(len(whole))
    return weights.float().unsqueeze(-1)


def extend_to_prefix(
    mask: torch.Tensor, advantages: torch.Tensor, returns: torch.Tensor, prefix_tokens: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The paper's literal loss: the whole response counts, and its prefix has the advantage of its suffix.

    Args:
        mask: (l,) int, 0 on the prefix, 1 on the suffix.
        advantages: (l,) float, 0 on the prefix.
        returns: (l,) float, 0 on the prefix.
        prefix_tokens: tokens of the prefix; a suffix has at least one.

    Returns:
        the three of them with the prefix filled in.
    """
    mask, advantages, returns = mask.clone(), advantages.clone(), returns.clone()
    mask[:prefix_tokens] = 1
    advantages[:prefix_tokens], returns[:prefix_tokens] = advantages[prefix_tokens], returns[prefix_tokens]
    return mask, advantages, returns


@register_adv_est(contract.NAME)
def compute_shaped_advantage(
    token_level_rewards: torch.Tensor,
    response_mask: torch.Tensor,
    config: DictConfig,
    **kwargs: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Add `R - r` on the last token of each response, call the user's estimator, and take the mean over responses.

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
    upstream = get_adv_estimator_fn(shaping.upstream)
    if shaping.upstream == "grpo":
        # What veRL does on a path of its own for GRPO, and for no registered estimator: an option, one vote a session.
        kwargs["norm_adv_by_std_in_grpo"] = config.get("norm_adv_by_std_in_grpo", True)
        finals, session = np.unique(shaping.final_row, return_inverse=True)
        final, _ = upstream(
            token_level_rewards=shaped[finals],
            response_mask=response_mask[finals],
            config=config,
            **{**kwargs, "index": kwargs["index"][finals]},
        )
        first = response_mask[finals].argmax(dim=-1)
        advantages = final[torch.arange(len(finals)), first][session].unsqueeze(-1) * response_mask
        returns = advantages
    else:
        advantages, returns = upstream(token_level_rewards=shaped, response_mask=response_mask, config=config, **kwargs)
    weights = response_mean_weights(
        response_mask.sum(dim=-1), torch.as_tensor(shaping.prefix_tokens), shaping.loss_agg_mode
    )
    shaping.weights = weights.flatten().numpy()
    return advantages * weights, returns
