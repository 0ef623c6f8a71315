"""Rarity: what is rare among correct responses, and what the authors' code pays for."""

import numpy as np
import pytest
import torch

from rpo_verl.r2po.options import RarityConfig
from rpo_verl.r2po.rarity import ngram_rarity, rarity_advantages, reward_rarity


def ids(*texts):
    return [np.frombuffer(text.encode(), dtype=np.uint8).astype(np.int64) for text in texts]


def authors_rarity(rewards):
    """The formula of the authors' `reward_rarity`, in torch."""
    unique, counts = rewards.unique(return_counts=True)
    of = dict(zip(unique.tolist(), counts.tolist(), strict=True))
    rarity = torch.tensor([1.0 / of[reward] for reward in rewards.tolist()])
    centered = rarity - rarity.mean()
    return centered if bool((centered == 0).all()) else centered / (rarity.std() + 1e-6)


@pytest.mark.parametrize(
    "rewards",
    [[2.25, 2.25, -2.0, 0.25, 2.25, 0.0, 2.25, 2.25], [2.25] * 8, [2.25, -2.0] * 4, [1.0] * 7 + [-1.0]],
)
def test_rarity_of_rewards_is_the_authors(rewards):
    found = rarity_advantages(np.array(rewards), np.ones(8, bool), ids(*"abcdefgh"), RarityConfig(by="reward"))
    assert found == pytest.approx(authors_rarity(torch.tensor(rewards)).numpy(), abs=1e-5)


def test_a_rare_failure_earns_most_by_rewards_and_least_by_ngrams():
    rewards, correct = np.array([1.0, 1.0, 1.0, 0.0]), np.array([True, True, True, False])
    responses = ids("abcdef", "abcdef", "abcxyz", "qrstuv")
    by_reward, by_ngrams = (
        rarity_advantages(rewards, correct, responses, RarityConfig(by=by)) for by in ("reward", "ngrams")
    )
    assert by_reward.argmax() == 3
    assert by_ngrams.argmin() == 3
    assert by_ngrams.argmax() == 2
    assert by_ngrams.sum() == pytest.approx(0)
    assert by_ngrams.std(ddof=1) == pytest.approx(1, abs=1e-4)


def test_where_responses_are_equal_or_share_nothing_it_counts_responses():
    responses = ids("aaaabbbb", "ccccdddd", "ccccdddd", "eeeeffff", "eeeeffff", "eeeeffff")
    found = ngram_rarity(responses, np.ones(6, bool), 4)
    assert found == pytest.approx([1, 1 / 2, 1 / 2, 1 / 3, 1 / 3, 1 / 3])


def test_ngrams_by_hand():
    # abc bcd cde | abc bcx cxy: abc is in both.
    assert ngram_rarity(ids("abcde", "abcxy"), np.ones(2, bool), 3) == pytest.approx([2.5 / 3, 2.5 / 3])
    # An n-gram counts once a response, however often it is there.
    assert ngram_rarity(ids("aaaaaa", "aaab"), np.ones(2, bool), 3) == pytest.approx([1 / 2, 3 / 4])
    # A response shorter than n is one n-gram, an empty one too.
    assert ngram_rarity(ids("ab", "ab", "b", ""), np.ones(4, bool), 3) == pytest.approx([1 / 2, 1 / 2, 1, 1])


def test_wrong_responses_make_nothing_common():
    responses = ids("abcdef", "abcdef", "abcdef")
    assert ngram_rarity(responses, np.array([True, False, False]), 4) == pytest.approx([1, 0, 0])


def test_length_alone_earns_nothing():
    """Long and short responses that share nothing are equally rare."""
    found = rarity_advantages(np.ones(3), np.ones(3, bool), ids("abcdefghijkl", "mnopq", "rstu"), RarityConfig())
    assert found.tolist() == [0, 0, 0]


@pytest.mark.parametrize("by", ["ngrams", "reward"])
def test_groups_without_a_signal(by):
    options = RarityConfig(by=by)
    same = ids("abcdef", "abcdef")
    assert rarity_advantages(np.ones(2), np.ones(2, bool), same, options).tolist() == [0, 0]
    assert rarity_advantages(np.zeros(2), np.zeros(2, bool), same, options).tolist() == [0, 0]
    assert rarity_advantages(np.ones(1), np.ones(1, bool), same[:1], options).tolist() == [0]
    assert rarity_advantages(np.array([1.0, np.nan]), np.array([True, False]), same, options).tolist() == [0, 0]


def test_rarity_of_rewards_counts_values():
    assert reward_rarity(np.array([1.0, 1.0, 0.0, 0.5])) == pytest.approx([0.5, 0.5, 1, 1])
