"""Where an answer is cut: the range of m, its uniformity, and what is left of the response budget."""

from collections import Counter

import pytest

from rpo_verl.rpo.cut import draw_share, dropped_tokens, prefix_length
from rpo_verl.rpo.options import TruncationConfig


def draw_dropped(length, config, *key):
    return dropped_tokens(length, config, draw_share(config, *key))


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
    assert prefix_length(length, dropped, 100) == max(0, length - 1)


def test_m_beyond_the_answer_means_a_full_rollout():
    assert prefix_length(10, 10, 100) == 0
    assert prefix_length(10, 300, 100) == 0


def test_a_prefix_always_leaves_room_for_one_token():
    # An answer as long as the response limit, m = 0.
    assert prefix_length(100, 0, 100) == 99
    assert prefix_length(100, 1, 100) == 99
    # A cache of longer responses than this run has.
    assert prefix_length(300, 10, 100) == 99


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


def test_a_range_in_tokens_reaches_beyond_short_answers():
    """The range is that of the options whatever the answer's length: short answers often get full rollouts."""
    assert max(draws_of(10, TruncationConfig(max_tokens=40))) == 40
    assert max(draws_of(10, TruncationConfig(max_fraction=0.5, min_tokens=8))) == 8
