"""How soon the policy goes wrong: recovered from simulated groups, and what evidence does to an estimate."""

import math

import numpy as np
import pytest

from rpo_verl.rpo.difficulty import UNIT, Evidence, expected_until_wrong, mean_rate, rate


def simulate(rng, true_rate, tokens, groups, size=8):
    """Evidence after groups whose members go wrong at a constant rate."""
    evidence, everything = Evidence(), Evidence()
    for _ in range(groups):
        correct = rng.random(size) < math.exp(-true_rate * tokens)
        seen = Evidence().after(correct, np.full(size, tokens), mean_rate(everything))
        everything = Evidence(everything.wrong + seen.wrong, everything.tokens + seen.tokens)
        evidence = evidence.after(correct, np.full(size, tokens), mean_rate(everything))
    return evidence, everything


@pytest.mark.parametrize("tokens", [5, 50, 200])
@pytest.mark.parametrize("true_rate", [0.001, 0.01])
def test_the_rate_is_found_from_verdicts_alone(tokens, true_rate):
    _, everything = simulate(np.random.default_rng(0), true_rate, tokens, groups=4000)
    assert mean_rate(everything) == pytest.approx(true_rate, rel=0.12)


def test_a_question_differs_from_the_mean_as_far_as_it_was_seen():
    mean = 0.002
    assert rate(Evidence(), mean) == mean
    often_wrong = rate(Evidence(8.0, 100.0), mean)
    once_wrong = rate(Evidence(1.0, 100.0), mean)
    never_wrong = rate(Evidence(0.0, 1500.0), mean)
    assert never_wrong < mean < once_wrong < often_wrong < 8 / 100


def test_the_estimate_follows_a_policy_that_improves():
    evidence = Evidence()
    for _ in range(5):
        evidence = evidence.after(np.zeros(8, dtype=bool), np.full(8, 100), 0.002)
    before = rate(evidence, 0.002)
    for _ in range(5):
        evidence = evidence.after(np.ones(8, dtype=bool), np.full(8, 100), 0.002)
    assert rate(evidence, 0.002) < 0.2 * before


def test_where_wrong_suffixes_went_wrong():
    # So rarely that any place is as likely; so often that it is at once; and the mean of the distribution cut off.
    for tokens in (0, 1, 100, 10_000):
        assert expected_until_wrong(tokens, 1e-9) == pytest.approx(tokens / 2, rel=1e-4)
    assert expected_until_wrong(10_000, 1.0) == pytest.approx(1.0)
    drawn = np.random.default_rng(0).exponential(50.0, 400_000)
    assert expected_until_wrong(100, 0.02) == pytest.approx(drawn[drawn < 100].mean(), rel=0.01)
    # Both branches agree where they meet.
    at = [1e-3 * (1 - 1e-9) * 1e6, 1e-3 * (1 + 1e-9) * 1e6]
    before, behind = (expected_until_wrong(tokens, 1e-6) for tokens in at)
    assert behind - before == pytest.approx(0, abs=1e-2)


def test_nothing_seen_and_nothing_wrong():
    assert mean_rate(Evidence()) is None
    assert 0 < mean_rate(Evidence(0.0, 1e6)) < 1e-6


def test_sums_are_exact_in_any_order():
    rng = np.random.default_rng(0)
    seen = [Evidence().after(rng.random(8) < 0.5, rng.integers(0, 4096, 8), 0.0012) for _ in range(1000)]
    tokens = [one.tokens for one in seen]
    assert sum(tokens) == sum(reversed(tokens)) == math.fsum(tokens)
    assert all(one / UNIT == round(one / UNIT) for one in tokens)
