"""Rows that begin alike, laid out so that what they share is there once.

The responses of a group share question and prefix. In a packed layout come first the shared beginnings, then what every
row has of its own; a row's own tokens attend to their beginning and to each other, as they would in the row.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Packing:
    """A packed layout of B rows with T tokens in all; places count through the rows one after another, 0 to T - 1."""

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

    prefixes: np.ndarray
    """(M, P) int64, packed positions of every beginning, filled up to the longest with position 0."""

    suffixes: np.ndarray
    """(R, S) int64, packed positions of what rows have of their own, filled up likewise; R = 0: nothing shared."""

    keys: np.ndarray
    """(R, P + S) int64, packed positions of what those rows attend to: their beginning, then their own tokens."""

    visible: np.ndarray
    """(R, S, P + S) bool, which of `keys` a token sees. A filling token sees one, so that its softmax is defined."""

    unpadded: np.ndarray
    """(N,) int64, packed token → its row in `prefixes` and `suffixes`, both flattened, one after the other."""


def common_prefix(rows: Sequence[np.ndarray]) -> int:
    """How many tokens all rows begin with alike."""
    shortest = min(len(row) for row in rows)
    stacked = np.stack([row[:shortest] for row in rows])
    same = (stacked == stacked[0]).all(axis=0)
    return shortest if same.all() else int(np.argmin(same))


def neighbours(rows: Sequence[np.ndarray], prompt_tokens: Sequence[int]) -> list[list[int]]:
    """Indices of consecutive rows with the same prompt."""
    groups: list[list[int]] = []
    for i, (row, tokens) in enumerate(zip(rows, prompt_tokens, strict=True)):
        last = groups[-1][-1] if groups else None
        if last is not None and prompt_tokens[last] == tokens and np.array_equal(rows[last][:tokens], row[:tokens]):
            groups[-1].append(i)
        else:
            groups.append([i])
    return groups


def share(rows: Sequence[np.ndarray], prompt_tokens: Sequence[int]) -> Packing:
    """Lay out rows so that neighbours with the same prompt share all they begin with.

    What is shared is read off the tokens, so the layout is right for any rows; only how much it saves depends on
    whether those of a group are neighbours.

    Args:
        rows: (B,) of (length,) int token ids, prompt and response, each at least one token.
        prompt_tokens: (B,) tokens of the prompts.
    """
    groups = neighbours(rows, prompt_tokens)
    starts = np.cumsum([0, *map(len, rows)])
    shared = [common_prefix([rows[i] for i in group]) for group in groups]
    own = [(g, i) for g, group in enumerate(groups) for i in group if len(rows[i]) > shared[g]]

    prefix_at = np.cumsum([0, *shared])
    suffix_at = prefix_at[-1] + np.cumsum([0, *(len(rows[i]) - shared[g] for g, i in own)])
    first_suffix = {i: int(at) for (_, i), at in zip(own, suffix_at, strict=False)}

    source = [starts[group[0]] + np.arange(tokens) for group, tokens in zip(groups, shared, strict=True)]
    source += [np.arange(starts[i] + shared[g], starts[i + 1]) for g, i in own]

    slots: list[np.ndarray] = []
    labels: list[np.ndarray] = []
    row_slot = np.zeros(starts[-1], dtype=np.int64)
    count = 0
    for g, group in enumerate(groups):
        slots.append(prefix_at[g] + np.arange(shared[g] - 1))
        labels.append(starts[group[0]] + 1 + np.arange(shared[g] - 1))
        common = count + np.arange(shared[g] - 1)
        count += shared[g] - 1
        for i in group:
            row_slot[starts[i] : starts[i] + shared[g] - 1] = common
            rest = len(rows[i]) - shared[g]
            if rest:
                # The last shared token predicts this row's first own one, the own ones predict each other.
                last_shared = prefix_at[g] + shared[g] - 1
                slots.append(np.concatenate([[last_shared], first_suffix[i] + np.arange(rest - 1)]))
                labels.append(starts[i] + shared[g] + np.arange(rest))
                row_slot[starts[i] + shared[g] - 1 : starts[i + 1] - 1] = count + np.arange(rest)
                count += rest

    prefixes = _fill([prefix_at[g] + np.arange(tokens) for g, tokens in enumerate(shared)])
    suffixes = _fill([first_suffix[i] + np.arange(len(rows[i]) - shared[g]) for g, i in own])
    heads = _fill([prefix_at[g] + np.arange(shared[g]) for g, _ in own])
    in_head = np.arange(heads.shape[1]) < np.array([shared[g] for g, _ in own], dtype=np.int64)[:, None]
    causal = np.tril(np.ones((suffixes.shape[1], suffixes.shape[1]), dtype=bool))
    visible = np.concatenate(
        [
            np.broadcast_to(in_head[:, None, :], (*suffixes.shape, heads.shape[1])),
            np.broadcast_to(causal, (len(own), *causal.shape)),
        ],
        axis=2,
    )
    flat = np.arange(prefixes.size).reshape(prefixes.shape)
    flat_own = prefixes.size + np.arange(suffixes.size).reshape(suffixes.shape)
    unpadded = [flat[g, :tokens] for g, tokens in enumerate(shared)]
    unpadded += [flat_own[n, : len(rows[i]) - shared[g]] for n, (g, i) in enumerate(own)]
    return Packing(
        source=np.concatenate(source),
        slots=np.concatenate(slots).astype(np.int64),
        labels=np.concatenate(labels).astype(np.int64),
        row_slot=row_slot,
        prefixes=prefixes,
        suffixes=suffixes,
        keys=np.concatenate([heads, suffixes], axis=1),
        visible=visible,
        unpadded=np.concatenate(unpadded),
    )


def _fill(arrays: Sequence[np.ndarray]) -> np.ndarray:
    """(len(arrays), longest) int64, rows filled up with 0."""
    filled = np.zeros((len(arrays), max(map(len, arrays), default=0)), dtype=np.int64)
    for row, array in zip(filled, arrays, strict=True):
        row[: len(array)] = array
    return filled
