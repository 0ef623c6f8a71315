"""Length-aware reward: of a group's correct responses the shorter one earns more; wrong ones never overtake them."""

import numpy as np

from rpo_verl.rpo.options import RewardConfig


def shape_group(rewards: np.ndarray, lengths: np.ndarray, correct: np.ndarray, config: RewardConfig) -> np.ndarray:
    """Shape rewards: `R_i = r_i * max(lo, sigmoid(alpha * (mean(l) - l_i)))` where correct.

    For rewards of 0 and 1 this is the paper's `clip(r_i * sigmoid(…), lo, 1)` (section 3, length-aware reward), except
    that its literal text would lift wrong answers to `lo`. Other rewards keep their scale: that formula would pay 4 and
    8 equally, a format bonus of 0.1 as much as a right answer, and undo DAPO's penalty on overlong responses. A correct
    response whose penalties leave nothing (`r_i <= 0`) keeps its reward, and so does a wrong one that earns nothing.
    Partial credit (`r_i > 0` and not correct) takes the smallest factor of the correct ones: unshaped, a near miss of
    0.5 would earn what a correct answer of average length does.

    Args:
        rewards: (G,) float, base rewards `r`.
        lengths: (G,) int, tokens of each whole response.
        correct: (G,) bool.
        config: alpha and lower bound; with `shaping` off the rewards come back unchanged.

    Returns:
        (G,) float64.
    """
    rewards = np.asarray(rewards, dtype=np.float64)
    correct = np.asarray(correct, dtype=bool)
    if not config.shaping or not correct.any():
        return rewards.copy()
    lengths = np.asarray(lengths, dtype=np.float64)
    # 1 / (1 + exp(-x)) written with tanh, which does not overflow.
    preference = 0.5 * (1.0 + np.tanh(0.5 * config.alpha * (lengths.mean() - lengths)))
    factors = np.maximum(preference, config.lo)
    factors = np.where(correct, factors, factors[correct].min())
    return np.where(rewards > 0, rewards * factors, rewards)
