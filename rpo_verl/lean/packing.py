"""Rows that begin alike, laid out so that what they share is there once.

The responses of a group share question and prefix. In a packed layout a group has its shared beginning first, then what
every row has of its own, whose tokens attend to the beginning and to each other, as they would in the row.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np


@dataclass(frozen=True)
class PackedGroup:
    """Rows that begin alike, in a packed layout: their shared beginning, then what every row has of its own."""

    start: int
    """Packed position of its first token."""

    shared: int
    """P, tokens of the shared beginning; the whole row where there is only one."""

    own: np.ndarray
    """(R,) int64, tokens that rows have of their own, those without any left out; R may be 0."""

    @property
    def places(self) -> np.ndarray:
        """(R, S) int64, packed positions of those tokens, a row each, filled up to S with the row's last one."""
        first = self.start + self.shared + np.cumsum([0, *self.own[:-1]])
        return first[:, None] + np.minimum(np.arange(self.own.max())[None], self.own[:, None] - 1)

    @property
    def is_own(self) -> np.ndarray:
        """(R, S) bool, False where `places` is filled up."""
        return np.arange(self.own.max())[None] < self.own[:, None]


@dataclass(frozen=True)
class Packing:
    """A packed layout of B rows with T tokens in all; places count through the rows one after another, 0 to T - 1."""

    groups: list[PackedGroup]
    """Side by side; a token attends to the shared beginning of its group and to what its row has before it."""

    source: np.ndarray
    """(N,) int64, packed token → its place in the rows."""

    slots: np.ndarray
    """(n,) int64, packed positions from which a token is predicted. A position stands there once for every different
    continuation: the last token of a shared beginning has one for every row."""

    labels: np.ndarray
    """(n,) int64, places of the predicted tokens."""

    row_slot: np.ndarray
    """(T,) int64, place → slot that predicts the next token of its row. At the last place of a row, which has no next
    token, any slot."""


def common_prefix(rows: Sequence[np.ndarray]) -> int:
    """How many tokens all rows begin with alike."""
    shortest = min(len(row) for row in rows)
    stacked = np.stack([row[:shortest] for row in rows])
    same = (stacked == stacked[0]).all(axis=0)
    return shortest if same.all() else int(np.argmin(same))


def by_prompt(rows: Sequence[np.ndarray], prompt_tokens: Sequence[int]) -> list[list[int]]:
    """Indices of rows with the same prompt, in the order of their first."""
    groups: dict[bytes, list[int]] = {}
    for i, (row, tokens) in enumerate(zip(rows, prompt_tokens, strict=True)):
        groups.setdefault(row[:tokens].tobytes(), []).append(i)
    return list(groups.values())


def share(rows: Sequence[np.ndarray], prompt_tokens: Sequence[int]) -> Packing:
    """Lay out rows so that those with the same prompt share all they begin with.

    What is shared is read off the tokens, so the layout is right for any rows.

    Args:
        rows: (B,) of (length,) int token ids, prompt and response, each at least one token.
        prompt_tokens: (B,) tokens of the prompts.
    """
    starts = np.cumsum([0, *map(len, rows)])
    groups: list[PackedGroup] = []
    source: list[np.ndarray] = []
    slots: list[np.ndarray] = []
    labels: list[np.ndarray] = []
    row_slot = np.zeros(starts[-1], dtype=np.int64)
    packed = predicted = 0
    for members in by_prompt(rows, prompt_tokens):
        shared = common_prefix([rows[i] for i in members])
        own = [len(rows[i]) - shared for i in members]
        groups.append(PackedGroup(packed, shared, np.array([tokens for tokens in own if tokens], dtype=np.int64)))
        source.append(starts[members[0]] + np.arange(shared))
        slots.append(packed + np.arange(shared - 1))
        labels.append(starts[members[0]] + 1 + np.arange(shared - 1))
        within = predicted + np.arange(shared - 1)
        predicted += shared - 1
        last_shared = packed + shared - 1
        packed += shared
        for i, tokens in zip(members, own, strict=True):
            begin = starts[i] + shared
            row_slot[starts[i] : begin - 1] = within
            if tokens:
                source.append(begin + np.arange(tokens))
                # The last shared token predicts this row's first own one, the own ones predict each other.
                slots.append(np.concatenate([[last_shared], packed + np.arange(tokens - 1)]))
                labels.append(begin + np.arange(tokens))
                row_slot[begin - 1 : begin - 1 + tokens] = predicted + np.arange(tokens)
                predicted += tokens
                packed += tokens
    whole = (np.concatenate(arrays).astype(np.int64) for arrays in (source, slots, labels))
    return Packing(groups, *whole, row_slot)


def packed_tokens(rows: Sequence[np.ndarray], prompt_tokens: Sequence[int], sizes: Sequence[int]) -> list[np.ndarray]:
    """How many tokens runs of rows would have if each run were packed, for several lengths of the runs.

    Args:
        rows: (B,) of (length,) int token ids, prompt and response.
        prompt_tokens: (B,) tokens of the prompts.
        sizes: rows of a run; each divides B.

    Returns:
        For each size (B / size,) int64 tokens.
    """
    group_of, alike = np.zeros(len(rows), dtype=np.int64), np.zeros(len(rows), dtype=np.int64)
    for number, members in enumerate(by_prompt(rows, prompt_tokens)):
        group_of[members] = number
        for before, i in pairwise(members):
            alike[i] = common_prefix([rows[before], rows[i]])

    def packed(run: range) -> int:
        shared: dict[int, int] = {}
        tokens = 0
        for i in run:
            group, length = int(group_of[i]), len(rows[i])
            tokens += length
            # What all have in common is the least that any has in common with the one before it.
            shared[group] = min(shared[group], int(alike[i])) if group in shared else length
        members = Counter(group_of[run.start : run.stop].tolist())
        return tokens - sum((members[group] - 1) * common for group, common in shared.items())

    return [
        np.array([packed(range(start, start + size)) for start in range(0, len(rows), size)], dtype=np.int64)
        for size in sizes
    ]


def order_by_group(group_of: Sequence[str], tokens: Sequence[int], ranks: int) -> list[int]:
    """Positions in an order in which the rows of a group are neighbours, dealt out so that ranks have alike to do.

    The groups go round the ranks and back, longest first. A group is cut only where ranks meet, if groups differ in
    size.

    Args:
        group_of: (B,) names of the rows' groups; B is a multiple of `ranks`, which get equal runs of the rows.
        tokens: (B,) lengths of the rows.
        ranks: data parallel size.

    Returns:
        (B,) positions, those of the first rank first.
    """
    groups: dict[str, list[int]] = {}
    for i, group in enumerate(group_of):
        groups.setdefault(group, []).append(i)
    longest_first = sorted(groups.values(), key=lambda members: -sum(tokens[i] for i in members))
    dealt: list[list[int]] = [[] for _ in range(ranks)]
    for number, members in enumerate(longest_first):
        turn, place = divmod(number, ranks)
        dealt[place if turn % 2 == 0 else ranks - 1 - place] += members
    return [i for rank in dealt for i in rank]
