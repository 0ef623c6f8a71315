"""The finished responses of one question in one step, an array entry per member."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

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

    trunks: np.ndarray | None = None
    """(G,) bool, members that were generated whole, and from whose heads others branch; None: there are none."""

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
        """Whether members branch from heads of whole answers of the group itself."""
        return self.start.kind == "branched"

    @property
    def reused(self) -> np.ndarray:
        """(G,) int, tokens of each response that nobody had to generate for it."""
        return self.prefix_tokens if self.trunks is None else np.where(self.trunks, 0, self.prefix_tokens)

    @property
    def generated(self) -> np.ndarray:
        """(G,) int, tokens that the policy generated in this step."""
        return self.response_tokens - self.reused

    @property
    def capped(self) -> np.ndarray:
        """(G,) bool, whether the token budget ended the response."""
        return self.response_tokens - self.prefix_tokens >= self.start.room


def joined(groups: Iterable[Group]) -> list[Group]:
    """The groups, those that branch from trunks of one question as one; its start is that of its first branch.

    Args:
        groups: branches of a question stand side by side.
    """
    found = []
    for _, of_one in groupby(enumerate(groups), lambda pair: pair[1].start.question if pair[1].branched else pair[0]):
        found.append(_join([group for _, group in of_one]))
    return found


def _join(branches: Sequence[Group]) -> Group:
    first, *others = branches
    if not others:
        return first
    arrays = ("prefix_tokens", "response_tokens", "oldest_policy", "rewards", "correct", "shaped", "trunks")
    together = {name: np.concatenate([getattr(branch, name) for branch in branches]) for name in arrays}
    return replace(first, keys=tuple(key for branch in branches for key in branch.keys), **together)


def differ(rewards: np.ndarray) -> bool:
    """Whether not all of (G,) rewards are equal; NaN differs from everything."""
    return float(np.ptp(rewards)) != 0.0
