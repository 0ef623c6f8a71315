"""Finished rows of veRL's queue → groups with shaped rewards."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rpo_verl.correctness import FULL, RewardScale, is_correct
from rpo_verl.rpo.group import Group
from rpo_verl.rpo.hooks.agent_loop import PREFIX_TOKENS, START
from rpo_verl.rpo.hooks.reward import CORRECT, REWARD, reported_accuracy, verdict
from rpo_verl.rpo.options import RewardConfig
from rpo_verl.rpo.partial_rollouts import Fetch, Row
from rpo_verl.rpo.shaping import shape_group
from rpo_verl.rpo.start import NO_LOGPROBS, Start
from rpo_verl.upstream import queue


def read_groups(
    keys: Sequence[str],
    tags: Sequence[Mapping[str, Any]],
    partition_id: str,
    options: RewardConfig,
    scale: RewardScale | None = None,
) -> list[Group]:
    """Read the groups that RPO started; rows of other agent loops and padding are not among them.

    Groups are ordered by question, members by key, so that a repeated run has the same cache whoever finished first.
    The members that branch from one trunk are a group, and the trunk is the first of them where it is there.

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
    members: dict[tuple[str, int], list[int]] = defaultdict(list)
    for i in sorted(own, key=lambda i: (starts[i].question, *_place(keys[i], starts[i]), keys[i])):
        branch, _ = _place(keys[i], starts[i])
        members[queue.prompt_of(keys[i]), branch].append(i)

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

    def step_of(i: int) -> int:
        return queue.oldest_policy(tags[i])

    groups = []
    for (_, branch), rows in members.items():
        lengths = np.array([queue.response_tokens(tags[i]) for i in rows])
        prefix = extra_fields[rows[0]][PREFIX_TOKENS]
        base, right = np.array([float(rewards[i]) for i in rows]), np.array([correct(i) for i in rows])
        groups.append(
            Group(
                start=_start_of(starts[rows[0]], branch, prefix, int(lengths[0]), step_of(rows[0])),
                keys=tuple(keys[i] for i in rows),
                prefix_tokens=np.array([extra_fields[i][PREFIX_TOKENS] for i in rows]),
                response_tokens=lengths,
                oldest_policy=np.array([step_of(i) for i in rows]),
                rewards=base,
                correct=right,
                shaped=shape_group(base, lengths, right, options),
                # Where the trunk itself was lost, none of these is one.
                trunks=np.array([_place(keys[i], starts[i])[1] == 0 for i in rows]) if starts[rows[0]].trunks else None,
            )
        )
    return groups


def by_prompt(groups: Sequence[Group]) -> dict[str, list[Group]]:
    """veRL's name of a question's group → its branches, or the one group that does not branch."""
    found: dict[str, list[Group]] = defaultdict(list)
    for group in groups:
        found[queue.prompt_of(group.keys[0])].append(group)
    return found


def branches_of(keys: Sequence[str], groups: Sequence[Group]) -> np.ndarray | None:
    """(B,) int, which trunk of its group every row of a batch branches from; None if no group branches."""
    branched = {key: number for number, group in enumerate(groups, 1) if group.branched for key in group.keys}
    return np.array([branched.get(key, 0) for key in keys]) if branched else None


def _place(key: str, start: Start) -> tuple[int, int]:
    """Which branch of its group a row belongs to, and whether another member comes first there: its trunk."""
    branch, place = start.branch_of(queue.member_of(key)) if start.trunks else (0, 0)
    return branch, int(place > 0)


def _start_of(start: Start, branch: int, prefix_tokens: int, trunk_tokens: int, step: int) -> Start:
    """The start that the members of a group share; that of a branch is the head of its trunk, by now without tokens."""
    if not start.trunks:
        return start
    room, dropped = start.room - prefix_tokens, trunk_tokens - 1 - prefix_tokens
    return Start(
        start.question, start.kind, start.branch_size(branch), room, dropped=dropped, source_step=step,
        data_source=start.data_source,
    )  # fmt: skip


def fetch_rows(partition_id: str, with_logprobs: bool) -> Fetch:
    """A function that fetches rows of the queue: token ids, int32, and log-probabilities, float16, if asked for."""

    def fetch(keys: Sequence[str]) -> list[Row]:
        questions, responses = queue.read(keys, partition_id, "prompts", "responses")
        logprobs = queue.read(keys, partition_id, "rollout_log_probs")[0] if with_logprobs else [None] * len(keys)
        return [
            (
                question.numpy().astype(np.int32),
                response.numpy().astype(np.int32),
                NO_LOGPROBS if row is None else row.numpy().astype(np.float16),
            )
            for question, response, row in zip(questions, responses, logprobs, strict=True)
        ]

    return fetch


def _scores(keys: Sequence[str], indices: list[int], partition_id: str) -> dict[int, float]:
    """Rewards of some of the rows, from veRL's scores of single tokens."""
    (scores,) = queue.read([keys[i] for i in indices], partition_id, "rm_scores")
    return {i: float(row.sum()) for i, row in zip(indices, scores, strict=True)}
