"""Finished rows of veRL's queue → groups of rewards, verdicts and generated tokens for stage 1."""

import math
from collections import defaultdict
from dataclasses import dataclass

import numpy as np

from rpo_verl.correctness import RewardScale, is_correct
from rpo_verl.r2po.options import RarityConfig
from rpo_verl.upstream import queue

#: All rewards of a run are on one scale here.
SOURCE = ""


@dataclass(frozen=True)
class RewardedGroup:
    """The responses to one question, in the order of their keys."""

    keys: tuple[str, ...]
    rewards: np.ndarray
    """(G,) float64, base rewards."""

    correct: np.ndarray
    """(G,) bool."""

    responses: tuple[np.ndarray, ...]
    """(G,) of (length,) int, the tokens that the model generated."""


def read_groups(batch: queue.Batch, options: RarityConfig, scale: RewardScale) -> list[RewardedGroup]:
    """Read the groups of a batch; rows that only fill it up are not among them.

    A session with several outputs is one member, with the reward and the tokens of its last one.

    Args:
        batch: finished rows.
        options: says what is correct.
        scale: of the run's rewards; learns from these rows first.

    Raises:
        ValueError: if a reward function reports an `acc` that is no number.
    """
    finals = [batch.keys[row] for row in queue.final_rows(batch.keys)]
    rows_of = zip(batch.keys, finals, batch.tags, strict=True)
    own = sorted(key for key, final, tag in rows_of if key == final and not queue.is_padding(tag))
    scores, masks, responses, extra = queue.read(
        own, batch.partition_id, "rm_scores", "response_mask", "responses", "extra_fields"
    )
    rewards = [float(row.sum()) for row in scores]
    accuracies = [_accuracy(fields) for fields in extra]
    values = [reward if acc is None else acc for reward, acc in zip(rewards, accuracies, strict=True)]
    scale.see(SOURCE, values)
    correct = [
        is_correct(reward, acc, options.correct_above, scale.best(SOURCE))
        for reward, acc in zip(rewards, accuracies, strict=True)
    ]
    members: dict[str, list[int]] = defaultdict(list)
    for i, key in enumerate(own):
        members[queue.prompt_of(key)].append(i)
    return [
        RewardedGroup(
            keys=tuple(own[i] for i in rows),
            rewards=np.array([rewards[i] for i in rows]),
            correct=np.array([correct[i] for i in rows]),
            responses=tuple(responses[i][masks[i].bool()].numpy() for i in rows),
        )
        for rows in members.values()
    ]


def _accuracy(fields: dict) -> float | None:
    value = ((fields or {}).get("reward_extra_info") or {}).get("acc")
    if value is None:
        return None
    number = float(value)
    if not math.isfinite(number):
        raise ValueError(f"the reward function reported acc={value!r}; R²PO needs a number to tell what is correct")
    return number
