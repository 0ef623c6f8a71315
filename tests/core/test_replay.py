"""The plan of a group and the update of the cache, step by step."""

from dataclasses import replace

import numpy as np
import pytest

from rpo_verl.rpo.cache import CachedAnswer, ExperienceCache
from rpo_verl.rpo.difficulty import Evidence
from rpo_verl.rpo.options import CacheConfig, RolloutConfig, RPOConfig, TruncationConfig
from rpo_verl.rpo.partial_rollouts import PartialRollouts

KEY = b"k" * 16


def answer(tokens, correct=True, reward=None, step=0):
    return CachedAnswer(np.arange(tokens, dtype=np.int32), correct, float(correct) if reward is None else reward, step)


def rollouts(max_response_length=100, **sections):
    sections.setdefault("rollout", RolloutConfig(full_rollout_every=0))
    sections.setdefault("truncation", TruncationConfig(max_fraction=0.1, draw_per="question"))
    return PartialRollouts(RPOConfig(**sections), max_response_length)


def observe(rpo, step, shaped, group, prefix_tokens=0):
    """Choose a response of the group and offer it."""
    choice = rpo.choose(KEY, step, np.array(shaped))
    correct = np.array([member.correct for member in group])
    generated = np.array([len(member.tokens) + 1 - prefix_tokens for member in group])
    return choice, rpo.observe(KEY, group[choice.member], correct, generated, prefix_tokens)


def test_cold_cache_gives_a_full_rollout_which_seeds_it():
    rpo = rollouts(cache=CacheConfig(greedy_prob=1.0))
    start = rpo.plan(KEY, 1)
    assert (start.kind, len(start.prefix), start.suffix_max_tokens, start.source_step) == ("full", 0, 100, -1)
    group = [answer(8, correct=False), answer(9, step=0)]
    choice, outcome = observe(rpo, 1, [0.0, 0.5], group)
    assert (choice.member, choice.greedy, outcome.stored) == (1, True, True)
    assert rpo.plan(KEY, 2).kind == "prefixed"


def test_a_prefixed_group_starts_from_the_head_of_the_answer():
    rpo = rollouts(truncation=TruncationConfig(max_tokens=10))
    rpo.cache.put(KEY, answer(60, step=5))
    for step in range(1, 200):
        start = rpo.plan(KEY, step)
        assert start.kind == "prefixed"
        assert 1 <= start.dropped <= 10
        assert start.prefix.tolist() == list(range(60 - start.dropped))
        assert start.suffix_max_tokens == 100 - len(start.prefix)
        assert start.source_step == 5


@pytest.mark.parametrize("length", [0, 1])
def test_answers_with_nothing_to_keep_get_a_full_rollout(length):
    rpo = rollouts()
    rpo.cache.put(KEY, answer(length))
    start = rpo.plan(KEY, 1)
    assert (start.kind, len(start.prefix), start.suffix_max_tokens) == ("refreshed", 0, 100)


def test_every_nth_step_is_full():
    rpo = rollouts(rollout=RolloutConfig(full_rollout_every=3))
    rpo.cache.put(KEY, answer(60))
    assert [rpo.plan(KEY, step).kind for step in range(1, 8)] == ["prefixed", "prefixed", "refreshed"] * 2 + [
        "prefixed"
    ]


def test_full_steps_at_a_fractional_distance():
    rpo = rollouts(rollout=RolloutConfig(full_rollout_every=2.5))
    rpo.cache.put(KEY, answer(60))
    assert [step for step in range(1, 11) if rpo.plan(KEY, step).kind == "refreshed"] == [3, 5, 8, 10]


def test_full_rollout_prob_is_a_share_of_groups():
    rpo = rollouts(rollout=RolloutConfig(full_rollout_every=0, full_rollout_prob=0.25))
    rpo.cache.put(KEY, answer(60))
    refreshed = sum(rpo.plan(KEY, step).kind == "refreshed" for step in range(4000))
    assert refreshed / 4000 == pytest.approx(0.25, abs=0.03)


