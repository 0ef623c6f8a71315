"""LoRA: adapters are trained on suffixes, and vLLM generates with them; prefixes are shared, with a reference too."""

from conftest import FROM_PREFIXES, run_recipe

STEPS = 4


def test_adapters_train_behind_prefixes(data_dir, tmp_path):
    run = run_recipe(
        tmp_path,
        *FROM_PREFIXES,
        "actor_rollout_ref.model.lora_rank=8",
        "actor_rollout_ref.model.lora_alpha=16",
        "actor_rollout_ref.rollout.load_format=safetensors",
        # The reference is the model without its adapter.
        "actor_rollout_ref.actor.use_kl_loss=true",
        "actor_rollout_ref.ref.log_prob_micro_batch_size_per_gpu=8",
        "lean.share_prefix=true",
        STEPS=str(STEPS),
        DATA_DIR=str(data_dir),
        LEARNING_RATE="1e-2",
        LEARNING_RATE_SCHEDULE="constant",
    )
    assert run.returncode == 0, run.output[-4000:]
    assert [step["step"] for step in run.steps] == list(range(1, STEPS + 1))
    assert any(step["rpo/groups/prefixed_total"] > 0 for step in run.steps)
    assert any(step["actor/grad_norm"] > 0 for step in run.steps)
    assert all(step["lean/update/computed_share"] < 0.9 for step in run.steps)
    # The reference and the new adapter agree at first, then no longer.
    assert abs(run.steps[0]["actor/kl_loss"]) < 1e-4 < run.steps[-1]["actor/kl_loss"]
    # The trainer computes with the adapter it has just updated; so does vLLM if the two agree.
    for step in run.steps:
        assert step["training/rollout_probs_diff_max"] < 1e-3
