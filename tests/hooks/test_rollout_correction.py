"""veRL's rollout correction never looks at a prefix, whose tokens the rollout has no log-probabilities for."""

import pytest
import torch
from verl.trainer.ppo.rollout_corr_helper import compute_rollout_correction_and_rejection_mask

PREFIX, SUFFIX = 5, 7


def correct(prefix, rollout_rs, rollout_is):
    """Two responses whose suffixes differ a little, behind `prefix` tokens on which trainer and rollout disagree."""
    generator = torch.Generator().manual_seed(1)
    rollout = -torch.rand(2, SUFFIX, generator=generator)
    trainer = rollout + 0.3 * torch.randn(2, SUFFIX, generator=generator)
    before = torch.full((2, prefix), -9.0)
    return compute_rollout_correction_and_rejection_mask(
        old_log_prob=torch.cat([before, trainer], dim=1),
        rollout_log_prob=torch.cat([torch.zeros_like(before), rollout], dim=1),
        response_mask=torch.cat([torch.zeros_like(before), torch.ones_like(rollout)], dim=1),
        rollout_is=rollout_is,
        rollout_is_threshold=2.0,
        rollout_rs=rollout_rs,
        rollout_rs_threshold="0.8_1.25" if rollout_rs.endswith("k1") else 0.05,
    )


@pytest.mark.parametrize("rollout_is", ["token", "sequence"])
@pytest.mark.parametrize("rollout_rs", ["token_k1", "token_k3", "seq_sum_k1", "seq_mean_k3", "seq_max_k2"])
def test_weights_and_rejections_are_those_of_the_suffix_alone(rollout_rs, rollout_is):
    alone, alone_mask, alone_metrics = correct(0, rollout_rs, rollout_is)
    behind, behind_mask, behind_metrics = correct(PREFIX, rollout_rs, rollout_is)
    assert 0 < alone_mask.sum() < alone_mask.numel() or rollout_rs.startswith("seq")
    assert torch.equal(behind_mask[:, PREFIX:], alone_mask)
    assert not behind_mask[:, :PREFIX].any()
    name = "rollout_is_weights"
    assert torch.allclose(behind.batch[name][:, PREFIX:], alone.batch[name])
    for metric in ("rollout_rs_masked_fraction", "rollout_is_mean", "kl"):
        assert behind_metrics[f"rollout_corr/{metric}"] == pytest.approx(alone_metrics[f"rollout_corr/{metric}"])
