"""LoRA: adapters are trained on suffixes, and vLLM generates with them."""

from conftest import FROM_PREFIXES, run_recipe

STEPS = 4


def test_adapters_train_behind_prefixes(data_dir, tmp_path):
    run = run_recipe(
        tmp_path,
        *FROM_PREFIXES,
        "actor_rollout_ref.model.lora_rank=8",
        "actor_rollout_ref.model.lora_alpha=16",
        "actor_rollout_ref.rollout.load_format=safetensors",
        STEPS=str(STEPS),
        DATA_DIR=str(data_dir),
        LEARNING_RATE="1e-2",
        LEARNING_RATE_SCHEDULE="constant",
    )
    assert run.returncode == 0, run.output[-4000:]
    assert [step["step"] for step in run.steps] == list(range(1, STEPS + 1))
    assert any(step["rpo/groups/prefixed_total"] > 0 for step in run.steps)
    assert any(step["actor/grad_norm"] > 0 for step in run.steps)
    # The trainer computes with the adapter it has just updated; so does vLLM if the two agree.
    for step in run.steps:
        assert step["training/rollout_probs_diff_max"] < 1e-3
