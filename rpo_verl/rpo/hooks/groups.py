"""Finished rows of veRL's queue → groups with shaped rewards."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rpo_verl.rpo.group import Group
from rpo_verl.rpo.hooks.agent_loop import PREFIX_TOKENS, START
from rpo_verl.rpo.hooks.reward import CORRECT, REWARD, reported_accuracy, verdict
from rpo_verl.rpo.options import RewardConfig
from rpo_verl.rpo.scale import FULL, RewardScale
from rpo_verl.rpo.shaping import is_correct, shape_group
from rpo_verl.upstream import queue


def read_groups(
    keys: Sequence[str],
    tags: Sequence[Mapping[str, Any]],
    partition_id: str,
    options: RewardConfig,
    scale: RewardScale | None = None,
) -> list[Group]:
    """Read the groups that RPO started; rows of other agent loops and padding are not among them.

    Groups are ordered by question, members by number, so that a repeated run has the same cache whoever finished first.

    Args:
        keys: (B,) of finished trajectories in the queue.
        tags: (B,) their tags.
        partition_id: veRL's, such as `train`.
        options: how to shape.
        scale: of the run's rewards; learns from these groups first, and then raises what counts as correct in them.
    """
    starts, extra_fields = queue.read(keys, partition_id, START, "extra_fields")
    own = [i for i, start in enumerate(starts) if start is not None and not queue.is_padding(tags[i])]
    info = {i: extra_fields[i].get("reward_extra_info") or {} for i in own}
    # A colocated reward model scores whole batches, behind the back of the reward manager.
    scored_late = [i for i in own if REWARD not in info[i]]
    rewards = {i: info[i][REWARD] for i in own if REWARD in info[i]} | _scores(keys, scored_late, partition_id)
    members: dict[str, list[int]] = defaultdict(list)
    for i in sorted(own, key=lambda i: (starts[i].question, keys[i])):
        members[queue.prompt_of(keys[i])].append(i)

    accuracies = {i: reported_accuracy(info[i]) for i in own}
    if scale is not None:
        for i in own:
            value = rewards[i] if accuracies[i] is None else accuracies[i]
            scale.see(starts[i].data_source, [float(value)])

    def correct(i: int) -> bool:
        found = info[i][CORRECT] if CORRECT in info[i] else verdict(rewards[i], accuracies[i], options)
        if scale is None or options.correct_above is not None or scale.best(starts[i].data_source) == FULL:
            return bool(found)
        return bool(found) and is_correct(rewards[i], accuracies[i], best=scale.best(starts[i].data_source))

    groups = []
    for rows in members.values():
        lengths = np.array([queue.response_tokens(tags[i]) for i in rows])
        base, right = np.array([float(rewards[i]) for i in rows]), np.array([correct(i) for i in rows])
        groups.append(
            Group(
                start=starts[rows[0]],
                keys=tuple(keys[i] for i in rows),
                prefix_tokens=np.array([extra_fields[i][PREFIX_TOKENS] for i in rows]),
                response_tokens=lengths,
                oldest_policy=np.array([queue.oldest_policy(tags[i]) for i in rows]),
                rewards=base,
                correct=right,
                shaped=shape_group(base, lengths, right, options),
            )
        )
    return groups


def fetch_tokens(partition_id: str) -> Any:
    """A function that fetches (question, response) token ids, int32, of rows of the queue."""

    def fetch(keys: Sequence[str]) -> list[tuple[np.ndarray, np.ndarray]]:
        columns = queue.read(keys, partition_id, "prompts", "responses")
        return list(zip(*([row.numpy().astype(np.int32) for row in column] for column in columns), strict=True))

    return fetch


def _scores(keys: Sequence[str], indices: list[int], partition_id: str) -> dict[int, float]:
    """Rewards of some of the rows, from veRL's scores of single tokens."""
    (scores,) = queue.read([keys[i] for i in indices], partition_id, "rm_scores")
    return {i: float(row.sum()) for i, row in zip(indices, scores, strict=True)}
