"""Packed rows: nothing is lost, nothing is seen that a row does not have, and what is alike is there once."""

import numpy as np
import pytest

from rpo_verl.lean.packing import common_prefix, order_by_group, packed_tokens, share


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
    """Packed position → packed positions it sees, itself included, in their order."""
    seen = {}
    for group in packing.groups:
        shared = list(range(group.start, group.start + group.shared))
        for at, position in enumerate(shared):
            seen[position] = shared[: at + 1]
        if len(group.own):
            for row, real in zip(group.places, group.is_own, strict=True):
                own = row[real].tolist()
                for at, position in enumerate(own):
                    assert position not in seen
                    seen[position] = shared + own[: at + 1]
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
            sees = [int(flat[packing.source[position]]) for position in seen[int(packing.slots[slot])]]
            assert sees == row[: at + 1].tolist()
            assert flat[packing.source[packing.slots[slot]]] == row[at]


@pytest.mark.parametrize("seed", range(10))
def test_groups_lie_side_by_side_in_the_order_of_their_calls(seed):
    """So what attention gives back, group by group, is the packed sequence."""
    packing = share(*random_groups(np.random.default_rng(seed), groups=4, members=4))
    order = []
    for group in packing.groups:
        order += range(group.start, group.start + group.shared)
        if len(group.own):
            order += group.places[group.is_own].tolist()
    assert order == list(range(len(packing.source)))


def test_what_is_shared_is_there_once():
    prefix = np.arange(100)
    rows = [np.concatenate([prefix, [200 + i] * 10]) for i in range(8)]
    packing = share(rows, [20] * 8)
    assert len(packing.source) == 100 + 8 * 10
    # 99 predictions within the beginning; then every row predicts its own 10, the first from the last shared token.
    assert len(packing.slots) == 99 + 8 * 10
    assert (packing.slots == 99).sum() == 8


@pytest.mark.parametrize("seed", range(20))
def test_packed_tokens_are_counted_without_packing(seed):
    rng = np.random.default_rng(seed)
    rows, prompts = random_groups(rng, groups=6, members=4)
    order = rng.permutation(len(rows)) if seed % 2 else np.arange(len(rows))
    rows, prompts = [rows[i] for i in order], [prompts[i] for i in order]
    sizes = [size for size in range(1, len(rows) + 1) if len(rows) % size == 0]
    for size, counts in zip(sizes, packed_tokens(rows, prompts, sizes), strict=True):
        runs = [slice(start, start + size) for start in range(0, len(rows), size)]
        assert counts.tolist() == [len(share(rows[run], prompts[run]).source) for run in runs]


def test_other_prompts_share_nothing_even_if_they_begin_alike():
    packing = share([np.array([1, 2, 3, 4]), np.array([1, 2, 3, 5])], [2, 3])
    assert len(packing.source) == 8
    assert all(len(group.own) == 0 for group in packing.groups)


def test_members_need_not_be_neighbours():
    a, b = np.array([1, 2, 3]), np.array([4, 5, 6])
    packing = share([a, b, a], [2, 2, 2])
    assert len(packing.source) == 6
    assert [group.shared for group in packing.groups] == [3, 3]


def test_common_prefix():
    assert common_prefix([np.array([1, 2, 3])]) == 3
    assert common_prefix([np.array([1, 2, 3]), np.array([1, 2])]) == 2
    assert common_prefix([np.array([1, 2, 3]), np.array([1, 9, 3]), np.array([1, 2, 3])]) == 1
    assert common_prefix([np.array([1]), np.array([2])]) == 0


def test_order_by_group():
    assert order_by_group("abbaac", [5, 9, 9, 5, 5, 1], 1) == [1, 2, 0, 3, 4, 5]


def test_ranks_get_whole_groups_and_alike_to_do():
    rng = np.random.default_rng(0)
    lengths = {f"q{n}": int(rng.integers(10, 1000)) for n in range(32)}
    group_of = list(lengths) * 8
    tokens = [lengths[group] for group in group_of]
    order = order_by_group(group_of, tokens, 4)
    assert sorted(order) == list(range(len(group_of)))
    runs = np.array(order).reshape(4, -1)
    owners = [{group_of[i] for i in run} for run in runs]
    assert sum(map(len, owners)) == 32
    work = [sum(tokens[i] for i in run) for run in runs]
    assert max(work) < 1.1 * min(work)
