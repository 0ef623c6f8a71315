"""The math reward: what counts as equal, and that no response can hang, crash or fill the process that asks."""

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from conftest import ROOT, TINY
from hydra import compose, initialize_config_module
from transformers import AutoTokenizer
from verl import DataProto
from verl.trainer.ppo.reward import load_reward_manager

from rpo_verl.rewards.boxed import last_boxed
from rpo_verl.rewards.math import compute_score
from rpo_verl.rewards.workers import WorkerDied, shared

FILE = ROOT / "rpo_verl" / "rewards" / "math.py"
KEYS = ["score", "acc", "pred", "no_answer", "too_long", "timed_out", "crashed"]
REASONS = KEYS[3:]

SAME = [
    ("42", "42"),
    ("042", "42"),
    ("-7", "-7"),
    ("1,234", "1234"),
    ("\\frac{1}{2}", "0.5"),
    ("\\frac{3}{4}", "\\dfrac{6}{8}"),
    ("50\\%", "0.5"),
    ("50\\%", "50%"),
    ("12.5", "12.5\\%"),
    ("4.5e33", "4.5 \\times 10^{33}"),
    ("1.5\\cdot 10^{-3}", "1.5E-3"),
    ("\\sqrt{8}", "2\\sqrt{2}"),
    ("2x+1", "1+2x"),
    ("x=5", "5"),
    ("\\{1,2,3\\}", "\\{3,1,2\\}"),
    ("1, 2", "2, 1"),
    ("(1,2]", "(1,2]"),
    ("(-\\infty,3)\\cup(5,\\infty)", "(5,\\infty)\\cup(-\\infty,3)"),
    ("(0,1)", "(0,1)"),
    ("\\text{even}", "\\text{Even}"),
    ("\\text{(A)}", "A"),
    ("\\begin{pmatrix}1\\\\2\\end{pmatrix}", "\\begin{bmatrix}1\\\\2\\end{bmatrix}"),
    ("2\\text{ cm}", "2"),
    (31, "31"),
]
DIFFERENT = [
    ("42", "43"),
    ("0.5", "0.51"),
    ("(1,2]", "[1,2]"),
    ("(1,2]", "(1,2)"),
    ("\\{1,2\\}", "\\{1,2,3\\}"),
    ("50\\%", "0.05"),
    ("4.5e33", "4.5e32"),
    ("x^2", "2x"),
    ("\\text{even}", "\\text{odd}"),
]
HOSTILE = {
    "open braces": "{" * 450,
    "nested braces": "{" * 200 + "}" * 200,
    "nested fractions": "\\frac{1}{" * 45 + "2" + "}" * 45,
    "nested roots": "\\sqrt{" * 60 + "2" + "}" * 60,
    "power tower": "9^{9^{9^9}}",
    "python powers": "10**10**10",
    "factorials": "((((9!)!)!)!)!",
    "one factorial": "100000000!",
    "expansion": "(x+y+z)^{500}",
    "exponent": "1e99999999",
    "sum": "\\sum_{n=1}^{10^9} n^n",
    "limit": "\\lim_{x\\to 0} \\sin(1/x)",
    "long": "9" * 4000,
    "null bytes": "\0" * 100,
    "surrogates": "\ud800" * 10,
    "format": "%s%n{}{0}",
    "python": "__import__('os').abort()",
    "letters": "x" * 300 + "42",
    "blanks": "1" + " " * 400,
    "words": "1 " + "a " * 200,
    "texts": "1" + "\\text{a} " * 45,
}
MEGABYTES = {
    "digits": "9" * 5_000_000,
    "boxed digits": "\\boxed{" + "9" * 5_000_000 + "}",
    "braces": "{" * 5_000_000,
    "boxes": "\\boxed{" * 700_000,
    "dollars": "$" * 5_000_000,
    "answers": "answer: " * 600_000,
    "brackets": "\\[" * 2_500_000,
    "line ends": "\\ \n" * 1_500_000,
    "thoughts": "<think></think>" * 300_000,
    "unclosed answers": "<answer>" * 600_000,
}


def score(response, ground_truth="42", **settings):
    result = compute_score("data", response, ground_truth, {}, **settings)
    assert list(result) == KEYS
    return result


@pytest.mark.parametrize(("truth", "answer"), SAME)
def test_equal_answers(truth, answer):
    result = score(f"So it is \\boxed{{{answer}}}.", truth)
    assert result == {"score": 1.0, "acc": 1.0, "pred": answer, **dict.fromkeys(REASONS, 0.0)}


