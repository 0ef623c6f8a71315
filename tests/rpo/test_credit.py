"""Which tokens are trained, and the mean over whole responses."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from verl.trainer.ppo.core_algos import agg_loss

from rpo_verl.rpo.credit import credit, imitation, response_mean_weights, teaches
from rpo_verl.rpo.group import Group
from rpo_verl.rpo.options import CreditConfig
from rpo_verl.rpo.start import Start


def group(prefixes, kind="prefixed"):
    count = len(prefixes)
    zeros = np.zeros(count)
    return Group(
        start=Start(b"k" * 16, kind, count, 100),
        keys=tuple(f"u_{i}_0" for i in range(count)),
        prefix_tokens=np.array(prefixes),
        response_tokens=np.array(prefixes) + 3,
        oldest_policy=zeros.astype(int),
        rewards=zeros,
        correct=zeros.astype(bool),
        shaped=zeros,
    )


ADVANTAGES = np.array([0.5, -0.5])


def test_by_none_the_suffix_alone_is_trained():
    assert credit(group([7, 7]), ADVANTAGES, CreditConfig(rule="none"), "token-mean") == [[], []]


def test_by_literal_a_prefix_has_the_advantage_of_its_suffix():
    assert credit(group([7, 7]), ADVANTAGES, CreditConfig(rule="literal"), "token-mean") == [
        [(0, 7, 0.5)],
        [(0, 7, -0.5)],
    ]


def test_without_a_prefix_there_is_nothing_to_credit():
    assert credit(group([0, 0], "full"), ADVANTAGES, CreditConfig(rule="literal"), "token-mean") == [[], []]


def of_lengths(correct, lengths, prefix=4):
    return replace(group([prefix] * len(correct)), correct=np.array(correct), response_tokens=np.array(lengths))


NO_SIGNAL = np.zeros(4)


def test_a_paid_prefix_has_the_share_of_correct_responses_behind_it():
    found = credit(of_lengths([1, 1, 1, 0], [9, 8, 7, 9]), NO_SIGNAL, CreditConfig(rule="paid"), "token-mean")
    assert found == [[], [], [(0, 4, 4 * 0.75)], []], "the shortest member carries it for all four"


def test_a_member_that_is_updated_anyway_carries_the_credit():
    advantages = np.array([0.0, 0.4, 0.0, -1.2])
    found = credit(of_lengths([1, 1, 1, 0], [9, 9, 7, 8]), advantages, CreditConfig(rule="paid"), "token-mean")
    assert [len(row) for row in found] == [0, 0, 0, 1]


def test_a_full_rollout_has_no_credit():
    full = replace(group([0, 0], "full"), correct=np.array([True, True]))
    assert credit(full, ADVANTAGES, CreditConfig(rule="paid"), "token-mean") == [[], []]


def test_a_wrong_prefix_has_no_credit():
    assert credit(of_lengths([0, 0], [8, 8]), ADVANTAGES, CreditConfig(rule="paid"), "token-mean") == [[], []]


RESPONSES = [[1, 2, 3], [1, 2, 4], [1, 2, 3], [1, 2, 5]]


def test_right_responses_are_imitated_and_equal_ones_once():
    of = of_lengths([1, 1, 1, 0], [3] * 4, prefix=2)
    assert imitation(of, RESPONSES).tolist() == [2, 1, 0, 0]
    of = of_lengths([0, 0, 0, 0], [3] * 4, prefix=2)
    assert imitation(of, RESPONSES).tolist() == [0] * 4


def test_by_imitation_a_prefix_is_paid_on_a_row_that_is_updated_anyway():
    of = of_lengths([0, 1, 1, 1], [8, 9, 9, 9])
    advantages = imitation(of, [[1] * 8, [2] * 9, [3] * 9, [2] * 9])
    found = credit(of, advantages, CreditConfig(rule="imitate"), "token-mean")
    assert advantages.tolist() == [0, 2, 1, 0] and found == [[], [(0, 4, 4 * 0.75)], [], []]


@pytest.mark.parametrize(
    ("rule", "full", "prefixed", "wrong", "unlike"),
    [
        ("none", False, False, False, True),
        ("paid", False, True, False, True),
        ("imitate", True, True, False, False),
    ],
)
def test_which_groups_change_the_policy(rule, full, prefixed, wrong, unlike):
    """The last group is wrong throughout, and its rewards differ, as by a penalty on length."""
    groups = [of_lengths([1, 1], [8, 8], prefix=0), of_lengths([1, 1], [8, 8]), of_lengths([0, 0], [8, 8])]
    groups.append(replace(groups[2], shaped=np.array([0.0, -0.5])))
    assert [teaches(group, CreditConfig(rule=rule)) for group in groups] == [full, prefixed, wrong, unlike]


@pytest.mark.parametrize("mode", ["token-mean", "seq-mean-token-mean", "seq-mean-token-sum"])
def test_one_member_carries_what_all_of_them_would_add_to_the_loss(mode):
    """veRL's loss aggregation, with a loss per token that is the same function of the token for all members."""
    of = of_lengths([1, 0, 1, 1], [9, 6, 8, 7])
    per_token = torch.linspace(1, 2, 9)
    (start, stop, advantage), carrier = next(
        (row[0], i) for i, row in enumerate(credit(of, NO_SIGNAL, CreditConfig(rule="paid"), mode)) if row
    )
    whole = (torch.arange(9) < torch.tensor(of.response_tokens)[:, None]).float()
    suffix = whole * (torch.arange(9) >= 4)

    def loss(advantages, mask):
        weights = torch.tensor(response_mean_weights(mask.sum(1).numpy(), (whole - mask).sum(1).numpy(), mode))
        return agg_loss(weights[:, None] * advantages * per_token, mask, mode).item()

    on_all = loss(whole * 0.75 * (torch.arange(9) < 4), whole)
    on_one, mask = torch.zeros(4, 9), suffix.clone()
    on_one[carrier, start:stop], mask[carrier, start:stop] = advantage, 1
    assert loss(on_one, mask) == pytest.approx(on_all)


@pytest.mark.parametrize("rule", ["none", "literal"])
def test_spans_are_disjoint_and_within_the_response(rule):
    of = group([7, 0])
    for member, spans in enumerate(credit(of, ADVANTAGES, CreditConfig(rule=rule), "token-mean")):
        covered = [i for start, stop, _ in spans for i in range(start, stop)]
        assert len(covered) == len(set(covered))
        assert all(0 <= i < of.prefix_tokens[member] for i in covered)


def test_factors_of_a_mean_over_whole_responses():
    suffix, prefix = np.array([2, 4, 0]), np.array([6, 0, 0])  # the last row is padding
    assert response_mean_weights(suffix, prefix, "token-mean").tolist() == pytest.approx([0.5] * 3)
    assert response_mean_weights(suffix, prefix, "seq-mean-token-mean").tolist() == [0.25, 1.0, 0.0]
    assert response_mean_weights(suffix, prefix, "seq-mean-token-sum").tolist() == [1.0] * 3
    assert response_mean_weights(suffix, prefix, "seq-mean-token-sum-norm").tolist() == [1.0] * 3


def test_without_tokens_there_is_no_division_by_zero():
    nothing = np.array([0, 0])
    with np.errstate(all="raise"):
        for mode in ("token-mean", "seq-mean-token-mean"):
            assert np.isfinite(response_mean_weights(nothing, nothing, mode)).all()
