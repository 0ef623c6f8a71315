"""The contents of veRL's registries and of its classes, to compare a veRL with this package and one without.

With `VERL_USE_EXTERNAL_MODULES=benchmarks.contents`, every process of a run writes those of the modules that it has
imported to a file of its own in the folder `CONTENTS_DIR`, again and again.
"""

import importlib
import inspect
import json
import os
import sys
import threading
import time
from pathlib import Path
from types import CodeType
from typing import Any

OURS = {"rpo", "lean"}
FOLDER = "CONTENTS_DIR"
ENGINES, WORKERS = "verl.workers.engine", "verl.workers.engine_workers"
TRAINERS, BUFFERS = "verl.trainer.ppo.v1.trainer_base", "verl.trainer.ppo.v1.replay_buffer"
AGENT_LOOPS, MANAGERS = "verl.experimental.agent_loop.agent_loop", "verl.trainer.ppo.v1.agent_loop_tq"
REWARDS, ALGORITHMS = "verl.experimental.reward_loop.reward_manager.registry", "verl.trainer.ppo.core_algos"
MODULES = (ENGINES, WORKERS, TRAINERS, BUFFERS, AGENT_LOOPS, MANAGERS, REWARDS, ALGORITHMS)


def import_all() -> None:
    """Import everything that `contents` looks at."""
    for name in MODULES:
        importlib.import_module(name)


def contents() -> dict[str, Any]:
    """Describe the registries that this process has imported, and their classes with all their ancestors in veRL."""
    loaded = {name: sys.modules[name] for name in MODULES if name in sys.modules}

    def found(module: str, attribute: str) -> Any:
        return getattr(loaded.get(module), attribute, {})

    registered = getattr(found(ENGINES, "EngineRegistry"), "_engines", {})
    engines = {
        f"{model}/{backend}/{device}": engine
        for model, backends in registered.items()
        for backend, devices in backends.items()
        for device, engine in devices.items()
    }
    # A stand-in that makes the class it inherits from stands for that class.
    trainers = {mode: t.__mro__[_is_stand_in(t)] for mode, t in found(TRAINERS, "TRAINER_REGISTRY").items()}
    managers = found(REWARDS, "REWARD_MANAGER")
    registries = {
        "engines": engines,
        "trainers": trainers,
        "agent loops": found(AGENT_LOOPS, "_agent_loop_registry"),
        "estimators": found(ALGORITHMS, "ADV_ESTIMATOR_REGISTRY"),
        "policy losses": found(ALGORITHMS, "POLICY_LOSS_REGISTRY"),
        "reward managers": managers,
    }
    classes = [*engines.values(), *trainers.values(), *(v for k, v in managers.items() if k not in OURS)]
    classes += [value for module in loaded.values() for value in vars(module).values() if inspect.isclass(value)]
    ancestors = {base for cls in classes for base in cls.__mro__ if base.__module__.split(".")[0] == "verl"}
    return {
        "plugin": "rpo_verl.plugin" in sys.modules,
        "modules": sorted(loaded),
        "registries": {name: {str(k): _named(v) for k, v in content.items()} for name, content in registries.items()},
        "classes": {_named(cls): _functions(cls) for cls in ancestors},
    }


def without_ours(registries: dict[str, dict[str, str]]) -> dict[str, dict[str, str]]:
    """The registries without the names of this package."""
    return {name: {k: v for k, v in found.items() if k not in OURS} for name, found in registries.items()}


def _is_stand_in(trainer: type) -> bool:
    return trainer.__module__.startswith("rpo_verl.")


def _named(value: Any) -> str:
    """A class or function with its module and all its ancestors; anything else as it prints."""
    if inspect.isclass(value):
        return " < ".join(f"{base.__module__}.{base.__qualname__}" for base in value.__mro__)
    if inspect.isfunction(value):
        return f"{value.__module__}.{value.__qualname__}"
    return repr(value)


def _functions(cls: type) -> dict[str, str]:
    """Functions of a class itself → their kind and code. Values are left out: they change while a process runs."""
    found = {}
    for name, value in vars(cls).items():
        inner = value.fget if isinstance(value, property) else getattr(value, "__func__", value)
        code = getattr(inner, "__code__", None)
        if isinstance(code, CodeType):
            place = f"{Path(code.co_filename).name}:{code.co_firstlineno}"
            found[name] = f"{type(value).__name__} {place} {len(code.co_code)}"
    return found


def _write_again_and_again(folder: Path) -> None:
    while True:
        time.sleep(5)
        found = contents()
        if found["modules"]:
            # Whole or not at all: the process may be killed at any time.
            part = folder / f"{os.getpid()}.part"
            part.write_text(json.dumps(found))
            part.rename(folder / f"{os.getpid()}.json")


if os.environ.get(FOLDER):
    threading.Thread(target=_write_again_and_again, args=(Path(os.environ[FOLDER]),), daemon=True).start()