@pytest.mark.parametrize(("truth", "answer"), DIFFERENT)
def test_different_answers(truth, answer):
    result = score(f"So it is \\boxed{{{answer}}}.", truth)
    assert result == {"score": 0.0, "acc": 0.0, "pred": answer, **dict.fromkeys(REASONS, 0.0)}


@pytest.mark.parametrize(
    ("response", "right"),
    [
        ("First \\boxed{41}, no: \\boxed{42}.", True),
        ("First \\boxed{42}, no: \\boxed{41}.", False),
        ("\\boxed{42} comes after 7 steps; 8 in all.", True),
        ("<think>\\boxed{42}</think> It is \\boxed{41}.", False),
        ("<think>\\boxed{41}</think> It is \\boxed{42}.", True),
        ("It is \\boxed{42}, or rather \\boxed{4", False),
        ("It is $\\fbox{42}$.", True),
        ("The final answer is $42$.", True),
        ("Step by step.\n\nAnswer: 42", True),
        ("6 * 7 = 42\n#### 42", True),
        ("\\boxed{\\text{\\{} 42", False),
        ("\\boxed{42}" + " It follows." * 2000, True),
    ],
)
def test_where_the_answer_is_read(response, right):
    assert score(response)["score"] == right


@pytest.mark.parametrize("response", ["", "   ", "I do not know.", "\\boxed{}", "\\boxed{ }", "\\boxed{42"])
def test_no_answer(response):
    result = score(response)
    assert (result["score"], result["no_answer"], result["pred"]) == (0.0, 1.0, "")


@pytest.mark.parametrize(
    ("text", "box"),
    [
        ("no box", None),
        ("\\boxed{a{b}c}", "a{b}c"),
        ("\\boxed{\\{1\\}}", "\\{1\\}"),
        ("$\\boxed 7$ apples", "7"),
        ("\\boxed{1} \\fbox{2}", "2"),
        ("\\boxed{1", ""),
        ("\\boxedly {1}", None),
        ("\\boxed 10.", "10"),
        ("\\boxed 2.5 m", "2.5 m"),
        ("boxed{42}", "42"),
        ("\\boxed(42)", "42"),
        ("\\framebox{42}", "42"),
        ("\\boxed{\\boxed{4}}", "4"),
        ("$\\boxed{2}$ and $\\boxed{3}$", "2, 3"),
        ("\\boxed{2}, not \\boxed{3}", "3"),
    ],
)
def test_last_boxed(text, box):
    assert last_boxed(text) == box


