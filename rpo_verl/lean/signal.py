"""The actor's update without the rows that have nothing to say.

Where every member of a group earned the same, all advantages are zero, and so is the gradient: forward and backward
pass over such rows are spent for nothing. Behind a long prefix that is most of the groups. veRL's mini-batches shrink
by the rows left out; their number, and so the number of optimizer steps, stays.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from math import ceil
from typing import Any

import torch
import transfer_queue as tq
from omegaconf import DictConfig
from tensordict import TensorDict
from transfer_queue import KVBatchMeta

#: Policy losses of veRL that are linear in the advantages, row by row.
LINEAR_LOSSES = ("vanilla", "gspo", "geo_mean", "bypass_mode")


def only_advantages_matter(config: DictConfig) -> bool:
    """Whether a row whose advantages are zero has no gradient from another term of the loss either."""
    actor, correction = config.actor_rollout_ref.actor, config.algorithm.get("rollout_correction") or {}
    distilled = (config.get("distillation") or {}).get("enabled", False)
    return (
        not actor.use_kl_loss
        and actor.entropy_coeff == 0
        and not distilled
        and not correction.get("rollout_is_batch_normalize", False)
        and actor.policy_loss.get("loss_mode", "vanilla") in LINEAR_LOSSES
    )


def questions_per_mini_batch(rows: int, mini_batches: int, group_size: int, multiple: int, most: int) -> int:
    """Size of a mini-batch, in questions, that takes up the rows left.

    Args:
        rows: rows with an advantage.
        mini_batches: their number, which stays.
        group_size: responses per question.
        multiple: rows of a mini-batch have to be a multiple of it (data parallel size times micro-batch size).
        most: veRL's `ppo_mini_batch_size`, which does.
    """
    questions = max(1, ceil(rows / (mini_batches * group_size)))
    while questions < most and questions * group_size % multiple:
        questions += 1
    return min(questions, most)


def weight_of_the_rest(all_tokens: int, kept_tokens: int, all_rows: int, kept_rows: int, loss_agg_mode: str) -> float:
    """Factor on the advantages that makes veRL's mean over the rows kept the mean over all rows."""
    if loss_agg_mode == "token-mean":
        return kept_tokens / all_tokens
    if loss_agg_mode.startswith("seq-mean"):
        return kept_rows / all_rows
    return 1.0


def leave_out_rows_without_signal(
    batch: KVBatchMeta, config: DictConfig, data_parallel_size: int
) -> tuple[KVBatchMeta, int]:
    """The part of a batch worth an update, its advantages weighed for what was left out.

    Rows that only fill a mini-batch stay in; so does everything where nothing can be left out.

    Returns:
        the batch for the update, and the mini-batch size in questions that goes with it.
    """
    actor, group_size = config.actor_rollout_ref.actor, config.actor_rollout_ref.rollout.n
    whole = actor.ppo_mini_batch_size
    mini_batches, rest = divmod(len(batch), whole * group_size)
    micro_batch = 1 if actor.use_dynamic_bsz else actor.ppo_micro_batch_size_per_gpu
    if rest or not mini_batches or not micro_batch or not only_advantages_matter(config):
        return batch, whole
    data = tq.kv_batch_get(
        keys=batch.keys, partition_id=batch.partition_id, select_fields=["advantages", "response_mask"]
    )
    advantages = list(data["advantages"].unbind())
    tokens = [int(mask.sum()) for mask in data["response_mask"].unbind()]
    signal = [bool(row.any()) for row in advantages]
    questions = questions_per_mini_batch(sum(signal), mini_batches, group_size, data_parallel_size * micro_batch, whole)
    if questions == whole:
        return batch, whole
    size = questions * mini_batches * group_size
    kept = sorted(sorted(range(len(batch)), key=lambda i: not signal[i])[:size])
    weight = weight_of_the_rest(sum(tokens), sum(tokens[i] for i in kept), len(batch), size, actor.loss_agg_mode)
    smaller = batch.select_keys([batch.keys[i] for i in kept])
    weighed = torch.nested.as_nested_tensor([advantages[i] * weight for i in kept], layout=torch.jagged)
    tq.kv_batch_put(
        keys=smaller.keys,
        partition_id=smaller.partition_id,
        fields=TensorDict({"advantages": weighed}, batch_size=len(smaller)),
    )
    return smaller, questions


@contextmanager
def mini_batch_size(actor: Any, questions: int) -> Iterator[None]:
    """veRL reads the size of a mini-batch from its configuration when it starts an update."""
    whole = actor.ppo_mini_batch_size
    actor.ppo_mini_batch_size = questions
    try:
        yield
    finally:
        actor.ppo_mini_batch_size = whole
