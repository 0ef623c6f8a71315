"""The scripts of examples/data_preprocess on small files of each source's schema, and what they say to wrong ones."""

import importlib
import json
import os
import re
import subprocess
import sys

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import ROOT, TINY
from omegaconf import OmegaConf
from transformers import AutoTokenizer
from verl.utils.dataset.rl_dataset import RLHFDataset

from rpo_verl.rewards.math import compute_score

SCRIPTS = ROOT / "examples" / "data_preprocess"
INSTRUCTION = " Let's think step by step and output the final answer within \\boxed{}."
DAPO_BEFORE = (
    "Solve the following math problem step by step. The last line of your response should be of the form Answer: "
    "$Answer (without quotes) where $Answer is the answer to the problem.\n\n"
)
DAPO_AFTER = '\n\nRemember to put your answer on its own line after "Answer:".'


def dapo(question, answer, index="0"):
    return {
        "data_source": "math_dapo",
        "prompt": [{"content": DAPO_BEFORE + question + DAPO_AFTER, "role": "user"}],
        "ability": "MATH",
        "reward_model": {"ground_truth": answer, "style": "rule-lighteval/MATH_v2"},
        "extra_info": {"index": index},
    }


#: Script → rows of its source's schema and the answers they have.
SOURCES = {
    "open_rs": (
        [{"problem": "What is three halves of 6?", "solution": "It is 9.", "answer": "9", "level": "Easy"},
         {"problem": "Halve 1.", "solution": "…", "answer": "$\\frac{1}{2}$", "level": "Hard"}],
        ["9", "\\frac{1}{2}"],
    ),
    "gsm8k": (
        [{"question": "Ann has 900 nuts and finds 134 more. How many has she?",
          "answer": "900+134=<<900+134=1034>>1034\n#### 1,034"},
         {"question": "A cup costs 2 euros. What do 4 cups cost?", "answer": "4*2=<<4*2=8>>8\n#### 8"}],
        ["1034", "8"],
    ),
    "math_dataset": (
        [{"problem": "Add $\\frac12$ and $\\frac13$.", "level": "Level 1", "type": "Algebra",
          "solution": "Not \\boxed{1}; it is $\\boxed{\\frac{5}{6}}$."},
         {"problem": "How many vowels?", "level": "Level 1", "type": "Prealgebra",
          "solution": "There are $\\boxed 7$ of them."}],
        ["\\frac{5}{6}", "7"],
    ),
    "dapo_math_17k": ([dapo("What is 5 - 8?", "-3"), dapo("What is 2 * 17?", "34", "1")], ["-3", "34"]),
    "aime24": (
        [{"id": 1, "problem": "Find 5 squared.", "solution": "\\boxed{025}", "answer": "025", "url": "-",
          "year": "2024"}],
        ["025"],
    ),
    "aime25": ([{"problem": "Find the least odd prime.", "answer": "3", "id": "0"}], ["3"]),
    "math500": (
        [{"problem": "Write $(0,3)$ in polar coordinates.", "solution": "…",
          "answer": "\\left( 3, \\frac{\\pi}{2} \\right)", "subject": "Precalculus", "level": 2,
          "unique_id": "test/x.json"}],
        ["\\left( 3, \\frac{\\pi}{2} \\right)"],
    ),
    "amc23": ([{"id": 0, "answer": 27.0, "url": "-", "question": "What is 3 cubed?"}], ["27"]),
    "minerva": ([{"question": "Estimate the number of atoms in a star.", "answer": "4.5e33"}], ["4.5e33"]),
    "olympiadbench": (
        [{"id": 1, "question": "Solve $x^2=4$.", "solution": ["…"], "final_answer": ["$-2$,$2$"], "context": None,
          "modality": "Text-only", "is_multiple_answer": True, "unit": None,
          "answer_type": "Numerical", "error": None}],
        ["-2,2"],
    ),
}  # fmt: skip
NAMES = {"open_rs": "open-rs", "gsm8k": "GSM8K", "math_dataset": "MATH", "dapo_math_17k": "DAPO-Math-17k",
         "aime24": "AIME24", "aime25": "AIME25", "math500": "MATH-500", "amc23": "AMC23", "minerva": "Minerva",
         "olympiadbench": "OlympiadBench"}  # fmt: skip
