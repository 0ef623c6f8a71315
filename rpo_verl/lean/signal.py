"""The actor's update without zero-advantage rows.

Where every member of a group earned the same, all advantages are zero, and so is the gradient: forward and backward
pass over such rows are wasted. Every mini-batch keeps its own rows and its own mean, so each optimizer step is the one
that veRL would have made.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from omegaconf import DictConfig
from verl.utils.seqlen_balancing import log_seqlen_unbalance

from rpo_verl.lean.packing import order_by_group
from rpo_verl.upstream import queue

#: Policy losses, veRL's and `losses.py`'s, that are linear in the advantages, row by row.
LINEAR_LOSSES = ("vanilla", "gspo", "geo_mean", "bypass_mode", "minpro")


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


def mini_batches_of(rows: int, size: int, ranks: int) -> np.ndarray:
    """The rows of every mini-batch as veRL makes them: ranks get equal runs of the batch, and cut them one by one.

    Args:
        rows: B, a multiple of `size`.
        size: rows of a mini-batch, a multiple of `ranks`.
        ranks: data parallel size.

    Returns:
        (M, size) int, positions in the batch.
    """
    return np.arange(rows).reshape(ranks, -1, size // ranks).transpose(1, 0, 2).reshape(-1, size)


def questions_needed(most_rows: int, group_size: int, multiple: int, whole: int) -> int:
    """Size of a mini-batch, in questions, that holds the rows with an advantage.

    Args:
        most_rows: rows with an advantage in the mini-batch that has most of them.
        group_size: responses per question.
        multiple: rows of a mini-batch have to be a multiple of it (data parallel size times micro-batch size).
        whole: veRL's `ppo_mini_batch_size`, which satisfies all of this.
    """
    questions = max(1, -(-most_rows // group_size))
    while questions < whole and questions * group_size % multiple:
        questions += 1
    return min(questions, whole)


def weight_of_the_rest(all_tokens: int, kept_tokens: int, all_rows: int, kept_rows: int, loss_agg_mode: str) -> float:
    """Factor on the advantages that makes veRL's mean over the rows kept the mean over all rows."""
    if loss_agg_mode == "token-mean":
        return kept_tokens / max(1, all_tokens)
    if loss_agg_mode.startswith("seq-mean"):
        return kept_rows / all_rows
    return 1.0


def skip_zero_advantage_rows(
    batch: queue.Batch, config: DictConfig, ranks: int, keep_groups: bool, metrics: dict[str, Any]
) -> tuple[queue.Batch, int]:
    """Select the rows worth an update, and weigh their advantages for the rows skipped.

    Zero-advantage rows that only fill up a mini-batch stay; the whole batch stays where nothing can be skipped.

    Args:
        batch: rows in the order of veRL's update.
        config: veRL's configuration.
        ranks: data parallel size.
        keep_groups: whether the rows of a group have to stay neighbours.
        metrics: gains how well the update is balanced, where there are several ranks.

    Returns:
        the batch for the update, and the mini-batch size in questions that goes with it.
    """
    actor, group_size = config.actor_rollout_ref.actor, config.actor_rollout_ref.rollout.n
    whole = actor.ppo_mini_batch_size
    micro_batch = 1 if actor.use_dynamic_bsz else actor.ppo_micro_batch_size_per_gpu
    if not micro_batch or len(batch) % (whole * group_size) or not only_advantages_matter(config):
        return batch, whole
    advantages, masks = queue.read(batch.keys, batch.partition_id, "advantages", "response_mask")
    tokens = np.array([int(mask.sum()) for mask in masks])
    signal = np.array([bool(row.any()) for row in advantages])
    mini_batches = mini_batches_of(len(batch), whole * group_size, ranks)
    questions = questions_needed(int(signal[mini_batches].sum(axis=1).max()), group_size, ranks * micro_batch, whole)
    if questions == whole:
        return batch, whole
    size, lengths = questions * group_size, [queue.row_tokens(tag) for tag in batch.tags]
    prompts = [queue.prompt_of(key) for key in batch.keys] if keep_groups else batch.keys
    dealt: list[list[int]] = [[] for _ in range(ranks)]
    weights = np.ones(len(batch))
    for rows in mini_batches:
        kept = np.sort(rows[np.argsort(~signal[rows], kind="stable")[:size]])
        all_tokens, kept_tokens = int(tokens[rows].sum()), int(tokens[kept].sum())
        weights[kept] = weight_of_the_rest(all_tokens, kept_tokens, len(rows), size, actor.loss_agg_mode)
        for rank, part in enumerate(_deal(kept, prompts, lengths, ranks)):
            dealt[rank] += part
    order = [i for part in dealt for i in part]
    if ranks > 1:
        place = {row: number for number, row in enumerate(sorted(order))}
        parts = [[place[i] for i in part] for part in dealt]
        metrics.update(log_seqlen_unbalance([lengths[i] for i in place], parts, prefix="lean/update_seqlen"))
    smaller = batch.select_keys([batch.keys[i] for i in order])
    queue.write(smaller.keys, smaller.partition_id, advantages=[advantages[i] * float(weights[i]) for i in order])
    return smaller, questions


def _deal(rows: np.ndarray, prompts: Sequence[str], lengths: Sequence[int], ranks: int) -> list[list[int]]:
    """Equal numbers of rows for every rank, with about as many tokens each."""
    positions = order_by_group([prompts[i] for i in rows], [lengths[i] for i in rows], ranks) if ranks > 1 else None
    ordered = rows if positions is None else rows[positions]
    return [part.tolist() for part in np.split(ordered, ranks)]


@contextmanager
def mini_batch_size(actor: Any, questions: int) -> Iterator[None]:
    """veRL reads the size of a mini-batch from its configuration when it starts an update."""
    whole = actor.ppo_mini_batch_size
    actor.ppo_mini_batch_size = questions
    try:
        yield
    finally:
        actor.ppo_mini_batch_size = whole
