"""Which tokens of a response are trained, and with which advantage: the only place where token credit is decided.

The user's estimator gives the generated tokens of a response their advantages, unless right responses are imitated.
Credit adds spans of tokens that the loss would not cover otherwise, and scales a response's advantages for the mean
that veRL takes over tokens.

A prefix that all members share earns nothing from advantages that are relative to the group: they sum to zero over it.
But the group shows what its prefix is worth: the share of correct members estimates V(prefix), the success to be
expected behind it.
"""

from collections.abc import Sequence

import numpy as np

from rpo_verl.rpo.group import Group
from rpo_verl.rpo.options import CreditConfig

Span = tuple[int, int, float]
"""Tokens from start to stop (exclusive) of a response, and their advantage."""


def imitation(group: Group, responses: Sequence[Sequence[int]]) -> np.ndarray:
    """Advantages of the generated tokens under `imitate`: 1 for a correct response, nothing for a wrong one.

    The first of the members that wrote the same carries it for all of them, so that equal responses cost one row of the
    update.

    Args:
        group: the responses.
        responses: (G,) token ids of each, prefix included.

    Returns:
        (G,) float.
    """
    found, carriers = np.zeros(len(group)), dict[tuple[int, ...], int]()
    for member, (is_right, response) in enumerate(zip(group.correct.tolist(), responses, strict=True)):
        if is_right:
            found[carriers.setdefault(tuple(response), member)] += 1
    return found


def credit(group: Group, advantages: np.ndarray, options: CreditConfig, loss_agg_mode: str) -> list[list[Span]]:
    """Give the tokens of prefixes their advantages.

    `literal` gives the prefix of each member the advantage of its suffix (the paper's formula). `paid` and `imitate`
    give a shared prefix one advantage, V(prefix); a single member carries it for all of them, so that the others leave
    the update where their suffixes have no advantage.

    Args:
        group: the responses.
        advantages: (G,) float, advantage of the first generated token of each response.
        options: the rule.
        loss_agg_mode: veRL's `actor.loss_agg_mode`.

    Returns:
        (G,) spans of each response.
    """
    spans: list[list[Span]] = [[] for _ in group.keys]
    if options.rule == "literal":
        for row, tokens, advantage in zip(spans, group.prefix_tokens.tolist(), advantages.tolist(), strict=True):
            if tokens:
                row.append((0, tokens, advantage))
    elif earns_credit(group, options):
        shared, advantage = int(group.prefix_tokens.min()), prefix_value(group.correct)
        # The shortest of those that are updated anyway, where there is one.
        carrier = int(np.lexsort((group.response_tokens, advantages == 0))[0])
        weight = carried_weight(group.response_tokens, carrier, loss_agg_mode)
        spans[carrier].append((0, shared, advantage * weight))
    return spans


def earns_credit(group: Group, options: CreditConfig) -> bool:
    """Whether the shared prefix of a group has an advantage of its own."""
    return options.needs_logprobs and int(group.prefix_tokens.min()) > 0 and bool(group.correct.any())


def teaches(group: Group, options: CreditConfig) -> bool:
    """Whether a group changes the policy: under `imitate` with a correct response, else with a signal or a credit."""
    if options.rule == "imitate":
        return bool(group.correct.any())
    return group.has_signal or earns_credit(group, options)


def prefix_value(correct: np.ndarray) -> float:
    """V(prefix) as the group behind it shows it.

    Args:
        correct: (G,) bool.
    """
    return float(correct.mean())


def carried_weight(response_tokens: np.ndarray, carrier: int, loss_agg_mode: str) -> float:
    """Factor on the advantage of a prefix that one member carries for all.

    Args:
        response_tokens: (G,) int.
        carrier: the member.
        loss_agg_mode: `seq-mean-token-mean` divides each response by its own length, so that a token of a short
            response weighs more; in the other modes every token of a batch weighs the same.
    """
    if loss_agg_mode == "seq-mean-token-mean":
        return float((response_tokens[carrier] / response_tokens).sum())
    return float(len(response_tokens))


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
