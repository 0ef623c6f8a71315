"""Leaving rows without an advantage out of the update changes its time, not its gradient."""

import copy

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from verl.trainer.ppo.core_algos import agg_loss

from rpo_verl.lean.signal import (
    mini_batch_size,
    mini_batches_of,
    only_advantages_matter,
    questions_needed,
    skip_zero_advantage_rows,
    weight_of_the_rest,
)
from rpo_verl.upstream import queue

MODES = ("token-mean", "token-sum", "seq-mean-token-mean", "seq-mean-token-sum", "seq-mean-token-sum-norm")

MASK = torch.tensor([[1.0, 1, 1, 0], [1, 1, 0, 0], [1, 1, 1, 1], [0, 1, 1, 0]])
ADVANTAGES = torch.tensor([0.5, 0.0, 0.0, -1.5]).unsqueeze(-1) * MASK
KEPT = [0, 3]


@pytest.mark.parametrize("mode", MODES)
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
    ("rows", "multiple", "expected"),
    [(0, 1, 1), (8, 1, 1), (9, 1, 2), (16, 1, 2), (17, 1, 3), (8, 16, 2), (24, 16, 4), (64, 1, 8), (50, 24, 8)],
)
def test_size_of_a_mini_batch(rows, multiple, expected):
    assert questions_needed(rows, group_size=8, multiple=multiple, whole=8) == expected


def test_rows_of_a_mini_batch_are_verls():
    """Ranks get equal runs of the batch and cut them one by one."""
    assert mini_batches_of(8, 8, 1).tolist() == [list(range(8))]
    assert mini_batches_of(8, 4, 1).tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert mini_batches_of(8, 4, 2).tolist() == [[0, 1, 4, 5], [2, 3, 6, 7]]
    assert mini_batches_of(12, 4, 2).tolist() == [[0, 1, 6, 7], [2, 3, 8, 9], [4, 5, 10, 11]]


GROUP_SIZE, QUESTIONS, LENGTH = 4, 4, 6


class Rows:
    """A batch of veRL's queue: response masks of unequal lengths, and advantages that some groups do not have."""

    def __init__(self, mini_batches, seed, share=0.4):
        rng = np.random.default_rng(seed)
        questions = QUESTIONS * mini_batches
        self.keys = [f"q{q}_{member}_0" for q in range(questions) for member in range(GROUP_SIZE)]
        self.lengths = rng.integers(2, LENGTH + 1, len(self.keys))
        signal = np.repeat(rng.random(questions) < share, GROUP_SIZE)
        values = rng.normal(size=len(self.keys)) * signal
        self.partition_id, self.tags = "train", [{"seq_len": int(length) + 3} for length in self.lengths]
        self.columns = {"advantages": {}, "response_mask": {}}
        for key, length, value in zip(self.keys, self.lengths, values, strict=True):
            mask = torch.ones(int(length))
            mask[: int(rng.integers(0, 2))] = 0
            self.columns["response_mask"][key] = mask
            self.columns["advantages"][key] = torch.tensor(float(value)) * mask
        self.original = dict(self.columns["advantages"])
        self.written = []

    def __len__(self):
        return len(self.keys)

    def select_keys(self, keys):
        selected = copy.copy(self)
        tags = dict(zip(self.keys, self.tags, strict=True))
        selected.keys, selected.tags = list(keys), [tags[key] for key in keys]
        return selected

    def read(self, keys, partition_id, *fields):
        return tuple([self.columns[name][key] for key in keys] for name in fields)

    def write(self, keys, partition_id, **columns):
        self.written.append((list(keys), set(columns)))
        for name, rows in columns.items():
            self.columns[name] = self.columns[name] | dict(zip(keys, rows, strict=True))


@pytest.fixture
def make_rows(monkeypatch):
    def make(*arguments, **options):
        rows = Rows(*arguments, **options)
        monkeypatch.setattr(queue, "read", rows.read)
        monkeypatch.setattr(queue, "write", rows.write)
        return rows

    return make


