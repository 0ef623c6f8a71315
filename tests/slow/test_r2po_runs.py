"""R²PO in longer company: beside RPO, on two devices, with LoRA, DAPO, the authors' settings; resumed; and a head of
zeros and a head of noise, which show that training rollouts have the head and validation has not.
"""

import json
import shutil

import pytest
from conftest import run_recipe
from safetensors.torch import load_file

#: So cold that sampling is a function of the weights, without a cut distribution.
COLD = (
    "actor_rollout_ref.rollout.temperature=0.001",
    "data.shuffle=false",
    "trainer.val_before_train=false",
    # The members of a group are alike, so that it is the entropy bonus that moves the weights.
    "actor_rollout_ref.actor.entropy_coeff=0.01",
    "algorithm.rollout_correction.rollout_is=token",
)


#: A head that moves probabilities from the first step on. What it learns in a few steps may be nothing.
NOISE = "r2po.head.init_std=0.05"


def ran(run, steps):
    assert run.returncode == 0, run.output[-4000:]
    assert [step["step"] for step in run.steps] == list(steps)
    return run


def rollouts(run):
    """Sampled texts of every step; veRL's uid is random."""
    return {
        path.name: sorted(line.split('"uid"')[0] for line in path.read_text().splitlines())
        for path in (run.folder / "rollouts").glob("*.jsonl")
    }


def test_a_head_of_zeros_trains_as_veRL_alone(tmp_path, data_dir):
    found = []
    for name, overrides in (("without", ()), ("with", ("+r2po=enabled", "r2po.head_steps=0"))):
        folder = tmp_path / name
        run = run_recipe(
            folder, *COLD, *overrides, f"trainer.rollout_data_dir={folder / 'rollouts'}", STEPS="2",
            DATA_DIR=str(data_dir), OMP_NUM_THREADS="1",
        )  # fmt: skip
        found.append(ran(run, (1, 2)))
    without, with_head = found
    assert rollouts(with_head) == rollouts(without)
    assert {name: len(rows) for name, rows in rollouts(without).items()} == {"1.jsonl": 16, "2.jsonl": 16}
    for ours, theirs in zip(with_head.steps, without.steps, strict=True):
        assert ours["actor/grad_norm"] == pytest.approx(theirs["actor/grad_norm"], rel=1e-4)
        assert ours["r2po/stage"] == 2
        assert set(ours) - set(theirs) == {"r2po/stage"}


def test_noise_ruins_training_rollouts_and_no_validation(tmp_path, data_dir):
    run = run_recipe(
        tmp_path, "+r2po=enabled", "r2po.head.init_std=0.3", "r2po.head_steps=0", STEPS="2", DATA_DIR=str(data_dir),
        LEARNING_RATE="1e-9", TEST_FREQ="1",
    )  # fmt: skip
    assert run.returncode == 0, run.output[-4000:]
    before, *steps = run.steps
    (name,) = [name for name in before if name.startswith("val-core") and "mean@" in name]
    assert before[name] > 0.4
    for step in steps:
        assert step["critic/score/mean"] < 0.1
        assert step[name] > 0.4
        assert step["rollout_corr/rollout_is_min"] < 0.5


@pytest.fixture(scope="module")
def first_half(tmp_path_factory, data_dir):
    return ran(resumable(tmp_path_factory.mktemp("first"), data_dir, 2), (1, 2))


def resumable(folder, data_dir, steps, *overrides):
    return run_recipe(
        folder, "+r2po=enabled", NOISE, "r2po.head_every=3", "r2po.head_steps=2", "r2po.stage1.lr=0.02",
        "trainer.val_before_train=false", "trainer.resume_mode=auto", "trainer.save_freq=1",
        "trainer.max_actor_ckpt_to_keep=1", *overrides, STEPS=str(steps), DATA_DIR=str(data_dir),
        LEARNING_RATE_SCHEDULE="constant",
    )  # fmt: skip


def head_of(folder, step):
    checkpoint = folder / "checkpoints" / f"global_step_{step}" / "r2po"
    return load_file(checkpoint / "head.safetensors"), json.loads((checkpoint / "state.json").read_text())


