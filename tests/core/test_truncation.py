"""Where an answer is cut: the range of m, its uniformity, and what is left of the response budget."""

import math
from collections import Counter

import pytest

from rpo_verl.rpo.cut import adapted_dropped, draw_dropped, prefix_length
from rpo_verl.rpo.options import TruncationConfig


def draws_of(length, config, count=4000):
    return Counter(draw_dropped(length, config, 0, step, b"question") for step in range(count))


@pytest.mark.parametrize(
    ("config", "length", "low", "high"),
    [
        (TruncationConfig(max_fraction=0.25), 40, 1, 10),
        (TruncationConfig(max_fraction=0.25), 41, 1, 11),  # L is rounded up
        (TruncationConfig(max_fraction=0.5, min_tokens=0), 12, 0, 6),
        (TruncationConfig(max_tokens=8), 1000, 1, 8),
        (TruncationConfig(max_tokens=8, max_fraction=0.25), 1000, 1, 8),  # tokens win over the fraction
        (TruncationConfig(max_tokens=8, min_tokens=8), 1000, 8, 8),
    ],
)
def test_m_is_uniform_over_its_whole_range(config, length, low, high):
    seen = draws_of(length, config)
    assert set(seen) == set(range(low, high + 1))
    expected = sum(seen.values()) / len(seen)
    assert all(abs(count - expected) < 6 * expected**0.5 for count in seen.values())


def test_m_with_a_tail():
    config = TruncationConfig(max_fraction=1.0, distribution="log_uniform")
    seen = draws_of(127, config)
    assert min(seen) == 1 and max(seen) == 127
    # Every doubling is as likely: 1, 2-3, 4-7, … 64-127.
    doublings = Counter(m.bit_length() for m in seen.elements())
    assert set(doublings) == set(range(1, 8))
    assert all(abs(count - 4000 / 7) < 6 * (4000 / 7) ** 0.5 for count in doublings.values())
    assert set(draws_of(40, TruncationConfig(max_tokens=9, min_tokens=9, distribution="log_uniform"))) == {9}


@pytest.mark.parametrize("distribution", ["uniform", "log_uniform"])
def test_questions_of_a_step_may_share_their_draw(distribution):
    config = TruncationConfig(max_fraction=1.0, distribution=distribution, draw_per="step")
    own = TruncationConfig(max_fraction=1.0, distribution=distribution, draw_per="question")
    assert len({draw_dropped(100, config, 0, 7, b"%d" % question) for question in range(50)}) == 1
    assert len({draw_dropped(100, own, 0, 7, b"%d" % question) for question in range(50)}) > 10
    # Over steps it is the same distribution, and a longer answer is cut at the same share of it.
    assert set(draws_of(4, config)) == {1, 2, 3, 4}
    shared, drawn = (sum(draws_of(100, which).elements()) / 4000 for which in (config, own))
    assert shared == pytest.approx(drawn, rel=0.05)
    for step in range(20):
        short, long = (draw_dropped(length, config, 0, step, b"q") for length in (100, 1000))
        if distribution == "uniform":
            assert abs(long - 10 * short) <= 10


@pytest.mark.parametrize("length", [0, 1, 2])
def test_very_short_answers_are_dropped_whole(length):
    config = TruncationConfig(max_fraction=0.5, draw_per="question")
    dropped = draw_dropped(length, config, 0, 1, b"q")
    assert dropped == 1
    assert prefix_length(length, dropped, 100, config) == max(0, length - 1)


def test_m_beyond_the_answer_means_a_full_rollout():
    assert prefix_length(10, 10, 100, TruncationConfig()) == 0
    assert prefix_length(10, 300, 100, TruncationConfig(max_tokens=300)) == 0


def test_a_prefix_always_leaves_room_for_one_token():
    # An answer as long as the response limit, m = 0.
    assert prefix_length(100, 0, 100, TruncationConfig(min_tokens=0)) == 99


def test_prefix_budget():
    assert prefix_length(100, 10, 200, TruncationConfig(max_prefix_tokens=30)) == 30


def test_draws_depend_on_seed_step_and_question_and_on_nothing_else():
    config = TruncationConfig(max_tokens=1000, draw_per="question")
    key = (7, 3, b"question")
    first = draw_dropped(5000, config, *key)
    for other in range(50):
        draw_dropped(5000, config, 7, other, b"another")
    assert draw_dropped(5000, config, *key) == first
    others = {
        draw_dropped(5000, config, *changed) for changed in [(8, 3, b"question"), (7, 4, b"question"), (7, 3, b"x")]
    }
    assert first not in others


ADAPTIVE = TruncationConfig(adaptive=True, target_success=0.5, easy_above=0.95)


def test_an_adapted_cut_asks_for_half_the_group():
    # Twice as hard as the average: on every scale of a step its own cut is the shorter one.
    for step in range(100):
        dropped = adapted_dropped(10_000, 0.002, 0.001, ADAPTIVE, 0, step)
        assert dropped == round(math.log(2) / 0.002)
    # With another target, that many tokens as let it succeed.
    often = TruncationConfig(adaptive=True, target_success=0.8)
    assert adapted_dropped(10_000, 0.002, 0.001, often, 0, 1) == round(-math.log(0.8) / 0.002)


def test_a_step_has_one_scale():
    average = [adapted_dropped(10_000, 0.001, 0.001, ADAPTIVE, 0, step) for step in range(400)]
    easier = [adapted_dropped(10_000, 0.0005, 0.001, ADAPTIVE, 0, step) for step in range(400)]
    own = round(math.log(2) / 0.001)
    assert max(average) == own and min(average) < 0.55 * own
    assert max(easier) > 1.9 * own
    # Wherever the scale is what binds, it is the same for both.
    assert all(one == other for one, other in zip(average, easier, strict=True) if one < own)
    # Log-uniform: half of the steps lie below the middle.
    assert sum(value < own for value in easier) / 400 == pytest.approx(0.5, abs=0.1)


def test_what_carries_no_signal_costs_one_token():
    # Even a full rollout of 100 tokens comes out right in more than 95 %.
    assert adapted_dropped(100, 0.0005, 0.0005, ADAPTIVE, 0, 1) == 1
    assert adapted_dropped(104, 0.0005, 0.0005, ADAPTIVE, 0, 1) == 104


def test_a_hopeless_question_keeps_a_token_to_write():
    assert adapted_dropped(100, 5.0, 0.001, ADAPTIVE, 0, 1) == 1
