"""Groups that are sampled down, and MinPRO, through veRL's command line."""

from conftest import run_recipe


def test_two_of_four_members_train_with_minpro(tmp_path, data_dir):
    run = run_recipe(
        tmp_path, "+lean=enabled", "lean.rows_per_group=2", "actor_rollout_ref.actor.policy_loss.loss_mode=minpro",
        "actor_rollout_ref.actor.ppo_epochs=3", "trainer.val_before_train=false",
        STEPS="2", DATA_DIR=str(data_dir), LEARNING_RATE="1e-3",
    )  # fmt: skip
    assert run.returncode == 0, run.output[-4000:]
    assert [step["step"] for step in run.steps] == [1, 2]
    for step in run.steps:
        assert step["lean/subset/rows_share"] == 0.5
        # The update skips unchosen members, and groups with equal rewards.
        assert 0 < step["lean/update/rows_share"] <= 0.5
        # From the second epoch on the policy is not the one that wrote the batch.
        assert step["actor/minpro_factor"] < 1
        assert step["actor/grad_norm"] > 0
