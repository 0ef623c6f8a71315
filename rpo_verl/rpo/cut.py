"""Where a cached answer is cut: draw `m`, drop the last `m` tokens, leave room for a suffix."""

import math

from rpo_verl.rpo import draws
from rpo_verl.rpo.options import TruncationConfig


def draw_dropped(length: int, config: TruncationConfig, seed: int, step: int, question: bytes) -> int:
    """Draw `m` from {min_tokens, …, L}, uniformly (paper, section 3; `min_tokens` is 0 there) or with a tail.

    Log-uniform, `m` is the integer part of `exp(x)`, x uniform between the logarithms of `min_tokens` (at least 1) and
    `L + 1`. With `draw_per=step` all questions of a step share the random number, each with its own `L`.

    Args:
        length: tokens of the cached answer, at least 0.
        config: where `L` comes from.
        seed: the draw is a function of this, `step` and `question`.
        step: the training step.
        question: key of the question.

    Returns:
        `m` in tokens; `m >= length` stands for a full rollout.
    """
    most = config.max_tokens if config.max_tokens is not None else math.ceil(config.max_fraction * length)
    most = max(config.min_tokens, most)
    own = [question] if config.draw_per == "question" else []
    share = draws.uniform(seed, step, *own, "truncation")
    if config.distribution == "log_uniform":
        low = max(1, config.min_tokens)
        return min(most, int(low * ((most + 1) / low) ** share))
    return min(most, config.min_tokens + int((most - config.min_tokens + 1) * share))


def prefix_length(length: int, dropped: int, max_response_length: int) -> int:
    """Tokens of the prefix `a[: length - m]`, cut further where a suffix of one token would not fit."""
    return max(0, min(length - dropped, max_response_length - 1))
