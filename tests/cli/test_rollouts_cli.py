"""`rpo-verl rollouts show` on dumps as RPO and as plain veRL write them."""

import json

import pytest
from typer.testing import CliRunner

from rpo_verl.tools.cli.main import app

RPO = {
    "input": "30a+1", "output": "a30+1=31;#31", "gts": "31", "score": 1.0, "step": 7, "uid": "u_0_0",
    "rpo_kind": "prefixed", "rpo_prefix_tokens": 6, "rpo_prefix_text": "a30+1=", "rpo_dropped": 6,
    "rpo_source_step": 3, "rpo_age": 4, "rpo_correct": True, "rpo_base_reward": 1.0, "rpo_shaped_reward": 0.5,
    "rpo_advantage": 0.25,
}  # fmt: skip
WRONG = RPO | {"output": "a30+1=99;#99", "score": 0.0, "rpo_correct": False, "rpo_shaped_reward": 0.0}
PLAIN = {"input": "40a+2", "output": "a40+2=42;#42", "gts": "42", "score": 1.0, "step": 6, "uid": "v_0_0"}


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "7.jsonl").write_text("".join(json.dumps(record) + "\n" for record in (RPO, WRONG)) + '{"input": "3')
    (tmp_path / "6.jsonl").write_text(json.dumps(PLAIN) + "\n")
    return tmp_path


def show(folder, *options, expect=0):
    result = CliRunner().invoke(app, ["rollouts", "show", str(folder), *map(str, options)])
    assert result.exit_code == expect, result.output
    return result.output


def test_newest_first_with_the_prefix_boundary(folder):
    output = show(folder)
    assert output.index("step 7") < output.index("step 6")
    assert "a30+1=│31;#31" in output
    assert "reward 1 → 0.500  prefixed  advantage +0.250  prefix 6 tokens of step 3, m = 6  correct" in output
    assert "a40+2=42;#42" in output  # a run without RPO has no boundary
    assert "7.jsonl:3: not JSON" in output


@pytest.mark.parametrize(
    ("options", "present", "absent"),
    [
        (["--step", 6], "40a+2", "30a+1"),
        (["--question", "30a"], "30a+1", "40a+2"),
        (["--max-reward", 0], "#99", "#31"),
        (["--min-reward", 0.5], "#31", "#99"),
        (["--kind", "prefixed"], "30a+1", "40a+2"),
        (["--count", 1], "#31", "#99"),
    ],
)
def test_filters(folder, options, present, absent):
    output = show(folder, *options)
    assert present in output
    assert absent not in output


@pytest.mark.parametrize("record", [RPO, PLAIN])
def test_rows_that_only_fill_up_a_batch_are_left_out(folder, record):
    padding = record | {"input": "", "output": "", "score": 0.0, "uid": "pad" + "0a" * 16 + "_0_0"}
    (folder / "8.jsonl").write_text("".join(json.dumps(one) + "\n" for one in (padding, record, padding)))
    output = show(folder, "--step", 8)
    assert output.count("reward") == output.count(record["input"]) == 1


def test_nothing_to_show(folder, tmp_path):
    assert "passes these filters" in show(folder, "--question", "no such question", expect=1)
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "trainer.rollout_data_dir" in show(empty, expect=1)


def test_colours_tell_prefix_from_suffix_and_right_from_wrong(folder, monkeypatch):
    from rpo_verl.tools.cli import rollouts
    from rpo_verl.tools.cli.screen import Screen

    monkeypatch.setattr(rollouts, "screen", Screen(force_terminal=True, color_system="standard"))
    output = show(folder, "--step", 7)
    assert "\x1b[2ma30+1=\x1b[0m" in output  # dim
    assert "\x1b[1;32m31;#31\x1b[0m" in output  # bold green
    assert "\x1b[1;31m99;#99\x1b[0m" in output  # bold red
