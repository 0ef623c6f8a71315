"""R²PO through veRL's command line: the head trains and samples, the policy trains, validates and is exported alone."""

import json
import re

import pytest
import torch
from conftest import ROOT, TINY, run_recipe
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

STEPS = 3


@pytest.fixture(scope="module")
def run(tmp_path_factory, data_dir):
    """Stage 1, stage 2, stage 1, with a learning rate that shows within two updates."""
    return run_recipe(
        tmp_path_factory.mktemp("r2po"), "+r2po=enabled", "+lean=enabled", "r2po.head_every=2", "r2po.stage1.lr=0.05",
        "r2po.stage1.kl_bound=null", "r2po.stage1.kl_weight=0.01", "r2po.stage1.epochs=2",
        "trainer.val_before_train=false", "trainer.save_freq=1",
        "actor_rollout_ref.actor.checkpoint.save_contents=[model,optimizer,extra,hf_model]",
        STEPS=str(STEPS), DATA_DIR=str(data_dir), LEARNING_RATE_SCHEDULE="constant", TEST_FREQ="3",
    )  # fmt: skip


def checkpoint(run, step):
    return run.folder / "checkpoints" / f"global_step_{step}"


def exported(run, step):
    return load_file(checkpoint(run, step) / "actor" / "huggingface" / "model.safetensors")


def test_it_ran_by_schedule(run):
    assert run.returncode == 0, run.output[-4000:]
    assert [step["r2po/stage"] for step in run.steps] == [1, 2, 1]
    for step in run.steps:
        assert ("r2po/head/kl" in step) == (step["r2po/stage"] == 1)
        assert ("actor/grad_norm" in step) == (step["r2po/stage"] == 2)
    assert any("val-core" in name for name in run.steps[-1])


def test_vllm_samples_from_the_head_that_the_trainer_has(run):
    first, second, third = run.steps
    # Of the head: the trainer computes the log-probabilities that vLLM sampled with, before and after it learned.
    assert first["r2po/head/sampling_error"] < 1e-4
    assert third["r2po/head/sampling_error"] < 1e-4
    # Of the policy: it agrees as long as the head is zero, then no longer.
    assert first["training/rollout_probs_diff_max"] < 1e-3
    assert second["training/rollout_probs_diff_max"] > 1e-2
    # veRL's weights correct for that.
    assert first["rollout_corr/rollout_is_max"] == pytest.approx(1, abs=1e-2)
    assert second["rollout_corr/rollout_is_max"] > 1.01


def test_stage_1_leaves_the_policy_alone_and_stage_2_the_head(run):
    initial = load_file(TINY / "checkpoint" / "model.safetensors")
    policies, heads = zip(
        *((exported(run, n), load_file(checkpoint(run, n) / "r2po" / "head.safetensors")) for n in (1, 2, 3)),
        strict=True,
    )
    assert all(torch.equal(policies[0][name], initial[name]) for name in initial)
    assert any(not torch.equal(policies[1][name], initial[name]) for name in initial)
    assert all(torch.equal(policies[2][name], policies[1][name]) for name in initial)
    assert heads[0]["up"].abs().max() > 0
    assert all(torch.equal(heads[1][name], heads[0][name]) for name in heads[0])
    assert not torch.equal(heads[2]["up"], heads[1]["up"])
    states = [json.loads((checkpoint(run, n) / "r2po" / "state.json").read_text()) for n in (1, 2, 3)]
    assert [(state["step"], state["updates"]) for state in states] == [(1, 2), (2, 2), (3, 4)]


def test_the_exported_model_has_no_head(run):
    initial = load_file(TINY / "checkpoint" / "model.safetensors")
    assert exported(run, STEPS).keys() == initial.keys()
    model = AutoModelForCausalLM.from_pretrained(checkpoint(run, STEPS) / "actor" / "huggingface")
    assert torch.isfinite(model(torch.tensor([[5, 6, 7]])).logits).all()
    assert not any("rollout_head" in name for name, _ in model.named_modules())


def test_rarity_is_reported(run):
    for step in (run.steps[0], run.steps[2]):
        assert 0 <= step["r2po/rarity/signal_share"] <= 1
        assert step["r2po/rarity/correct_share"] == pytest.approx(step["critic/score/mean"], abs=1e-6)
        assert step["r2po/head/grad_norm"] > 0


def test_every_metric_is_documented_and_every_documented_one_logged(run):
    page = (ROOT / "docs" / "r2po.md").read_text()
    rows = [line.split("|")[1] for line in page.splitlines() if line.startswith(("| `r2po/", "| `timing_s/"))]
    documented = {name for names in rows for name in re.findall(r"`([^`]+)`", names)}
    logged = {name for step in run.steps for name in step if re.match(r"r2po/|timing_s/r2po", name)}
    # Absent where no group has a correct response.
    assert logged | {"r2po/rarity/distinct_share"} == documented
