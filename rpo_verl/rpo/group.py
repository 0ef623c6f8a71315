"""The finished responses of one question in one step, an array entry per member."""

from dataclasses import dataclass

import numpy as np

from rpo_verl.rpo.start import Start


@dataclass(frozen=True, eq=False)
class Group:
    """G responses that share a start. Lengths in tokens; members are ordered by their keys."""

    start: Start
    keys: tuple[str, ...]
    """(G,) names of the rows in veRL's queue."""

    prefix_tokens: np.ndarray
    """(G,) int, tokens of each response that were reused."""

    response_tokens: np.ndarray
    """(G,) int, tokens of each whole response."""

    oldest_policy: np.ndarray
    """(G,) int, version of the oldest policy that wrote a part of each response."""

    rewards: np.ndarray
    """(G,) float64, base rewards `r`."""

    correct: np.ndarray
    """(G,) bool."""

    shaped: np.ndarray
    """(G,) float64, shaped rewards `R`."""

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def prefixed(self) -> bool:
        """Whether the group started from a cached prefix."""
        return self.start.kind == "prefixed"

    @property
    def complete(self) -> bool:
        """Whether all members are there with finite rewards; only such a group says anything about its prefix."""
        return len(self) >= self.start.group_size and bool(np.isfinite(self.rewards).all())

    @property
    def has_signal(self) -> bool:
        """Whether shaped rewards differ; advantages are zero where they do not."""
        return differ(self.shaped)

    @property
    def branched(self) -> bool:
        """Whether the first member was generated whole, and the others branched from its head."""
        return self.start.kind == "trunk"

    @property
    def reused(self) -> np.ndarray:
        """(G,) int, tokens of each response that nobody had to generate for it."""
        reused = self.prefix_tokens.copy()
        if self.branched:
            reused[0] = 0
        return reused

    @property
    def generated(self) -> np.ndarray:
        """(G,) int, tokens that the policy generated in this step."""
        return self.response_tokens - self.reused

    @property
    def capped(self) -> np.ndarray:
        """(G,) bool, whether the token budget ended the response."""
        return self.response_tokens - self.prefix_tokens >= self.start.room


def differ(rewards: np.ndarray) -> bool:
    """Whether not all of (G,) rewards are equal; NaN differs from everything."""
    return float(np.ptp(rewards)) != 0.0
