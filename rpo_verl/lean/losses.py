"""MinPRO (arXiv 2601.22718): a policy loss for batches that an older policy wrote.

A token's gradient is due in proportion to the probability of its whole prefix, now and then: the product of the ratios
of all tokens before it. That product explodes or vanishes. MinPRO puts the smallest of these ratios in its place. Here
it is a constant factor on veRL's own clipped loss, `actor_rollout_ref.actor.policy_loss.loss_mode=minpro`. On the
policy's own batch all ratios are 1, and so is the factor.
"""

from typing import Any

import torch
from verl.trainer.ppo.core_algos import get_policy_loss_fn, register_policy_loss

NAME = "minpro"
#: Bound of log-ratios, as in veRL's loss.
BOUND = 20.0


def smallest_before(log_ratios: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """The smallest ratio among the tokens before each one.

    Args:
        log_ratios: (B, T) float.
        mask: (B, T) bool; tokens outside have no ratio.

    Returns:
        (B, T) float; 1 where no token comes before.
    """
    known = torch.where(mask.bool(), log_ratios.clamp(-BOUND, BOUND), float("inf"))
    before = torch.cat([torch.full_like(known[:, :1], float("inf")), known[:, :-1]], dim=1)
    smallest = torch.cummin(before, dim=1).values
    return torch.where(smallest.isinf(), 0.0, smallest).exp()


@register_policy_loss(NAME)
def minpro_loss(
    old_log_prob: torch.Tensor,
    log_prob: torch.Tensor,
    advantages: torch.Tensor,
    response_mask: torch.Tensor,
    loss_agg_mode: str = "token-mean",
    config: Any = None,
    rollout_is_weights: torch.Tensor | None = None,
) -> tuple[torch.Tensor, dict[str, Any]]:
    """veRL's clipped loss with every token weighed by the smallest ratio before it.

    Args:
        old_log_prob: (B, T) float, of the policy that the ratio refers to.
        log_prob: (B, T) float, with a gradient.
        advantages: (B, T) float.
        response_mask: (B, T), tokens that the loss covers.
        loss_agg_mode: veRL's `actor.loss_agg_mode`.
        config: veRL's actor section.
        rollout_is_weights: (B, T) float, veRL's own factors, or None.

    Returns:
        The loss, and veRL's metrics with the mean factor.
    """
    factors = smallest_before((log_prob - old_log_prob).detach(), response_mask)
    loss, metrics = get_policy_loss_fn("vanilla")(
        old_log_prob=old_log_prob, log_prob=log_prob, advantages=advantages, response_mask=response_mask,
        loss_agg_mode=loss_agg_mode, config=config,
        rollout_is_weights=factors if rollout_is_weights is None else factors * rollout_is_weights,
    )  # fmt: skip
    covered = response_mask.bool()
    mean = float(factors[covered].mean()) if covered.any() else 1.0
    return loss, metrics | {"actor/minpro_factor": mean}
