"""Length-aware reward: among correct responses of a group the shorter one earns more; wrong ones keep their reward."""

import numpy as np

from rpo_verl.rpo.options import RewardConfig


def is_correct(reward: float, accuracy: float | None, above: float = 0.0) -> bool:
    """The one rule for "correct": the reported accuracy, or else the reward, exceeds `above`; NaN does not.

    Args:
        reward: base reward `r`.
        accuracy: the `acc` that the reward function reported, if any.
        above: `rpo.reward.correct_above`.
    """
    return bool((reward if accuracy is None else accuracy) > above)


def shape_group(rewards: np.ndarray, lengths: np.ndarray, correct: np.ndarray, config: RewardConfig) -> np.ndarray:
    """Shape rewards: `R_i = r_i * max(lo, sigmoid(alpha * (mean(l) - l_i)))` where correct, else `r_i`.

    For rewards of 0 and 1 this is the paper's `clip(r_i * sigmoid(…), lo, 1)` (section 3, length-aware reward), except
    that its literal text would lift wrong answers to `lo`. Other rewards keep their scale: that formula would pay 4 and
    8 equally, a format bonus of 0.1 as much as a right answer, and undo DAPO's penalty on overlong responses. A correct
    response whose penalties leave nothing (`r_i <= 0`) keeps its reward too.

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
    return np.where(correct & (rewards > 0), rewards * np.maximum(preference, config.lo), rewards)
