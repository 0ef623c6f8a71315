"""The plan of a group and the update of the cache, step by step."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from rpo_verl.question import TokenizerIdentity, question_key
from rpo_verl.rpo.cache import CachedAnswer, ExperienceCache
from rpo_verl.rpo.group import Group
from rpo_verl.rpo.options import CacheConfig, CreditConfig, RolloutConfig, RPOConfig, TruncationConfig
from rpo_verl.rpo.partial_rollouts import PartialRollouts
from rpo_verl.rpo.start import NO_LOGPROBS, Start

IDENTITY = TokenizerIdentity("test", "vocabulary", "template")
QUESTION = [1, 2, 3]
KEY = question_key(QUESTION, IDENTITY.fingerprint)
END = 99_999


def answer(tokens, correct=True, reward=None, step=0, first=0):
    ids = np.arange(first, first + tokens, dtype=np.int32)
    return CachedAnswer(ids, correct, float(correct) if reward is None else reward, step, np.array(QUESTION, np.int32))


def rollouts(max_response_length=100, **sections):
    sections.setdefault("rollout", RolloutConfig(full_rollout_every=0))
    sections.setdefault("truncation", TruncationConfig(max_fraction=0.1, draw_per="question"))
    return PartialRollouts(RPOConfig(**sections), max_response_length, IDENTITY, {END})


def put(rpo, cached):
    """As an earlier group left it."""
    rpo._cache.put(KEY, cached)


def plan(rpo, step, group_size=1):
    return rpo.plan(QUESTION, step, group_size)


def group_of(start, members, shaped=None):
    """A finished group; a response is its member's tokens and an end token."""
    rewards = np.array([member.reward for member in members])
    prefix = len(start.prefix)
    return Group(
        start=start,
        keys=tuple(f"uid_{i}_0" for i in range(len(members))),
        prefix_tokens=np.full(len(members), prefix),
        response_tokens=np.array([len(member.tokens) + 1 for member in members]),
        oldest_policy=np.array([member.step for member in members]),
        rewards=rewards,
        correct=np.array([member.correct for member in members]),
        shaped=rewards if shaped is None else np.array(shaped),
    )


def observe(rpo, step, start, members, shaped=None, question=QUESTION):
    """Let the cache see a group; returns the counts."""

    def fetch(keys):
        chosen = [members[int(key.split("_")[1])] for key in keys]
        rows = []
        for member in chosen:
            logprobs = np.append(member.logprobs, np.float16(-1)) if len(member.logprobs) else NO_LOGPROBS
            rows.append((np.array(question, np.int32), np.append(member.tokens, np.int32(END)), logprobs))
        return rows

    return rpo.observe([group_of(start, members, shaped)], step, fetch)


def cached(rpo):
    return rpo._cache.get(KEY)


def test_cold_cache_without_trunks_gives_a_full_rollout_which_seeds_it():
    rpo = rollouts(cache=CacheConfig(greedy_prob=1.0), rollout=RolloutConfig(trunks=0))
    start = plan(rpo, 1, 2)
    assert (start.kind, len(start.prefix), start.room, start.source_step, start.answer_id) == ("full", 0, 100, -1, 0)
    counts = observe(rpo, 1, start, [answer(8, correct=False), answer(9, step=0)], [0.0, 0.5])
    assert counts == {"offered": 1, "incomplete": 0, "greedy": 1, "stored": 1}
    assert cached(rpo).tokens.tolist() == list(range(9)), "without the end token"
    assert plan(rpo, 2).kind == "prefixed"


def test_a_prefixed_group_starts_from_the_head_of_the_answer():
    rpo = rollouts(truncation=TruncationConfig(max_tokens=10))
    put(rpo, answer(60, step=5))
    for step in range(1, 200):
        start = plan(rpo, step)
        assert start.kind == "prefixed"
        assert 1 <= start.dropped <= 10
        assert start.prefix.tolist() == list(range(60 - start.dropped))
        assert start.room == 100 - len(start.prefix)
        assert start.source_step == 5
        assert start.answer_id == cached(rpo).id


