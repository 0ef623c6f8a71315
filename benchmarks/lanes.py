"""Several runs at a time, each on a core of its own, and in an order that spreads slow hours over all arms."""

import os
import queue
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed


def in_lanes(jobs: Sequence[Callable[[], None]], lanes: int, after: Callable[[], None]) -> None:
    """Run all jobs, `lanes` at a time, each lane on a core of its own; call `after` when a job has ended.

    Raises:
        SystemExit: of the first job that fails, once those that go on beside it are finished.
    """
    cores = queue.SimpleQueue()
    for core in sorted(os.sched_getaffinity(0))[:lanes]:
        cores.put(core)

    def pin() -> None:
        # On Linux this is the calling thread's affinity, which the processes that it starts inherit.
        os.sched_setaffinity(0, {cores.get()})

    with ThreadPoolExecutor(lanes, initializer=pin) as pool:
        running = [pool.submit(job) for job in jobs]
        try:
            for done in as_completed(running):
                done.result()
                after()
        finally:
            for waiting in running:
                waiting.cancel()


def seeds_outermost(arms: Sequence[str], seeds: Sequence[int], first: str | None = None) -> list[tuple[str, int]]:
    """Order every arm with every seed: seeds outermost, and every seed begins with another arm.

    Args:
        arms: their names.
        seeds: the seeds.
        first: an arm that every seed begins with, if it is among `arms`.
    """
    fixed = [arm for arm in arms if arm == first]
    turning = [arm for arm in arms if arm not in fixed]
    order = []
    for number, seed in enumerate(seeds):
        by = number % max(1, len(turning))
        order += [(arm, seed) for arm in [*fixed, *turning[by:], *turning[:by]]]
    return order
