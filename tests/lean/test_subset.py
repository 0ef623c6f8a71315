"""Down-sampled groups: which members train, and with which advantages."""

from itertools import combinations

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from verl.trainer.ppo.core_algos import compute_grpo_outcome_advantage

from rpo_verl.lean.subset import most_varied, train_on_subset
from rpo_verl.upstream import queue


@pytest.mark.parametrize("seed", range(20))
def test_no_other_subset_varies_more(seed):
    rng = np.random.default_rng(seed)
    values = rng.normal(size=7) if seed % 2 else rng.integers(0, 2, 7).astype(float)
    for size in range(2, 8):
        chosen = most_varied(values, size)
        assert len(set(chosen.tolist())) == size
        best = max(float(np.var(values[list(subset)])) for subset in combinations(range(7), size))
        assert np.var(values[chosen]) == pytest.approx(best)


def test_a_small_group_is_whole():
    assert most_varied(np.array([1.0, 0.0]), 4).tolist() == [0, 1]


REWARDS = {"a": [1.0, 1, 1, 0, 0.5], "b": [0.0, 0, 0, 0, 1], "c": [1.0, 1, 1, 1, 1]}
LENGTHS = [3, 2, 4, 1, 2]


@pytest.fixture(params=[True, False], ids=["by deviation", "centered"])
def by_deviation(request):
    return request.param


@pytest.fixture
def batch(monkeypatch, by_deviation):
    """Groups with GRPO's advantages over all members, and a row that fills up the batch."""
    keys = [f"{name}_{member}_0" for name in REWARDS for member in range(5)]
    masks = {key: torch.ones(LENGTHS[row % 5]) for row, key in enumerate(keys)}
    rewards = torch.tensor([value for group in REWARDS.values() for value in group])
    whole, _ = compute_grpo_outcome_advantage(
        rewards[:, None], torch.ones(15, 1), np.array([key[0] for key in keys], dtype=object),
        norm_adv_by_std_in_grpo=by_deviation,
    )  # fmt: skip
    columns = {
        "response_mask": masks | {"pad_0_0": torch.ones(1)},
        "advantages": {key: float(row) * masks[key] for key, row in zip(keys, whole, strict=True)},
    }
    columns["advantages"]["pad_0_0"] = torch.zeros(1)
    monkeypatch.setattr(queue, "read", lambda rows, _, *names: tuple([columns[n][row] for row in rows] for n in names))

    def write(rows, _, **written):
        for name, values in written.items():
            columns[name] |= dict(zip(rows, values, strict=True))

    monkeypatch.setattr(queue, "write", write)
    monkeypatch.setattr(queue, "is_padding", lambda tag: tag == "padding")
    made = queue.Batch(keys=[*keys, "pad_0_0"], tags=["row"] * 15 + ["padding"], partition_id="train", extra_info={})
    return made, columns


def config(mode, by_deviation):
    return OmegaConf.create(
        {"algorithm": {"norm_adv_by_std_in_grpo": by_deviation},
         "actor_rollout_ref": {"actor": {"loss_agg_mode": mode}}}
    )  # fmt: skip


@pytest.mark.parametrize("mode", ["token-mean", "seq-mean-token-mean"])
def test_advantages_are_those_of_the_subset_alone(batch, mode, by_deviation):
    made, columns = batch
    metrics = train_on_subset(made, config(mode, by_deviation), 2)
    assert metrics == {"lean/subset/rows_share": 6 / 15}
    found = [key for key, row in columns["advantages"].items() if row.any()]
    # One right and one wrong member of each; of the third all members are equal.
    assert found == ["a_2_0", "a_3_0", "b_3_0", "b_4_0"]
    chosen = [*found, "c_3_0", "c_4_0"]
    rewards = torch.tensor([float(REWARDS[key[0]][int(key[2])]) for key in chosen])
    expected, _ = compute_grpo_outcome_advantage(
        rewards[:, None], torch.ones(6, 1), np.array([key[0] for key in chosen], dtype=object),
        norm_adv_by_std_in_grpo=by_deviation,
    )  # fmt: skip
    tokens = sum(len(columns["response_mask"][key]) for key in chosen)
    weight = 3 * sum(LENGTHS) / tokens if mode == "token-mean" else 15 / 6
    for key, value in zip(chosen, expected, strict=True):
        row = columns["advantages"][key]
        assert row.tolist() == pytest.approx([float(value) * weight] * len(row), rel=1e-3, abs=1e-6)