@pytest.mark.parametrize("length", [0, 1])
def test_answers_with_nothing_to_keep_get_a_full_rollout(length):
    rpo = rollouts()
    put(rpo, answer(length))
    start = plan(rpo, 1)
    assert (start.kind, len(start.prefix), start.room) == ("refreshed", 0, 100)


def test_log_probabilities_are_kept_and_cut_with_the_answer():
    rpo = rollouts(cache=CacheConfig(greedy_prob=1.0), credit=CreditConfig(rule="paid"))
    logprobs = np.linspace(-3, -0.01, 39).astype(np.float16)
    observe(rpo, 1, plan(rpo, 1), [replace(answer(39), logprobs=logprobs)])
    assert cached(rpo).logprobs.tolist() == logprobs.tolist(), "without that of the end token"
    start = plan(rpo, 2)
    assert start.prefix_logprobs.tolist() == logprobs[: len(start.prefix)].tolist()


@pytest.mark.parametrize(("temperature", "known"), [(0.7, 3), (1.0, 0)])
def test_log_probabilities_of_another_temperature_are_left_behind(tmp_path, temperature, known):
    paid = RPOConfig(cache=CacheConfig(greedy_prob=1.0), credit=CreditConfig(rule="paid"))
    rpo = PartialRollouts(paid, 100, IDENTITY, {END}, temperature=0.7)
    observe(rpo, 1, plan(rpo, 1), [replace(answer(3), logprobs=np.full(3, -1, np.float16))])
    rpo.save(tmp_path / "rpo", 1)
    other = PartialRollouts(paid, 100, IDENTITY, {END}, temperature=temperature)
    assert other.load(tmp_path / "rpo", 1).temperature == 0.7
    assert (len(cached(other).tokens), len(cached(other).logprobs)) == (3, known)
    assert other.without_logprobs() == (known == 0)


def test_without_a_rule_that_needs_them_log_probabilities_are_not_kept():
    rpo = rollouts(cache=CacheConfig(greedy_prob=1.0), credit=CreditConfig(rule="none"))
    observe(rpo, 1, plan(rpo, 1), [replace(answer(3), logprobs=np.full(3, -1, np.float16))])
    assert len(cached(rpo).tokens) == 3 and not len(cached(rpo).logprobs)


def test_log_probabilities_that_are_no_numbers_are_not_kept():
    rpo = rollouts(cache=CacheConfig(greedy_prob=1.0), credit=CreditConfig(rule="paid"))
    observe(rpo, 1, plan(rpo, 1), [replace(answer(3), logprobs=np.array([-1, np.nan, -1], np.float16))])
    assert len(cached(rpo).tokens) == 3 and not len(cached(rpo).logprobs)


def test_log_probabilities_are_finite_and_no_more_than_zero():
    rpo = rollouts(cache=CacheConfig(greedy_prob=1.0), credit=CreditConfig(rule="paid"))
    observe(rpo, 1, plan(rpo, 1), [replace(answer(3), logprobs=np.array([-np.inf, 1e-6, -1], np.float16))])
    least, certain, _ = cached(rpo).logprobs.tolist()
    assert (least, certain) == (-65504.0, -np.finfo(np.float16).smallest_subnormal), "0 means that nobody knows"


def test_an_answer_whose_prefix_has_no_log_probabilities_keeps_none():
    rpo = rollouts(
        cache=CacheConfig(greedy_prob=1.0),
        credit=CreditConfig(rule="paid"),
        truncation=TruncationConfig(max_fraction=0.5),
    )
    put(rpo, answer(30))
    start = plan(rpo, 1)
    prefix = len(start.prefix)
    assert start.kind == "prefixed" and prefix and not len(start.prefix_logprobs)
    rollout = np.where(np.arange(40) < prefix, 0, -1.5).astype(np.float16)
    observe(rpo, 1, start, [replace(answer(40), logprobs=rollout)])
    assert len(cached(rpo).tokens) == 40 and not len(cached(rpo).logprobs)


