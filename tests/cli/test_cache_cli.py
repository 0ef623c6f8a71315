"""`rpo-verl cache` on files: import, export, stats, show, verify, and what malformed input meets."""

import gzip
import json
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import TINY
from typer.testing import CliRunner

from rpo_verl.question import TokenizerIdentity, question_key
from rpo_verl.rpo import store
from rpo_verl.rpo.cache import CachedAnswer, ExperienceCache
from rpo_verl.tools.cli.main import app

CASES = Path(__file__).parent / "cases" / "cache_import"

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
    '{"prompt": "x", "answer": "x", "step": 2.5}': "step=2.5 is not a training step",
    '{"prompt": "x", "answer": "x", "step": 1e999}': "step=inf is not a training step",
    '{"prompt": "x", "answer": "x", "reward": 1e999}': "reward=Infinity is not a finite number",
    '{"prompt": "x", "answer": "half \\ud83d"}': "answer has half a character (surrogate U+D83D) at 5",
    '{"prompt": "half \\ud83d", "answer": "x"}': "prompt has half a character",
    '{"prompt": "x", "answer": 42}': "answer=42 is not text",
    '{"prompt": "x", "answer": ["x"]}': 'answer=["x"] is not text',
    '{"prompt": [{"role": "user", "content": null}], "answer": "x"}': "content of the user message is null, not text",
    '{"prompt": [{"role": "user", "content": 5}], "answer": "x"}': "content of the user message is 5, not text",
    '{"prompt": [{"role": "user", "content": [{"type": "text", "text": "x"}]}], "answer": "x"}': "is a list of parts",
    '{"prompt": [{"role": "human", "content": "x"}], "answer": "x"}': 'role="human" is none of system,',
    '{"prompt": [{"role": null, "content": "x"}], "answer": "x"}': "role=null is none of",
    '{"prompt": [{"role": "user", "content": "\\udc00"}], "answer": "x"}': "the user message has half a character",
    '{"prompt": [], "answer": "x"}': "prompt is neither text nor a list of messages",
    '{"prompt": "x", "prompt": "y", "answer": "x"}': '"prompt" stands twice in one object',
    r'{"prompt": "[{\"role\": \"user\", \"content\": \"5a\"}]", "answer": "x"}': "list of messages as JSON text",
    '{"prompt": "x", "answer": "<|im_end|>"}': "an empty question or answer",
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
        line = output.partition(f"{source.name}:{number}: ")[2].partition(f"{source.name}:{number + 1}: ")[0]
        assert message in line, f"{number}: {line}"
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


@pytest.mark.parametrize(
    ("case", "good", "messages"),
    [
        ("good", 2, []),
        ("bom", 2, []),
        ("crlf", 2, []),
        ("form_feed", 1, []),
        ("tool_role", 3, []),
        ("content_null", 2, ["content_null.jsonl:2: the content of the user message is null"]),
        ("json_string_prompt", 1, ["json_string_prompt.jsonl:2: prompt is a list of messages as JSON text"]),
        ("latin1", 2, ["latin1.jsonl:3: not UTF-8 (byte 0xe9", "iconv -f LATIN1"]),
        ("lone_surrogate_answer", 2, ["lone_surrogate_answer.jsonl:2: answer has half a character"]),
        ("dups", 2, ["2 records repeat a question"]),
        ("eos_text", 3, ["3 answers ended with an EOS"]),
        ("long_prompt", 2, ["3 questions have more tokens than --max-prompt-length=512", "1 records repeat"]),
        ("pandas", 3, []),
    ],
)
def test_a_bad_record_costs_itself_alone(tmp_path, case, good, messages):
    output = call("import", CASES / f"{case}.jsonl", "--out", tmp_path / "s", "--model", MODEL)
    assert f"{good} answers written" in output
    assert all(message in output for message in messages), output
    assert ("0 malformed" in output) == (not any(".jsonl:" in message for message in messages))
    assert len(answers(tmp_path / "s")) == good


def test_what_pandas_writes(tmp_path):
    call("import", CASES / "pandas.jsonl", "--out", tmp_path / "s", "--model", MODEL)
    found = [(a.step, a.correct, a.reward) for a in answers(tmp_path / "s")]
    assert found[0] == (3, True, 1.0)
    assert found[1][:2] == (0, False)
    assert np.isnan(found[1][2])
    assert found[2] == (5, False, 0.0)
    rows = {"prompt": ["1a", "2a"], "answer": ["x", "y"], "step": [3.0, float("nan")], "reward": [1.0, float("nan")]}
    pq.write_table(pa.table(rows), tmp_path / "frame.parquet")
    assert "0 malformed" in call("import", tmp_path / "frame.parquet", "--out", tmp_path / "p", "--model", MODEL)
    assert [answer.step for answer in answers(tmp_path / "p")] == [3, 0]


