"""Groups until a batch is full: the first ones, or with DAPO's dynamic filter those with a signal."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from benchmarks.lab.groups import Finished
from benchmarks.lab.policy import BrokenDown
from rpo_verl.rpo.group import Group

#: Groups that veRL requests for one that it filters.
REFILL = 2
#: Rounds of new groups in a step, after which the filter gives up; a step of a policy that still errs takes one or two.
MOST_ROUNDS = 16


@dataclass
class Collected:
    """The groups of a step."""

    batch: list[Finished] = field(default_factory=list)
    """Those to train on."""

    discarded: list[Finished] = field(default_factory=list)
    """Zero-advantage groups, and surplus."""


def collect(
    roll_out: Callable[[int], Sequence[Finished]],
    size: int,
    has_signal: Callable[[Group], bool] | None,
    prefixed_limit: int | None = None,
    inflight: int = 2,
) -> Collected:
    """Collect the groups of a step.

    The filter follows veRL's replay buffer: a discarded group brings two new ones, at most `inflight` batches at a
    time; once a batch is there, all that run finish, the oldest groups are taken and the rest is discarded.

    Args:
        roll_out: rolls out so many new groups.
        size: groups that a step trains on.
        has_signal: whether a group has one; the filter discards others. None: no filter.
        prefixed_limit: zero-advantage groups from prefixes that may be discarded; beyond it they fill the batch if
            others are too few. None: no limit.
        inflight: batches that may be generated at a time.

    Raises:
        BrokenDown: if no batch is full after `MOST_ROUNDS` rounds.
    """
    if has_signal is None:
        return Collected(list(roll_out(size)))
    found, idle, discarded = [], [], []
    wanted = size
    for _ in range(MOST_ROUNDS):
        fresh = list(roll_out(wanted))
        without = 0
        for one in fresh:
            if has_signal(one.group):
                found.append(one)
            elif one.group.prefixed and prefixed_limit is not None and _prefixed(discarded) >= prefixed_limit:
                idle.append(one)
            else:
                discarded.append(one)
                without += 1
        if len(found) + len(idle) >= size:
            pool = found + idle
            return Collected(pool[:size], discarded + pool[size:])
        wanted = max(1, min(REFILL * without, inflight * size))
    raise BrokenDown(
        f"of {len(found) + len(discarded)} groups {len(found)} had a signal, and a step needs {size}: "
        "the policy is right or wrong everywhere. Choose harder or easier questions (--problem-steps), or another arm."
    )


def _prefixed(groups: Sequence[Finished]) -> int:
    return sum(one.group.prefixed for one in groups)
