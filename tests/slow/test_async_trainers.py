"""veRL's asynchronous trainers: rollouts that an update interrupts and other weights finish, and a restart in between.

`separate_async` has a rollout server of its own; its weights travel through a TCPStore (`rpo_verl/cpu/weights.py`).
"""

import json
import math

import pytest
from conftest import FROM_PREFIXES, run_recipe

STEPS, MORE = 6, 2
QUESTIONS, GROUP_SIZE = 4, 4
#: Rollouts are one update old or more here, so that importance weights differ from 1 and some tokens are rejected.
CORRECTION = (
    "algorithm.rollout_correction.rollout_is=token",
    "algorithm.rollout_correction.rollout_rs=token_k1",
    "algorithm.rollout_correction.rollout_rs_threshold=0.9_1.1",
)
MODES = {
    "colocate_async": ["trainer.v1.colocate_async.num_warmup_batches=2"],
    "separate_async": [
        "trainer.v1.separate_async.num_warmup_batches=2",
        "trainer.v1.separate_async.parameter_sync_step=2",
        f"actor_rollout_ref.actor.ppo_mini_batch_size={QUESTIONS // 2}",
        "actor_rollout_ref.rollout.nnodes=1",
        "actor_rollout_ref.rollout.n_gpus_per_node=1",
        "actor_rollout_ref.rollout.checkpoint_engine.backend=tcp_store",
        "ray_kwargs.ray_init.num_gpus=2",
    ],
}


def train(folder, data_dir, mode, steps):
    run = run_recipe(
        folder,
        *FROM_PREFIXES,
        "rpo.cache.max_failures=null",
        *CORRECTION,
        f"trainer.v1.trainer_mode={mode}",
        *MODES[mode],
        "trainer.save_freq=2",
        "trainer.resume_mode=auto",
        f"trainer.rollout_data_dir={folder / 'rollouts'}",
        STEPS=str(steps),
        DATA_DIR=str(data_dir),
        LEARNING_RATE_SCHEDULE="constant",
    )
    assert run.returncode == 0, run.output[-4000:]
    return run


@pytest.fixture(scope="module", params=MODES)
def runs(request, tmp_path_factory, data_dir):
    folder = tmp_path_factory.mktemp(request.param)
    first = train(folder, data_dir, request.param, STEPS)
    (folder / "metrics.jsonl").rename(folder / "first.jsonl")
    return first, train(folder, data_dir, request.param, STEPS + MORE)


def rollouts(run, step):
    return [json.loads(line) for line in (run.folder / "rollouts" / f"{step}.jsonl").read_text().splitlines()]


def test_it_trains_from_prefixes(runs):
    first, resumed = runs
    assert [step["step"] for step in first.steps] == list(range(1, STEPS + 1))
    assert [step["step"] for step in resumed.steps] == list(range(STEPS + 1, STEPS + MORE + 1))
    for step in first.steps + resumed.steps:
        kinds = sum(step[f"rpo/groups/{kind}_total"] for kind in ("full", "prefixed", "refreshed"))
        assert kinds == QUESTIONS
    assert sum(step["rpo/groups/prefixed_total"] for step in first.steps) > 0


def test_veRLs_staleness_counts_the_prefix(runs):
    first, _ = runs
    counted = 0
    for step in first.steps:
        oldest = [row["rpo_source_step"] for row in rollouts(first, step["step"]) if row["rpo_source_step"] is not None]
        if oldest:
            counted += 1
            assert step["training/off_policy/trajectory_staleness_worst/max"] >= step["step"] - 1 - min(oldest)
    assert counted


def test_rollout_correction_weighs_and_rejects_behind_prefixes(runs):
    steps = [step for run in runs for step in run.steps if step["rpo/groups/prefixed_total"] > 0]
    for step in steps:
        assert 0 <= step["rollout_corr/rollout_rs_masked_fraction"] < 1
        assert step["rollout_corr/rollout_is_max"] <= 2
        assert math.isfinite(step["actor/grad_norm"])
    assert any(step["rollout_corr/rollout_rs_masked_fraction"] > 0 for step in steps)
    assert any(abs(step["rollout_corr/rollout_is_mean"] - 1) > 1e-4 for step in steps)


def test_the_cache_is_there_after_a_restart(runs):
    first, resumed = runs
    assert first.steps[-1]["rpo/cache/entries"] == 8
    # Finished groups of before the restart are trained on first; some of them were full rollouts.
    assert resumed.steps[-1]["rpo/groups/full_total"] == 0
