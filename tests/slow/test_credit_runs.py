"""Credit and trunks with what else veRL users switch on, a real run each."""

import json
import math
import shutil
from collections import defaultdict

import numpy as np
import pytest
from conftest import FROM_PREFIXES, run_recipe
from test_async_trainers import MODES

from rpo_verl.rpo import store

STEPS, QUESTIONS, GROUP_SIZE = 4, 4, 4
CREDIT = ("rpo.credit.rule=paid", "rpo.rollout.trunks=2")
SETTINGS = {
    "grpo, two devices, dynamic batches": [
        "trainer.n_gpus_per_node=2",
        "actor_rollout_ref.rollout.agent.num_workers=2",
        "lean.share_prefix=true",
        "actor_rollout_ref.actor.use_dynamic_bsz=true",
        "actor_rollout_ref.actor.ppo_max_token_len_per_gpu=400",
    ],
    "value, rloo, KL, several updates": [
        "rpo.credit.rule=value",
        "algorithm.adv_estimator=rloo",
        "actor_rollout_ref.actor.use_kl_loss=true",
        "actor_rollout_ref.ref.log_prob_micro_batch_size_per_gpu=8",
        "actor_rollout_ref.actor.loss_agg_mode=seq-mean-token-mean",
        "actor_rollout_ref.actor.ppo_mini_batch_size=2",
        "actor_rollout_ref.actor.ppo_epochs=2",
    ],
    "reinforce_plus_plus, lora": [
        "algorithm.adv_estimator=reinforce_plus_plus",
        "actor_rollout_ref.model.lora_rank=8",
        "actor_rollout_ref.rollout.load_format=safetensors",
    ],
    "dapo": [
        "algorithm.filter_groups.enable=true",
        "algorithm.filter_groups.metric=acc",
        "actor_rollout_ref.actor.clip_ratio_high=0.28",
    ],
    **{mode: [f"trainer.v1.trainer_mode={mode}", *overrides] for mode, overrides in MODES.items()},
}


@pytest.fixture(scope="module", params=SETTINGS)
def run(request, tmp_path_factory, data_dir):
    folder = tmp_path_factory.mktemp("credit")
    run = run_recipe(
        folder,
        *FROM_PREFIXES,
        *CREDIT,
        *SETTINGS[request.param],
        f"trainer.rollout_data_dir={folder / 'rollouts'}",
        STEPS=str(STEPS),
        DATA_DIR=str(data_dir),
        LEARNING_RATE_SCHEDULE="constant",
        OMP_NUM_THREADS="1",
        BYPASS_OLD_LOG_PROB=str(request.param == "dapo").lower(),
    )
    assert run.returncode == 0, run.output[-4000:]
    return run


def rows(run, step):
    return [json.loads(line) for line in (run.folder / "rollouts" / f"{step}.jsonl").read_text().splitlines()]


def test_it_trains_heads(run):
    assert [step["step"] for step in run.steps] == list(range(1, STEPS + 1))
    assert sum(step["rpo/groups/branched_total"] for step in run.steps) > 0
    assert sum(step["rpo/groups/prefixed_total"] for step in run.steps) > 0
    assert sum(step["rpo/credit/groups_total"] for step in run.steps) > 0
    for step in run.steps:
        kinds = ("full", "prefixed", "refreshed", "branched")
        assert sum(step[f"rpo/groups/{kind}_total"] for kind in kinds) == QUESTIONS
        assert sum(step[f"rpo/tokens/{kind}_total"] for kind in kinds) == step["rpo/tokens/generated_total"]
        assert math.isfinite(step["actor/grad_norm"])
        assert step["rpo/credit/unknown_total"] == 0


def test_one_member_of_a_branch_carries_its_credit(run, request):
    seen = 0
    for step in run.steps:
        groups = defaultdict(list)
        for row in rows(run, step["step"]):
            uid, member, *_ = row["uid"].split("_")
            size = GROUP_SIZE // 2 if row["rpo_kind"] == "branched" else GROUP_SIZE
            groups[uid, int(member) // size].append(row)
        for members in groups.values():
            advantages = [row["rpo_prefix_advantage"] for row in members if row["rpo_prefix_advantage"] is not None]
            assert len(advantages) <= 1
            seen += len(advantages)
            if "value" not in request.node.callspec.params["run"] and members[0]["rpo_prefix_tokens"]:
                right = np.mean([row["rpo_correct"] for row in members])
                assert (right > 0) == (len(advantages) == 1 and advantages[0] > 0)
    assert seen == sum(step["rpo/credit/groups_total"] for step in run.steps) > 0


# The same sample for the same question and weights, so that a run can be repeated.
REPEATABLE = ("actor_rollout_ref.rollout.full_determinism=true", "rpo.credit.rule=paid", "trainer.save_freq=3")


def contents(folder, step):
    cache, manifest = store.load(folder / "checkpoints" / f"global_step_{step}" / "rpo")
    assert manifest.temperature == 1.0
    return [(key, answer.tokens.tolist(), answer.logprobs.tolist(), answer.evidence) for key, answer in cache.items()]


def test_a_resumed_run_has_the_same_log_probabilities(data_dir, tmp_path):
    def train(folder):
        run = run_recipe(
            folder, *FROM_PREFIXES, *REPEATABLE, "trainer.resume_mode=auto", STEPS="6", DATA_DIR=str(data_dir),
            OMP_NUM_THREADS="1", LEARNING_RATE_SCHEDULE="constant",
        )  # fmt: skip
        assert run.returncode == 0, run.output[-4000:]
        return run

    whole = train(tmp_path / "whole")
    checkpoints = tmp_path / "resumed" / "checkpoints"
    shutil.copytree(tmp_path / "whole" / "checkpoints" / "global_step_3", checkpoints / "global_step_3")
    (checkpoints / "latest_checkpointed_iteration.txt").write_text("3")
    resumed = train(tmp_path / "resumed")
    assert sum(step["rpo/credit/groups_total"] for step in whole.steps[3:]) > 0
    assert contents(tmp_path / "resumed", 6) == contents(tmp_path / "whole", 6)
    assert contents(tmp_path / "whole", 6) != contents(tmp_path / "whole", 3)
    for one, other in zip(whole.steps[3:], resumed.steps, strict=True):
        for name in ("rpo/credit/tokens_total", "rpo/credit/advantage_mean", "actor/grad_norm"):
            assert one.get(name) == pytest.approx(other.get(name), rel=1e-6), name
