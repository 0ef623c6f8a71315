"""A run that never starts from a prefix says so once, with the reason; so does one whose policy collapses."""

import pytest

from rpo_verl.rpo.options import CacheConfig, CreditConfig, RolloutConfig, RPOConfig, TruncationConfig
from rpo_verl.rpo.watch import PATIENCE, WINDOW, CollapseWatch, PrefixWatch

EMPTY = {"rpo/cache/entries": 0, "rpo/cache/evictions": 0}
FILLED = {"rpo/cache/entries": 8, "rpo/cache/evictions": 0}
EVICTED = {"rpo/cache/entries": 2, "rpo/cache/evictions": 70}


def messages(plans, metrics=FILLED, steps=100, cold_steps=5, **sections):
    """Step → what was said in it."""
    watch = PrefixWatch(RPOConfig(**sections), 208, cold_steps)
    said = {step: watch.end_step(plans, metrics) for step in range(1, steps + 1)}
    return {step: text for step, text in said.items() if text is not None}


@pytest.mark.parametrize(
    ("plans", "cache", "sections", "at", "reason"),
    [
        ({"whole_cut": 4}, FILLED, {"truncation": TruncationConfig(min_tokens=200)}, PATIENCE,
         "rpo.truncation.min_tokens=200"),
        ({"full_step": 4}, FILLED, {"rollout": RolloutConfig(full_rollout_every=1)}, PATIENCE,
         "rpo.rollout.full_rollout_every=1"),
        ({"too_long": 3, "full": 1}, FILLED, {}, PATIENCE, "data.max_response_length=208"),
        ({"full": 4}, EVICTED, {"cache": CacheConfig(max_entries=2)}, PATIENCE + 5, "rpo.cache.max_entries=2"),
        ({"full": 4}, FILLED, {}, PATIENCE + 5, "Do prompts change between visits"),
        ({"full": 4}, EMPTY, {}, PATIENCE + 5, "The cache is empty"),
        ({}, EMPTY, {}, PATIENCE + 5, "No row is one that RPO can start"),
    ],
)  # fmt: skip
def test_the_reason_is_said_once(plans, cache, sections, at, reason):
    found = messages(plans, cache, **sections)
    assert list(found) == [at]
    assert found[at].startswith(f"RPO: NO GROUP HAS STARTED FROM A PREFIX in {at} steps")
    assert reason in found[at]


def test_a_loaded_cache_is_warm_from_the_start():
    assert list(messages({"full": 4}, cold_steps=0)) == [PATIENCE]


def test_one_prefix_is_enough():
    assert messages({"full": 3, "prefixed": 1}) == {}
    watch = PrefixWatch(RPOConfig(), 208, 0)
    watch.end_step({"prefixed": 1}, FILLED)
    assert not any(watch.end_step({"whole_cut": 4}, FILLED) for _ in range(100))


def test_a_cold_cache_is_no_reason_to_speak():
    assert messages({"full": 4}, steps=54, cold_steps=45) == {}


def test_full_steps_now_and_then_are_no_reason_to_speak():
    watch = PrefixWatch(RPOConfig(), 208, 4)
    steps = [{"full": 4}] * 4 + [{"full_step": 4}, {"whole_cut": 2, "prefixed": 2}] * 20
    assert not any(watch.end_step(plans, FILLED) for plans in steps)


def collapses(shares, **sections):
    watch = CollapseWatch(RPOConfig(**sections), 6e-4)
    said = {step: watch.end_step(step, share) for step, share in enumerate(shares, 1)}
    return {step: text for step, text in said.items() if text is not None}


def test_a_policy_that_collapses_says_so_once():
    shares = [0.6] * WINDOW + [0.0] * 20
    ((step, text),) = collapses(shares, credit=CreditConfig(rule="none")).items()
    assert step == WINDOW + 6, "five steps of nothing leave exactly the half"
    assert "24% of the responses of 10 steps are correct, and 60% were" in text
    assert "optim.lr=0.0006" in text and "rpo.credit.rule" not in text
    (text,) = collapses(shares, credit=CreditConfig(rule="paid")).values()
    assert "try rpo.credit.rule=none (now paid)" in text


@pytest.mark.parametrize(
    "shares",
    [
        [0.1 * (step % 10) for step in range(60)],
        [0.6] * 20 + [0.35] * 40,
        [0.08] * 20 + [0.0] * 40,
        [0.9] * (WINDOW - 1) + [0.0],
        [None] * 40,
    ],
    ids=[
        "hard and easy batches",
        "a fall by less than half",
        "seldom right from the start",
        "a short run",
        "no groups",
    ],
)
def test_what_is_no_collapse(shares):
    assert collapses(shares) == {}