def test_a_resumed_run_goes_on_with_its_head(tmp_path, data_dir, first_half):
    shutil.copytree(first_half.folder / "checkpoints", tmp_path / "checkpoints")
    saved, state = head_of(tmp_path, 2)
    # Step 3 is stage 2, step 4 stage 1.
    run = ran(resumable(tmp_path, data_dir, 3), (3,))
    again, same = head_of(tmp_path, 3)
    assert saved.keys() == again.keys()
    assert all(saved[name].equal(again[name]) for name in saved)
    assert same == state | {"step": 3}
    # vLLM sampled with it, from the first step on.
    assert run.steps[0]["training/rollout_probs_diff_max"] > 1e-3
    run = ran(resumable(tmp_path, data_dir, 4), (4,))
    assert run.steps[0]["r2po/head/sampling_error"] < 1e-4
    moved, later = head_of(tmp_path, 4)
    assert later["updates"] == state["updates"] + 4 == 12
    assert not moved["up"].equal(saved["up"])
    # The head goes with the actor, which veRL deletes of a checkpoint that a run no longer keeps.
    heads, actors = (
        {path.parent.name for path in (tmp_path / "checkpoints").glob(f"*/{name}")} for name in ("r2po", "actor")
    )
    assert heads == actors == {"global_step_2", "global_step_3", "global_step_4"}


def test_a_checkpoint_without_its_head_is_refused(tmp_path, data_dir, first_half):
    shutil.copytree(first_half.folder / "checkpoints", tmp_path / "checkpoints")
    shutil.rmtree(tmp_path / "checkpoints" / "global_step_2" / "r2po")
    run = resumable(tmp_path, data_dir, 3)
    assert run.returncode != 0
    assert "no rollout head can be read there" in run.output
    assert str(tmp_path / "checkpoints" / "global_step_2" / "r2po") in run.output
    assert not run.steps


def test_beside_rpo_on_two_devices_with_dynamic_batches(tmp_path, data_dir):
    run = run_recipe(
        tmp_path, "+rpo=enabled", "rpo.truncation.max_fraction=0.5", "rpo.cache.max_failures=null",
        "trainer.val_before_train=false", "+r2po=enabled", NOISE, "r2po.head_every=2", "r2po.stage1.lr=0.02",
        "lean.share_prefix=true", "trainer.n_gpus_per_node=2", "actor_rollout_ref.actor.use_dynamic_bsz=true",
        "actor_rollout_ref.actor.ppo_max_token_len_per_gpu=400", STEPS="5", DATA_DIR=str(data_dir),
    )  # fmt: skip
    ran(run, (1, 2, 3, 4, 5))
    assert run.steps[-1]["rpo/groups/prefixed_total"] == 4
    for step in run.steps[::2]:
        assert step["r2po/head/sampling_error"] < 1e-4
        assert step["r2po/stage"] == 1
    for step in run.steps[1::2]:
        assert step["actor/grad_norm"] >= 0
        assert step["lean/update/rows_share"] <= 1
        assert step["rpo/credit/unknown_total"] == 0, "the head's log-probabilities go with its answers"
        assert step["rollout_corr/rollout_is_mean"] > 0
    assert sum(step["rpo/credit/groups_total"] for step in run.steps) > 0
    assert run.steps[1]["training/rollout_probs_diff_max"] > 1e-3


def test_lora_with_a_kl_loss(tmp_path, data_dir):
    run = run_recipe(
        tmp_path, "+r2po=enabled", "r2po.head_every=2", "r2po.stage1.lr=0.02",
        "actor_rollout_ref.model.lora_rank=8", "actor_rollout_ref.model.lora_alpha=16",
        "actor_rollout_ref.rollout.load_format=safetensors", "actor_rollout_ref.actor.use_kl_loss=true",
        "actor_rollout_ref.ref.log_prob_micro_batch_size_per_gpu=8", "trainer.val_before_train=false",
        STEPS="3", DATA_DIR=str(data_dir), LEARNING_RATE="1e-2", LEARNING_RATE_SCHEDULE="constant",
    )  # fmt: skip
    ran(run, (1, 2, 3))
    assert run.steps[2]["r2po/head/sampling_error"] < 1e-4
    assert run.steps[1]["actor/grad_norm"] > 0
    # The new adapter moved away from the reference.
    assert run.steps[1]["training/rollout_probs_diff_max"] > 1e-3


def test_the_authors_settings_under_dapo(tmp_path, data_dir):
    run = run_recipe(
        tmp_path, "+r2po=paper", "r2po.head_every=2", "r2po.head_steps=1", "algorithm.filter_groups.enable=true",
        "algorithm.filter_groups.metric=acc", "trainer.val_before_train=false", STEPS="2", DATA_DIR=str(data_dir),
    )  # fmt: skip
    ran(run, (1, 2))
    first, second = run.steps
    assert first["r2po/head/kl_weight"] == 0.04
    assert 0 < first["r2po/rarity/signal_share"] <= 1
    # As docs/r2po.md says: with these settings the head hardly moves.
    assert second["training/rollout_probs_diff_max"] < 1e-3
    assert "rollout_corr/rollout_is_mean" not in second
