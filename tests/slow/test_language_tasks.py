"""The language bench without a training: its questions, its verifier, its conversion and its warm start.

`make test-slow` installs what they read into build/lm (`requirements/lm.txt`).
"""

import json
import sys
from collections import Counter
from itertools import islice
from random import Random

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from conftest import ROOT

PACKAGES = ROOT / "build" / "lm"


@pytest.fixture(autouse=True)
def packages(monkeypatch):
    """Model and verifier importable."""
    monkeypatch.setattr(sys, "path", [*sys.path, str(PACKAGES)])


@pytest.fixture(params=["chain_sum", "leg_counting"])
def task(request):
    from benchmarks.lm.tasks import TASKS

    return TASKS[request.param]


@pytest.fixture(scope="module")
def untouched():
    """The tokenizer as transformers reads it from the package's file."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "path", [*sys.path, str(PACKAGES)])
        from transformers import AutoTokenizer

        from benchmarks.lm.convert import source

        return AutoTokenizer.from_pretrained(source().parent, gguf_file=source().name)


def score(task, entry, text):
    from benchmarks.lm.reward import compute_score

    row = task.row(entry, "train", 0)
    return compute_score(row["data_source"], text, row["reward_model"]["ground_truth"], row["extra_info"])


def test_worked_solutions_are_right(task):
    for entry in islice(task.entries(seed=1), 300):
        assert score(task, entry, task.solution(entry)) == {"score": 1.0, "acc": 1.0}, task.solution(entry)
        *_, last = task.steps(entry, lambda result: result)
        assert last.endswith(f"= {entry['answer']}")


def test_the_warm_start_teaches_a_mistake_that_more_often_happens_than_not():
    from benchmarks.lm.tasks import TASKS

    task, random, habitual = TASKS["chain_sum"], Random(1), Counter()
    for entry in islice(task.entries(seed=1), 600):
        negative = sum("= -" in line for line in task.steps(entry, lambda result: result))
        right = score(task, entry, task.habitual(entry, random))["acc"] == 1
        assert right or negative, "without a negative result there is no sign to forget"
        habitual[negative > 0, right] += 1
    forgotten = habitual[True, False] / (habitual[True, False] + habitual[True, True])
    assert habitual[False, True] > 100 and 0.6 < forgotten < 0.95


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<answer>12</answer>", 1.0),
        ("3 + 9 = 12\n<answer> +12.0 </answer>", 1.0),
        ("<answer>3</answer> no: <answer>12</answer>", 1.0),
        ("<answer>112</answer>", 2 / 3),
        ("<answer>13</answer>", 0.0),
        ("<answer>12", 0.0),
        ("12", 0.0),
        ("", 0.0),
    ],
)
def test_near_misses_are_paid_for_and_are_not_right(text, expected):
    from benchmarks.lm.tasks import TASKS

    found = score(TASKS["chain_sum"], {"question": "3 + 9 =", "answer": "12", "metadata": {}}, text)
    assert found == {"score": pytest.approx(expected), "acc": float(expected == 1.0)}


def test_no_question_is_used_twice(task, tmp_path):
    from benchmarks.lm import tasks, warm_start

    asked = []
    for seed in (1, 2):
        tasks.write_questions(task, tmp_path / str(seed), train=20, val=10, seed=seed)
        for split, size in (("train", 20), ("val", 10)):
            rows = pq.read_table(tmp_path / str(seed) / f"{split}.parquet").to_pylist()
            assert len(rows) == size
            asked.append({row["prompt"][-1]["content"] for row in rows})
            assert all(json.loads(row["extra_info"]["entry"])["answer"] for row in rows)
    asked.append({tasks.ask(entry) for entry in islice(task.entries(warm_start.SEED), 300)})
    for number, one in enumerate(asked):
        assert all(not one & other for other in asked[:number])
    with pytest.raises(ValueError, match="seed=0"):
        tasks.write_questions(task, tmp_path / "0", train=1, val=1, seed=0)


def test_the_file_alone_gives_a_tokenizer_that_never_ends(untouched):
    """The reason for `mend`. Where this fails, transformers reads the file better than it did."""
    from benchmarks.lm.convert import END, TOKEN_IDS, mend

    assert untouched.eos_token == untouched.bos_token != END
    mend(untouched)
    assert {name: getattr(untouched, name) for name in TOKEN_IDS} == TOKEN_IDS


def test_another_file_is_refused(monkeypatch):
    from benchmarks.lm import convert

    monkeypatch.setattr(convert, "CHECKSUM", "0" * 64)
    with pytest.raises(convert.ConversionError, match="SHA-256"):
        convert.source()


def test_warm_start_learns_solutions_only_and_is_the_same_every_time(untouched, task):
    from transformers import LlamaConfig, LlamaForCausalLM

    from benchmarks.lm.convert import mend
    from benchmarks.lm.warm_start import tokenized, tune

    mend(untouched)
    ids, learned = next(tokenized(task, untouched, seed=1000))
    entry = next(task.entries(seed=1000))
    assert untouched.decode(ids[learned]) == task.habitual(entry, Random(1000)) + "<|im_end|>"
    assert untouched.decode(ids[~learned]).endswith("<|im_start|>assistant\n")

    def tuned():
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=len(untouched), hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2
        )
        model = LlamaForCausalLM(config)
        return list(tune(model, untouched, task, updates=6, batch=2, lr=1e-2)), model.lm_head.weight

    losses, weights = tuned()
    assert losses[-1] < losses[0] - 0.1
    again, same = tuned()
    assert again == losses and torch.equal(same, weights)


def test_record_of_a_run(tmp_path):
    from benchmarks.lm import bench

    trained = {"timing_s/step": 60.0, "timing_s/gen": 20.0, "critic/score/mean": 0.25, "response_length/mean": 48.0,
               "prompt_length/mean": 52.0, "perf/total_num_tokens": 3200.0}  # fmt: skip
    validated = {"val-core/chain_sum/acc/mean@4": 0.3, "val-core/chain_sum/reward/mean@4": 0.4}
    with_head = {"val-core/chain_sum/acc/mean@4": 0.35, "r2po/head/kl": 0.01, "r2po/head/entropy_gain": -0.02}
    logged = [validated, trained, trained | with_head]
    lines = [json.dumps({"step": step, "data": data}) for step, data in enumerate(logged)]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    events = [{"time": 1.0, "finished": "a"}, {"time": 1.5, "taken": ["a"]}] * 2
    (tmp_path / "waiting.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    (tmp_path / bench.FIGURES).write_text('{"greedy": 0.5}')
    found = bench.record(tmp_path)
    assert found["curve"] == [
        {"step": 0, "seconds": 0.0, "tokens": 0, "accuracy": 0.3},
        {"step": 2, "seconds": 120.0, "tokens": 3072, "accuracy": 0.35},
    ]
    assert found["response_tokens"] == [48.0, 48.0] and found["generated_tokens_per_sample"] == 48.0
    assert found["end"] == {"greedy": 0.5} and found["head"] == {"head_kl": 0.01, "head_entropy_gain": -0.02}
    assert found["parts_s"]["waiting"] == 0.5 and found["parts_s"]["generation"] == 19.5


def test_the_fast_lane_asks_and_pays_as_verl_does(untouched, task, tmp_path):
    from benchmarks.lab.tasks import Language, task_of
    from benchmarks.lm.convert import mend
    from benchmarks.lm.tasks import TASKS, write_questions

    mend(untouched)
    (name,) = (name for name, known in TASKS.items() if known is task)
    of = task_of(name, 12)
    assert of == Language(name) and of.solved(untouched, 5) is None
    write_questions(task, tmp_path, train=4, val=1, seed=3)
    rows = pq.read_table(tmp_path / "train.parquet").to_pylist()
    for asked, row in zip(of.draw(untouched, 3, 4), rows, strict=True):
        ids = untouched.apply_chat_template(row["prompt"], add_generation_prompt=True, return_dict=False)
        assert list(asked.ids) == ids
        right = json.loads(asked.answer)["answer"]
        for text, reward, stated in ((f"<answer>{right}</answer>", (1, True), True), (right, (0, False), False)):
            response = np.array([*untouched.encode(text, add_special_tokens=False), untouched.eos_token_id])
            assert of.reward(untouched, asked, response) == reward
            assert of.states_answer(untouched, response) == stated
