"""DAPO with RPO: clip-higher, overlong penalty on whole responses, and dynamic sampling by shaped rewards."""

import json
from pathlib import Path

import pytest
from conftest import WITHOUT_CREDIT, run_recipe

STEPS = 4
GROUPS, GROUP_SIZE = 4, 4
#: Groups from prefixes that a step may leave out.
LIMIT = 2
#: Solutions have 67 tokens; the penalty begins at 58, which no suffix alone reaches.
EXPECTED_LENGTH, MAX_LENGTH = 58, 208


@pytest.fixture(scope="module")
def run(tmp_path_factory, data_dir):
    folder = tmp_path_factory.mktemp("dapo")
    overlong = f"{{enable: true, len: {MAX_LENGTH - EXPECTED_LENGTH}, penalty_factor: 1.0, log: true}}"
    run = run_recipe(
        folder,
        *WITHOUT_CREDIT,
        f"rpo.reward.filter_at_most={LIMIT / GROUPS}",
        "rpo.truncation.max_fraction=0.5",
        "actor_rollout_ref.actor.clip_ratio_high=0.28",
        "reward.reward_manager.name=dapo",
        f"+reward.reward_kwargs.overlong_buffer_cfg={overlong}",
        f"+reward.reward_kwargs.max_resp_len={MAX_LENGTH}",
        "algorithm.filter_groups.enable=true",
        "algorithm.filter_groups.metric=acc",
        "trainer.val_before_train=false",
        STEPS=str(STEPS),
        BYPASS_OLD_LOG_PROB="true",
        DATA_DIR=str(data_dir),
        REWARD_FILE=str(Path(__file__).parent / "recording_reward.py"),
        RECORD_FILE=str(folder / "rewards.jsonl"),
    )
    assert run.returncode == 0, run.output[-4000:]
    return run


@pytest.fixture(scope="module")
def responses(run):
    records = [json.loads(line) for line in (run.folder / "rewards.jsonl").read_text().splitlines()]
    return [record for record in records if record["split"] == "train"]


def test_a_step_leaves_out_as_many_groups_as_it_may_before_others_fill_the_batch(run):
    assert [step["step"] for step in run.steps] == list(range(1, STEPS + 1))
    filled = 0
    for step in run.steps:
        assert sum(step[f"rpo/groups/{kind}_total"] for kind in ("full", "prefixed", "refreshed")) == GROUPS
        if step["rpo/left_out/prefixed_total"] == step["rpo/left_out/groups_total"]:
            assert step.get("training/filter_groups/evicted_samples", 0) <= LIMIT
        if step["rpo/groups/no_signal_share_after_shaping"] > 0:
            filled += 1
            assert step["training/filter_groups/evicted_samples"] >= LIMIT
            assert step["rpo/groups/prefixed_total"] > 0
        assert (step["actor/grad_norm"] > 0) == (step["rpo/groups/no_signal_share_after_shaping"] < 1)
    assert filled


def test_every_response_is_accounted_for(run, responses):
    left_out = sum(step["rpo/left_out/groups_total"] for step in run.steps)
    assert left_out > 0
    assert len(responses) == GROUP_SIZE * (GROUPS * STEPS + left_out)
    assert left_out == sum(
        step.get(f"training/filter_groups/{name}", 0)
        for step in run.steps
        for name in ("evicted_samples", "discarded_surplus_samples")
    )


def test_groups_left_out_teach_the_cache(run):
    first, *others = run.steps
    # The first 8 questions of an epoch are all different.
    assert first["rpo/cache/entries"] == min(8, GROUPS + first["rpo/left_out/groups_total"])
    full = (first["rpo/left_out/groups_total"] - first["rpo/left_out/prefixed_total"]) * GROUP_SIZE * 67
    prefixed = first["rpo/left_out/prefixed_total"] * GROUP_SIZE * 67
    assert full <= first["rpo/left_out/generated_total"] <= full + prefixed
    later = sum(step["rpo/left_out/groups_total"] for step in others)
    assert 0 < sum(step["rpo/left_out/generated_total"] for step in others) < later * GROUP_SIZE * 67


def test_the_overlong_penalty_counts_prefix_and_suffix(run):
    for step in run.steps:
        length = step["response_length/mean"]
        penalty = max(0.0, length - EXPECTED_LENGTH) / (MAX_LENGTH - EXPECTED_LENGTH)
        if step["response_length/min"] >= EXPECTED_LENGTH:
            correct = step["rpo/reward/correct_share"]
            assert step["rpo/reward/base_mean"] == pytest.approx(correct - penalty, abs=1e-4)
    assert any(step["response_length/min"] >= EXPECTED_LENGTH for step in run.steps)