def test_suffix_caps():
    rpo = rollouts(
        truncation=TruncationConfig(max_tokens=10, min_tokens=10),
        rollout=RolloutConfig(full_rollout_every=0, suffix_max_multiple=1.5),
    )
    rpo.cache.put(KEY, answer(60))
    assert rpo.plan(KEY, 1).suffix_max_tokens == 15
    rpo.config.rollout.suffix_max_tokens = 4
    assert rpo.plan(KEY, 1).suffix_max_tokens == 4


def test_plans_are_the_same_in_another_process_order():
    first, second = rollouts(), rollouts()
    for rpo in (first, second):
        for i in range(20):
            rpo.cache.put(bytes([i]) * 16, answer(80))
    keys = [bytes([i]) * 16 for i in range(20)]
    forwards = {key: first.plan(key, 7).dropped for key in keys}
    backwards = {key: second.plan(key, 7).dropped for key in reversed(keys)}
    assert forwards == backwards
    assert len(set(forwards.values())) > 1


def test_keep_correct():
    cache = ExperienceCache(keep_correct=True)
    assert cache.put(KEY, answer(4, correct=False))
    assert cache.put(KEY, answer(5, correct=True))
    assert not cache.put(KEY, answer(6, correct=False))
    assert len(cache.get(KEY).tokens) == 5
    assert cache.put(KEY, answer(7, correct=True))
    loose = ExperienceCache(keep_correct=False)
    assert loose.put(KEY, answer(5, correct=True))
    assert loose.put(KEY, answer(6, correct=False))


def test_a_response_without_a_finite_reward_never_enters_the_cache():
    rpo = rollouts(cache=CacheConfig(greedy_prob=1.0))
    group = [answer(5, correct=False, reward=float("nan"))]
    _, outcome = observe(rpo, 1, [np.nan], group)
    assert not outcome.stored
    assert rpo.cache.get(KEY) is None


def fail_from(rpo, step, correct=False):
    """One group from the cached prefix, all wrong or all right."""
    group = [answer(60, correct=correct, step=step)] * 2
    return observe(rpo, step, [float(correct)] * 2, group, prefix_tokens=50)[1]


@pytest.mark.parametrize("poisoned", [True, False])
def test_an_answer_from_which_groups_keep_failing_is_dropped(poisoned):
    """Whether it counts as correct, and so is kept, or is wrong, and replaced by its own continuation."""
    rpo = rollouts(cache=CacheConfig(max_failures=2))
    rpo.cache.put(KEY, answer(60, correct=poisoned))
    assert not fail_from(rpo, 1).dropped
    assert rpo.cache.get(KEY).failures == 1
    assert rpo.plan(KEY, 2).kind == "prefixed"
    assert fail_from(rpo, 2).dropped
    assert rpo.cache.get(KEY) is None
    assert rpo.plan(KEY, 3).kind == "full"


def test_one_success_ends_a_series_of_failures():
    rpo = rollouts(cache=CacheConfig(max_failures=2))
    rpo.cache.put(KEY, answer(60))
    fail_from(rpo, 1)
    fail_from(rpo, 2, correct=True)
    assert rpo.cache.get(KEY).failures == 0
    assert not fail_from(rpo, 3).dropped


@pytest.mark.parametrize("correct", [True, False])
def test_a_group_whose_answer_was_replaced_meanwhile_changes_nothing(correct):
    rpo = rollouts(cache=CacheConfig(max_failures=1))
    rpo.cache.put(KEY, CachedAnswer(np.arange(100, 160, dtype=np.int32), True, 1.0, 3))
    outcome = fail_from(rpo, 4, correct)
    assert (outcome.stored, outcome.dropped) == (False, False)
    assert rpo.cache.get(KEY).tokens[0] == 100


