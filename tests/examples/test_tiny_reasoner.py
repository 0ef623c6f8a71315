"""The tiny reasoner's task, reward, data, tokenizer and shipped checkpoint keep the properties its README states."""

from __future__ import annotations

import hashlib
import json
import math
import random
import re
import sys
from itertools import islice

import pytest
from conftest import TINY as FOLDER
from conftest import load_script

CHECKPOINT = FOLDER / "checkpoint"


task = load_script("task")
compute_score = load_script("reward").compute_score


def problems(steps: int, count: int, seed: int = 5) -> list:
    return list(islice(task.generate(seed, steps), count))


# ---- task


def test_generator_is_deterministic_and_distinct():
    first, second = problems(12, 200), problems(12, 200)
    assert first == second
    assert first != problems(12, 200, seed=6)
    assert len({problem.question for problem in first}) == 200


def test_generator_gives_the_same_problem_on_every_platform():
    problem = next(task.generate(3, 2))
    assert problem == task.Problem("30a*3b-8", "a30*3=90;b90-8=82;#82", "82", 2)


@pytest.mark.parametrize("steps", task.LEVELS.values())
def test_solution_is_arithmetically_right(steps):
    operations = {"+": lambda a, b: a + b, "-": lambda a, b: a - b, "*": lambda a, b: a * b}
    for problem in problems(steps, 50):
        *lines, last = problem.solution.split(";")
        value = problem.question[:2]
        asked = re.findall(r"([a-zA-Z])([-+*])(\d)", problem.question[2:])
        assert len(lines) == len(asked) == problem.steps == steps
        for line, (label, operator, operand) in zip(lines, asked, strict=True):
            expected = operations[operator](int(value), int(operand)) % 100
            assert line == f"{label}{value}{operator}{operand}={expected:02d}"
            value = line[-2:]
        assert last == f"#{value}" and problem.answer == value


@pytest.mark.parametrize("steps", [0, 43])
def test_step_counts_without_a_label_are_refused(steps):
    with pytest.raises(ValueError, match="between 1 and 42"):
        next(task.generate(0, steps))


def test_noise_rate_and_consistent_continuation():
    rng = random.Random(0)
    wrong = total = right_answers = 0
    sample = problems(12, 2000)
    for problem in sample:
        noisy = task.noisy_solution(problem, 0.06, rng)
        value = int(problem.question[:2])
        for line in noisy.split(";")[:-1]:
            _, start, operator, operand, result = re.fullmatch(r"(\w)(\d\d)([-+*])(\d)=(\d\d)", line).groups()
            assert int(start) == value
            wrong += task.apply(value, operator, int(operand)) != int(result)
            value = int(result)
            total += 1
        assert noisy.endswith(f"#{value:02d}")
        right_answers += compute_score("tiny_reasoner", noisy, problem.answer)
    # Five standard errors of a share of 0.06 over 24,000 steps.
    assert wrong / total == pytest.approx(0.06, abs=5 * math.sqrt(0.06 * 0.94 / total))
    # Every operation is a bijection, so only a rare second error can undo a first.
    assert right_answers / len(sample) == pytest.approx(0.94**12, abs=0.06)


def test_zero_noise_is_the_worked_solution():
    for problem in problems(7, 50):
        assert task.noisy_solution(problem, 0.0, random.Random(0)) == problem.solution


def test_one_wrong_step_always_changes_the_answer():
    for operator, operands in task.OPERANDS.items():
        for operand in operands:
            assert len({task.apply(value, operator, operand) for value in range(100)}) == 100


# ---- reward


@pytest.mark.parametrize(
    ("text", "score"),
    [
        ("a47+8=55;#55", 1.0),
        ("#55", 1.0),
        ("#55 \n", 1.0),
        ("#11;#55", 1.0),
        ("#55;#11", 0.0),
        ("55", 0.0),
        ("", 0.0),
        ("#", 0.0),
        ("#055", 0.0),
        ("#5", 0.0),
        ("#55;", 0.0),
        ("#55#", 0.0),
        ("#\u0665\u0665", 0.0),
        ("\x00\ud800#\x00", 0.0),
        (None, 0.0),
        (b"#55", 0.0),
        (["#55"], 0.0),
    ],
)
def test_reward(text, score):
    result = compute_score("tiny_reasoner", text, "55", extra_info={"index": 0}, unknown_option=1)
    assert result == score and type(result) is float


def test_reward_ignores_a_missing_ground_truth():
    assert compute_score("tiny_reasoner", "#55", None) == 0.0
    assert compute_score("tiny_reasoner", "no mark", "") == 0.0


# ---- data