@pytest.mark.parametrize("answer", HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_box_scores_zero_in_time_and_spoils_nothing(answer):
    start = time.monotonic()
    result = score(f"\\boxed{{{answer}}}", timeout=0.5)
    assert result["score"] == 0.0
    assert len(result["pred"]) <= 200
    result["pred"].encode()
    assert score("\\boxed{42}")["score"] == 1.0
    assert time.monotonic() - start < 8


@pytest.mark.parametrize("response", MEGABYTES.values(), ids=MEGABYTES)
def test_megabytes_cost_nothing(response):
    start = time.monotonic()
    assert score(response, timeout=0.5)["score"] == 0.0
    assert time.monotonic() - start < 5


def test_reasons():
    assert score("\\boxed{9^{9^{9^9}}}", timeout=1.0)["timed_out"] == 1.0
    assert score("\\boxed{" + "9" * 501 + "}")["too_long"] == 1.0
    assert score("\\boxed{" + "9" * 20 + "}", max_answer_chars=19)["too_long"] == 1.0


def test_only_the_tail_is_read():
    assert score("\\boxed{41}" + " " * 100 + "42", tail_chars=50)["score"] == 1.0


@pytest.mark.parametrize("truth", ["", " ", "\\frac{1}{", "{{{{", "9" * 501])
def test_a_ground_truth_that_means_nothing_is_an_error(truth):
    for _ in range(2):  # an error is not remembered as a pass
        with pytest.raises(ValueError, match=r"the ground truth '.*Correct it in the data set") as caught:
            score("\\boxed{42}", truth)
        assert truth[:200] in str(caught.value).replace("\\\\", "\\")


def test_a_ground_truth_that_takes_for_ever_is_an_error():
    with pytest.raises(ValueError, match=r"takes math-verify more than 10 \* timeout = 3.0 s\."):
        score("\\boxed{42}", "9^{9^{9^9}}", timeout=0.3)


def test_memory_is_limited():
    with pytest.raises(WorkerDied, match="out of memory"):
        shared(2, 512).call(bytearray, 2**31, timeout=10)
    assert score("\\boxed{42}")["score"] == 1.0


def test_a_crash_takes_only_its_own_call():
    with pytest.raises(WorkerDied, match="exit code -6"):
        shared(2, 512).call(os.abort, timeout=10)
    assert score("\\boxed{42}")["score"] == 1.0


def test_processes_killed_while_idle_are_replaced():
    assert score("\\boxed{42}")["score"] == 1.0
    for process in workers():
        process.send_signal(signal.SIGKILL)
    for _ in range(10):
        assert score("\\boxed{42}")["score"] == 1.0


def workers(pid=None):
    """Processes below the server that they are forked from."""
    children = psutil.Process(pid).children()
    return [worker for child in children if "forkserver" in " ".join(child.cmdline()) for worker in child.children()]


def test_processes_load_no_gpu_library():
    assert score("\\boxed{42}")["score"] == 1.0
    loaded = [Path(mapping.path).name for process in workers() for mapping in process.memory_maps()]
    assert loaded
    assert not [name for name in loaded if "torch" in name or "cuda" in name]


def test_many_threads_some_hostile():
    responses = ["\\boxed{42}"] * 60 + ["\\boxed{9^{9^{9^9}}}"] * 3 + ["\\boxed{42}"] * 60
    with ThreadPoolExecutor(16) as threads:
        results = list(threads.map(lambda response: score(response, timeout=1.0), responses))
    assert [result["score"] for result in results] == [1.0] * 60 + [0.0] * 3 + [1.0] * 60
    assert sum(result["timed_out"] for result in results) == 3


def test_nothing_is_left_when_the_caller_is_killed(tmp_path):
    script = tmp_path / "caller.py"
    script.write_text(
        textwrap.dedent(
            """
            import threading
            from rpo_verl.rewards.math import compute_score

            if __name__ == "__main__":
                print(compute_score("data", "\\\\boxed{42}", "42")["score"], flush=True)
                compute_score("data", "\\\\boxed{9^{9^{9^9}}}", "42", timeout=1.0)
            """
        )
    )
    caller = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True, cwd=tmp_path)
    assert caller.stdout.readline().strip() == "1.0"
    below = psutil.Process(caller.pid).children(recursive=True)
    assert len(below) >= 3
    time.sleep(0.5)  # into the hostile comparison
    caller.kill()
    caller.wait()
    _, left = psutil.wait_procs(below, timeout=40)
    assert not left
    caller.stdout.close()


@pytest.fixture(scope="module")
def manager():
    """veRL's default reward manager with the function loaded from its file and a setting from `reward_kwargs`."""
    with initialize_config_module("verl.trainer.config", version_base=None):
        config = compose(
            "ppo_trainer",
            [
                f"reward.custom_reward_function.path={FILE}",
                "reward.custom_reward_function.name=compute_score",
                "+reward.custom_reward_function.reward_kwargs.timeout=1.0",
            ],
        )
    return load_reward_manager(config, AutoTokenizer.from_pretrained(TINY / "checkpoint"))


def row(tokenizer, response, truth):
    tokens = torch.tensor([tokenizer.encode(response, add_special_tokens=False)])
    extra = {"data_source": "MATH-500", "reward_model": {"ground_truth": truth}, "extra_info": {"split": "test"}}
    batch = {"prompts": torch.zeros(1, 1, dtype=torch.int64), "responses": tokens,
             "attention_mask": torch.ones(1, 1 + tokens.shape[1], dtype=torch.int64)}  # fmt: skip
    return DataProto.from_dict(
        tensors=batch, non_tensors={key: np.array([value, None], dtype=object)[:1] for key, value in extra.items()}
    )


def test_through_verls_reward_manager_in_a_thread(manager):
    responses = ["31", "=32", "9**9**9**9", "1+30=31"]
    rows = [row(manager.tokenizer, response, "31") for response in responses]
    outcome = {}

    async def run():
        return await asyncio.gather(*(manager.run_single(one) for one in rows))

    def work():
        # As a reward worker does: a loop of its own in a thread that is not the main one.
        loop = asyncio.new_event_loop()
        manager.loop = loop
        outcome["results"] = loop.run_until_complete(run())
        loop.close()

    thread = threading.Thread(target=work)
    thread.start()
    thread.join(30)
    results = outcome["results"]
    assert [result["reward_score"] for result in results] == [1.0, 0.0, 0.0, 1.0]
    assert all(list(result["reward_extra_info"]) == KEYS for result in results)
    with pytest.raises(ValueError, match="the ground truth '' cannot be read"):
        asyncio.run(_score_here(manager, row(manager.tokenizer, "31", "")))


async def _score_here(manager, data):
    manager.loop = asyncio.get_running_loop()
    return await manager.run_single(data)
