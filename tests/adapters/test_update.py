"""Leaving rows without an advantage out of the update changes its time, not its gradient."""

import pytest
import torch
from omegaconf import OmegaConf
from verl.trainer.ppo.core_algos import agg_loss

from rpo_verl.lean.signal import (
    mini_batch_size,
    only_advantages_matter,
    questions_per_mini_batch,
    weight_of_the_rest,
)

MASK = torch.tensor([[1.0, 1, 1, 0], [1, 1, 0, 0], [1, 1, 1, 1], [0, 1, 1, 0]])
ADVANTAGES = torch.tensor([0.5, 0.0, 0.0, -1.5]).unsqueeze(-1) * MASK
KEPT = [0, 3]


@pytest.mark.parametrize(
    "mode", ["token-mean", "token-sum", "seq-mean-token-mean", "seq-mean-token-sum", "seq-mean-token-sum-norm"]
)
def test_the_gradient_stays_the_same(mode):
    gradients = []
    for rows in ([0, 1, 2, 3], KEPT):
        log_probs = torch.zeros(4, 4, requires_grad=True)
        mask = MASK[rows]
        weight = weight_of_the_rest(int(MASK.sum()), int(mask.sum()), 4, len(rows), mode)
        loss = -(ADVANTAGES[rows] * weight) * torch.exp(log_probs[rows])
        agg_loss(loss, mask, mode).backward()
        gradients.append(log_probs.grad)
    assert gradients[0].abs().sum() > 0
    assert torch.allclose(*gradients)


@pytest.mark.parametrize(
    ("rows", "mini_batches", "multiple", "expected"),
    [(0, 1, 1, 1), (8, 1, 1, 1), (9, 1, 1, 2), (9, 2, 1, 1), (17, 2, 1, 2), (8, 1, 16, 2), (24, 1, 16, 4),
     (64, 1, 1, 8), (50, 1, 24, 8)],
)  # fmt: skip
def test_size_of_a_mini_batch(rows, mini_batches, multiple, expected):
    assert questions_per_mini_batch(rows, mini_batches, group_size=8, multiple=multiple, most=8) == expected


def config(**changes):
    actor = {"use_kl_loss": False, "entropy_coeff": 0, "policy_loss": {"loss_mode": "vanilla"}}
    base = {"actor_rollout_ref": {"actor": actor}, "algorithm": {}, "distillation": None}
    return OmegaConf.merge(base, OmegaConf.from_dotlist([f"{key}={value}" for key, value in changes.items()]))


def test_rows_stay_where_another_term_of_the_loss_has_a_gradient_on_them():
    assert only_advantages_matter(config())
    for change in (
        {"actor_rollout_ref.actor.use_kl_loss": True},
        {"actor_rollout_ref.actor.entropy_coeff": 0.01},
        {"actor_rollout_ref.actor.policy_loss.loss_mode": "kl_cov"},
        {"algorithm.rollout_correction.rollout_is_batch_normalize": True},
        {"distillation.enabled": True},
    ):
        assert not only_advantages_matter(config(**change)), change


def test_the_configured_size_comes_back_after_an_error():
    actor = OmegaConf.create({"ppo_mini_batch_size": 8})
    with pytest.raises(RuntimeError), mini_batch_size(actor, 2):
        assert actor.ppo_mini_batch_size == 2
        raise RuntimeError
    assert actor.ppo_mini_batch_size == 8
