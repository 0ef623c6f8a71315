"""Mixins over the engines of a running training.

veRL's registry of engines is never touched: the actor workers of a run that selects an algorithm get their engines
extended one by one, after veRL has built them. Any other run has veRL's own classes.
"""

import importlib
from collections.abc import Iterator, Sequence
from typing import Any

from rpo_verl import algorithms


def extended(mixin: type, engine: type) -> type:
    """An engine class with a mixin before it, under the engine's name."""
    return type(engine.__name__, (mixin, engine), {"__doc__": engine.__doc__})


def engines_of(worker: Any) -> Iterator[Any]:
    """The training engines in the process of a Ray actor of veRL's, those of workers that share it included.

    Args:
        worker: an `ActorRolloutRefWorker`, or what veRL makes of several workers in one process.
    """
    for part in (worker, *getattr(worker, "worker_dict", {}).values()):
        for role in ("actor", "ref"):
            engine = getattr(getattr(part, role, None), "engine", None)
            if engine is not None:
                yield engine


def extend_engines(worker: Any, names: Sequence[str]) -> int:
    """Put the engine mixins of algorithms over a worker's FSDP engines for language models, for its `__ray_call__`.

    Args:
        worker: the Ray actor's object.
        names: of the algorithms, in the order in which their mixins come.

    Returns:
        how many engines have all the mixins now.
    """
    from verl.workers.engine.fsdp import FSDPEngineWithLMHead

    chosen = [entry for entry in algorithms.known() if entry.name in set(names)]
    mixins = [algorithms.load(entry.engine) for entry in chosen if entry.engine]
    for entry in chosen:
        if entry.losses:
            importlib.import_module(entry.losses)
    count = 0
    for engine in engines_of(worker):
        if not isinstance(engine, FSDPEngineWithLMHead):
            continue
        for mixin in reversed(mixins):
            if not isinstance(engine, mixin):
                engine.__class__ = extended(mixin, type(engine))
        count += 1
    return count
