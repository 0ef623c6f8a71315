"""The registered estimator on top of veRL's own, by hand-computed values."""

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from verl.trainer.ppo.core_algos import ADV_ESTIMATOR_REGISTRY, compute_grpo_outcome_advantage, get_adv_estimator_fn

from rpo_verl.rpo.hooks.advantage import SHAPING, UNSUPPORTED, Shaping
from rpo_verl.upstream.queue import final_rows

CONFIG = OmegaConf.create({"norm_adv_by_std_in_grpo": True})


def rewards_on_last_token(values, lengths, width):
    rewards = torch.zeros(len(values), width)
    for row, (value, length) in enumerate(zip(values, lengths, strict=True)):
        rewards[row, length - 1] = value
    return rewards


def estimate(base, shaped, lengths, prefix, groups, upstream="grpo", config=CONFIG, final=None):
    width = max(lengths)
    mask = torch.zeros(len(base), width)
    for row, length in enumerate(lengths):
        mask[row, prefix[row] : length] = 1
    bonus, last_token = np.array(shaped) - np.array(base), np.array(lengths) - 1
    final = np.arange(len(base)) if final is None else np.array(final)
    token = SHAPING.set(Shaping(bonus, last_token, upstream, final))
    try:
        advantages, _ = get_adv_estimator_fn("rpo")(
            token_level_rewards=rewards_on_last_token(base, lengths, width),
            response_mask=mask,
            config=config,
            index=np.array(groups, dtype=object),
        )
    finally:
        SHAPING.reset(token)
    return advantages, mask


def test_grpo_over_shaped_rewards():
    # Group a: R = 0.7, 0.5 → mean 0.6, std 0.1414; group b: R = 0.5, 0.0 → mean 0.25, std 0.3536.
    advantages, mask = estimate([1, 1, 1, 0], [0.7, 0.5, 0.5, 0.0], [4, 5, 4, 3], [0, 2, 1, 0], ["a", "a", "b", "b"])
    expected = [0.70710, -0.70710, 0.70710, -0.70710]
    for row, value in enumerate(expected):
        assert advantages[row][mask[row] == 1].tolist() == pytest.approx([value] * int(mask[row].sum()), abs=1e-4)
        assert advantages[row][mask[row] == 0].abs().sum() == 0  # prefix and padding


def test_grpo_without_std():
    config = OmegaConf.create({"norm_adv_by_std_in_grpo": False})
    advantages, _ = estimate([1, 1], [0.7, 0.5], [4, 4], [2, 2], ["a", "a"], config=config)
    assert advantages[:, :2].abs().sum() == 0
    assert advantages[:, 2].tolist() == pytest.approx([0.1, -0.1])


def test_rloo():
    advantages, _ = estimate([1, 1, 0], [0.7, 0.5, 0.0], [2, 2, 2], [0, 0, 0], ["a"] * 3, upstream="rloo")
    assert advantages[:, 0].tolist() == pytest.approx([0.7 - 0.25, 0.5 - 0.35, 0.0 - 0.6])


def test_all_wrong_and_all_alike_give_no_signal():
    for shaped in ([0.0] * 4, [0.5] * 4):
        base = [float(value > 0) for value in shaped]
        advantages, _ = estimate(base, shaped, [3] * 4, [1] * 4, ["a"] * 4)
        assert advantages.abs().sum() == 0


@pytest.mark.parametrize("upstream", sorted(set(map(str, ADV_ESTIMATOR_REGISTRY)) - {"rpo"} - set(UNSUPPORTED)))
def test_every_outcome_based_estimator_of_verl(upstream):
    """Behind prefixes: nothing on prefix and padding, the best response before the worst, and its length counts."""
    rewards, shaped = [1.0, 1.0, 0.0, 0.0], [0.8, 0.5, 0.0, 0.0]
    lengths, prefix = [6, 8, 7, 7], [4, 4, 4, 4]
    config = OmegaConf.create({"norm_adv_by_std_in_grpo": True, "gamma": 1.0, "f_norm": 1.0})
    advantages, mask = estimate(rewards, shaped, lengths, prefix, ["a"] * 4, upstream=upstream, config=config)
    assert torch.isfinite(advantages).all()
    assert (advantages * (1 - mask)).abs().sum() == 0
    best, *_, worst = (advantages[row][mask[row] == 1][-1].item() for row in range(4))
    assert best > worst
    unshaped, _ = estimate(rewards, rewards, lengths, prefix, ["a"] * 4, upstream=upstream, config=config)
    assert not torch.equal(unshaped, advantages), "the length is part of the reward"


def test_a_session_with_several_outputs_has_one_vote():
    """As in veRL's GRPO: its last output earns the advantage, which all its outputs get."""
    keys = ["a_0_0", "a_0_1", "a_1_0", "a_2_0"]
    final = final_rows(keys)
    assert final.tolist() == [1, 1, 2, 3]
    advantages, _ = estimate([9, 1, 0, 0], [9, 1, 0, 0], [3] * 4, [0] * 4, ["a"] * 4, final=final)
    alone, _ = estimate([1, 0, 0], [1, 0, 0], [3] * 3, [0] * 3, ["a"] * 3)
    assert torch.equal(advantages, alone[[0, 0, 1, 2]])
    assert final_rows(["a_0_10", "a_0_9"]).tolist() == [0, 0]


def test_without_shaping_it_is_verls_own_estimator():
    base, groups = [1.0, 0.0, 1.0, 1.0], ["a", "a", "b", "b"]
    advantages, mask = estimate(base, base, [3, 4, 2, 4], [0] * 4, groups)
    reference, _ = compute_grpo_outcome_advantage(
        rewards_on_last_token(base, [3, 4, 2, 4], 4), mask, np.array(groups, dtype=object)
    )
    assert torch.equal(advantages, reference)


def test_outside_rpos_trainer_it_says_what_to_do():
    with pytest.raises(RuntimeError, match=r"\+rpo=enabled"):
        get_adv_estimator_fn("rpo")(
            token_level_rewards=torch.zeros(1, 1), response_mask=torch.ones(1, 1), config=CONFIG
        )
