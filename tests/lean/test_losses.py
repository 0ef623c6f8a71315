"""MinPRO's factor, and the gradient that it leaves."""

import pytest
import torch
from verl.trainer.ppo.core_algos import POLICY_LOSS_REGISTRY, get_policy_loss_fn
from verl.workers.config import ActorConfig

from rpo_verl.lean.losses import minpro_loss, smallest_before

RATIOS = torch.tensor([[0.5, 2.0, 0.25, 4.0], [3.0, 2.0, 1.0, 1.0], [9.0, 0.1, 5.0, 5.0]])
MASK = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [0, 1, 1, 1]]).bool()


def test_the_smallest_ratio_before_each_token():
    found = smallest_before(RATIOS.log(), MASK)
    expected = torch.tensor([[1, 0.5, 0.5, 0.25], [1, 3, 2, 2], [1, 1, 0.1, 0.1]])
    assert torch.allclose(found, expected)


def test_it_is_never_the_product_that_explodes():
    ratios = torch.full((1, 200), 2.0)
    assert torch.allclose(smallest_before(ratios.log(), torch.ones(1, 200))[0, 1:], torch.tensor(2.0))


@pytest.fixture
def config():
    made = ActorConfig(strategy="fsdp", rollout_n=1, ppo_micro_batch_size_per_gpu=1)
    made.global_batch_info.update(dp_size=1, batch_num_tokens=int(MASK.sum()), global_batch_size=3)
    return made


def loss_of(function, log_prob, config, **more):
    return function(
        old_log_prob=torch.zeros(3, 4), log_prob=log_prob, advantages=torch.tensor([[1.0], [-1.0], [0.5]]) * MASK,
        response_mask=MASK, loss_agg_mode="token-mean", config=config, **more,
    )  # fmt: skip


def test_on_the_policys_own_batch_it_is_verls_loss(config):
    gradients = []
    for function in (minpro_loss, get_policy_loss_fn("vanilla")):
        log_prob = torch.zeros(3, 4, requires_grad=True)
        loss_of(function, log_prob, config)[0].backward()
        gradients.append(log_prob.grad)
    assert torch.equal(*gradients) and gradients[0].abs().sum() > 0
    assert loss_of(minpro_loss, torch.zeros(3, 4), config)[1]["actor/minpro_factor"] == 1


def test_elsewhere_it_weighs_every_token_by_its_factor(config):
    near = (1 + 0.1 * (RATIOS.log()).tanh()).log()
    gradients = []
    for function, more in (
        (minpro_loss, {"rollout_is_weights": torch.full((3, 4), 0.5)}),
        (get_policy_loss_fn("vanilla"), {"rollout_is_weights": 0.5 * smallest_before(near, MASK)}),
    ):
        log_prob = near.clone().requires_grad_()
        loss_of(function, log_prob, config, **more)[0].backward()
        gradients.append(log_prob.grad)
    assert torch.allclose(*gradients)
    factor = loss_of(minpro_loss, near, config)[1]["actor/minpro_factor"]
    assert factor == pytest.approx(float(smallest_before(near, MASK)[MASK].mean()))


def test_it_has_a_name_in_verl():
    assert POLICY_LOSS_REGISTRY["minpro"] is minpro_loss