def test_a_first_visit_may_branch_from_trunks():
    rpo = rollouts(rollout=RolloutConfig(trunks=2, full_rollout_every=0), truncation=TruncationConfig(max_fraction=0.5))
    start = plan(rpo, 1, 8)
    assert (start.kind, start.trunks, start.group_size, len(start.prefix)) == ("branched", 2, 8, 0)
    branch = start.branch(0, answer(39).tokens, np.full(39, -0.5), 30, 1)
    assert (branch.kind, branch.trunks, branch.group_size, branch.room) == ("branched", 0, 4, 70)
    assert (branch.prefix.tolist(), branch.dropped, branch.source_step) == (list(range(30)), 9, 1)
    assert branch.prefix_logprobs.tolist() == [-0.5] * 30
    group = group_of(branch, [answer(39), *[answer(39, correct=False)] * 3])
    group = replace(group, trunks=np.array([True, False, False, False]))
    assert group.reused.tolist() == [0, 30, 30, 30] and group.generated.tolist() == [40, 10, 10, 10]
    rpo.observe([group], 1, lambda keys: [(np.array(QUESTION), np.append(answer(39).tokens, END), NO_LOGPROBS)])
    assert plan(rpo, 2, 8).kind == "prefixed", "a second visit starts from the cache"


@pytest.mark.parametrize(
    "trunks, members, sizes",
    [(4, 8, [2, 2, 2, 2]), (4, 16, [4, 4, 4, 4]), (4, 5, [3, 2]), (4, 7, [3, 2, 2]), (3, 8, [3, 3, 2]), (4, 2, [2])],
)
def test_branches_differ_by_one_member_at_most(trunks, members, sizes):
    start = plan(rollouts(rollout=RolloutConfig(trunks=trunks)), 1, members)
    assert [start.branch_size(number) for number in range(start.trunks)] == sizes
    places = [start.branch_of(member) for member in range(members)]
    assert sorted(places) == [(number, place) for number, size in enumerate(sizes) for place in range(size)]


def branches(rpo, *of_trunks):
    """A first visit of two members a trunk; returns the counts. Members are numbered through."""
    start, members = plan(rpo, 1, 2 * len(of_trunks)), [member for both in of_trunks for member in both]
    groups = []
    for number, both in enumerate(of_trunks):
        trunk = both[0]
        group = group_of(start.branch(number, trunk.tokens, np.full(len(trunk.tokens), -0.5), 10, 1), both)
        keys = tuple(f"uid_{2 * number + place}_0" for place in range(len(both)))
        groups.append(replace(group, keys=keys, trunks=np.array([True, False])))

    def fetch(keys):
        chosen = [members[int(key.split("_")[1])] for key in keys]
        return [(np.array(QUESTION, np.int32), np.append(one.tokens, np.int32(END)), NO_LOGPROBS) for one in chosen]

    return rpo.observe(groups, 1, fetch)


def of_trunks():
    return rollouts(
        cache=CacheConfig(greedy_prob=1.0, keep_correct=False), rollout=RolloutConfig(trunks=2, full_rollout_every=0)
    )


def test_branches_of_one_question_offer_one_response():
    right, wrong = [answer(20), answer(25)], [answer(30, correct=False), answer(35, correct=False)]
    for order in ((right, wrong), (wrong, right)):
        rpo = of_trunks()
        counts = branches(rpo, *order)
        assert (counts["offered"], counts["stored"], counts["incomplete"]) == (1, 1, 0)
        assert len(cached(rpo).tokens) == 20 and cached(rpo).correct


def test_every_nth_step_is_full():
    rpo = rollouts(rollout=RolloutConfig(full_rollout_every=3))
    put(rpo, answer(60))
    assert [plan(rpo, step).kind for step in range(1, 8)] == ["prefixed", "prefixed", "refreshed"] * 2 + ["prefixed"]


def test_full_steps_at_a_fractional_distance():
    rpo = rollouts(rollout=RolloutConfig(full_rollout_every=2.5))
    put(rpo, answer(60))
    assert [step for step in range(1, 11) if plan(rpo, step).kind == "refreshed"] == [3, 5, 8, 10]


