"""Whole trainings of the fast lane against those of veRL in docs/results: same questions, means over seeds."""

import json
from itertools import islice
from math import sqrt
from statistics import fmean, variance

import pytest
import torch
from conftest import ROOT

from benchmarks import exact
from benchmarks.lab import options
from benchmarks.lab.policy import Policy
from benchmarks.lab.training import Training
from benchmarks.tiny import CHECKPOINT, task

VERL = json.loads((ROOT / "docs" / "results" / "bench-main.json").read_text())
SETTINGS = VERL["settings"]


def train(arm, seed):
    """One run with the settings, the questions and the validation questions of veRL's."""
    policy = Policy.load(CHECKPOINT)
    first, count = SETTINGS["questions"], SETTINGS["val_questions"]
    problems = islice(task.generate(seed, SETTINGS["problem_steps"]), first, first + count)
    args = options.parser().parse_args(["--arm", arm, "--seed", str(seed), "--steps", str(SETTINGS["steps"])])
    options.check(args)
    return Training(policy, args, [exact.solved(policy.tokenizer, problem) for problem in problems]).run()


@pytest.mark.parametrize("arm", ["grpo", "rpo", "dapo"])
def test_accuracy_and_tokens_are_those_of_verl(arm):
    torch.set_num_threads(1)
    # Skipped rows and a short poll change neither accuracy nor tokens, so baselines from before the lean layer will do.
    reference = VERL["runs"][arm if arm == "rpo" else f"{arm}-plain"]
    records = {seed: train(arm, int(seed)) for seed in reference}

    def later(run):
        """Mean accuracy of the validations during training."""
        return fmean(point["accuracy"] for point in run["curve"] if point["step"] > 0)

    theirs, ours = [later(run) for run in reference.values()], [later(run) for run in records.values()]
    # veRL's validations are samples, the fast lane's are exact: the seeds of either say how much it varies.
    error = sqrt(variance(theirs) / len(theirs) + variance(ours) / len(ours))
    print(f"{arm}: accuracy {fmean(ours):.4f}, veRL {fmean(theirs):.4f}, standard error {error:.4f}")
    # Three seeds may happen to agree; a validation of 48 questions with 8 answers each does not know better than this.
    error = max(error, 0.01)
    assert error < 0.03
    assert abs(fmean(ours) - fmean(theirs)) < 3 * error
    starts, ends = ([run["curve"][at]["accuracy"] for run in records.values()] for at in (0, -1))
    assert fmean(ends) > fmean(starts) + 0.05

    samples = SETTINGS["steps"] * 64
    generated = fmean(run["generated_tokens"] for run in records.values()) / samples
    expected = [run["generated_tokens_per_sample"] for run in reference.values()]
    print(f"{arm}: {generated:.1f} tokens a sample, veRL {fmean(expected):.1f}")
    # What DAPO generates depends on when its groups finish; the others differ by the lengths of wrong answers alone.
    assert generated == pytest.approx(fmean(expected), rel=0.1 if arm == "dapo" else 0.015)
