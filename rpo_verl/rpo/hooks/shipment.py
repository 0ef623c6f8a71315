"""How the start of a group gets to the rollout worker: once per group, and no further."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from rpo_verl.rpo.partial_rollouts import Start


@dataclass(frozen=True, slots=True)
class Shipment:
    """A `Start` on the row of its question; whatever pickles it after its arrival gets one without the prefix.

    veRL hands every field of a row on with each of the group's G responses: to the reward worker, and back through the
    TransferQueue. The prefix is in the response by then.
    """

    start: Start
    group_size: int
    """How many responses the group is to have."""

    arrived: bool = False

    def __reduce__(self) -> tuple[Any, ...]:
        start = replace(self.start, prefix=np.empty(0, dtype=np.int32)) if self.arrived else self.start
        return Shipment, (start, self.group_size, True)
