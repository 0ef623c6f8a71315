"""Advantages of the tokens of a batch, and which of them the loss covers."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from verl.trainer.ppo.core_algos import get_adv_estimator_fn

from benchmarks.lab.groups import Finished
from rpo_verl.lean.subset import advantages_within
from rpo_verl.rpo.credit import credit, imitation, response_mean_weights
from rpo_verl.rpo.options import CreditConfig

#: How the loss is averaged, as veRL's `actor.loss_agg_mode`.
LOSS_AGG_MODE = "token-mean"


@dataclass
class Batch:
    """Responses with everything that an update needs; T is the longest response."""

    questions: list[Sequence[int]]
    """(B,) token ids of each."""

    responses: list[np.ndarray]
    """(B,) token ids of each, (t,) int32."""

    advantages: torch.Tensor
    """(B, T) float32, 0 outside the mask."""

    mask: torch.Tensor
    """(B, T) bool, tokens that the loss covers."""

    old_log_probs: torch.Tensor
    """(B, T) float32, of the policy that the ratio refers to; NaN where they are not known."""

    then_log_probs: torch.Tensor
    """(B, T) float32, of the policy that wrote each token; NaN where they are not known."""

    weights: torch.Tensor | None = None
    """(B, T) float32 factors on the loss, veRL's `rollout_is_weights`; None: 1."""


def as_batch(groups: Sequence[Finished]) -> Batch:
    """Lay out the responses of groups; advantages are 0, and the loss covers what the policy generated."""
    responses = [response for one in groups for response in one.responses]
    longest = max(map(len, responses))
    steps = torch.arange(longest)
    lengths = torch.tensor([len(response) for response in responses])[:, None]
    prefix = torch.from_numpy(np.concatenate([one.group.prefix_tokens for one in groups]))[:, None]
    rows = [torch.from_numpy(row) for one in groups for row in one.log_probs]
    log_probs = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    return Batch(
        questions=[one.question.ids for one in groups for _ in one.responses],
        responses=responses,
        advantages=torch.zeros(len(responses), longest),
        mask=(steps >= prefix) & (steps < lengths),
        old_log_probs=log_probs,
        then_log_probs=log_probs.clone(),
    )


def estimate(groups: Sequence[Finished], batch: Batch, estimator: str) -> None:
    """Write the advantages of veRL's estimator on shaped rewards to `batch`, as a veRL run computes them."""
    rewards = torch.zeros(batch.mask.shape)
    last = torch.tensor([len(response) - 1 for response in batch.responses])
    rewards[torch.arange(len(last)), last] = torch.from_numpy(_shaped(groups)).float()
    index = np.array([number for number, one in enumerate(groups) for _ in one.responses])
    batch.advantages, _ = get_adv_estimator_fn(estimator)(
        token_level_rewards=rewards, response_mask=batch.mask.float(), index=index
    )


def down_sample(groups: Sequence[Finished], batch: Batch, size: int) -> None:
    """Keep the members of every group that vary most, with advantages among themselves (PODS).

    The loss covers the other rows no more, so that its mean is over the rows kept.

    Args:
        groups: those that `batch` was made of.
        batch: with the advantages of GRPO; changed.
        size: members of a group to keep.
    """
    row = 0
    for one in groups:
        chosen, own = advantages_within(one.group.shaped, size)
        values = np.zeros(len(one.group))
        values[chosen] = own
        rows = slice(row, row + len(one.group))
        batch.mask[rows] &= torch.from_numpy(np.isin(np.arange(len(one.group)), chosen))[:, None]
        batch.advantages[rows] = torch.from_numpy(values).float()[:, None] * batch.mask[rows]
        row += len(one.group)


def imitate(groups: Sequence[Finished], batch: Batch) -> None:
    """Write the advantages of imitation (RAFT) to `batch`: the reward itself, so that wrong responses have none.

    The ratio refers to the policy of the update itself, so that nothing is clipped.
    """
    batch.advantages = torch.from_numpy(_shaped(groups)).float()[:, None] * batch.mask
    batch.old_log_probs = torch.full_like(batch.old_log_probs, torch.nan)


def give_credit(groups: Sequence[Finished], batch: Batch, options: CreditConfig) -> list[float]:
    """Give the tokens of prefixes their credit and make veRL's mean one over whole responses; see `rpo.credit`.

    Args:
        groups: those that `batch` was made of.
        batch: with the estimator's advantages; changed.
        options: `rpo.credit`.

    Returns:
        The credit of every shared prefix that has one.
    """
    prefix = np.concatenate([one.group.prefix_tokens for one in groups])
    trained = batch.mask.sum(1).numpy()
    # A prefix is followed by a generated token, whose advantage speaks for the response.
    own = batch.advantages[np.arange(len(prefix)), prefix].double().numpy()
    spans, row = [], 0
    for one in groups:
        members = slice(row, row + len(one.group))
        if options.rule == "imitate":
            own[members] = imitation(one.group, [response.tolist() for response in one.responses])
            batch.advantages[members] = torch.from_numpy(own[members]).float()[:, None] * batch.mask[members]
        spans += credit(one.group, own[members], options, LOSS_AGG_MODE)
        row += len(one.group)
    covered = np.array([sum(stop - start for start, stop, _ in found) for found in spans])
    for row, found in enumerate(spans):
        for start, stop, advantage in found:
            batch.advantages[row, start:stop], batch.mask[row, start:stop] = advantage, True
    factors = response_mean_weights(trained + covered, prefix - covered, LOSS_AGG_MODE)
    batch.advantages *= torch.from_numpy(factors).float()[:, None]
    sizes = [len(one.group) for one in groups for _ in one.responses]
    return [advantage / size for size, found in zip(sizes, spans, strict=True) for *_, advantage in found]


def truncate_weights(groups: Sequence[Finished], batch: Batch, most: float) -> None:
    """Weigh reused tokens by min(most, π/π_then) instead of clipping their ratio as PPO does.

    Args:
        groups: those that `batch` was made of.
        batch: `old_log_probs` hold those of the policy before this update in every trained row; their originals on
            prefixes are in `then_log_probs`.
        most: upper bound of a weight.
    """
    prefix = torch.from_numpy(np.concatenate([one.group.prefix_tokens for one in groups]))[:, None]
    reused = torch.arange(batch.mask.shape[1]) < prefix
    weights = (batch.old_log_probs - batch.then_log_probs).exp().clamp(max=most)
    batch.weights = torch.where(reused & batch.mask & ~weights.isnan(), weights, 1.0)


def correct_for_sampling(batch: Batch, most: float) -> None:
    """Weigh tokens by min(most, π/π_sampled), for rollouts of another distribution than the policy's own.

    Args:
        batch: `old_log_probs` hold those of the policy before this update in every trained row.
        most: upper bound of a weight.
    """
    weights = (batch.old_log_probs - batch.then_log_probs).exp().clamp(max=most)
    batch.weights = torch.where(batch.mask & ~weights.isnan(), weights, 1.0)


def _shaped(groups: Sequence[Finished]) -> np.ndarray:
    return np.concatenate([one.group.shaped for one in groups])
