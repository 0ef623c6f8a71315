"""Rarity within a group: what stage 1 pays the head for.

With rewards of a few values, rarity over reward values pays rare failures as much as rare successes. Here only correct
responses earn. Their final answers cannot tell them apart, because correct ones agree in it. Whole responses can, but
long ones are nearly always all different, and then nothing is rare. So the default counts token n-grams. Where
responses are equal or share nothing, this is one over the number of equal responses, as with whole responses.
"""

from collections import Counter
from collections.abc import Sequence

import numpy as np

from rpo_verl.r2po.options import RarityConfig

#: Added to the deviation, as in the authors' code.
EPSILON = 1e-6


def reward_rarity(rewards: np.ndarray) -> np.ndarray:
    """One over the number of members with the same reward (authors' `reward_rarity`).

    Args:
        rewards: (G,) float.

    Returns:
        (G,) float64 in (0, 1].
    """
    _, places, counts = np.unique(np.asarray(rewards, dtype=np.float64), return_inverse=True, return_counts=True)
    return 1.0 / counts[places]


def ngram_rarity(responses: Sequence[np.ndarray], correct: np.ndarray, n: int) -> np.ndarray:
    """Mean over a correct response's distinct n-grams of one over the number of correct responses that have them.

    Args:
        responses: (G,) of (length,) int token ids.
        correct: (G,) bool.
        n: tokens of an n-gram; a shorter response is one n-gram.

    Returns:
        (G,) float64: 0 where wrong, else in (0, 1]. Correct responses that are all equal have 1 over their number.
    """
    grams = [_ngrams(tokens, n) if right else set() for tokens, right in zip(responses, correct, strict=True)]
    holders = Counter(gram for own in grams for gram in own)
    # In a fixed order, so that the sum does not depend on that of a set.
    return np.array([np.mean(sorted(1.0 / holders[gram] for gram in own)) if own else 0.0 for own in grams])


def _ngrams(tokens: np.ndarray, n: int) -> set[tuple[int, ...]]:
    ids = tuple(int(token) for token in tokens)
    return {ids[i : i + n] for i in range(max(1, len(ids) - n + 1))}


def rarity_advantages(
    rewards: np.ndarray, correct: np.ndarray, responses: Sequence[np.ndarray], options: RarityConfig
) -> np.ndarray:
    """Advantages of a group in stage 1: the z-score of rarity, with the sample deviation.

    Args:
        rewards: (G,) float, base rewards.
        correct: (G,) bool.
        responses: (G,) of (length,) int, generated token ids.
        options: which rarity.

    Returns:
        (G,) float64; zeros where all members are equally rare, and where a reward is NaN.
    """
    if not np.isfinite(rewards).all():
        return np.zeros(len(rewards))
    rarity = reward_rarity(rewards) if options.by == "reward" else ngram_rarity(responses, correct, options.ngram)
    if len(rarity) < 2 or np.ptp(rarity) == 0:
        return np.zeros(len(rarity))
    return (rarity - rarity.mean()) / (rarity.std(ddof=1) + EPSILON)
