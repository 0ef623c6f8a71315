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

STEPS, QUESTIONS = 4, 4
CREDIT = ("rpo.credit.rule=paid", "rpo.rollout.trunks=2")
SETTINGS = {
    "grpo, two devices, dynamic batches": [
        "trainer.n_gpus_per_node=2",
        "actor_rollout_ref.rollout.agent.num_workers=2",
        "lean.share_prefix=true",
        "actor_rollout_ref.actor.use_dynamic_bsz=true",
        "actor_rollout_ref.actor.ppo_max_token_len_per_gpu=400",
    ],
    "grpo, importance weights, rejections": [
        "algorithm.rollout_correction.rollout_is=token",
        "algorithm.rollout_correction.rollout_rs=token_k1",
        "algorithm.rollout_correction.rollout_rs_threshold=0.9_1.1",
    ],
    "imitate, dynamic batches, several updates": [
        "rpo.credit.rule=imitate",
        "actor_rollout_ref.actor.use_dynamic_bsz=true",
        "actor_rollout_ref.actor.ppo_max_token_len_per_gpu=400",
        "actor_rollout_ref.actor.ppo_mini_batch_size=2",
    ],
    "rloo, KL, several updates": [
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


def test_one_member_of_a_branch_carries_its_credit(run):
    seen = 0
    for step in run.steps:
        groups = defaultdict(list)
        for row in rows(run, step["step"]):
            uid, member, *_ = row["uid"].split("_")
            branch = int(member) % 2 if row["rpo_kind"] == "branched" else 0
            groups[uid, branch].append(row)
        for members in groups.values():
            advantages = [row["rpo_prefix_advantage"] for row in members if row["rpo_prefix_advantage"] is not None]
            assert len(advantages) <= 1
            seen += len(advantages)
            if members[0]["rpo_prefix_tokens"]:
                right = np.mean([row["rpo_correct"] for row in members])
                assert (right > 0) == (len(advantages) == 1 and advantages[0] > 0)
    assert seen == sum(step["rpo/credit/groups_total"] for step in run.steps) > 0


@pytest.mark.parametrize("run", [name for name in SETTINGS if "imitate" in name], indirect=True)
def test_by_imitation_right_responses_earn_one_each(run):
    earned, right = defaultdict(float), defaultdict(int)
    for step in run.steps:
        for row in rows(run, step["step"]):
            uid = row["uid"].split("_")[0]
            earned[uid] += row["rpo_advantage"]
            right[uid] += row["rpo_correct"]
    assert earned == right and sum(right.values()) > 0


def test_log_probabilities_go_with_the_checkpoint(data_dir, tmp_path):
    """In step 3 every group starts from a cached prefix; a resumed run knows the log-probabilities of all of them."""

    def train(folder, steps, *overrides):
        run = run_recipe(
            folder, *FROM_PREFIXES, "rpo.credit.rule=paid", "rpo.cache.max_failures=null", "trainer.save_freq=2",
            "trainer.resume_mode=auto", *overrides, STEPS=str(steps), DATA_DIR=str(data_dir), OMP_NUM_THREADS="1",
            LEARNING_RATE_SCHEDULE="constant",
        )  # fmt: skip
        assert run.returncode == 0, run.output[-4000:]
        return run

    train(tmp_path / "run", 2)
    cache, manifest = store.load(tmp_path / "run" / "checkpoints" / "global_step_2" / "rpo")
    assert (manifest.temperature, len(cache)) == (1.0, 8)
    assert all(len(answer.logprobs) == len(answer.tokens) > 0 for _, answer in cache.items())
    shutil.copytree(tmp_path / "run", tmp_path / "colder")

    (third,) = train(tmp_path / "run", 3).steps
    assert (third["step"], third["rpo/groups/prefixed_total"], third["rpo/credit/unknown_total"]) == (3, 4, 0)
    assert third["rpo/credit/groups_total"] > 0

    run = train(tmp_path / "colder", 3, "actor_rollout_ref.rollout.temperature=0.9")
    (third,) = run.steps
    assert (third["rpo/groups/prefixed_total"], third["rpo/credit/groups_total"]) == (4, 0)
    assert third["rpo/credit/unknown_total"] > 0
    assert "8 cached answers have no log-probabilities of actor_rollout_ref.rollout.temperature=0.9" in run.output
