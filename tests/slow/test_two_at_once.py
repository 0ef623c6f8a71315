"""Two trainings on one machine, each with a Ray of its own, keep out of each other's way."""

import os
from concurrent.futures import ThreadPoolExecutor

import pytest
from conftest import FROM_PREFIXES, run_recipe


def test_weights_reach_the_engine_of_their_own_training(data_dir, tmp_path):
    """Both are their Ray's first job, by which veRL names the socket that weights go through."""
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        pytest.skip("takes two cores")

    def train(lane: int):
        os.sched_setaffinity(0, {cores[lane]})  # of this thread, and so of what it starts
        environment = {"DATA_DIR": str(data_dir), "STEPS": "3", "SEED": str(lane), "OMP_NUM_THREADS": "1"}
        return run_recipe(tmp_path / str(lane), *FROM_PREFIXES, **environment)

    with ThreadPoolExecutor(2) as pool:
        runs = list(pool.map(train, range(2)))
    for run in runs:
        assert run.returncode == 0, run.output[-4000:]
        assert [step["step"] for step in run.steps] == [1, 2, 3]
        # After updates as before them, engine and trainer have the same weights.
        assert all(step["training/rollout_probs_diff_max"] < 1e-3 for step in run.steps)
