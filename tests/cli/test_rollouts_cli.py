"""`rpo-verl rollouts show` on dumps as RPO and as plain veRL write them."""

import gzip
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from rpo_verl.tools.cli.boundary import split_at_boundary
from rpo_verl.tools.cli.main import app

CASES = Path(__file__).parent / "cases" / "rollouts"
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


def test_a_trained_prefix_shows_its_advantage(tmp_path):
    (tmp_path / "7.jsonl").write_text(json.dumps(RPO | {"rpo_prefix_advantage": 2.0}) + "\n")
    assert "prefix 6 tokens of step 3, m = 6, advantage +2.000  correct" in show(tmp_path)
    (tmp_path / "7.jsonl").write_text(json.dumps(RPO | {"rpo_prefix_advantage": None}) + "\n")
    assert "m = 6  correct" in show(tmp_path)


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
    assert "--kind=trunk: must be one of full, prefixed, refreshed, branched" in show(
        folder, "--kind", "trunk", expect=1
    )
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


@pytest.mark.parametrize(
    ("case", "parts"),
    [
        ("bom", ["step 3  reward 1 → 0.600", "correct", "a b│ c"]),
        ("np_false_string", ['3.jsonl:1: rpo_correct="False" is text, read as 0', "m = 1  wrong"]),
        ("number_line", ["3.jsonl:1: a rollout is an object with named fields, not 5", "a b│ c"]),
        ("output_null", ["3.jsonl:1: output=null is not text"]),
        ("score_nan", ["3.jsonl:1: score=NaN is not a finite number", "reward unknown  unknown"]),
        ("score_null", ["3.jsonl:1: score=null is not a finite number", "reward unknown →", "reward 1 →"]),
        ("score_string", ['3.jsonl:1: score="1.0" is text, read as 1', "reward 1 →"]),
        ("surrogate", ["a <U+D83D>"]),
    ],
)
def test_what_is_wrong_with_a_record_is_named_and_the_rest_is_shown(case, parts):
    output = show(CASES / case)
    assert all(part in output for part in parts), output


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"score": [1.0]}, "score=[1.0] is not a finite number"),
        ({"score": "high"}, 'score="high" is not a finite number'),
        ({"score": 10**400}, "is not a finite number"),
        ({"rpo_correct": "perhaps"}, 'rpo_correct="perhaps" is not a finite number'),
        ({"rpo_advantage": float("nan")}, "rpo_advantage=NaN is not a finite number"),
        ({"rpo_shaped_reward": None}, "reward 1 → unknown"),
        ({"rpo_prefix_tokens": "six"}, 'rpo_prefix_tokens="six" is not a finite number'),
        ({"rpo_source_step": None}, "of step unknown"),
        ({"rpo_prefix_text": 5}, "rpo_prefix_text=5 is not text"),
        ({"rpo_prefix_text": "b30"}, "output does not begin with rpo_prefix_text"),
        ({"rpo_kind": ["prefixed"]}, 'rpo_kind=["prefixed"] is not text'),
        ({"input": [{"role": "user", "content": "x"}]}, "is not text"),
        ({"step": None}, "step 7"),
    ],
)
def test_a_field_of_another_type_never_ends_the_command(tmp_path, change, message):
    (tmp_path / "7.jsonl").write_text(json.dumps(RPO | change) + "\n")
    assert message in show(tmp_path)


@pytest.mark.parametrize("missing", RPO)
def test_a_missing_field_never_ends_the_command(tmp_path, missing):
    record = {name: value for name, value in RPO.items() if name != missing}
    (tmp_path / "7.jsonl").write_text(json.dumps(record) + "\n")
    assert "step 7" in show(tmp_path)


@pytest.mark.parametrize(
    ("accuracy", "verdict"),
    [(True, "correct"), (False, "wrong"), ("True", "correct"), ("False", "wrong"), (0.0, "wrong"), (1, "correct")],
)
def test_the_reported_accuracy_decides(tmp_path, accuracy, verdict):
    for name in ("rpo_correct", "acc"):
        (tmp_path / "7.jsonl").write_text(json.dumps(PLAIN | {name: accuracy}) + "\n")
        assert f"reward 1  {verdict}" in show(tmp_path)


def test_an_unknown_reward_passes_no_filter_on_rewards(tmp_path):
    lines = [json.dumps(PLAIN | {"score": score}) for score in (float("nan"), None, "high", 1.0)]
    (tmp_path / "6.jsonl").write_text("\n".join(lines))
    assert show(tmp_path).count("reward unknown") == 3
    for option in ("--min-reward", "--max-reward"):
        assert "reward unknown" not in show(tmp_path, option, 1)


@pytest.mark.parametrize(
    ("content", "message", "status"),
    [
        ("caf\u00e9\n".encode("latin-1") + json.dumps(PLAIN).encode(), "6.jsonl:1: not UTF-8 (byte 0xe9 at 3)", 0),
        (b"[1, 2]\n" + json.dumps(PLAIN).encode(), "6.jsonl:1: a rollout is an object", 0),
        (json.dumps(PLAIN).encode("utf-16"), "is UTF-16 text", 1),
        (json.dumps(PLAIN).encode("utf-16-be"), "iconv -f UTF-16BE -t UTF-8", 1),
        (gzip.compress(json.dumps(PLAIN).encode(), mtime=0), "is compressed (gzip)", 1),
        (json.dumps([PLAIN]).encode(), "is one JSON array", 1),
        (json.dumps(PLAIN, indent=1).encode(), "the first record spans several lines", 1),
        (b"5\ntrue\nnull\n", "no rollout in", 1),
        (b"\x00\xff\xfe\n", "6.jsonl", 1),
        (b"", "can be read", 1),
    ],
)
def test_files_that_are_something_else(tmp_path, content, message, status):
    (tmp_path / "6.jsonl").write_bytes(content)
    output = show(tmp_path, expect=status)
    assert message in output
    assert status or "a40+2=42;#42" in output


def test_names_that_only_look_like_steps(tmp_path):
    for name in ("²", "x", "-1"):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps(PLAIN))
    assert "has no files N.jsonl" in show(tmp_path, expect=1)


@pytest.mark.parametrize(
    ("prefix", "response", "parts"),
    [
        ("a b", "a b c", ("a b", " c")),
        ("", "abc", ("", "abc")),
        ("abc", "abc", ("abc", "")),
        ("x \ufffd", "x 🎉!", ("x ", "🎉!")),  # between the bytes of a character
        ("\ufffd", "語", ("", "語")),
        ("x \ufffd", "x \ufffd\ufffd", ("x \ufffd", "\ufffd")),  # bytes that are no character
        ("e", "e\u0301a", ("", "e\u0301a")),  # between a letter and its accent
        ("👨\u200d", "👨\u200d👩 x", ("", "👨\u200d👩 x")),
        ("🇩", "🇩🇪🇫🇷", ("", "🇩🇪🇫🇷")),
        ("👍", "👍🏽", ("", "👍🏽")),
    ],
)
def test_a_character_at_the_boundary_stays_whole(tmp_path, prefix, response, parts):
    assert split_at_boundary(prefix, response) == parts
    record = RPO | {"output": response, "rpo_prefix_text": prefix}
    (tmp_path / "7.jsonl").write_text(json.dumps(record) + "\n")
    assert f"{parts[0]}{'│' if prefix else ''}{parts[1]}" in show(tmp_path)
