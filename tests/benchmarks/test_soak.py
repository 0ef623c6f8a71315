"""What the soak makes of its looks at the processes, and whom it looks at."""

import os
import subprocess
import sys

import pyarrow.parquet as pq

from benchmarks import soak


def looks(values, files=None, kind="ray::Trainer"):
    """One look a step in life 1; the first is before training."""
    found = [{"life": 1, "step": 0, "processes": {kind: {"mb": 9e9, "files": 9e9}}}]
    files = files or [50] * len(values)
    for step, (mb, open_files) in enumerate(zip(values, files, strict=True), 1):
        found.append({"life": 1, "step": step, "processes": {kind: {"mb": mb, "files": open_files}}})
    return found


def test_what_settles_does_not_grow():
    (row,) = soak.growth(looks([500, 700, 800, 900, 950, 950, *[1000] * 10]))
    assert row == {"life": 1, "kind": "ray::Trainer", "mb": [1000, 1000], "files": [50, 50], "grows": False}


def test_what_goes_on_grows():
    (memory,) = soak.growth(looks([1000 + 10 * step for step in range(16)]))
    assert memory["grows"] and memory["mb"] == [1095, 1135]
    (files,) = soak.growth(looks([1000] * 16, [50 + 2 * step for step in range(16)]))
    assert files["grows"] and files["files"] == [69, 77]
    (few,) = soak.growth(looks([100 + step for step in range(16)]))
    assert not few["grows"], "a few MB of a small process"


def test_short_lives_say_nothing():
    assert soak.growth(looks([1000, 2000])) == []
    assert soak.rows_of([]) == [
        ["life", "process", "memory, MB, third quarter", "last quarter", "files, third quarter", "last quarter"]
    ]


def test_the_processes_of_a_run_are_found_by_their_mark(tmp_path):
    command = [sys.executable, "-c", "input()"]
    environment = os.environ | {"CRASH_TEST": "soak of a test"}
    process = subprocess.Popen(command, env=environment, stdin=subprocess.PIPE)
    try:
        found = soak.look("soak of a test")
    finally:
        process.communicate(b"\n")
    ((_, one),) = found.items()
    assert one["mb"] > 1 and one["files"] >= 3
    assert soak.look("soak of a test") == {}
    soak.plot(looks([1000] * 4), tmp_path / "soak.png")
    assert (tmp_path / "soak.png").stat().st_size > 1000


def test_questions_are_mixed(tmp_path):
    soak.write_mixed_questions(tmp_path)
    rows = pq.read_table(tmp_path / "train.parquet").to_pylist()
    assert len(rows) == soak.QUESTIONS
    assert sum(row["agent_name"] == "tool_agent" for row in rows) == soak.QUESTIONS // 6
    lengths = [len(row["prompt"][-1]["content"]) for row in rows]
    assert min(lengths) < 30 < max(lengths)
