"""Whole trainings of the fast lane against those of veRL in docs/results: same questions, means over seeds."""

import json
from math import sqrt
from statistics import fmean, variance

import pytest
import torch
from conftest import ROOT

from benchmarks.lab import runs
from benchmarks.lab.suites import SUITES

VERL = json.loads((ROOT / "docs" / "results" / "bench-biased.json").read_text())["runs"]
STEPS, SAMPLES = 48, 64


def end(run):
    return run["curve"][-1]["accuracy"]


@pytest.mark.parametrize("arm", ["grpo", "rpo"])
def test_accuracy_and_tokens_are_those_of_verl(arm, tmp_path):
    torch.set_num_threads(1)
    reference, records = VERL[arm], []
    for seed in reference:
        given = runs.command_of(SUITES["reuse"].arms[f"biased-{arm}"], int(seed), ["--eval-every", str(STEPS)])
        args = runs.parser().parse_args(given)
        args.out = tmp_path / f"{seed}.json"
        runs.train(args)
        records.append(json.loads(args.out.read_text()))

    theirs, ours = [end(run) for run in reference.values()], [end(run) for run in records]
    # Both are exact: the seeds of either say how much they vary.
    error = sqrt(variance(theirs) / len(theirs) + variance(ours) / len(ours))
    print(f"{arm}: accuracy {fmean(ours):.4f}, veRL {fmean(theirs):.4f}, standard error {error:.4f}")
    assert error < 0.03
    assert abs(fmean(ours) - fmean(theirs)) < 3 * max(error, 0.01)
    assert fmean(map(end, records)) > fmean(run["curve"][0]["accuracy"] for run in records) + 0.05

    generated = fmean(run["generated_tokens"] for run in records) / (STEPS * SAMPLES)
    expected = fmean(run["generated_tokens_per_sample"] for run in reference.values())
    print(f"{arm}: {generated:.1f} tokens a sample, veRL {expected:.1f}")
    # What RPO generates depends on which answers fail; GRPO's differ by the lengths of wrong answers alone.
    assert generated == pytest.approx(expected, rel=0.015 if arm == "grpo" else 0.06)