TRAINING = ["open_rs", "gsm8k", "math_dataset", "dapo_math_17k"]


@pytest.fixture(autouse=True)
def surroundings(monkeypatch, tmp_path_factory):
    """The scripts' own folder to import from, as when they are run, and a cache of `datasets` apart from the user's."""
    monkeypatch.syspath_prepend(SCRIPTS)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


def write(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows))
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        datasets.Dataset.from_list(rows).to_csv(path)
    return path


def data_set(script):
    kind = importlib.import_module("prepare").DataSet
    return next(value for value in vars(importlib.import_module(script)).values() if isinstance(value, kind))


def split_of(script):
    return "train" if script in TRAINING else "test"


def call(script, source, out, *arguments):
    """Run the script's command line on local data and return the rows of each file it wrote."""
    prepare = importlib.import_module("prepare")
    prepare.main(data_set(script), ["--local_dataset_path", str(source), "--local_save_dir", str(out), *arguments])
    return {path.stem: pq.read_table(path).to_pylist() for path in out.iterdir()}


def refused(script, source, out, *arguments):
    """The one message of a script that ends without writing anything."""
    with pytest.raises(SystemExit) as caught:
        call(script, source, out, *arguments)
    assert not out.exists()
    assert isinstance(caught.value.code, str)
    return " ".join(caught.value.code.split())


def question_of(row):
    if "prompt" in row:
        return row["prompt"][0]["content"].removeprefix(DAPO_BEFORE).removesuffix(DAPO_AFTER)
    return row.get("problem") or row["question"]


@pytest.mark.parametrize("suffix", ["parquet", "jsonl"])
@pytest.mark.parametrize("script", SOURCES)
def test_rows(script, suffix, tmp_path):
    source, answers = SOURCES[script]
    split = split_of(script)
    files = call(script, write(tmp_path / f"some.{suffix}", source), tmp_path / "out", "--split", split)
    assert files == {
        split: [
            {
                "data_source": NAMES[script],
                "prompt": [{"role": "user", "content": question_of(row) + INSTRUCTION}],
                "ability": "math",
                "reward_model": {"style": "rule", "ground_truth": answer},
                "extra_info": {"split": split, "index": index, "question": question_of(row)},
            }
            for index, (row, answer) in enumerate(zip(source, answers, strict=True))
        ]
    }


def test_revisions_are_full_commits_and_names_distinct():
    found = [data_set(script) for script in SOURCES]
    assert all(re.fullmatch(r"[0-9a-f]{40}", one.revision) for one in found)
    assert len({one.revision for one in found}) == len({one.name for one in found}) == len(SOURCES)


def test_every_answer_scores(tmp_path):
    for script, (source, _) in SOURCES.items():
        path = write(tmp_path / f"{script}.parquet", source)
        (rows,) = call(script, path, tmp_path / script, "--split", split_of(script)).values()
        for row in rows:
            truth = row["reward_model"]["ground_truth"]
            assert compute_score(row["data_source"], f"It is \\boxed{{{truth}}}.", truth)["score"] == 1.0
            assert compute_score(row["data_source"], "It is \\boxed{12345}.", truth)["score"] == 0.0


def test_as_a_command(tmp_path):
    write(tmp_path / "in" / "train.jsonl", SOURCES["gsm8k"][0])
    write(tmp_path / "in" / "test.jsonl", SOURCES["gsm8k"][0][:1])
    command = [sys.executable, str(SCRIPTS / "gsm8k.py"), "--local_dataset_path", "in", "--local_save_dir", "out"]
    environment = os.environ | {"HF_HOME": str(tmp_path / "hub")}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "out/train.parquet: 2 of 2 rows" in done.stdout
    assert "note: openai/gsm8k has 1319 rows in this split at 740312ad" in done.stdout
    assert pq.read_table(tmp_path / "out" / "test.parquet").num_rows == 1