def test_plans_are_the_same_in_another_process_order():
    first, second = rollouts(), rollouts()
    questions = [[i, i] for i in range(20)]
    for rpo in (first, second):
        for question in questions:
            rpo._cache.put(question_key(question, IDENTITY.fingerprint), answer(80))
    forwards = {str(question): first.plan(question, 7, 1).dropped for question in questions}
    backwards = {str(question): second.plan(question, 7, 1).dropped for question in reversed(questions)}
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


@pytest.mark.parametrize(("rewards", "group_size"), [([1.0, np.nan], 2), ([1.0, np.inf], 2), ([1.0, 0.0], 3)])
def test_an_incomplete_group_teaches_nothing(rewards, group_size):
    """One with a failed response, or a reward that is not finite."""
    rpo = rollouts(cache=CacheConfig(greedy_prob=1.0))
    members = [answer(5, correct=reward == 1.0, reward=reward) for reward in rewards]
    counts = observe(rpo, 1, plan(rpo, 1, group_size), members)
    assert counts == {"offered": 0, "incomplete": 1}
    assert cached(rpo) is None


def test_another_question_than_the_planned_one_is_an_error():
    rpo = rollouts()
    with pytest.raises(RuntimeError, match="rolled out 2 question tokens"):
        observe(rpo, 1, plan(rpo, 1), [answer(5)], question=[7, 8])


def outcome_from(rpo, step, correct=False):
    """One group from the cached prefix, all wrong or all right."""
    return observe(rpo, step, plan(rpo, step, 2), [answer(60, correct=correct, step=step)] * 2)


@pytest.mark.parametrize("poisoned", [True, False])
def test_an_answer_from_which_groups_keep_failing_is_dropped(poisoned):
    """Whether it counts as correct, and so is kept, or is wrong, and replaced by its own continuation."""
    rpo = rollouts(cache=CacheConfig(max_failures=2))
    put(rpo, answer(60, correct=poisoned))
    assert outcome_from(rpo, 1)["dropped"] == 0
    assert cached(rpo).failures == 1
    assert plan(rpo, 2).kind == "prefixed"
    assert outcome_from(rpo, 2)["dropped"] == 1
    assert cached(rpo) is None
    assert plan(rpo, 3).kind == "full"


def test_one_success_ends_a_series_of_failures():
    rpo = rollouts(cache=CacheConfig(max_failures=2))
    put(rpo, answer(60))
    outcome_from(rpo, 1)
    outcome_from(rpo, 2, correct=True)
    assert cached(rpo).failures == 0
    assert outcome_from(rpo, 3)["dropped"] == 0


@pytest.mark.parametrize("correct", [True, False])
def test_a_group_whose_answer_was_replaced_meanwhile_is_late(correct):
    rpo = rollouts(cache=CacheConfig(max_failures=1))
    put(rpo, answer(60))
    start = plan(rpo, 4, 2)
    put(rpo, answer(60, step=3, first=100))
    counts = observe(rpo, 4, start, [answer(60, correct=correct, step=4)] * 2)
    assert (counts["late"], counts["stored"], counts["dropped"]) == (1, 0, 0)
    assert cached(rpo).tokens[0] == 100


def test_a_group_whose_answer_was_dropped_meanwhile_does_not_bring_it_back():
    rpo = rollouts(cache=CacheConfig(max_failures=1))
    put(rpo, answer(60))
    start = plan(rpo, 4, 2)
    rpo._cache.drop(KEY)
    assert observe(rpo, 4, start, [answer(60, step=4)] * 2)["late"] == 1
    assert cached(rpo) is None


def test_the_identity_of_an_answer_is_its_tokens():
    one, same, other, shorter = answer(60), answer(60, correct=False, step=9), answer(60, first=1), answer(59)
    assert one.id == same.id
    assert len({one.id, other.id, shorter.id}) == 3
    cache = ExperienceCache()
    cache.put(KEY, one)
    assert cache.get(KEY).id == one.id, "packed or not"


