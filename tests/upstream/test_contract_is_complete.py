"""Every name of veRL, vLLM, TransferQueue and Ray's internals that the package uses stands in the upstream table."""

import ast
import importlib.util
import re

import pytest
from conftest import ROOT

from rpo_verl.upstream.contract import UPSTREAM_NAMES

PACKAGE = ROOT / "rpo_verl"
UPSTREAM = ("verl", "vllm", "transfer_queue")
MODULES = {path: ast.parse(path.read_text()) for path in sorted(PACKAGE.rglob("*.py"))}
#: With a method its class, with a name its module.
TABLE = {
    f"{name.module}.{'.'.join(parts[:end])}".rstrip(".")
    for name in UPSTREAM_NAMES
    for parts in [name.name.split(".")]
    for end in range(len(parts) + 1)
}
#: What the table says of attributes: last parts of its names, and attributes that an `__init__` sets.
ATTRIBUTES = {part for name in UPSTREAM_NAMES for part in (name.name.rsplit(".", 1)[-1], *name.sets)}


def is_upstream(module: str) -> bool:
    return module.split(".")[0] in UPSTREAM or module.startswith("ray._") or "._private" in module


def is_module(dotted: str) -> bool:
    try:
        return importlib.util.find_spec(dotted) is not None
    except (ImportError, AttributeError, ValueError):
        # veRL's package for vLLM raises ValueError where it does not know the installed vLLM.
        return False


def imported(tree: ast.Module) -> set[str]:
    """Dotted upstream names that a module imports; of imported modules the attributes it uses."""
    names, modules = set(), {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and is_upstream(node.module):
            for alias in node.names:
                dotted = f"{node.module}.{alias.name}"
                if is_module(dotted):
                    modules[alias.asname or alias.name] = dotted
                else:
                    names.add(dotted)
        elif isinstance(node, ast.Import):
            modules |= {alias.asname or alias.name: alias.name for alias in node.names if is_upstream(alias.name)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in modules:
            names.add(f"{modules[node.value.id]}.{node.attr}")
    return names


def defined() -> set[str]:
    """Attributes and functions that the package itself defines."""
    names = set()
    for tree in MODULES.values():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                names.add(node.name)
            elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
                names.add(node.attr)
            elif isinstance(node, ast.AnnAssign | ast.Assign):
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                names |= {target.id for target in targets if isinstance(target, ast.Name)}
    return names


DEFINED = defined()
#: What a mixin of our own offers to those before it.
OFFERED = {"_prepare_rollouts"}
#: Methods of other libraries that the package overrides.
NOT_VERLS = {"invoke"}


#: Private attributes of transformers, which is not veRL's.
TRANSFORMERS = {"_attn_implementation"}


def modules_named(tree: ast.Module) -> set[str]:
    """Upstream modules that a text names, for imports by name and on import."""
    texts = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    return {text for text in texts if re.fullmatch(r"(verl|vllm|transfer_queue)(\.\w+)+", text) and is_module(text)}


def attributes(tree: ast.Module) -> set[str]:
    """Attributes that can only be upstream's: reached through `super()`, or private, or of `self`, and not our own."""
    found = set()
    for node in ast.walk(tree):
        if not isinstance(node, ast.Attribute):
            continue
        value = node.value
        if isinstance(value, ast.Call) and isinstance(value.func, ast.Name) and value.func.id == "super":
            found |= {node.attr} - OFFERED
        private = (node.attr.startswith("_") and not node.attr.endswith("__")) or node.attr == "__ray_call__"
        own = isinstance(value, ast.Name) and value.id == "self"
        if isinstance(value, ast.Name) and value.id in ("os", "sys"):
            continue
        if (private or own) and node.attr not in DEFINED | TRANSFORMERS:
            found.add(node.attr)
    return found


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_every_upstream_name_is_in_the_table(path):
    assert imported(MODULES[path]) - TABLE == set()
    if path.name != "contract.py":
        known = {name.module for name in UPSTREAM_NAMES}
        assert all(any(k == n or k.startswith(f"{n}.") for k in known) for n in modules_named(MODULES[path]))
    assert attributes(MODULES[path]) - ATTRIBUTES - NOT_VERLS - {"__init__"} == set()


def test_the_table_names_nothing_that_is_not_used():
    everything = "\n".join(path.read_text() for path in MODULES if path.name != "contract.py")
    # A name stands for itself, or for the attributes that it gives to its object, or for its module.
    for name in UPSTREAM_NAMES:
        if name.name == "compute_advantage_for_multi_trajectories":
            continue  # relied on without being named: it calls the registered estimator
        parts = (*name.name.split("."), *name.sets, name.module)
        assert any(part in everything for part in parts if part != "__init__"), name


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("from verl.utils.fs import copy_to_local", {"verl.utils.fs.copy_to_local"}),
        ("from verl.utils import fs\nfs.copy_to_local('x')", {"verl.utils.fs.copy_to_local"}),
        ("import transfer_queue as tq\ntq.kv_put()", {"transfer_queue.kv_put"}),
        ("from ray._private.worker import global_worker", {"ray._private.worker.global_worker"}),
        ("import ray\nray.get(1)", set()),
    ],
)
def test_what_counts_as_an_upstream_import(source, expected):
    assert imported(ast.parse(source)) == expected


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("worker._secret_of_theirs", {"_secret_of_theirs"}),
        ("class A:\n  def f(self): return super().theirs() + self.also_theirs", {"theirs", "also_theirs"}),
        ("self._rollouts, other.public", set()),
    ],
)
def test_what_counts_as_an_upstream_attribute(source, expected):
    assert attributes(ast.parse(source)) == expected


def test_one_module_knows_the_queue():
    knows = {path for path, tree in MODULES.items() if any("transfer_queue" in name for name in imported(tree))}
    assert knows == {PACKAGE / "upstream" / "queue.py"}
    formats = ('"response_len"', '"seq_len"', '"is_padding"', 'tag["', 'rsplit("_"', 'split("_")')
    for path, _ in MODULES.items():
        text = path.read_text()
        if path.parent.name in ("hooks", "lean", "rpo"):
            assert not [form for form in formats if form in text], path
