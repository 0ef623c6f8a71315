"""What counts as correct: one rule, and the scale of a run's rewards, which it depends on where no threshold is set."""

import math
from collections.abc import Iterable

#: The reward of a right answer, unless a better one is seen.
FULL = 1.0


def is_correct(reward: float, accuracy: float | None, above: float | None = None, best: float = FULL) -> bool:
    """The one rule for "correct": the reported accuracy, or else the reward, exceeds `above`; NaN does not.

    Args:
        reward: base reward `r`.
        accuracy: the `acc` that the reward function reported, if any.
        above: the threshold, such as `rpo.reward.correct_above`; None: half of `best`.
        best: the best value seen, at least 1.
    """
    return bool((reward if accuracy is None else accuracy) > (best / 2 if above is None else above))


class RewardScale:
    """Remembers the best value of every data source, and whether rewards have partial credit.

    A value is the `acc` of a response, or its reward where none is reported.
    """

    def __init__(self) -> None:
        self._best: dict[str, float] = {}
        self.partial: float | None = None
        """A value strictly between 0 and 1 that was seen; None: there was none."""

    def see(self, source: str, values: Iterable[float]) -> None:
        """Learn from the values of finished responses; NaN and infinities teach nothing.

        Args:
            source: veRL's `data_source`, because data sets may differ in their scale.
            values: of any number of responses.
        """
        for value in values:
            if not math.isfinite(value):
                continue
            self._best[source] = max(self._best.get(source, FULL), value)
            if self.partial is None and 0 < value < 1:
                self.partial = value

    @property
    def beyond_full(self) -> dict[str, float]:
        """Data source → best value, where it is above 1: what a resumed run has to know."""
        return {source: value for source, value in self._best.items() if value > FULL}

    def best(self, source: str) -> float:
        """The best value of a data source, at least 1."""
        return self._best.get(source, FULL)
