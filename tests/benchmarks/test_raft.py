"""RAFT as an estimator of veRL: imitation of the right responses."""

import os
import subprocess
import sys

import torch
from conftest import ROOT
from verl.trainer.ppo.core_algos import get_adv_estimator_fn

from benchmarks import raft


def test_right_responses_are_imitated_and_wrong_ones_have_no_advantage():
    mask = torch.tensor([[1, 1, 1, 0], [1, 1, 0, 0], [0, 1, 1, 1]])
    rewards = torch.tensor([[0.0, 0, 1, 0], [0, 0, 0, 0], [0, 0, 0, 0.5]])
    advantages, returns = raft.compute_raft_advantage(rewards, mask, index=["a", "a", "b"])
    assert advantages.tolist() == [[1, 1, 1, 0], [0, 0, 0, 0], [0, 0.5, 0.5, 0.5]]
    assert torch.equal(advantages, returns)
    # So the lean layer leaves them out of the update.
    assert [bool(row.any()) for row in advantages] == [True, False, True]


def test_a_penalty_is_not_imitated():
    advantages, _ = raft.compute_raft_advantage(torch.tensor([[0.0, -1.0]]), torch.ones(1, 2))
    assert not advantages.any()


def test_verl_finds_it_by_name():
    assert get_adv_estimator_fn("raft") is raft.compute_raft_advantage


def test_the_variable_that_loads_modules_registers_it():
    code = "from verl.trainer.ppo.core_algos import get_adv_estimator_fn as f; print(f('raft').__module__)"
    environment = os.environ | {
        "VERL_USE_EXTERNAL_MODULES": "benchmarks.waiting,benchmarks.raft", "VERL_PLATFORM": "cpu",
        "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
    }  # fmt: skip
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.stdout.split() == ["benchmarks.raft"], done.stderr
