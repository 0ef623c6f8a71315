"""What the members of a group start from: one object from the cache to the trainer."""

from typing import Any, Literal

import numpy as np

Kind = Literal["full", "prefixed", "refreshed"]

NO_TOKENS = np.empty(0, dtype=np.int32)


class Start:
    """The start of one question's group in one step.

    It travels on the row of its question, once per group. veRL copies every field of a row onto each of the group's
    responses, to the reward workers and back through its queue; by then the prefix is part of the response. So a copy
    that has arrived is pickled without it. It is no dataclass: veRL's queue takes those apart instead of pickling them.

    Attributes:
        question: key of the question.
        kind: `full`: nothing cached; `prefixed`: a cached prefix; `refreshed`: cached, but a full rollout all the same.
        group_size: responses the group is to have.
        room: maximum tokens that a member may generate.
        prefix: (p,) int32 token ids that every member starts with; empty for a full rollout.
        dropped: truncation length `m`, tokens; 0 for a full rollout.
        answer_id: identity of the cached answer that the prefix is from; 0 for a full rollout.
        source_step: version of the oldest policy that wrote a part of the prefix, as the step after whose update it was
            there; -1 for a full rollout. In synchronous training it is one less than the step of that rollout.
        data_source: veRL's name of the data set that the question is from; empty where rows have none.
        arrived: whether this copy has been sent to a rollout worker.
    """

    __slots__ = (
        "answer_id", "arrived", "data_source", "dropped", "group_size", "kind", "prefix", "question", "room",
        "source_step",
    )  # fmt: skip

    def __init__(
        self,
        question: bytes,
        kind: Kind,
        group_size: int,
        room: int,
        prefix: np.ndarray = NO_TOKENS,
        dropped: int = 0,
        answer_id: int = 0,
        source_step: int = -1,
        arrived: bool = False,
        data_source: str = "",
    ) -> None:
        self.question, self.kind, self.group_size, self.room = question, kind, group_size, room
        self.prefix, self.dropped, self.answer_id, self.source_step = prefix, dropped, answer_id, source_step
        self.arrived, self.data_source = arrived, data_source

    def __reduce__(self) -> tuple[Any, ...]:
        prefix = NO_TOKENS if self.arrived else self.prefix
        identity = (self.question, self.kind, self.group_size, self.room)
        return Start, (*identity, prefix, self.dropped, self.answer_id, self.source_step, True, self.data_source)
