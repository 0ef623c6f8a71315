"""Where a cached answer is cut: draw `m`, drop the last `m` tokens, leave room for a suffix."""

import math

from rpo_verl.rpo import draws
from rpo_verl.rpo.options import TruncationConfig


def draw_share(config: TruncationConfig, seed: int, step: int, question: bytes) -> float:
    """Draw where in the range of `m` to cut, in [0, 1): a function of the seed, the step and, with
    `draw_per=question`, the question's key."""
    own = [question] if config.draw_per == "question" else []
    return draws.uniform(seed, step, *own, "truncation")


def dropped_tokens(length: int, config: TruncationConfig, share: float) -> int:
    """The `m` of a draw from {min_tokens, …, L}, uniform (paper, section 3; `min_tokens` is 0 there) or with a tail.

    Log-uniform, `m` is the integer part of `exp(x)`, x uniform between the logarithms of `min_tokens` (at least 1) and
    `L + 1`. Questions that share a draw have each their own `L`.

    Args:
        length: tokens of the answer, at least 0.
        config: where `L` comes from.
        share: the draw, in [0, 1).

    Returns:
        `m` in tokens; `m >= length` stands for a full rollout.
    """
    most = config.max_tokens if config.max_tokens is not None else math.ceil(config.max_fraction * length)
    most = max(config.min_tokens, most)
    if config.distribution == "log_uniform":
        low = max(1, config.min_tokens)
        return min(most, int(low * ((most + 1) / low) ** share))
    return min(most, config.min_tokens + int((most - config.min_tokens + 1) * share))


def prefix_length(length: int, dropped: int, max_response_length: int) -> int:
    """Tokens of the prefix `a[: length - m]`, cut further where a suffix of one token would not fit."""
    return max(0, min(length - dropped, max_response_length - 1))
