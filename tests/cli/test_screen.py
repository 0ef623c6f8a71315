"""What reaches the terminal: nothing that controls it, from any command."""

import ast
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import ROOT, TINY
from hypothesis import given
from hypothesis import strategies as st
from test_help import COMMANDS
from transformers import AutoTokenizer
from typer.testing import CliRunner

from rpo_verl.question import TokenizerIdentity, question_key
from rpo_verl.rpo import store
from rpo_verl.rpo.cache import CachedAnswer, ExperienceCache
from rpo_verl.tools.cli.main import app
from rpo_verl.tools.evaluation.dataset import distinct_questions
from rpo_verl.tools.evaluation.samples import Sample, SampleStore
from rpo_verl.tools.visible import visible

MODEL = str(TINY / "checkpoint")
#: Sets the title, clears the screen in two ways, goes back and over, turns the text round, speaks rich's markup.
NASTY = "\x1b]0;title\x07\x1b[2J\x9b2J\x08\x0b\x0c\x00\x7f\u202e\u2028[bold]x[/bold]"
#: As a file name: no NUL there, and no slash.
NASTY_NAME = NASTY.replace("\x00", "").replace("/", "")
#: Line feeds and tabs aside, and the carriage returns of progress bars.
CONTROLS = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")


@given(st.text())
def test_no_text_controls_the_terminal(text):
    shown = visible(text)
    assert not CONTROLS.search(shown)
    assert "\r" not in shown
    shown.encode()
    assert visible(shown) == shown


@given(st.text(st.characters(codec="utf-8", categories=("L", "M", "N", "P", "S", "Zs"))))
def test_other_texts_stay_as_they_are(text):
    assert visible(text) == text


def test_control_characters_have_their_pictures():
    assert visible("a\x1b[2J\r\x07\x7f\tb\n") == "a␛[2J␍␇␡\tb\n"
    assert visible("\x9b\u202e\ud83d") == "<U+009B><U+202E><U+D83D>"
    assert visible("👨‍👩‍👧 é ß 語") == "👨‍👩‍👧 é ß 語"


def make_store(folder):
    identity = TokenizerIdentity.of(MODEL, {"a": 0}, "template")
    ids = AutoTokenizer.from_pretrained(MODEL).encode(NASTY, add_special_tokens=False)
    tokens, cache = np.array(ids, dtype=np.int32), ExperienceCache()
    cache.put(question_key(tokens, identity.fingerprint), CachedAnswer(tokens, True, 1.0, 3, tokens))
    store.save(cache, folder, identity, 3, NASTY)
    return folder


def rename_tokenizer(folder):
    manifest = store.read_manifest(folder)
    forged = replace(manifest, tokenizer=replace(manifest.tokenizer, name=NASTY))
    (folder / "manifest.json").write_text(json.dumps({**forged.fields(), "seal": forged.seal()}))
    return folder


def write_lines(path, *records):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def write_data(path, truth="1"):
    row = {
        "data_source": NASTY,
        "prompt": [{"role": "user", "content": NASTY}],
        "reward_model": {"ground_truth": truth},
    }
    pq.write_table(pa.Table.from_pylist([row]), path)
    return path


def run_of(folder):
    steps = [{"timing_s/step": 1.0, f"val-core/{NASTY}/acc/mean@1": 0.5, "prompt_length/mean": None}]
    return write_lines(folder / "metrics.jsonl", *({"step": n, "data": data} for n, data in enumerate(steps, 1)))


def evaluation(folder, name):
    data = write_data(folder / "data.parquet")
    (question,) = distinct_questions([(row["prompt"], row) for row in pq.read_table(data).to_pylist()])
    with SampleStore(folder / name) as samples:
        samples.append(Sample(NASTY, question.key, 0, 3, False, 1.0, True))
    return ["eval", MODEL, "--data", data, "--out", folder / name, "--n", "1"]


def compared(folder):
    for name in ("one", "other"):
        run(evaluation(folder, name), 0)
    return ["eval-compare", f"{NASTY_NAME}={folder / 'one'}", f"b={folder / 'other'}", "--out", folder / "compare"]


