"""Where an answer is cut: the range of m, its uniformity, and what is left of the response budget."""

from collections import Counter

import pytest

from rpo_verl.config import TruncationConfig
from rpo_verl.core.truncation import draw_dropped, prefix_length


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


@pytest.mark.parametrize("length", [0, 1, 2])
def test_very_short_answers_are_dropped_whole(length):
    config = TruncationConfig(max_fraction=0.5)
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
    config = TruncationConfig(max_tokens=1000)
    key = (7, 3, b"question")
    first = draw_dropped(5000, config, *key)
    for other in range(50):
        draw_dropped(5000, config, 7, other, b"another")
    assert draw_dropped(5000, config, *key) == first
    others = {
        draw_dropped(5000, config, *changed) for changed in [(8, 3, b"question"), (7, 4, b"question"), (7, 3, b"x")]
    }
    assert first not in others
