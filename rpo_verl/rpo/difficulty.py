"""How soon the policy goes wrong on a question, read off the groups it was trained on anyway.

The policy is taken to go wrong at a constant rate a token, the question's own `h`, so a suffix of `m` tokens comes out
right with probability `exp(-h m)`: the survival function of an exponential distribution. What is seen of a question is
`wrong` suffixes in so many `tokens` that went well; the mean over all questions is the prior of each.
"""

import math
from dataclasses import dataclass

import numpy as np

#: What is left of the evidence when a question is seen again: the policy has changed since.
MEMORY = 0.5
#: Evidence is rounded to multiples of it, so that sums over a cache are exact, whatever their order.
UNIT = 2.0**-8


@dataclass(frozen=True, slots=True)
class Evidence:
    """What was seen of one question, or of all together."""

    wrong: float = 0.0
    """Suffixes that came out wrong; earlier ones count less."""

    tokens: float = 0.0
    """Tokens generated before anything went wrong; likewise."""

    def after(self, correct: np.ndarray, tokens: np.ndarray, rate: float | None) -> "Evidence":
        """The evidence after one more group.

        Args:
            correct: (G,) bool.
            tokens: (G,) int, generated, at least 0.
            rate: what was thought before, per token. Where a wrong suffix went wrong is not known: it counts with the
                tokens that are expected before, given this rate and that it happened. None: with half of its tokens.
        """
        # Numbers rather than arrays of a group's size, because a step has thousands of groups.
        wrong, went_well = MEMORY * self.wrong, MEMORY * self.tokens
        for is_right, length in zip(correct.tolist(), tokens.tolist(), strict=True):
            if is_right:
                went_well += length
            else:
                wrong += 1
                went_well += length / 2 if rate is None else expected_until_wrong(length, rate)
        return Evidence(round(wrong / UNIT) * UNIT, round(went_well / UNIT) * UNIT)


NO_EVIDENCE = Evidence()


def expected_until_wrong(tokens: int, rate: float) -> float:
    """Expected tokens before the wrong one in a suffix that came out wrong, `1/h - m/(exp(h m) - 1)`.

    Args:
        tokens: its length `m`.
        rate: `h` per token, above 0.
    """
    exponent = rate * tokens
    if exponent < 1e-3:
        # The two terms are nearly equal; this is their difference to second order.
        return tokens * (0.5 - exponent / 12)
    # Far out, where the exponential would overflow, the second term is nothing.
    return 1 / rate - (tokens / math.expm1(exponent) if exponent < 700 else 0.0)


def mean_rate(everything: Evidence) -> float | None:
    """`h` per token over all questions; None before any token was seen.

    Half a wrong suffix is added, so that it is above 0 where nothing has gone wrong yet.
    """
    return (everything.wrong + 0.5) / everything.tokens if everything.tokens > 0 else None


def rate(own: Evidence, mean: float) -> float:
    """A question's `h` per token: the mean of a Gamma posterior whose prior is worth one wrong suffix at rate `mean`.

    Args:
        own: of the question.
        mean: over all questions, above 0.
    """
    return (1 + own.wrong) / (1 / mean + own.tokens)
