"""Which tokens of a response are trained, and with which advantage: the only place where token credit is decided.

The user's estimator gives the generated tokens of a response their advantages. Credit adds spans of tokens that the
loss would not cover otherwise, and scales a response's advantages for the mean that veRL takes over tokens.
"""

import numpy as np

from rpo_verl.rpo.group import Group

Span = tuple[int, int, float]
"""Tokens from start to stop (exclusive) of a response, and their advantage."""


def credit(group: Group, advantages: np.ndarray, rule: str) -> list[list[Span]]:
    """Give the tokens of prefixes their advantages.

    Args:
        group: the responses.
        advantages: (G,) float, advantage of the first generated token of each response.
        rule: `none`: the loss covers the suffix alone. `literal` (the paper's formula): a prefix has the advantage of
        its
            suffix, although its shared tokens earned nothing that the group's members do not all have.

    Returns:
        (G,) spans of each response.
    """
    if rule == "none":
        return [[] for _ in group.keys]
    return [
        [(0, int(tokens), float(advantage))] if tokens else []
        for tokens, advantage in zip(group.prefix_tokens, advantages, strict=True)
    ]


def response_mean_weights(trained: np.ndarray, untrained: np.ndarray, loss_agg_mode: str) -> np.ndarray:
    """Turn veRL's mean over trained tokens into the paper's mean over the tokens of whole responses.

    The paper's objective divides by `|o|`, prefix included; veRL divides by the tokens in `response_mask`. The clipped
    policy losses are linear in the advantages, so a factor on them is a factor on the loss. `clip_cov` and `kl_cov`
    select tokens by their covariance with the advantage and see it scaled. With several mini-batches in a step,
    `token-mean` uses the ratio of the step rather than that of each.

    Args:
        trained: (B,) int, tokens of each response in the loss.
        untrained: (B,) int, tokens that only the mean counts.
        loss_agg_mode: veRL's `actor.loss_agg_mode`. Modes that sum over tokens need no factor.

    Returns:
        (B,) float64 in [0, 1], factors on the advantages.
    """
    whole = trained + untrained
    if loss_agg_mode == "token-mean":
        return np.full(len(whole), trained.sum() / max(1, whole.sum()))
    if loss_agg_mode == "seq-mean-token-mean":
        return trained / np.maximum(whole, 1)
    return np.ones(len(whole))
