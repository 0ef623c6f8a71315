"""What the members of a group start from: one object from the cache to the trainer."""

from typing import Any, Literal

import numpy as np

Kind = Literal["full", "prefixed", "refreshed", "branched"]

NO_TOKENS = np.empty(0, dtype=np.int32)
#: Of tokens whose log-probabilities nobody recorded.
NO_LOGPROBS = np.empty(0, dtype=np.float16)
#: What stands for a log-probability of 0, which would look as if nobody knew it; the float16 next to 0.
_CERTAIN = -np.finfo(np.float16).smallest_subnormal


def storable(logprobs: np.ndarray) -> np.ndarray:
    """Log-probabilities as float16 below 0; none at all where one of them is no number.

    Args:
        logprobs: (l,) float.
    """
    if np.isnan(logprobs).any():
        return NO_LOGPROBS
    return np.clip(logprobs, np.finfo(np.float16).min, _CERTAIN).astype(np.float16)


class Start:
    """The start of one question's group in one step.

    It travels on the row of its question, once per group. veRL copies every field of a row onto each of the group's
    responses, to the reward workers and back through its queue; by then the prefix is part of the response. So a copy
    that has arrived is pickled without it. It is no dataclass: veRL's queue takes those apart instead of pickling them.

    Attributes:
        question: key of the question.
        kind: `full`: nothing cached; `prefixed`: a cached prefix; `refreshed`: cached, but a full rollout all the same;
            `branched`: nothing cached, and the group branches from heads of whole answers of its own.
        group_size: responses the group is to have.
        room: maximum tokens that a member may generate.
        prefix: (p,) int32 token ids that every member starts with; empty for a full rollout.
        dropped: truncation length `m`, tokens; 0 for a full rollout.
        answer_id: identity of the cached answer that the prefix is from; 0 for a full rollout.
        source_step: version of the oldest policy that wrote a part of the prefix, as the step after whose update it was
            there; -1 for a full rollout. In synchronous training it is one less than the step of that rollout.
        data_source: veRL's name of the data set that the question is from; empty where rows have none.
        prefix_logprobs: (p,) float16, of the prefix under the policy that wrote it; empty where they are not known.
        trunks: whole answers that the group branches from; 0 where it does not.
        share: in [0, 1), where the draw cuts trunks.
        arrived: whether this copy has been sent to a rollout worker.
    """

    __slots__ = (
        "answer_id", "arrived", "data_source", "dropped", "group_size", "kind", "prefix", "prefix_logprobs", "question",
        "room", "share", "source_step", "trunks",
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
        prefix_logprobs: np.ndarray = NO_LOGPROBS,
        trunks: int = 0,
        share: float = 0.0,
    ) -> None:
        self.question, self.kind, self.group_size, self.room = question, kind, group_size, room
        self.prefix, self.dropped, self.answer_id, self.source_step = prefix, dropped, answer_id, source_step
        self.arrived, self.data_source = arrived, data_source
        self.prefix_logprobs, self.trunks, self.share = prefix_logprobs, trunks, share

    def branch_of(self, member: int) -> tuple[int, int]:
        """The trunk that a member branches from, and its place there; the one at place 0 is the trunk itself."""
        place, number = divmod(member, max(1, self.trunks))
        return number, place

    def branch_size(self, number: int) -> int:
        """Members of a branch, its trunk among them. Sizes differ by at most one."""
        trunks = max(1, self.trunks)
        return (self.group_size - number + trunks - 1) // trunks

    def branch(self, number: int, trunk: np.ndarray, logprobs: np.ndarray, kept: int, step: int) -> "Start":
        """The start of the members that branch from the first `kept` tokens of a trunk.

        Args:
            number: of the trunk within its group.
            trunk: (l,) int32, the whole answer.
            logprobs: (l,) float, of its tokens.
            kept: tokens of its head, at least 0.
            step: of the policy that wrote it.
        """
        return Start(
            self.question, self.kind, self.branch_size(number), self.room - kept, trunk[:kept].astype(np.int32),
            len(trunk) - kept, source_step=step, data_source=self.data_source,
            prefix_logprobs=storable(logprobs[:kept]),
        )  # fmt: skip

    def __reduce__(self) -> tuple[Any, ...]:
        prefix, logprobs = (NO_TOKENS, NO_LOGPROBS) if self.arrived else (self.prefix, self.prefix_logprobs)
        identity = (self.question, self.kind, self.group_size, self.room)
        source = (prefix, self.dropped, self.answer_id, self.source_step)
        return Start, (*identity, *source, True, self.data_source, logprobs, self.trunks, self.share)
