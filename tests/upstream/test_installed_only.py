"""Installed and not selected, the package leaves veRL's registries and classes as they are: without a training.

Every side is a process of its own. `tests/real/test_vanilla.py` looks at the same things in the processes of a run.
"""

import json
import os
import subprocess
import sys

import pytest
from conftest import ROOT

from benchmarks.contents import without_ours


def contents(**environment):
    code = "import json, verl; from benchmarks import contents as c; c.import_all(); print(json.dumps(c.contents()))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": str(ROOT), "VERL_PLATFORM": ""} | environment,
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def with_package():
    return contents()


@pytest.fixture(scope="module")
def without_package():
    return contents(VERL_USE_EXTERNAL_PLUGINS="none")


def test_the_plugin_was_there(with_package, without_package):
    assert with_package["plugin"]
    assert not without_package["plugin"]
    assert len(without_package["registries"]["engines"]) >= 4
    assert len(without_package["classes"]) > 20


def test_registries_hold_the_same_classes(with_package, without_package):
    """Beside the names of our own, which nothing selects."""
    assert without_ours(with_package["registries"]) == without_package["registries"]
    added = {
        registry: set(found) - set(without_package["registries"][registry])
        for registry, found in with_package["registries"].items()
    }
    assert {registry: names for registry, names in added.items() if names} == {
        "agent loops": {"rpo"}, "estimators": {"rpo"}, "reward managers": {"rpo"}
    }  # fmt: skip


def test_classes_have_the_same_dictionaries(with_package, without_package):
    assert with_package["classes"] == without_package["classes"]


def test_what_a_registered_trainer_makes_is_of_exactly_the_registered_class():
    from verl.trainer.ppo.v1.trainer_base import TRAINER_REGISTRY

    from rpo_verl.upstream.registration import wrap_trainers

    assert TRAINER_REGISTRY, "veRL's trainers"

    class Trainer:
        """A registered trainer."""

        def __init__(self, config):
            self.config = config

    registry = {"sync": Trainer}
    wrap_trainers(registry)
    made = registry["sync"](config={"trainer": {}})
    assert type(made) is Trainer
    assert made.config == {"trainer": {}}
