"""The table of algorithms: which are known, which a configuration selects, and which entries are refused."""

import importlib.metadata
from types import SimpleNamespace

import pytest

from rpo_verl import algorithms
from rpo_verl.algorithms import Algorithm

OTHER = Algorithm(name="other", options="collections:Counter")


@pytest.fixture
def install(monkeypatch):
    """Stands for installed packages, whose entry points lead to these objects."""

    def entry_points(*objects):
        def found(group):
            assert group == "rpo_verl.algorithms"
            return [SimpleNamespace(load=lambda one=one: one) for one in objects]

        monkeypatch.setattr(importlib.metadata, "entry_points", found)
        algorithms.known.cache_clear()

    yield entry_points
    monkeypatch.undo()
    algorithms.known.cache_clear()


def test_this_package_has_rpo_r2po_and_lean(install):
    install()
    assert [entry.name for entry in algorithms.known()] == ["rpo", "r2po", "lean"]


def test_every_path_of_a_built_in_algorithm_leads_somewhere():
    for entry in algorithms.BUILT_IN:
        for path in (entry.options, entry.check, entry.trainer, entry.engine, entry.agent_loop, entry.moved):
            if path is not None:
                assert algorithms.load(path) is not None
        assert set(entry.needs) <= {other.name for other in algorithms.BUILT_IN}


def test_algorithms_of_other_packages_come_first(install):
    install(OTHER)
    assert [entry.name for entry in algorithms.known()] == ["other", "rpo", "r2po", "lean"]


@pytest.mark.parametrize("name", ["rpo", "r2po", "lean", "other"])
def test_a_name_is_given_once(install, name):
    install(OTHER, Algorithm(name=name, options="collections:Counter"))
    with pytest.raises(ValueError, match=f"two algorithms have the same name: .*{name}"):
        algorithms.known()


@pytest.mark.parametrize("wrong", [{"name": "other"}, Algorithm, None])
def test_an_entry_point_leads_to_an_algorithm(install, wrong):
    install(wrong)
    with pytest.raises(ValueError, match=r"rpo_verl\.algorithms leads to .*, which is no Algorithm"):
        algorithms.known()


def test_the_sections_of_a_configuration_select(install):
    install(OTHER)

    def names(**config):
        return [entry.name for entry in algorithms.selected(config)]

    assert names() == names(algorithm={}, rpo=None) == []
    assert names(lean={}) == ["lean"]
    assert names(lean={}, rpo="enabled", other={"a": 1}) == ["other", "rpo", "lean"]