NOTHING = [{"prompt": NASTY, "answer": NASTY, "reward": NASTY}, {"prompt": [{"role": NASTY, "content": ""}]}]
ROLLOUT = {"input": NASTY, "output": NASTY, "score": NASTY, "rpo_kind": NASTY, "rpo_prefix_text": NASTY[:5]}

#: Command → its arguments, given a folder with a harmless name and one with another; status; a part of the output.
CASES = {
    "cache import": (lambda f, g: ["cache", "import", write_lines(g / "a.jsonl", *NOTHING), "--out", g / "s",
                                   "--model", MODEL], 1, "is none of"),
    "cache export": (lambda f, g: ["cache", "export", make_store(f / "s"), g / "out.jsonl"], 0, "1 answers written"),
    "cache stats": (lambda f, g: ["cache", "stats", rename_tokenizer(make_store(g / "s"))], 0, "tokenizer"),
    "cache show": (lambda f, g: ["cache", "show", make_store(f / "s")], 0, "␛]0;title␇␛[2J"),
    "cache verify": (lambda f, g: ["cache", "verify", rename_tokenizer(make_store(g / "s"))], 0, "sound"),
    "cache build": (lambda f, g: ["cache", "build", "--data", g / "no.parquet", "--out", f / "s", "--model", MODEL],
                    1, "not a readable"),
    "rollouts show": (lambda f, g: ["rollouts", "show", write_lines(g / "3.jsonl", ROLLOUT, NASTY).parent], 0,
                      "␛]0;title␇␛[2J"),
    "eval": (lambda f, g: evaluation(f, "one"), 0, "<U+202E>"),
    "eval-compare": (lambda f, g: compared(f), 0, "<U+202E>"),
    "report": (lambda f, g: ["report", run_of(g), "--out", g / "report.html"], 0, "is missing, zero"),
    "doctor": (lambda f, g: ["doctor", f"+rpo={NASTY_NAME}"], 1, "✗"),
}  # fmt: skip


def run(arguments, expect):
    result = CliRunner().invoke(app, list(map(str, arguments)))
    assert result.exit_code == expect, result.output
    return result.output


@pytest.fixture
def folders(tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")
    (tmp_path / NASTY_NAME).mkdir()
    return tmp_path, tmp_path / NASTY_NAME


@pytest.mark.parametrize("name", CASES)
def test_no_command_lets_a_text_control_the_terminal(name, folders, recwarn):
    arguments, expect, part = CASES[name]
    output = run(arguments(*folders), expect)
    assert part in output
    assert not CONTROLS.search(output), ascii(output)
    # Python prints warnings, such as matplotlib's on glyphs that its font lacks.
    assert not [str(warning.message) for warning in recwarn if CONTROLS.search(str(warning.message))]


@pytest.mark.parametrize("arguments", [["rollouts", "show", NASTY_NAME], ["cache", "import", NASTY_NAME, "--out", "s"]])
def test_errors_of_the_command_line_neither(arguments, folders):
    assert not CONTROLS.search(run([*arguments, "--model", "x"] if arguments[0] == "cache" else arguments, 2))


def test_every_command_has_a_case():
    groups = {path[0] for path in COMMANDS if len(path) > 1}
    assert {" ".join(path) for path in COMMANDS if path and path[-1] not in groups} == set(CASES)


def test_json_output_stays_json(folders):
    output = run(["cache", "stats", rename_tokenizer(make_store(folders[0] / "s")), "--json"], 0)
    assert json.loads(output)["tokenizer"].startswith(NASTY)
    assert not CONTROLS.search(output)


def test_a_terminal_in_latin1(folders, monkeypatch):
    result = CliRunner(charset="latin-1").invoke(app, ["cache", "show", str(make_store(folders[0] / "s"))])
    assert result.exit_code == 0, result.output
    assert b"\\u241b" in result.stdout_bytes


def test_the_screen_is_the_only_way_to_the_terminal():
    """Nothing below `tools` prints on its own."""
    found = []
    for path in (ROOT / "rpo_verl" / "tools").rglob("*.py"):
        if path.name == "screen.py":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            names = {getattr(node, "id", None), getattr(node, "attr", None)}
            if isinstance(node, ast.Name | ast.Attribute) and names & {"print", "echo", "secho", "Console"}:
                found.append(f"{Path(path).name}:{node.lineno}")
    assert not found