def gradients(keys, advantages, masks, questions, ranks, mode):
    """Of every optimizer step: key → gradient of its row's log-probabilities, as the ranks' mean has it.

    veRL's ranks cut their runs of the batch into mini-batches, and divide by what the mini-batch has on all ranks.
    """
    size = questions * GROUP_SIZE
    runs = np.array(keys).reshape(ranks, -1)
    steps = []
    for cut in np.split(runs, len(keys) // size, axis=1):
        own = [key for rank in cut for key in rank]
        log_probs = torch.zeros(len(own), LENGTH, requires_grad=True)
        padded = [
            torch.nn.utils.rnn.pad_sequence([torch.zeros(LENGTH), *(rows[key] for key in own)], batch_first=True)[1:]
            for rows in (advantages, masks)
        ]
        agg_loss(-padded[0] * torch.exp(log_probs), padded[1], mode).backward()
        steps.append(dict(zip(own, log_probs.grad, strict=True)))
    return steps


def settings(mode, actor=None):
    changes = {"ppo_mini_batch_size": QUESTIONS, "use_dynamic_bsz": True, "loss_agg_mode": mode} | (actor or {})
    flat = {f"actor_rollout_ref.actor.{key}": value for key, value in changes.items()}
    return config(**flat, **{"actor_rollout_ref.rollout.n": GROUP_SIZE})


@pytest.mark.parametrize("keep_groups", [False, True])
@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("mini_batches", [1, 3])
@pytest.mark.parametrize("mode", MODES)
def test_every_optimizer_step_is_the_same(make_rows, mode, mini_batches, ranks, keep_groups):
    fewer = 0
    for seed in range(8):
        rows, metrics = make_rows(mini_batches, seed), {}
        masks = rows.columns["response_mask"]
        whole = gradients(rows.keys, rows.original, masks, QUESTIONS, ranks, mode)
        smaller, questions = skip_zero_advantage_rows(rows, settings(mode), ranks, keep_groups, metrics)
        assert len(smaller) == questions * GROUP_SIZE * mini_batches
        assert smaller.tags == [rows.tags[rows.keys.index(key)] for key in smaller.keys]
        part = gradients(smaller.keys, rows.columns["advantages"], masks, questions, ranks, mode)
        assert len(part) == len(whole) == mini_batches
        for before, after in zip(whole, part, strict=True):
            assert after.keys() <= before.keys(), "every mini-batch keeps its own rows"
            for key, gradient in before.items():
                assert torch.allclose(gradient, after.get(key, torch.zeros(LENGTH)), atol=1e-7)
        fewer += questions < QUESTIONS
        assert bool(metrics) is (questions < QUESTIONS and ranks > 1)
    assert fewer > 2, "and there was something to skip"


def test_one_write_for_all_mini_batches(make_rows):
    rows = make_rows(3, seed=1, share=0.2)
    smaller, questions = skip_zero_advantage_rows(rows, settings("token-mean"), 1, False, {})
    assert questions < QUESTIONS
    assert rows.written == [(smaller.keys, {"advantages"})]


def test_groups_stay_neighbours_where_they_have_to(make_rows):
    rows = make_rows(1, seed=0, share=0.0)
    for key in ("q0", "q3"):
        for member in range(GROUP_SIZE):
            rows.columns["advantages"][f"{key}_{member}_0"] = torch.ones(2)
    smaller, questions = skip_zero_advantage_rows(rows, settings("token-mean"), 2, True, {})
    assert questions == 2
    owners = [{key.split("_")[0] for key in run} for run in np.array(smaller.keys).reshape(2, -1)]
    assert sorted(map(sorted, owners)) == [["q0"], ["q3"]]


def test_without_any_signal_a_mini_batch_has_one_question(make_rows):
    rows = make_rows(2, seed=0, share=0.0)
    smaller, questions = skip_zero_advantage_rows(rows, settings("token-mean"), 1, False, {})
    assert (questions, len(smaller)) == (1, 2 * GROUP_SIZE)


@pytest.mark.parametrize(
    "actor",
    [
        {"use_dynamic_bsz": False, "ppo_micro_batch_size_per_gpu": "null"},  # veRL's older, global size
        {"use_dynamic_bsz": False, "ppo_micro_batch_size_per_gpu": QUESTIONS * GROUP_SIZE},  # one micro-batch
        {"ppo_mini_batch_size": 5},  # does not divide the batch
        {"entropy_coeff": 0.01},
    ],
)
def test_the_batch_stays_whole_where_nothing_can_be_skipped(make_rows, actor):
    rows = make_rows(3, seed=1, share=0.2)
    assert skip_zero_advantage_rows(rows, settings("token-mean", actor), 1, False, {})[0] is rows
    assert rows.written == []


def test_one_mini_batch_full_of_signal_keeps_all_whole(make_rows):
    rows = make_rows(2, seed=0, share=0.0)
    for key in rows.keys[: QUESTIONS * GROUP_SIZE]:
        rows.columns["advantages"][key] = torch.ones(2)
    smaller, questions = skip_zero_advantage_rows(rows, settings("token-mean"), 1, False, {})
    assert (smaller is rows, questions, rows.written) == (True, QUESTIONS, [])


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