def test_a_group_whose_answer_was_dropped_meanwhile_does_not_bring_it_back():
    rpo = rollouts(cache=CacheConfig(max_failures=1))
    assert not fail_from(rpo, 4).stored
    assert rpo.cache.get(KEY) is None


def test_failed_full_rollouts_do_not_count():
    rpo = rollouts(cache=CacheConfig(max_failures=1))
    rpo.cache.put(KEY, answer(60, correct=False))
    _, outcome = observe(rpo, 1, [0.0], [answer(50, correct=False)])
    assert (outcome.dropped, outcome.stored) == (False, True)


def test_without_control_a_failing_answer_stays():
    rpo = rollouts(cache=CacheConfig(max_failures=None))
    rpo.cache.put(KEY, answer(60))
    for step in range(1, 20):
        fail_from(rpo, step)
    assert rpo.plan(KEY, 20).kind == "prefixed"


def test_answers_with_an_old_head_get_a_full_rollout():
    rpo = rollouts(cache=CacheConfig(max_age=10))
    rpo.cache.put(KEY, answer(60, step=5))
    assert [rpo.plan(KEY, step).kind for step in (6, 15, 16)] == ["prefixed", "prefixed", "refreshed"]


def test_bounds_of_the_configuration_are_the_caches():
    rpo = rollouts(cache=CacheConfig(keep_correct=False, max_entries=3, max_bytes=1000))
    assert (rpo.cache.keep_correct, rpo.cache.max_entries, rpo.cache.max_bytes) == (False, 3, 1000)


def test_evidence_of_a_question_builds_up_over_its_groups():
    rpo = rollouts(cache=CacheConfig(greedy_prob=1.0))
    # Nothing known: a wrong answer went wrong half way.
    observe(rpo, 1, [1.0, 0.0], [answer(39), answer(19, correct=False)])
    assert rpo.cache.get(KEY).evidence == rpo.cache.evidence == Evidence(1.0, 40 + 20 / 2)
    # Half of that, and from a prefix what was generated behind it, whether or not the answer is replaced.
    observe(rpo, 2, [1.0], [answer(39)], prefix_tokens=30)
    assert rpo.cache.get(KEY).evidence == Evidence(0.5, 25.0 + 10)
    rpo.observe(KEY, answer(45, correct=False), np.array([True, True]), np.array([16, 16]), prefix_tokens=30)
    assert rpo.cache.get(KEY).correct
    assert rpo.cache.get(KEY).evidence == Evidence(0.25, 17.5 + 32)


ADAPTIVE = TruncationConfig(adaptive=True, target_success=0.5, easy_above=0.9)


def test_adaptive_cuts_leave_harder_questions_less_to_write():
    rpo = rollouts(truncation=ADAPTIVE, max_response_length=1000)
    hard, medium, easy = b"h" * 16, b"m" * 16, b"e" * 16
    for key, evidence in {hard: Evidence(20.0, 200.0), medium: Evidence(10, 1000), easy: Evidence(0, 20000)}.items():
        rpo.cache.put(key, replace(answer(900), evidence=evidence))
    dropped = {key: [rpo.plan(key, step).dropped for step in range(1, 100)] for key in (hard, medium, easy)}
    assert all(one < other for one, other in zip(dropped[hard], dropped[medium], strict=True))
    # ln 2 at 21 wrong ones in 200 tokens and the 21200 / 30.5 of the prior, always below the step's scale.
    assert set(dropped[hard]) == {30}
    assert set(dropped[medium]) == {107}
    # On no scale of these steps does the easy question go wrong often enough.
    assert set(dropped[easy]) == {1}


def test_before_anything_was_seen_adaptive_cuts_are_drawn():
    rpo, plain = (rollouts(truncation=replace(ADAPTIVE, adaptive=adaptive)) for adaptive in (True, False))
    for one in (rpo, plain):
        one.cache.put(KEY, answer(60))
    assert [rpo.plan(KEY, step).dropped for step in range(50)] == [plain.plan(KEY, step).dropped for step in range(50)]
