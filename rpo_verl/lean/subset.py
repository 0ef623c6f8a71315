"""Down-sampling of rollouts (PODS, arXiv 2504.13818): train on the members of a group whose rewards vary most.

Many rollouts of a group say the same. The subset with the largest variance of rewards consists of the best and the
worst ones. Advantages are those within the subset. The other rows have none, so the update skips them.
"""

from collections import defaultdict
from typing import Any

import numpy as np
from omegaconf import DictConfig

from rpo_verl.lean.signal import weight_of_the_rest
from rpo_verl.upstream import queue

#: Added to the deviation, as in veRL's estimator.
EPSILON = 1e-6


def most_varied(values: np.ndarray, size: int) -> np.ndarray:
    """The members with the largest variance: the highest and the lowest ones, in the best of all proportions.

    Args:
        values: (G,) float, rewards or anything that grows linearly with them.
        size: m members, at least 2.

    Returns:
        (min(G, m),) int, ascending.
    """
    order = np.argsort(values, kind="stable")
    if size >= len(order):
        return np.arange(len(order))
    splits = [np.concatenate([order[:low], order[len(order) - (size - low) :]]) for low in range(size + 1)]
    return np.sort(max(splits, key=lambda split: float(np.var(values[split]))))


def advantages_within(values: np.ndarray, size: int, by_deviation: bool = True) -> tuple[np.ndarray, np.ndarray]:
    """The most varied members of a group, and GRPO's advantages among them.

    Args:
        values: (G,) float, as in `most_varied`.
        size: m members, at least 2.
        by_deviation: whether advantages are divided by the sample deviation, veRL's `norm_adv_by_std_in_grpo`.

    Returns:
        (min(G, m),) int positions, ascending, and (min(G, m),) float advantages.
    """
    chosen = most_varied(values, size)
    own = values[chosen] - values[chosen].mean()
    if by_deviation and len(own) > 1:
        own /= own.std(ddof=1) + EPSILON
    return chosen, own


def train_on_subset(batch: queue.Batch, config: DictConfig, size: int) -> dict[str, float]:
    """Replace the advantages of GRPO by those within the most varied members of every group.

    The mean of the loss then is over the rows of these members: they are weighed for the others.

    Args:
        batch: rows with advantages; those in veRL's queue are overwritten.
        config: veRL's configuration.
        size: members of a group that train.

    Returns:
        metrics.
    """
    rows = [key for key, tag in zip(batch.keys, batch.tags, strict=True) if not queue.is_padding(tag)]
    advantages, masks = queue.read(rows, batch.partition_id, "advantages", "response_mask")
    members: dict[str, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
    for number, key in enumerate(rows):
        members[queue.prompt_of(key)][queue.session_of(key)].append(number)
    by_deviation = config.algorithm.get("norm_adv_by_std_in_grpo", True)
    factors = np.zeros(len(rows))
    kept = []
    for group in members.values():
        sessions = list(group.values())
        # A row's trained tokens all have one advantage.
        values = np.array([_value(advantages, masks, session) for session in sessions])
        chosen, own = advantages_within(values, size, by_deviation)
        for place, value in zip(chosen, own, strict=True):
            kept += sessions[place]
            factors[sessions[place]] = value
    tokens = np.array([int(mask.sum()) for mask in masks])
    mode = config.actor_rollout_ref.actor.loss_agg_mode
    rest = weight_of_the_rest(int(tokens.sum()), int(tokens[kept].sum()), len(rows), len(kept), mode)
    weighed = [mask.float() * float(factor / rest) for mask, factor in zip(masks, factors, strict=True)]
    queue.write(rows, batch.partition_id, advantages=weighed)
    return {"lean/subset/rows_share": len(kept) / max(1, len(rows))}


def _value(advantages: list[Any], masks: list[Any], session: list[int]) -> float:
    for row in session:
        trained = advantages[row][masks[row].bool()]
        if len(trained):
            return float(trained[0])
    return 0.0
