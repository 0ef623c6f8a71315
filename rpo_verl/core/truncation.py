"""Which part of a cached answer is replayed: draw `m`, drop the last `m` tokens, leave room for a suffix."""

import math

from rpo_verl.config import TruncationConfig
from rpo_verl.core import draws


def draw_dropped(length: int, config: TruncationConfig, *key: int | bytes) -> int:
    """Draw `m ~ Uniform{min_tokens, …, L}` (paper, section 3; `min_tokens` is 0 there).

    Args:
        length: tokens of the cached answer, at least 0.
        config: where `L` comes from.
        key: what the draw is a function of: seed, step, question.

    Returns:
        `m` in tokens; `m >= length` stands for a full rollout.
    """
    most = config.max_tokens if config.max_tokens is not None else math.ceil(config.max_fraction * length)
    return draws.integer(config.min_tokens, max(config.min_tokens, most), *key, "truncation")


def prefix_length(length: int, dropped: int, max_response_length: int, config: TruncationConfig) -> int:
    """Tokens of the prefix `a[: length - m]`, cut further where the budget or the room for one suffix token asks it."""
    budget = max_response_length - 1
    if config.max_prefix_tokens is not None:
        budget = min(budget, config.max_prefix_tokens)
    return max(0, min(length - dropped, budget))
