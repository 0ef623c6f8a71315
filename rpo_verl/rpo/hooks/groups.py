"""The groups RPO started, as veRL's TransferQueue holds them: read, shaped, and offered to the cache."""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import transfer_queue as tq

from rpo_verl.rpo.cache import CachedAnswer
from rpo_verl.rpo.hooks.reward import CORRECT, REWARD, verdict
from rpo_verl.rpo.options import RewardConfig
from rpo_verl.rpo.partial_rollouts import Kind, PartialRollouts
from rpo_verl.rpo.shaping import shape_group
from rpo_verl.upstream import contract


@dataclass(frozen=True, slots=True)
class Row:
    """One response, as RPO sees it. Lengths in tokens."""

    group: str
    key: bytes
    kind: Kind
    group_size: int
    """How many responses the group was to have; those whose rollout or reward failed are missing."""

    prefix_tokens: int
    dropped: int
    capped: bool
    response_tokens: int
    oldest_policy: int
    source_step: int
    """Step whose policy wrote the prefix; -1 without one."""

    reward: float
    correct: bool


@dataclass(frozen=True, slots=True)
class Groups:
    """Rows of one TransferQueue partition with their rewards."""

    keys: Sequence[str]
    """(B,) of the rows in the queue."""

    partition_id: str

    rows: list[Row | None]
    """(B,), None for rows that RPO did not start or that only pad the batch."""

    members: dict[str, list[int]]
    """Group → indices of its rows; only groups that RPO started. Ordered by question and number of the response rather
    than by who finished first, so that a repeated run has the same cache."""

    base: np.ndarray
    """(B,) float, base rewards; 0 where `rows` is None."""

    shaped: np.ndarray
    """(B,) float, shaped rewards."""

    @property
    def prefixed(self) -> set[str]:
        """The groups that started from a prefix."""
        return {group for group, members in self.members.items() if self.rows[members[0]].kind == "prefixed"}


def read_groups(
    keys: Sequence[str], tags: Sequence[Mapping[str, Any]], partition_id: str, options: RewardConfig
) -> Groups:
    """Rows, their groups and rewards.

    Args:
        keys: (B,) of finished trajectories in the queue.
        tags: (B,) their tags.
        partition_id: veRL's, such as `train`.
        options: how to shape.
    """
    rows = _read_rows(keys, tags, partition_id, options) if keys else []
    members = defaultdict(list)
    own = [i for i, row in enumerate(rows) if row is not None]
    for i in sorted(own, key=lambda i: (rows[i].key, keys[i])):
        members[rows[i].group].append(i)
    base = np.array([0.0 if row is None else row.reward for row in rows])
    shaped = base.copy()
    for group in members.values():
        shaped[group] = shape_group(
            base[group],
            np.array([rows[i].response_tokens for i in group]),
            np.array([rows[i].correct for i in group]),
            options,
        )
    return Groups(keys, partition_id, rows, dict(members), base, shaped)


@dataclass(frozen=True, slots=True)
class Updates:
    """What the cache did with a number of groups."""

    offered: int = 0
    greedy: int = 0
    stored: int = 0
    dropped: int = 0


def offer_to_cache(
    groups: Groups, rollouts: PartialRollouts, step: int, question_key: Callable[[np.ndarray], bytes], end_ids: set[int]
) -> Updates:
    """Let the cache learn from every complete group; of its responses only the chosen one is fetched from the queue.

    A group of which some responses failed, or have a reward that is no number, proves nothing about its prefix, and
    stays out.

    Args:
        groups: still in the queue.
        rollouts: keeps the cache.
        step: the training step.
        question_key: question token ids → key.
        end_ids: ids at which generation ends; cached answers do without a final one.

    Raises:
        ContractError: if veRL rolled out another question than the one that was looked up.
    """
    complete = [
        members
        for members in groups.members.values()
        if len(members) >= groups.rows[members[0]].group_size and np.isfinite(groups.base[members]).all()
    ]
    if not complete:
        return Updates()
    choices = [rollouts.choose(groups.rows[members[0]].key, step, groups.shaped[members]) for members in complete]
    chosen = [members[choice.member] for members, choice in zip(complete, choices, strict=True)]
    data = tq.kv_batch_get(
        keys=[groups.keys[i] for i in chosen],
        partition_id=groups.partition_id,
        select_fields=["prompts", "responses"],
    )
    outcomes = []
    for members, i, question, response in zip(
        complete, chosen, data["prompts"].unbind(), data["responses"].unbind(), strict=True
    ):
        row, question, tokens = groups.rows[i], question.numpy().astype(np.int32), response.numpy().astype(np.int32)
        if question_key(question) != row.key:
            raise contract.ContractError(
                f"veRL rolled out {len(question)} question tokens that are not those its question was looked up "
                "by. Please report this with your data.apply_chat_template_kwargs and model."
            )
        tokens = tokens[:-1] if len(tokens) and int(tokens[-1]) in end_ids else tokens
        answer = CachedAnswer(tokens, row.correct, row.reward, row.oldest_policy, question)
        group = [groups.rows[member] for member in members]
        correct = np.array([member.correct for member in group])
        generated = np.array([member.response_tokens - member.prefix_tokens for member in group])
        outcomes.append(rollouts.observe(row.key, answer, correct, generated, row.prefix_tokens))
    return Updates(
        offered=len(complete),
        greedy=sum(choice.greedy for choice in choices),
        stored=sum(outcome.stored for outcome in outcomes),
        dropped=sum(outcome.dropped for outcome in outcomes),
    )


def _read_rows(
    keys: Sequence[str], tags: Sequence[Mapping[str, Any]], partition_id: str, options: RewardConfig
) -> list[Row | None]:
    data = tq.kv_batch_get(keys=list(keys), partition_id=partition_id, select_fields=["uid", "extra_fields"])
    # list() because the queue returns non-tensor fields in containers that differ with their content.
    uids, extra_fields = list(data["uid"]), list(data["extra_fields"])
    own = [i for i, extra in enumerate(extra_fields) if extra.get("rpo") and not tags[i].get("is_padding", False)]
    info = {i: extra_fields[i].get("reward_extra_info") or {} for i in own}
    # A colocated reward model scores whole batches, behind the back of the reward manager.
    scored_late = [i for i in own if REWARD not in info[i]]
    rewards = {i: info[i][REWARD] for i in own if REWARD in info[i]} | _scores(keys, scored_late, partition_id)
    rows: list[Row | None] = [None] * len(keys)
    for i in own:
        start = extra_fields[i]["rpo"]
        correct = info[i][CORRECT] if CORRECT in info[i] else verdict(rewards[i], info[i], options)
        rows[i] = Row(
            group=uids[i],
            key=start["key"],
            kind=start["kind"],
            group_size=start["group_size"],
            prefix_tokens=start["prefix_tokens"],
            dropped=start["dropped"],
            capped=start["capped"],
            response_tokens=tags[i]["response_len"],
            oldest_policy=tags[i]["min_global_steps"],
            source_step=start["source_step"],
            reward=rewards[i],
            correct=bool(correct),
        )
    return rows


def _scores(keys: Sequence[str], indices: list[int], partition_id: str) -> dict[int, float]:
    """Rewards of some of the rows, from veRL's scores of single tokens."""
    if not indices:
        return {}
    data = tq.kv_batch_get(keys=[keys[i] for i in indices], partition_id=partition_id, select_fields=["rm_scores"])
    return dict(zip(indices, (float(scores.sum()) for scores in data["rm_scores"].unbind()), strict=True))
