"""Bypass the plug-in in odd steps, for overhead.py: rows have no start, and the trainer's methods are veRL's.

VERL_USE_EXTERNAL_MODULES loads it into every process of a run.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import wrapt


@contextmanager
def users_estimator(config: Any) -> Iterator[None]:
    """Put the user's estimator in the place of RPO's, whose trainer is bypassed."""
    own, config.algorithm.adv_estimator = config.algorithm.adv_estimator, config.rpo_wrapped.adv_estimator
    try:
        yield
    finally:
        config.algorithm.adv_estimator = own


def _bypass(mixin: type, name: str) -> None:
    @wrapt.decorator
    def in_odd_steps(method: Callable, trainer: Any, arguments: tuple, named: dict[str, Any]) -> Any:
        if trainer.global_steps % 2 == 0:
            return method(*arguments, **named)
        with users_estimator(trainer.config):
            return getattr(super(mixin, trainer), name)(*arguments, **named)

    setattr(mixin, name, in_odd_steps(getattr(mixin, name)))


def _alternate_rpo(module: Any) -> None:
    for name in ("_compute_advantage", "_compute_metrics"):
        _bypass(module.PartialRolloutTrainer, name)


def _alternate_lean(module: Any) -> None:
    for name in ("_update_actor", "_balance_batch"):
        _bypass(module.LeanTrainer, name)


def _alternate_injection(module: Any) -> None:
    @wrapt.decorator
    def in_even_steps(inject: Callable, _: Any, arguments: tuple, named: dict[str, Any]) -> None:
        if int(arguments[0]["global_steps"]) % 2 == 0:
            inject(*arguments, **named)

    module.Injection.__call__ = in_even_steps(module.Injection.__call__)


wrapt.register_post_import_hook(_alternate_rpo, "rpo_verl.rpo.hooks.trainer")
wrapt.register_post_import_hook(_alternate_lean, "rpo_verl.lean.trainer")
wrapt.register_post_import_hook(_alternate_injection, "rpo_verl.rpo.hooks.injection")
