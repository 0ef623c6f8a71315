"""Which response of a group is kept."""

from collections import Counter

import numpy as np
import pytest

from rpo_verl.rpo.selection import choose_response


def choices(shaped, greedy_prob, count=6000):
    return Counter(choose_response(np.array(shaped), greedy_prob, 0, step, b"q") for step in range(count))


def test_always_greedy():
    assert set(choices([0.1, 0.9, 0.9, 0.2], 1.0)) == {(1, True)}  # the first of equals


def test_never_greedy_draws_every_other_response_including_the_last():
    seen = choices([0.1, 0.9, 0.3, 0.2], 0.0)
    assert set(seen) == {(0, False), (2, False), (3, False)}
    assert all(abs(count - 2000) < 250 for count in seen.values())


def test_greedy_prob_is_the_share_of_greedy_choices():
    seen = choices([0.1, 0.9], 0.9)
    assert seen[(1, True)] / 6000 == pytest.approx(0.9, abs=0.02)
    assert seen[(0, False)] / 6000 == pytest.approx(0.1, abs=0.02)


def test_group_of_one_is_its_own_best():
    assert choose_response(np.array([0.0]), 0.0, 0, 1, b"q") == (0, True)


def test_nan_is_never_the_best():
    assert choose_response(np.array([float("nan"), 0.0, float("inf")]), 1.0, 0, 1, b"q") == (1, True)
