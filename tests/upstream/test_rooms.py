"""Who may import whom (docs/architecture.md)."""

import ast

import pytest
from conftest import ROOT

PACKAGE = ROOT / "rpo_verl"
HEAVY = {"verl", "ray", "vllm", "hydra", "omegaconf", "torch", "transfer_queue", "tensordict", "transformers"}
PURE = [
    *sorted((PACKAGE / "rpo").glob("*.py")),
    PACKAGE / "lean" / "packing.py",
    PACKAGE / "lean" / "options.py",
    PACKAGE / "correctness.py",
    PACKAGE / "question.py",
    PACKAGE / "config.py",
]


def imports(path):
    """Modules that a file imports anywhere, names in them included."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def named(path):
    return str(path.relative_to(PACKAGE))


@pytest.mark.parametrize("path", sorted((PACKAGE / "r2po").glob("*.py")), ids=named)
def test_the_core_of_r2po_needs_torch_alone(path):
    assert {name.split(".")[0] for name in imports(path)} & HEAVY <= {"torch"}
    ours = {name for name in imports(path) if name.startswith("rpo_verl.")}
    assert all(name.startswith(("rpo_verl.r2po.", "rpo_verl.config.")) for name in ours - {"rpo_verl.r2po.state"})
    assert not any(name.startswith("rpo_verl.r2po.hooks") for name in ours)


@pytest.mark.parametrize("path", PURE, ids=named)
def test_pure_rooms_need_no_verl(path):
    assert {name for name in imports(path) if name.split(".")[0] in HEAVY} == set()
    # Nor by way of a room that does.
    ours = {name for name in imports(path) if name.startswith("rpo_verl.")}
    assert not {name for name in ours if name.startswith(("rpo_verl.upstream", "rpo_verl.rpo.hooks"))}


@pytest.mark.parametrize("path", sorted((PACKAGE / "lean").rglob("*.py")), ids=named)
def test_lean_knows_nothing_of_rpo(path):
    assert not {name for name in imports(path) if name.startswith(("rpo_verl.rpo", "rpo_verl.r2po"))}


@pytest.mark.parametrize("path", sorted((PACKAGE / "r2po").rglob("*.py")), ids=named)
def test_r2po_knows_nothing_of_rpo(path):
    assert not {name for name in imports(path) if name.startswith("rpo_verl.rpo")}


@pytest.mark.parametrize("path", sorted((PACKAGE / "rpo").rglob("*.py")), ids=named)
def test_rpo_knows_nothing_of_r2po(path):
    assert not {name for name in imports(path) if name.startswith("rpo_verl.r2po")}


@pytest.mark.parametrize("room", ["upstream", "cpu", "rewards"])
def test_rooms_below_know_no_algorithm(room):
    for path in sorted((PACKAGE / room).rglob("*.py")):
        assert not {
            name for name in imports(path) if name.startswith(("rpo_verl.rpo", "rpo_verl.r2po", "rpo_verl.lean"))
        }, path


def test_the_entry_point_is_light():
    """Every process that imports veRL imports it."""
    tree = ast.parse((PACKAGE / "plugin.py").read_text())
    top = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    assert {alias.name for node in top for alias in node.names} <= {"importlib", "os", "re", "sys"}
    for name in ("algorithms.py", "config.py"):
        assert not {module for module in imports(PACKAGE / name) if module.split(".")[0] in HEAVY}
