"""Length-aware shaping against values computed by hand."""

import math

import numpy as np
import pytest

from rpo_verl.correctness import RewardScale, is_correct
from rpo_verl.rpo.options import RewardConfig
from rpo_verl.rpo.shaping import shape_group


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def shape(rewards, lengths, correct=None, **options):
    correct = np.array(rewards) > 0 if correct is None else correct
    return shape_group(np.array(rewards), np.array(lengths), np.array(correct), RewardConfig(**options))


def test_the_papers_formula_on_a_correct_group():
    # mean length 200: 0.01 * (200 - 100) = 1, then 0, then -1.
    shaped = shape([1.0, 1.0, 1.0], [100, 200, 300])
    assert shaped == pytest.approx([sigmoid(1.0), 0.5, 0.5])


def test_wrong_answers_keep_their_reward():
    shaped = shape([1.0, 0.0, -1.0], [100, 10, 10], lo=0.5)
    assert shaped[1:].tolist() == [0.0, -1.0]
    assert shaped[0] == 0.5  # longer than the mean of 40: clipped


def test_lo_below_one_half_tells_long_answers_apart():
    shaped = shape([1.0, 1.0], [100, 300], lo=0.0)
    assert shaped == pytest.approx([sigmoid(1.0), sigmoid(-1.0)])


def test_partial_credit_never_overtakes_a_correct_response():
    """Where a near miss is wrong: 0.5 of 1 would be as much as a correct answer of average length gets."""
    lengths, correct = [100, 100, 100, 100], [True, False, False, False]
    assert shape([1.0, 0.5, 0.05, 0.0], lengths, correct).tolist() == [0.5, 0.25, 0.025, 0.0]
    shaped = shape([1.0, 1.0, 0.9, -1.0], [100, 300, 10, 10], [True, True, False, False], lo=0.0)
    assert shaped[0] > shaped[1] > shaped[2] > 0 > shaped[3] == -1
    # Without a correct response there is nothing to overtake.
    assert shape([0.5, 0.05], [10, 20], [False, False]).tolist() == [0.5, 0.05]


def test_other_rewards_than_zero_and_one_keep_their_scale():
    # sigmoid(1), clipped 0.5: a penalty, partial credit or a large reward is as visible after shaping as before.
    shaped = shape([4.0, 4.0, 0.1, 8.0], [100, 300, 200, 200])
    assert shaped == pytest.approx([4 * sigmoid(1.0), 2.0, 0.05, 4.0])


def test_a_correct_response_whose_penalties_leave_nothing_keeps_its_reward():
    shaped = shape([0.6, 0.0, -0.4], [100, 200, 300], correct=[True, True, True])
    assert shaped == pytest.approx([0.6 * sigmoid(1.0), 0.0, -0.4])


def test_shaping_never_pays_more_than_the_reward():
    rng = np.random.default_rng(0)
    rewards, lengths = rng.normal(0, 2, 64), rng.integers(1, 500, 64)
    for lo in (0.0, 0.5):
        shaped = shape(rewards, lengths, lo=lo)
        assert (shaped <= rewards).all()
        assert ((shaped < rewards) == (rewards > 0)).all()


@pytest.mark.parametrize("rewards", [[0.0, 0.0, 0.0], [-1.0, -1.0, -1.0]])
def test_all_wrong_stays_flat(rewards):
    assert shape(rewards, [10, 20, 30]).tolist() == rewards


def test_all_correct_and_equally_long_is_flat():
    assert np.ptp(shape([1.0] * 4, [50] * 4)) == 0


def test_group_of_one():
    assert shape([1.0], [77]).tolist() == [0.5]
    assert shape([0.0], [77]).tolist() == [0.0]


def test_alpha_zero_has_no_preference():
    assert shape([1.0, 1.0], [1, 1000], alpha=0.0).tolist() == [0.5, 0.5]


def test_shaping_off_returns_the_rewards():
    assert shape([1.0, 0.0], [1, 1000], shaping=False).tolist() == [1.0, 0.0]


def test_enormous_lengths_do_not_overflow():
    with np.errstate(all="raise"):
        assert shape([1.0, 1.0], [0, 10_000_000], lo=0.0).tolist() == [1.0, 0.0]


@pytest.mark.parametrize(
    ("reward", "accuracy", "threshold", "expected"),
    [
        (1.0, None, 0.0, True),
        (0.0, None, 0.0, False),
        (-1.0, None, 0.0, False),
        (0.3, None, 0.5, False),
        (-0.2, 1.0, 0.0, True),  # a penalised but right answer
        (0.2, 0.0, 0.0, False),  # a format bonus without the right answer
        (0.2, False, 0.0, False),
        (float("nan"), None, 0.0, False),
    ],
)
def test_what_counts_as_correct(reward, accuracy, threshold, expected):
    assert is_correct(reward, accuracy, threshold) is expected


@pytest.mark.parametrize(
    ("value", "best", "expected"),
    [(1.0, 1.0, True), (0.51, 1.0, True), (0.5, 1.0, False), (0.07, 1.0, False), (-1.0, 1.0, False), (True, 1.0, True),
     (5.0, 10.0, False), (5.1, 10.0, True), (1.0, 10.0, False), (math.nan, 1.0, False)],
)  # fmt: skip
def test_without_a_threshold_half_of_the_best_is_not_enough(value, best, expected):
    assert is_correct(value, None, None, best) is expected
    assert is_correct(0.0, value, best=best) is expected


def test_the_scale_of_a_data_source_is_its_own():
    scale = RewardScale()
    assert (scale.best("math"), scale.partial) == (1.0, None)
    scale.see("math", [0.0, 1.0, -1.0, math.nan, math.inf])
    scale.see("essays", [3.0, 10.0, 7.0])
    assert (scale.best("math"), scale.best("essays"), scale.best("other")) == (1.0, 10.0, 1.0)
    assert scale.partial is None
    scale.see("math", [0.25, 0.75])
    assert (scale.best("math"), scale.partial) == (1.0, 0.25)