def test_a_hub_out_of_reach(tmp_path):
    command = [sys.executable, str(SCRIPTS / "aime25.py"), "--local_save_dir", "out"]
    environment = os.environ | {"HF_HOME": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 1
    message = done.stderr.splitlines()[-1]
    assert message.startswith("AIME25: math-ai/aime25 at revision 563bb8404243c5f09de6ec262f2db674fe5bce9b cannot be")
    assert message.endswith("Without access to the hub, pass a copy of it as --local_dataset_path.")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("suffix", ["json", "csv"])
def test_other_formats(suffix, tmp_path):
    path = write(tmp_path / f"a.{suffix}", SOURCES["amc23"][0])
    assert call("amc23", path, tmp_path / "out")["test"][0]["reward_model"]["ground_truth"] == "27"


def test_a_copy_of_a_repository_with_configurations(tmp_path):
    """By the repository's own description, and where a copy has none, by the folder's name."""
    main, socratic = SOURCES["gsm8k"][0], [{"question": "Why?", "answer": "#### 0"}]
    for split in ("train", "test"):
        write(tmp_path / "in" / "main" / f"{split}-00000-of-00001.parquet", main)
        write(tmp_path / "in" / "socratic" / f"{split}-00000-of-00001.parquet", socratic)
    bare = call("gsm8k", tmp_path / "in", tmp_path / "bare")
    described = "".join(f"- config_name: {name}\n  data_files:\n  - split: train\n    path: {name}/train-*\n"
                        f"  - split: test\n    path: {name}/test-*\n" for name in ("main", "socratic"))  # fmt: skip
    (tmp_path / "in" / "README.md").write_text(f"---\nconfigs:\n{described}---\n")
    files = call("gsm8k", tmp_path / "in", tmp_path / "out")
    assert files == bare
    assert [row["extra_info"]["question"] for row in files["train"]] == [row["question"] for row in main]


def test_a_folder_of_one_split_under_another_name(tmp_path):
    write(tmp_path / "in" / "problems.jsonl", SOURCES["aime25"][0])
    assert len(call("aime25", tmp_path / "in", tmp_path / "out")["test"]) == 1


def test_a_folder_without_the_split(tmp_path):
    write(tmp_path / "in" / "train.jsonl", SOURCES["gsm8k"][0])
    assert "no split 'test', only 'train'" in refused("gsm8k", tmp_path / "in", tmp_path / "out")


def test_training_questions_are_kept_once_and_only_with_one_answer(tmp_path, capsys):
    source = [dapo("Two?", "2"), dapo("Three?", "3"), dapo("Odd?", "5")] * 3 + [dapo("Odd?", "7"), dapo("Odd?", "5")]
    rows = call("dapo_math_17k", write(tmp_path / "a.parquet", source), tmp_path / "out")["train"]
    assert [(row["extra_info"]["index"], row["reward_model"]["ground_truth"]) for row in rows] == [(0, "2"), (1, "3")]
    output = capsys.readouterr().out
    assert "2 of 11 rows" in output
    assert "repeated with another answer: 3, the first is row 2" in output
    assert "repeated: 6, the first is row 3" in output


def test_test_questions_are_all_kept(tmp_path):
    source = SOURCES["math500"][0] * 3
    assert len(call("math500", write(tmp_path / "a.parquet", source), tmp_path / "out")["test"]) == 3


@pytest.mark.parametrize(
    ("script", "row", "reason"),
    [
        ("gsm8k", {"question": "How many?", "answer": "Six."}, "no answer"),
        ("math_dataset", {"problem": "How many?", "solution": "Six: $\\boxed{}$."}, "no answer"),
        ("open_rs", {"problem": "How many?", "answer": None}, "no answer"),
        ("open_rs", {"problem": " ", "answer": "6"}, "no question"),
    ],
)
def test_incomplete_rows_are_left_out_and_reported(script, row, reason, tmp_path, capsys):
    source = SOURCES[script][0]
    path = write(tmp_path / "a.jsonl", [source[0], row, source[1]])
    rows = call(script, path, tmp_path / "out", "--split", "train")["train"]
    assert [kept["extra_info"]["index"] for kept in rows] == [0, 2]
    assert f"left out, {reason}: 1, the first is row 1" in capsys.readouterr().out
    write(path, [{name: row.get(name) or "" for name in source[0]}])
    message = refused(script, path, tmp_path / "none", "--split", "train")
    assert f"nothing left of split 'train', 0 of 1 rows left out, {reason}: 1" in message


@pytest.mark.parametrize("script", SOURCES)
def test_missing_columns(script, tmp_path):
    path = write(tmp_path / "a.parquet", [{"text": "What is 1?", "label": 1}])
    message = refused(script, path, tmp_path / "out", "--split", split_of(script))
    expected = data_set(script)
    assert f"not the columns of {expected.hub_id}: no column {', '.join(expected.columns)}" in message
    assert "Found: text (str), label (int)" in message


@pytest.mark.parametrize(
    ("script", "row", "reason"),
    [
        ("math500", {"problem": "?", "answer": 5}, "answer is int instead of str"),
        ("amc23", {"question": "?", "answer": True}, "answer is bool instead of str or int or float"),
        ("olympiadbench", {"question": "?", "final_answer": "5"}, "final_answer is str instead of list of str"),
        (
            "dapo_math_17k",
            dapo("?", 5),
            "reward_model is {ground_truth: int, style: str} instead of {ground_truth: str}",
        ),
    ],
)
def test_wrong_types(script, row, reason, tmp_path):
    assert reason in refused(script, write(tmp_path / "a.parquet", [row]), tmp_path / "out")


def test_dapo_without_its_wrapper(tmp_path):
    row = dapo("Two?", "2") | {"prompt": [{"role": "user", "content": "Two?"}]}
    message = refused("dapo_math_17k", write(tmp_path / "a.parquet", [row]), tmp_path / "out")
    assert "a prompt is not one message in the wrapper of DAPO-Math-17k" in message


def test_what_cannot_be_read(tmp_path):
    out = tmp_path / "out"
    assert "no such file or folder" in refused("aime24", tmp_path / "none.parquet", out)
    assert "not one of .parquet, .json" in refused("aime24", write(tmp_path / "a.txt", SOURCES["aime24"][0]), out)
    broken = tmp_path / "b.parquet"
    broken.write_bytes(b"PAR1 and no more")
    assert f"{broken} cannot be loaded" in refused("aime24", broken, out)
    (tmp_path / "empty").mkdir()
    assert "cannot be loaded" in refused("aime24", tmp_path / "empty", out)
    two = write(tmp_path / "c.jsonl", SOURCES["gsm8k"][0])
    assert "say with --split which split it holds, train or test" in refused("gsm8k", two, out)
    assert "has no {question} in it" in refused("gsm8k", two, out, "--split", "test", "--template", "Hello")


@pytest.mark.parametrize(
    ("solution", "answer"),
    [
        ("x\n#### 1,234", "1234"),
        ("x\n#### $1,234", "1234"),
        ("x\n#### \\$1,234.50", "1234.50"),
        ("x\n####10", "10"),
        ("x\n#### -5", "-5"),
        ("x\n#### 10%", "10%"),
        ("x\n#### 12 apples", "12"),
        ("x\n#### 12.", "12"),
        ("x\n#### 1/2 cup", "1/2"),
        ("x\n#### 5 \n\n(check: 2+3)", "5"),
        ("x #### 3 then\n#### 4\n", "4"),
        ("x\r\n#### 7\r\n", "7"),
        ("x\n#### Monday", "Monday"),
    ],
)
def test_what_follows_the_mark_of_gsm8k(solution, answer, tmp_path):
    path = write(tmp_path / "a.jsonl", [{"question": "How many?", "answer": solution}])
    (row,) = call("gsm8k", path, tmp_path / "out", "--split", "train")["train"]
    assert row["reward_model"]["ground_truth"] == answer


@pytest.mark.parametrize(
    ("solution", "answer"),
    [
        ("\\boxed 10.", "10"),
        ("$\\boxed 7$ apples", "7"),
        ("\\boxed 2.5.", "2.5"),
        ("\\boxed{\\boxed{4}}", "4"),
        ("\\boxed{1} or \\boxed{2}", "1, 2"),
        ("\\boxed{\\$7}", "\\$7"),
        ("$\\boxed{x=8}.$", "x=8"),
        ("\\framebox{3}", "3"),
    ],
)
def test_boxes(solution, answer, tmp_path):
    path = write(tmp_path / "a.jsonl", [{"problem": "How many?", "solution": solution}])
    (row,) = call("math_dataset", path, tmp_path / "out", "--split", "train")["train"]
    assert row["reward_model"]["ground_truth"] == answer


@pytest.mark.parametrize(
    ("answers", "answer"),
    [
        (["$1$", "$2$"], "1, 2"),
        (["\\$100"], "\\$100"),
        (["$\\$ 100$"], "\\$ 100"),
        (["$(1,2)$,$(3,4)$"], "(1,2),(3,4)"),
        (["$x=1$ or $x=2$"], "x=1 or x=2"),
    ],
)
def test_only_dollars_around_formulas_go(answers, answer, tmp_path):
    path = write(tmp_path / "a.jsonl", [{"question": "How many?", "final_answer": answers}])
    (row,) = call("olympiadbench", path, tmp_path / "out")["test"]
    assert row["reward_model"]["ground_truth"] == answer


@pytest.mark.parametrize(
    ("one", "other", "kept"),
    [("05", "5", 1), ("5.0", "5", 1), ("1,000", "1000", 1), ("x + 1", "x+1", 1), ("5", "6", 0)],
)
def test_one_answer_in_two_spellings_is_no_contradiction(one, other, kept, tmp_path, capsys):
    rows = [
        {"problem": "Two?", "answer": one},
        {"problem": "Two?", "answer": other},
        {"problem": "Nine?", "answer": "9"},
    ]
    path = write(tmp_path / "a.jsonl", rows)
    assert len(call("open_rs", path, tmp_path / "out")["train"]) == 1 + kept
    assert ("repeated: 1, the first is row 1" in capsys.readouterr().out) == bool(kept)


def test_answers_that_nothing_can_match_are_left_out_and_reported(tmp_path, capsys):
    rows = [{"problem": "1?", "answer": "(3,4"}, {"problem": "2?", "answer": "2"}, {"problem": "3?", "answer": "-"}]
    kept = call("math500", write(tmp_path / "a.jsonl", rows), tmp_path / "out")["test"]
    assert [row["extra_info"]["index"] for row in kept] == [1]
    output = capsys.readouterr().out
    assert "its answer '(3,4' cannot be read: a bracket in it is never closed: 1, the first is row 0" in output
    assert "its answer '-' cannot be read: there is neither a number nor a word in it: 1, the first is row 2" in output


@pytest.mark.parametrize("name", ["my [v1] data", "star*", "a ? b", "c[!a]", "a=b&c", "d{1,2}", "(copy)"])
@pytest.mark.parametrize("as_folder", [True, False])
def test_paths_with_the_signs_of_patterns(name, as_folder, tmp_path):
    folder = tmp_path / name
    file = write(folder / ("test.jsonl" if as_folder else f"{name}.jsonl"), SOURCES["aime25"][0])
    assert len(call("aime25", folder if as_folder else file, tmp_path / "out")["test"]) == 1


def test_a_file_with_semicolons(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("problem;answer\nTwo?;2\n")
    assert "A CSV file needs commas between its columns; this one has ';'." in refused("aime25", path, tmp_path / "out")


def test_another_template(tmp_path):
    path = write(tmp_path / "a.jsonl", SOURCES["aime25"][0])
    rows = call("aime25", path, tmp_path / "out", "--template", "Q: {question} {x}")["test"]
    assert rows[0]["prompt"][0]["content"] == "Q: Find the least odd prime. {x}"


def test_verl_reads_all_files_together(tmp_path):
    files = []
    for script, (source, _) in SOURCES.items():
        split = split_of(script)
        call(script, write(tmp_path / f"{script}.parquet", source), tmp_path / script, "--split", split)
        files.append(str(tmp_path / script / f"{split}.parquet"))
    config = OmegaConf.create(
        {"cache_dir": str(tmp_path / "cache"), "max_prompt_length": 512, "filter_overlong_prompts": False}
    )
    rows = RLHFDataset(data_files=files, tokenizer=AutoTokenizer.from_pretrained(TINY / "checkpoint"), config=config)
    assert len(rows) == sum(len(source) for source, _ in SOURCES.values())
    seen = [rows[index] for index in range(len(rows))]
    assert {row["data_source"] for row in seen} == set(NAMES.values())
    for row in seen:
        assert row["raw_prompt"][0]["role"] == "user"
        assert row["reward_model"]["ground_truth"]
        assert row["extra_info"]["index"] == row["index"]
