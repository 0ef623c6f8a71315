"""RAFT as an advantage estimator of veRL, `algorithm.adv_estimator=raft`: imitation of the right responses.

VERL_USE_EXTERNAL_MODULES loads it into every process of a run. The advantage of a token is its response's reward,
without a baseline, so the policy gradient is that of a weighted imitation. Source: Dong and others, RAFT, arXiv
2304.06767, with all right responses of a group in place of its best one.
"""

from typing import Any

import torch
import wrapt

NAME = "raft"


def compute_raft_advantage(
    token_level_rewards: torch.Tensor, response_mask: torch.Tensor, config: Any = None, **_: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    """Give the tokens of a response its reward, and those of a response without a positive one nothing.

    Args:
        token_level_rewards: (B, T) float.
        response_mask: (B, T), 1 on generated tokens.
        config: veRL's `algorithm` section; unused.

    Returns:
        (advantages, returns), both (B, T) float.
    """
    rewards = token_level_rewards.sum(dim=-1, keepdim=True).clamp(min=0)
    advantages = rewards * response_mask
    return advantages, advantages


wrapt.register_post_import_hook(
    lambda algorithms: algorithms.register_adv_est(NAME)(compute_raft_advantage), "verl.trainer.ppo.core_algos"
)
