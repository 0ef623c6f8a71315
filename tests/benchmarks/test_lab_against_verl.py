"""The fast lane against results of real veRL runs that stand in docs/results; tests/slow has whole trainings."""

import json
from itertools import islice

import numpy as np
import pytest
import torch
from conftest import ROOT
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks import exact
from benchmarks.lab import options
from benchmarks.lab.policy import Policy
from benchmarks.lab.training import Training
from benchmarks.tiny import CHECKPOINT, task

VERL = json.loads((ROOT / "docs" / "results" / "bench-cuts.json").read_text())
SETTINGS = VERL["settings"]
RUNS = {int(seed): run for seed, run in VERL["runs"]["grpo-plain"].items()}


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_exact_accuracy_is_that_of_verls_first_validations():
    """On the very questions: veRL's validation drew eight answers to each of 48 questions, three times."""
    model = AutoModelForCausalLM.from_pretrained(CHECKPOINT, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(CHECKPOINT)
    first, count, samples = SETTINGS["questions"], SETTINGS["val_questions"], SETTINGS["samples"]
    p = np.array(
        [
            exact.measure(model, [exact.solved(tokenizer, problem)])["accuracy"]
            for seed in RUNS
            for problem in islice(task.generate(seed, SETTINGS["problem_steps"]), first, first + count)
        ]
    )
    sampled = np.mean([run["curve"][0]["accuracy"] for run in RUNS.values()])
    bound = 3.3 * np.sqrt((p * (1 - p)).sum() / samples) / len(p)
    assert bound < 0.05
    # An answer may be right by a wrong path, which exact accuracy does not count.
    assert p.mean() - bound < sampled < p.mean() + bound + 0.01


def test_the_first_steps_are_those_of_verl():
    """Mean accuracy and tokens of a response in the first step of three seeds."""
    correct, tokens = [], []
    for seed in RUNS:
        args = options.parser().parse_args(["--seed", str(seed), "--steps", str(SETTINGS["steps"])])
        args.eval_questions = 1
        options.check(args)
        training = Training(Policy.load(CHECKPOINT), args)
        groups = training._collect().batch
        correct += [float(one.group.correct.mean()) for one in groups]
        tokens += [float(one.group.generated.mean()) for one in groups]

    def within(found, reference, allowance):
        # Groups are independent, their members are not.
        error = 3.3 * np.std(found, ddof=1) / np.sqrt(len(found))
        return abs(np.mean(found) - reference) < error + allowance

    starts = [run["curve"][0]["accuracy"] for run in RUNS.values()]
    of_eight = [run["curve"][1]["tokens"] / (run["curve"][1]["step"] * 64) for run in RUNS.values()]
    # The reference is a sample as well.
    assert within(correct, np.mean(starts), allowance=3.3 * np.std(starts, ddof=1) / 3**0.5)
    assert within(tokens, np.mean(of_eight), allowance=3.3 * np.std(of_eight, ddof=1) / 3**0.5)
    assert np.std(tokens, ddof=1) / len(tokens) ** 0.5 < 1
