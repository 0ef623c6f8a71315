"""Packed rows: nothing is lost, nothing is seen that a row does not have, and what is alike is there once."""

import numpy as np
import pytest

from rpo_verl.core.packing import common_prefix, share


def random_groups(rng, groups, members):
    """Rows of groups with planted beginnings, among them lone rows, equal ones and one that is all beginning."""
    rows, prompts = [], []
    for _ in range(groups):
        prompt = rng.integers(0, 9, rng.integers(1, 6))
        prefix = rng.integers(0, 9, rng.integers(0, 8))
        for _ in range(rng.integers(1, members + 1)):
            rows.append(np.concatenate([prompt, prefix, rng.integers(0, 9, rng.integers(0, 6))]))
            prompts.append(len(prompt))
    return rows, prompts


def seen_by(packing):
    """Packed position → set of packed positions it sees, itself included, by brute force over the attention calls."""
    seen = {}
    for row in packing.prefixes:
        for at, position in enumerate(row):
            seen.setdefault(int(position), {int(p) for p in row[: at + 1]})
    for row, keys, visible in zip(packing.suffixes, packing.keys, packing.visible, strict=True):
        for position, sees in zip(row, visible, strict=True):
            seen.setdefault(int(position), {int(k) for k, yes in zip(keys, sees, strict=True) if yes})
    return seen


@pytest.mark.parametrize("seed", range(30))
def test_a_row_sees_exactly_itself(seed):
    rng = np.random.default_rng(seed)
    rows, prompts = random_groups(rng, groups=rng.integers(1, 5), members=5)
    flat = np.concatenate(rows)
    starts = np.cumsum([0, *map(len, rows)])
    packing = share(rows, prompts)
    seen = seen_by(packing)
    assert sorted(seen) == list(range(len(packing.source)))
    for row, start in zip(rows, starts, strict=False):
        for at in range(len(row) - 1):
            slot = packing.row_slot[start + at]
            assert flat[packing.labels[slot]] == row[at + 1]
            # What the position sees, in the order of the row, are the tokens of the row up to here.
            tokens = sorted(int(packing.source[p]) for p in seen[int(packing.slots[slot])])
            assert [int(flat[place]) for place in tokens] == row[: at + 1].tolist()
            assert flat[packing.source[packing.slots[slot]]] == row[at]


@pytest.mark.parametrize("seed", range(10))
def test_the_attention_output_comes_back_in_order(seed):
    rng = np.random.default_rng(seed)
    packing = share(*random_groups(rng, groups=4, members=4))
    both = np.concatenate([packing.prefixes.ravel(), packing.suffixes.ravel()])
    assert both[packing.unpadded].tolist() == list(range(len(packing.source)))


def test_every_filling_token_sees_something():
    packing = share([np.array([1, 2, 3]), np.array([1, 2, 4, 5, 6, 7]), np.array([9])], [1, 1, 1])
    assert packing.visible.any(axis=2).all()


def test_what_is_shared_is_there_once():
    prefix = np.arange(100)
    rows = [np.concatenate([prefix, [200 + i] * 10]) for i in range(8)]
    packing = share(rows, [20] * 8)
    assert len(packing.source) == 100 + 8 * 10
    # 99 predictions within the beginning; then every row predicts its own 10, the first from the last shared token.
    assert len(packing.slots) == 99 + 8 * 10
    assert (packing.slots == 99).sum() == 8


def test_other_prompts_share_nothing_even_if_they_begin_alike():
    packing = share([np.array([1, 2, 3, 4]), np.array([1, 2, 3, 5])], [2, 3])
    assert len(packing.source) == 8
    assert len(packing.suffixes) == 0


def test_rows_that_are_no_neighbours_are_right_but_share_nothing():
    a, b = np.array([1, 2, 3]), np.array([4, 5, 6])
    assert len(share([a, b, a], [2, 2, 2]).source) == 9
    assert len(share([a, a, b], [2, 2, 2]).source) == 6


def test_common_prefix():
    assert common_prefix([np.array([1, 2, 3])]) == 3
    assert common_prefix([np.array([1, 2, 3]), np.array([1, 2])]) == 2
    assert common_prefix([np.array([1, 2, 3]), np.array([1, 9, 3]), np.array([1, 2, 3])]) == 1
    assert common_prefix([np.array([1]), np.array([2])]) == 0
