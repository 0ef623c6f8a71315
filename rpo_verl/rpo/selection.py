"""Which response of a group becomes the question's cached answer."""

import numpy as np

from rpo_verl.rpo import draws


def choose_response(shaped: np.ndarray, greedy_prob: float, *key: int | bytes) -> tuple[int, bool]:
    """With probability `greedy_prob` the response with the highest shaped reward (the first of equals), else another.

    Every other response of the group is a candidate with the same probability (the authors' code never draws the
    last one). Non-finite rewards are never the best.

    Args:
        shaped: (G,) float, shaped rewards `R`, G at least 1.
        greedy_prob: in [0, 1].
        key: what the draws are functions of: seed, step, question.

    Returns:
        (index into the group, whether it was the greedy choice).
    """
    best = int(np.argmax(np.where(np.isfinite(shaped), shaped, -np.inf)))
    if len(shaped) == 1 or draws.uniform(*key, "greedy") < greedy_prob:
        return best, True
    other = draws.integer(0, len(shaped) - 2, *key, "exploratory")
    return other + (other >= best), False