def test_failed_full_rollouts_do_not_count():
    rpo = rollouts(cache=CacheConfig(max_failures=1), rollout=RolloutConfig(full_rollout_every=1))
    put(rpo, answer(60, correct=False))
    counts = observe(rpo, 1, plan(rpo, 1), [answer(50, correct=False)])
    assert (counts["dropped"], counts["stored"]) == (0, 1)


def test_without_control_a_failing_answer_stays():
    rpo = rollouts(cache=CacheConfig(max_failures=None))
    put(rpo, answer(60))
    for step in range(1, 20):
        outcome_from(rpo, step)
    assert plan(rpo, 20).kind == "prefixed"


def test_bounds_of_the_configuration_are_the_caches(tmp_path):
    rpo = rollouts(cache=CacheConfig(keep_correct=False, max_entries=3, max_bytes=10_000))
    for question in range(5):
        rpo._cache.put(question_key([question], IDENTITY.fingerprint), SimpleNamespace(**_fields(question)))
    metrics = rpo.end_step(7)
    assert (metrics["rpo/cache/entries"], metrics["rpo/cache/evictions"]) == (3, 2)
    rpo.save(tmp_path / "store", 7)
    again = rollouts(cache=CacheConfig(max_entries=2))
    assert again.load(tmp_path / "store").step == 7
    assert again.end_step(7)["rpo/cache/entries"] == 2


def _fields(question):
    return {
        "tokens": np.arange(5, dtype=np.int32), "correct": True, "reward": 1.0, "step": 0,
        "question": np.array([question], np.int32), "failures": 0, "logprobs": NO_LOGPROBS,
    }  # fmt: skip


def test_a_right_answer_is_kept_where_a_wrong_one_is_offered():
    rpo = rollouts(cache=CacheConfig(greedy_prob=0.0, max_failures=None))
    put(rpo, answer(39))
    start = Start(KEY, "prefixed", 2, 70, answer(39).tokens[:30], 9, answer(39).id, 0)
    # Not greedy: the other response, which is wrong, is offered.
    counts = observe(rpo, 2, start, [answer(45), answer(45, correct=False)])
    assert counts == {"offered": 1, "incomplete": 0, "greedy": 0, "kept": 1}
    assert len(cached(rpo).tokens) == 39


def test_an_answer_beyond_the_limit_gets_a_full_rollout():
    """Wherever 101 tokens are cut, their rest has one token more than there is room behind the prefix."""
    rpo = rollouts(max_response_length=100, truncation=TruncationConfig(draw_per="question"))
    put(rpo, answer(101))
    assert {plan(rpo, step).kind for step in range(1, 50)} == {"refreshed"}
    assert rpo.pop_plans() == {"too_long": 49}
    assert rpo.too_long() == 1
    put(rpo, answer(100))
    assert rpo.too_long() == 0
    starts = [plan(rpo, step) for step in range(1, 50)]
    assert "prefixed" in {start.kind for start in starts}
    assert all(start.room >= start.dropped for start in starts)


def test_a_fitting_response_takes_the_place_of_one_that_is_too_long():
    rpo = rollouts(max_response_length=100, cache=CacheConfig(greedy_prob=1.0))
    put(rpo, answer(150))
    assert observe(rpo, 1, plan(rpo, 1), [answer(60, step=1)])["stored"] == 1
    assert plan(rpo, 2).kind == "prefixed"


def test_plans_are_counted_by_their_reason():
    rpo = rollouts(
        rollout=RolloutConfig(full_rollout_every=3), truncation=TruncationConfig(max_tokens=80, min_tokens=70)
    )
    plan(rpo, 1)
    put(rpo, answer(60))
    for step in (1, 2, 3):
        plan(rpo, step)
    put(rpo, answer(90))
    plan(rpo, 1)
    assert rpo.pop_plans() == {"full": 1, "whole_cut": 2, "full_step": 1, "prefixed": 1}
    assert rpo.pop_plans() == {}
