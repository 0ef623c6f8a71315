"""Which tokens are trained, and the mean over whole responses."""

import numpy as np
import pytest

from rpo_verl.rpo.credit import credit, response_mean_weights
from rpo_verl.rpo.group import Group
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
    assert credit(group([7, 7]), ADVANTAGES, "none") == [[], []]


def test_by_literal_a_prefix_has_the_advantage_of_its_suffix():
    assert credit(group([7, 7]), ADVANTAGES, "literal") == [[(0, 7, 0.5)], [(0, 7, -0.5)]]


def test_without_a_prefix_there_is_nothing_to_credit():
    assert credit(group([0, 0], "full"), ADVANTAGES, "literal") == [[], []]


@pytest.mark.parametrize("rule", ["none", "literal"])
def test_spans_are_disjoint_and_within_the_response(rule):
    of = group([7, 0])
    for member, spans in enumerate(credit(of, ADVANTAGES, rule)):
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