def test_train_and_val_are_disjoint_and_in_verl_format(tmp_path):
    pq = pytest.importorskip("pyarrow.parquet")
    prepare_data = load_script("prepare_data")
    options = ["--train-size", "300", "--val-size", "100", "--steps", "12", "--seed", "7"]
    prepare_data.main(["--out", str(tmp_path / "first"), *options])
    prepare_data.main(["--out", str(tmp_path / "second"), *options])
    rows = {}
    for split, size in (("train", 300), ("val", 100)):
        table = pq.read_table(tmp_path / "first" / f"{split}.parquet")
        assert table.equals(pq.read_table(tmp_path / "second" / f"{split}.parquet"))
        assert table.column_names == ["data_source", "prompt", "ability", "reward_model", "extra_info"]
        rows[split] = table.to_pylist()
        assert len(rows[split]) == size
        for index, row in enumerate(rows[split]):
            assert row["data_source"] == "tiny_reasoner" and row["ability"] == "math"
            assert row["extra_info"] == {"split": split, "index": index, "steps": 12}
            assert row["reward_model"]["style"] == "rule"
            (message,) = row["prompt"]
            assert message["role"] == "user"
            solution = task.write_solution(message["content"])
            assert compute_score(row["data_source"], solution, row["reward_model"]["ground_truth"]) == 1.0
    asked = {split: {row["prompt"][0]["content"] for row in rows[split]} for split in rows}
    assert len(asked["train"]) == 300 and len(asked["val"]) == 100
    assert not asked["train"] & asked["val"]


# ---- tokenizer


@pytest.fixture(scope="module")
def tokenizer():
    transformers = pytest.importorskip("transformers")
    return transformers.AutoTokenizer.from_pretrained(CHECKPOINT, local_files_only=True)


@pytest.mark.parametrize("steps", task.LEVELS.values())
def test_tokenizer_round_trip_has_no_inserted_spaces(tokenizer, steps):
    for problem in problems(steps, 20):
        ids = tokenizer.encode(problem.solution, add_special_tokens=False)
        assert len(ids) == len(problem.solution)
        ids.append(tokenizer.eos_token_id)
        assert tokenizer.decode(ids, skip_special_tokens=True) == problem.solution


def test_solution_lengths_run_from_60_to_400_tokens(tokenizer):
    prompt_ids = load_script("char_tokenizer").prompt_ids
    for steps in task.LEVELS.values():
        for problem in problems(steps, 20):
            assert len(prompt_ids(tokenizer, problem.question)) == 3 * steps + 6
            assert len(tokenizer.encode(problem.solution)) + 1 == 9 * steps + 4


def test_chat_prompt_has_the_expected_ids(tokenizer):
    messages = [{"role": "user", "content": "47a+8"}]
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=True, return_dict=False)
    names = ["<|user|>", "4", "7", "a", "+", "8", "<|im_end|>", "Ċ", "<|assistant|>"]
    assert ids == tokenizer.convert_tokens_to_ids(names)
    assert ids == [3, 24, 27, 69, 15, 28, 1, 203, 4]


def test_special_tokens(tokenizer):
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id, len(tokenizer)) == (0, 1, 261)
    # veRL's token builder for model type qwen2 needs both.
    assert tokenizer.encode("\n", add_special_tokens=False) == [203]
    assert tokenizer.convert_tokens_to_ids("<|im_end|>") == 1


def test_shipped_tokenizer_equals_the_built_one(tokenizer):
    built = load_script("char_tokenizer").build_tokenizer(1024)
    assert built.get_vocab() == tokenizer.get_vocab()
    assert built.chat_template == tokenizer.chat_template


# ---- checkpoint


def test_checksums_match_and_cover_every_file():
    listed = {}
    for line in (CHECKPOINT / "SHA256SUMS").read_text(encoding="utf-8").splitlines():
        digest, name = line.split("  ")
        listed[name] = digest
    files = {path.name for path in CHECKPOINT.iterdir()} - {"SHA256SUMS"}
    assert set(listed) == files
    assert {"model.safetensors", "config.json", "generation_config.json", "tokenizer.json"} <= files
    for name, digest in listed.items():
        assert hashlib.sha256((CHECKPOINT / name).read_bytes()).hexdigest() == digest, name


def test_checkpoint_is_small_and_float32():
    assert sum(path.stat().st_size for path in CHECKPOINT.iterdir()) <= 8_000_000
    with (CHECKPOINT / "model.safetensors").open("rb") as stream:
        header = json.loads(stream.read(int.from_bytes(stream.read(8), "little")))
    header.pop("__metadata__", None)
    assert {tensor["dtype"] for tensor in header.values()} == {"F32"}
    assert sum(math.prod(tensor["shape"]) for tensor in header.values()) <= 3_000_000


def test_configuration():
    config = json.loads((CHECKPOINT / "config.json").read_text(encoding="utf-8"))
    assert config["architectures"] == ["Qwen2ForCausalLM"] and config["model_type"] == "qwen2"
    assert config.get("dtype", config.get("torch_dtype")) == "float32"
    assert config["hidden_size"] // config["num_attention_heads"] == 32
    assert config["max_position_embeddings"] == 1024
    generation = json.loads((CHECKPOINT / "generation_config.json").read_text(encoding="utf-8"))
    for settings in (config, generation):
        assert (settings["pad_token_id"], settings["eos_token_id"]) == (0, 1)


def test_logged_accuracy_is_in_the_promised_range():
    lines = (CHECKPOINT / "pretrain_log.jsonl").read_text(encoding="utf-8").splitlines()
    entries = [json.loads(line) for line in lines]
    assert {"seed", "threads", "torch", "parameters"} <= set(entries[0])
    assert entries[-1]["event"] == "final"
    training_level = entries[-1]["levels"]["steps20"]
    assert 0.40 <= training_level["sampled"] <= 0.55
    assert training_level["greedy"] >= 0.95


def test_modules_of_the_example_are_not_left_on_the_import_path():
    assert str(FOLDER) not in sys.path