@pytest.mark.parametrize(
    "end", ["<|im_end|>", "<|im_end|>\n", "</s>", "<|endoftext|><|endoftext|>", "<|eot_id|> ", "<｜end▁of▁sentence｜>"]
)
def test_a_final_eos_is_removed_and_nothing_else(tmp_path, end):
    lines = [{"prompt": "1a", "answer": f"x</s>y {end}"}, {"prompt": "2a", "answer": f"{end} x"}]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    output = call("import", tmp_path / "a.jsonl", "--out", tmp_path / "s", "--model", MODEL)
    assert "1 answers ended with an EOS" in output
    call("export", tmp_path / "s", tmp_path / "out.jsonl", "--text")
    texts = [json.loads(line)["answer"] for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert texts == ["x</s>y ", f"{end} x"]


def test_a_final_eos_among_ids(tmp_path):
    ids = {"a": [50, 51, 1], "b": [50, 1, 0, 0], "c": [1, 50]}
    (tmp_path / "a.jsonl").write_text(
        "".join(json.dumps({"prompt": p, "answer_ids": i}) + "\n" for p, i in ids.items())
    )
    call("import", tmp_path / "a.jsonl", "--out", tmp_path / "s", "--model", MODEL)
    assert [answer.tokens.tolist() for answer in answers(tmp_path / "s")] == [[50, 51], [50], [1, 50]]


def test_ids_of_long_questions_stay_as_they_are(tmp_path):
    (tmp_path / "a.jsonl").write_text(json.dumps({"prompt_ids": [50] * 9, "answer_ids": [50]}))
    arguments = ["import", tmp_path / "a.jsonl", "--out", tmp_path / "s", "--model", MODEL, "--max-prompt-length", "4"]
    assert "1 questions have more tokens than --max-prompt-length=4" in call(*arguments)
    assert len(answers(tmp_path / "s")[0].question) == 9


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (json.dumps(GOOD).encode(), "is one JSON array"),
        (json.dumps(GOOD, indent=2).encode(), "is one JSON array"),
        ((CASES / "pretty.jsonl").read_bytes(), "spans several lines"),
        (gzip.compress(json.dumps(GOOD[0]).encode(), mtime=0), "is compressed (gzip)"),
        (json.dumps(GOOD[0]).encode("utf-16"), "is UTF-16 text"),
        (json.dumps(GOOD[0]).encode("utf-16-le"), "is UTF-16LE text"),
        (b"", "has no usable record"),
    ],
)
def test_a_file_of_another_kind_is_one_message(tmp_path, content, message):
    (tmp_path / "a.jsonl").write_bytes(content)
    output = call("import", tmp_path / "a.jsonl", "--out", tmp_path / "s", "--model", MODEL, expect=1)
    assert message in output
    assert output.count("rpo-verl:") == 1
    assert "a.jsonl:1:" not in output
    assert not (tmp_path / "s").exists()


def test_parquet_by_another_name(tmp_path):
    pq.write_table(pa.table({"prompt": ["1a"], "answer": ["x"]}), tmp_path / "answers")
    assert "1 answers" in call("import", tmp_path / "answers", "--out", tmp_path / "s", "--model", MODEL)


def test_places_that_cannot_be_written(tmp_path, folder, source):
    (tmp_path / "file").write_text("")
    assert "there is no folder" in call("export", folder, tmp_path / "no" / "out.jsonl", expect=1)
    arguments = ["import", source, "--model", MODEL, "--out"]
    assert "is not a folder" in call(*arguments, tmp_path / "file" / "s", expect=1)
    assert "3 answers" in call(*arguments, tmp_path / "new" / "folder" / "s")
    if os.getuid():
        (tmp_path / "closed").mkdir(mode=0o500)
        assert "no permission" in call(*arguments, tmp_path / "closed" / "s", expect=1)


def test_what_is_no_store(tmp_path, folder, source):
    for place, message in (
        (source, f"{source} is a file; a store is a folder"),
        (folder / "cache.parquet", f"Did you mean {folder}?"),
        (tmp_path / "nowhere", "holds no experience cache"),
    ):
        for command in ("show", "stats", "verify"):
            output = call(command, place, expect=1)
            assert message in output
            assert "delete" not in output
    (tmp_path / "global_step_3").mkdir()
    folder.rename(tmp_path / "global_step_3" / "rpo")
    assert "Did you mean" in call("show", tmp_path / "global_step_3", expect=1)


def test_show_keeps_characters_whole(tmp_path):
    record = {"prompt": "1a", "answer": "ab🎉c"}
    (tmp_path / "a.jsonl").write_text(json.dumps(record))
    call("import", tmp_path / "a.jsonl", "--out", tmp_path / "s", "--model", MODEL)
    (answer,) = answers(tmp_path / "s")
    assert len(answer.tokens) == 7  # a token per byte
    for last in range(2, 6):
        assert "ab│🎉c" in call("show", tmp_path / "s", "--max-tokens", last)
    assert "ab🎉│c" in call("show", tmp_path / "s", "--max-tokens", 1)


def test_the_run_of_a_store_is_shown(tmp_path):
    identity, cache = TokenizerIdentity.of(MODEL, {"a": 0}, None), ExperienceCache()
    ids = np.array([50], dtype=np.int32)
    cache.put(question_key(ids, identity.fingerprint), CachedAnswer(ids, True, 1.0, 3, ids))
    store.save(cache, tmp_path / "s", identity, 7, "maths/first")
    assert "1 entries of step 7 of maths/first" in call("verify", tmp_path / "s")
    assert "maths/first" in call("stats", tmp_path / "s")
