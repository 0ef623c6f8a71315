"""An algorithm from another package, in the fewest lines: options, a trainer mixin and an estimator of its own."""

from dataclasses import dataclass

from rpo_verl.algorithms import Algorithm
from rpo_verl.config import above, option


@dataclass
class ToyConfig:
    """The `toy` section."""

    scale: float = option(2.0, above(0))
    """Factor on the advantages."""


class ToyTrainer:
    """Logs the factor beside what came of it."""

    def _compute_advantage(self, batch, metrics):
        metrics["toy/scale"] = self.config.toy.scale
        return super()._compute_advantage(batch, metrics=metrics)


TOY = Algorithm(
    name="toy", options="toy_algorithm:ToyConfig", trainer="toy_algorithm:ToyTrainer", estimator="toy_estimator",
    needs=("lean",), settings={"algorithm.adv_estimator": "toy"},
)  # fmt: skip
