"""`rpo-verl cache` on files: import, export, stats, show, verify, and what malformed input meets."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import TINY
from typer.testing import CliRunner

from rpo_verl.rpo import store
from rpo_verl.tools.cli.main import app

MODEL = str(TINY / "checkpoint")
GOOD = [
    {"prompt": [{"role": "user", "content": "30a+1"}], "answer": "a30+1=31;#31", "reward": 1.0},
    {"prompt": "40a+2", "answer": "a40+2=43;#43", "reward": 0.0},
    {"prompt": "50a+3", "answer_ids": [50, 51, 52]},
]
MALFORMED = {
    "{": "not JSON",
    "[1]": "a record is an object",
    '{"answer": "x"}': "neither prompt nor prompt_ids",
    '{"prompt": "x"}': "neither answer (text) nor answer_ids",
    '{"prompt": 3, "answer": "x"}': "prompt is neither text nor a list of messages",
    '{"prompt": "x", "answer": "x", "reward": "high"}': "reward='high' is not a number",
    '{"prompt": "x", "answer": "x", "correct": 1}': "correct=1 is not true or false",
    '{"prompt": "x", "answer_ids": [1, 99999]}': "answer_ids has 99999, outside the vocabulary of 261 tokens",
    '{"prompt": "x", "answer_ids": "12"}': "answer_ids is not a list of token ids",
    '{"prompt": "x", "answer": ""}': "an empty question or answer",
    '{"prompt": "x", "answer": "x", "step": -1}': "step=-1 is not a training step",
}


def call(*arguments, expect=0):
    result = CliRunner().invoke(app, ["cache", *map(str, arguments)])
    assert result.exit_code == expect, result.output
    return " ".join(result.output.split())


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "answers.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in GOOD))
    return path


@pytest.fixture
def folder(tmp_path, source):
    call("import", source, "--out", tmp_path / "store", "--model", MODEL)
    return tmp_path / "store"


def answers(folder):
    return [answer for _, answer in store.load(folder)[0].items()]


def test_import(folder):
    first, second, third = answers(folder)
    assert (first.correct, first.reward, len(first.tokens)) == (True, 1.0, 12)
    assert (second.correct, second.reward) == (False, 0.0)
    assert third.tokens.tolist() == [50, 51, 52]
    assert not third.correct


def test_text_without_the_data_set_is_for_reading(tmp_path, folder):
    call("export", folder, tmp_path / "out.jsonl", "--text")
    first = json.loads((tmp_path / "out.jsonl").read_text().splitlines()[0])
    assert "30a+1" in first["prompt_text"]
    assert first["answer"] == "a30+1=31;#31"
    output = call("import", tmp_path / "out.jsonl", "--out", tmp_path / "s", "--model", MODEL, expect=1)
    assert "neither prompt nor prompt_ids" in output


def test_a_data_set_without_the_questions(tmp_path, folder):
    pq.write_table(pa.table({"prompt": [[{"role": "user", "content": "99a+9"}]]}), tmp_path / "data.parquet")
    arguments = ["export", folder, tmp_path / "out.jsonl", "--text", "--data", tmp_path / "data.parquet"]
    assert "none of the 3 questions" in call(*arguments, expect=1)
    assert "has the columns prompt" in call(*arguments, "--prompt-key", "question", expect=1)
    assert not (tmp_path / "out.jsonl").exists()


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
@pytest.mark.parametrize("text", [False, True], ids=["ids", "text"])
def test_export_and_import_again(tmp_path, folder, suffix, text):
    out, data = tmp_path / f"out.{suffix}", tmp_path / "data.parquet"
    prompts = [record["prompt"] for record in GOOD]
    prompts = [[{"role": "user", "content": p}] if isinstance(p, str) else p for p in prompts]
    pq.write_table(pa.table({"prompt": prompts[::-1]}), data)
    assert "3 answers" in call("export", folder, out, *(["--text", "--data", data] if text else []))
    call("import", out, "--out", tmp_path / "again", "--model", MODEL)
    for one, other in zip(answers(folder), answers(tmp_path / "again"), strict=True):
        assert one.question.tolist() == other.question.tolist()
        assert one.tokens.tolist() == other.tokens.tolist()
        assert one.correct == other.correct
    if text and suffix == "parquet":
        assert pq.read_table(out)["answer"].to_pylist()[0] == "a30+1=31;#31"


def test_malformed_lines_are_reported_by_number_and_stop_nothing_else(tmp_path, source):
    lines = source.read_text().splitlines()
    source.write_text("\n".join([lines[0], *MALFORMED, lines[1]]) + "\n")
    output = call("import", source, "--out", tmp_path / "store", "--model", MODEL)
    for number, message in enumerate(MALFORMED.values(), start=2):
        assert f"{source.name}:{number}: {message}" in output
    assert f"2 answers written to {tmp_path / 'store'}, {len(MALFORMED)} malformed" in output


def test_strict_stops_at_the_first_malformed_line_and_writes_nothing(tmp_path, source):
    source.write_text("{\n" + source.read_text())
    assert "--strict" in call("import", source, "--out", tmp_path / "s", "--model", MODEL, "--strict", expect=1)
    assert not (tmp_path / "s").exists()


def test_nothing_is_overwritten(folder, source):
    before = (folder / "manifest.json").read_bytes()
    assert "exists" in call("import", source, "--out", folder, "--model", MODEL, expect=1)
    assert "exists" in call("export", folder, source, expect=1)
    assert (folder / "manifest.json").read_bytes() == before


def test_a_model_that_is_not_there(tmp_path, source):
    output = call("import", source, "--out", tmp_path / "s", "--model", tmp_path / "no_model", expect=1)
    assert "no tokenizer there" in output


def test_stats(folder):
    figures = json.loads(CliRunner().invoke(app, ["cache", "stats", str(folder), "--json"]).output)
    assert (figures["entries"], figures["correct"], figures["answer tokens"]) == (3, 1, 27)
    assert figures["mean reward"] == 0.5
    assert "261" not in call("stats", folder)
    assert "tokenizer" in call("stats", folder)


def test_show_marks_the_boundary(folder):
    output = CliRunner().invoke(app, ["cache", "show", str(folder), "--max-fraction", "0.25", "--count", "1"]).output
    assert "a30+1=31;│#31" in output
    assert "30a+1" in output
    assert "L = 3" in output
    assert "a30+1=│31;#31" in CliRunner().invoke(app, ["cache", "show", str(folder), "--max-tokens", "6"]).output
    assert "no entry whose key begins with zz" in call("show", folder, "--key", "zz", expect=1)


def test_verify(folder):
    assert "sound, 3 entries" in call("verify", folder)
    path = folder / "cache.parquet"
    path.write_bytes(path.read_bytes()[:-1])
    output = call("verify", folder, expect=1)
    assert str(path) in output
    assert "truncated or altered" in output
