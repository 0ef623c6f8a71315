"""Which part of a cached answer is replayed: find `m`, drop the last `m` tokens, leave room for a suffix."""

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
        seed: this and what follows is what the draw is a function of.
        step: the training step.
        question: its key.

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


def adapted_dropped(length: int, rate: float, mean_rate: float, config: TruncationConfig, *step_key: int) -> int:
    """`m` such that the share `target_success` of the group is expected to succeed, on a scale that the step shares.

    A step lasts as long as its longest suffix, so its questions share a scale: what the target asks of the average
    question, times a factor drawn for the step, log-uniform from 1/2 to 2. A harder question is cut later. One that is
    too easy on this scale would carry no signal, and gets `min_tokens`; it has its turn in a step of a larger scale.

    Args:
        length: tokens of the cached answer, at least 0.
        rate: at which the policy goes wrong on this question, per token, above 0.
        mean_rate: on all questions.
        config: the target, and what is too easy.
        step_key: what the scale is a function of: seed, step.

    Returns:
        `m` in tokens; `m >= length` stands for a full rollout.
    """
    tokens_per_rate = -math.log(config.target_success)
    scale = tokens_per_rate / mean_rate * 2 ** (2 * draws.uniform(*step_key, "scale") - 1)
    dropped = min(length, scale, tokens_per_rate / rate)
    if math.exp(-rate * dropped) > config.easy_above:
        return config.min_tokens
    return max(config.min_tokens, round(dropped))


def prefix_length(length: int, dropped: int, max_response_length: int, config: TruncationConfig) -> int:
    """Tokens of the prefix `a[: length - m]`, cut further where the budget or the room for one suffix token asks it."""
    budget = max_response_length - 1
    if config.max_prefix_tokens is not None:
        budget = min(budget, config.max_prefix_tokens)
    return max(0, min(length - dropped, budget))
