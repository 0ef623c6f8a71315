"""`--help` at 80 columns."""

import re

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from rpo_verl.tools.cli.main import app


def commands(node, path=()):
    yield path, node
    for name, child in getattr(node, "commands", {}).items():
        yield from commands(child, (*path, name))


COMMANDS = dict(commands(get_command(app)))


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_no_name_is_cut_off(path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERMINAL_WIDTH", "80")
    result = CliRunner().invoke(app, [*path, "--help"])
    assert result.exit_code == 0, result.output
    assert max(map(len, result.output.splitlines())) <= 80
    node = COMMANDS[path]
    names = [name for parameter in node.params for name in (*parameter.opts, *parameter.secondary_opts)]
    for name in (*names, *getattr(node, "commands", {})):
        assert re.search(rf"(?<![\w-]){re.escape(name)}(?![\w-])", result.output), f"{name} in\n{result.output}"
    assert "…" not in result.output
    assert all(not line.endswith("...") for line in result.output.partition("\n")[2].splitlines())


def test_every_command_is_there():
    assert len(COMMANDS) == 14
