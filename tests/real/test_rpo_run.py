"""RPO through the real veRL, from the wheel: one run, many assertions."""

import json
import re
from collections import defaultdict

import numpy as np
import pytest
from conftest import ROOT, run_recipe

from benchmarks import steps

STEPS = 6
EPOCH = 2  # steps until every one of the 8 questions has been met


@pytest.fixture(scope="module")
def run(tmp_path_factory, data_dir, wheel_dir):
    folder = tmp_path_factory.mktemp("rpo")
    run = run_recipe(
        folder,
        "+rpo=enabled",
        "rpo.rollout.full_rollout_every=5",
        "rpo.cache.greedy_prob=0.5",
        "rpo.cache.max_failures=2",
        "rpo.truncation.max_fraction=0.5",
        "data.shuffle=false",
        "trainer.val_before_train=false",
        f"trainer.save_freq={STEPS}",
        f"trainer.rollout_data_dir={folder / 'rollouts'}",
        f"trainer.validation_data_dir={folder / 'validation'}",
        STEPS=str(STEPS),
        TEST_FREQ=str(STEPS),
        DATA_DIR=str(data_dir),
        REWARD_FILE=str(__import__("pathlib").Path(__file__).parent / "recording_reward.py"),
        RECORD_FILE=str(folder / "rewards.jsonl"),
        PYTHONPATH=str(wheel_dir),
    )
    assert run.returncode == 0, run.output[-4000:]
    return run


@pytest.fixture(scope="module")
def rewards(run):
    """Every call of the reward function: training rows by step, and validation rows."""
    records = [json.loads(line) for line in (run.folder / "rewards.jsonl").read_text().splitlines()]
    return records


def test_all_steps_ran_and_updated_the_weights(run):
    assert [step["step"] for step in run.steps] == list(range(1, STEPS + 1))
    assert all(step["actor/grad_norm"] >= 0 for step in run.steps)
    assert any(step["actor/grad_norm"] > 0 for step in run.steps)


def test_kinds_of_groups(run):
    kinds = [
        tuple(step[f"rpo/groups/{kind}_total"] for kind in ("branched", "prefixed", "refreshed")) for step in run.steps
    ]
    assert all(step["rpo/groups/full_total"] == 0 for step in run.steps)
    assert kinds[:EPOCH] == [(4, 0, 0)] * EPOCH
    assert kinds[4] == (0, 0, 4)  # step 5: full_rollout_every
    assert kinds[2] == kinds[3] == kinds[5] == (0, 4, 0)
    # A question's second prefixed group comes with step 6: only then can an answer have failed max_failures = 2 times.
    assert [step["rpo/cache/dropped_total"] for step in run.steps[:5]] == [0] * 5
    dropped = run.steps[5]["rpo/cache/dropped_total"]
    assert [step["rpo/cache/entries"] for step in run.steps] == [4, 8, 8, 8, 8, 8 - dropped]
    assert all(step["rpo/groups/passed_through_total"] == 0 for step in run.steps)


def test_rows_without_signal_are_left_out_of_the_update(run):
    for step in run.steps:
        # One member of a group or branch carries the credit of its prefix; 16 rows go in micro-batches of 8.
        trained = [r for r in dumped(run, step["step"]) if r["rpo_advantage"] or r["rpo_prefix_advantage"]]
        assert step["lean/update/rows_share"] == (1.0 if len(trained) > 8 else 0.5)
    assert any(step["lean/update/rows_share"] == 0.5 for step in run.steps)


def test_every_right_prefix_is_trained_once(run):
    seen = 0
    for step in run.steps:
        for members in branches(dumped(run, step["step"])).values():
            credit = [r["rpo_prefix_advantage"] for r in members if r["rpo_prefix_advantage"] is not None]
            right = any(r["rpo_correct"] for r in members) and members[0]["rpo_prefix_tokens"] > 0
            assert len(credit) == right and all(advantage > 0 for advantage in credit)
            seen += len(credit)
    assert seen == sum(step["rpo/credit/groups_total"] for step in run.steps) > 0
    assert all(step["rpo/credit/unknown_total"] == 0 for step in run.steps)


def test_tokens_are_accounted_for(run):
    for step in run.steps:
        responses = 16 * step["response_length/mean"]
        assert step["rpo/tokens/generated_total"] + step["rpo/tokens/reused_total"] == pytest.approx(responses)
    assert run.steps[4]["rpo/tokens/reused_total"] == 0
    # Two of four members branch.
    assert all(0 < step["rpo/tokens/saved_share"] < 0.5 for step in run.steps[:EPOCH])
    assert all(step["rpo/tokens/saved_share"] > 0.5 for step in (run.steps[2], run.steps[3], run.steps[5]))


def test_trainer_and_vllm_agree_on_the_log_probabilities_of_suffixes(run):
    assert all(step["training/rollout_probs_diff_valid"] == 1 for step in run.steps)
    assert all(step["training/rollout_probs_diff_max"] < 1e-3 for step in run.steps)
    # The weights that vLLM uses are those the trainer has just updated: the agreement above holds at every step.
    assert all(abs(step["rollout_corr/kl"]) < 1e-4 for step in run.steps)


def dumped(run, step):
    """The rollouts of a step as trainer.rollout_data_dir has them."""
    lines = (run.folder / "rollouts" / f"{step}.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def branches(records):
    """(question, trunk) → the members that share a prefix; two trunks write the heads of a first visit."""
    found = defaultdict(list)
    for record in records:
        _, member, _ = record["uid"].split("_")
        found[record["input"], int(member) % 2 if record["rpo_kind"] == "branched" else 0].append(record)
    return found


def test_the_response_is_prefix_then_suffix(run):
    """The model's tokenizer has one token per character, so texts show the ids."""
    earlier, checked = defaultdict(list), 0
    for step in range(1, STEPS + 1):
        groups = branches(dumped(run, step))
        for (question, _), records in groups.items():
            heads = {record["output"][: record["rpo_prefix_tokens"]] for record in records}
            assert len(heads) == 1, "the members of a group or branch share one prefix"
            (head,) = heads
            if records[0]["rpo_kind"] == "prefixed":
                assert head
                assert any(response.startswith(head) for response in earlier[question])
                checked += 1
            else:
                assert bool(head) == (records[0]["rpo_kind"] == "branched")
        for (question, _), records in groups.items():
            earlier[question] += [record["output"] for record in records]
    assert checked >= 8


def test_the_reward_function_sees_whole_responses_and_its_rewards_are_unchanged(run, rewards):
    train = [record for record in rewards if record["split"] == "train"]
    assert len(train) == STEPS * 16
    for number, step in enumerate(run.steps):
        scores = [record["score"] for record in train[number * 16 : number * 16 + 16]]
        assert step["critic/score/mean"] == pytest.approx(sum(scores) / 16)
        assert step["rpo/reward/base_mean"] == pytest.approx(sum(scores) / 16)


def test_validation_never_sees_a_prefix(run, rewards):
    validated = [record for record in rewards if record["split"] == "val"]
    assert len(validated) == 8
    assert all(record["prefix_tokens"] is None for record in validated)
    assert "val-core/tiny_reasoner/acc/mean@1" in run.steps[-1]
    assert not any("rpo_correct" in name for name in run.steps[-1])


def test_staleness_of_prefixes_shows_in_verls_own_metrics(run):
    worst = [step["training/off_policy/trajectory_staleness_worst/max"] for step in run.steps]
    assert worst[:EPOCH] == [0] * EPOCH
    assert worst[2] == 2  # written by the weights of step 0, used two updates later
    assert worst[3] >= 2
    assert all(step["training/off_policy/trajectory_staleness/max"] == 0 for step in run.steps)


def test_times_of_rpos_own_parts_are_reported(run):
    assert all(0 < step["timing_s/rpo_injection"] < 5 for step in run.steps)
    assert all(0 < step["timing_s/rpo_cache_update"] < 5 for step in run.steps)
    assert all(0 < step["timing_s/rpo_shaping"] < 5 for step in run.steps)


def test_the_wheel_was_used(run, wheel_dir):
    assert (wheel_dir / "rpo_verl" / "hydra_configs" / "rpo" / "enabled.yaml").exists()
    assert "rpo_verl: the plug-in" not in run.output


def test_every_metric_is_documented_and_every_documented_one_logged(run):
    page = (ROOT / "docs" / "metrics.md").read_text()
    rows = [line.split("|") for line in page.splitlines() if line.startswith("| `")]
    # What only a setting brings is shown by the run that has that setting.
    always = [row[1] for row in rows if not re.search(r"; only with `(rpo|lean|actor_rollout_ref)\.", row[3])]
    documented = {name for names in always for name in re.findall(r"`([^`]+)`", names)}
    logged = {name for step in run.steps for name in step if re.match(r"(rpo|lean)/|timing_s/rpo", name)}
    assert logged == documented


def test_throughput_counts_generated_tokens(run):
    for step in run.steps:
        honest = step["perf/throughput"] * step["rpo/tokens/generated_total"] / step["perf/total_num_tokens"]
        assert step["rpo/perf/generated_throughput"] == pytest.approx(honest, rel=1e-6)


def test_dumped_rollouts_show_prefix_and_rewards(run):
    for step in run.steps:
        records = dumped(run, step["step"])
        assert len(records) == 16
        for record in records:
            assert record["output"].startswith(record["rpo_prefix_text"])
            assert len(record["rpo_prefix_text"]) == record["rpo_prefix_tokens"]  # a token is a character here
            assert (record["rpo_kind"] in ("prefixed", "branched")) == (record["rpo_prefix_tokens"] > 0)
            assert record["rpo_base_reward"] == record["score"]
            assert record["rpo_shaped_reward"] <= record["score"]
            if record["rpo_prefix_tokens"]:
                assert record["rpo_age"] == step["step"] - record["rpo_source_step"] > 0
                assert (record["rpo_age"] == 1) >= (record["rpo_kind"] == "branched"), "by the policy of this step"
                assert record["rpo_dropped"] >= 1
        mean = sum(record["rpo_shaped_reward"] for record in records) / 16
        assert step["rpo/reward/shaped_mean"] == pytest.approx(mean)
        for group in branches(records).values():
            shaped = np.array([record["rpo_shaped_reward"] for record in group])
            expected = (shaped - shaped.mean()) / (shaped.std(ddof=1) + 1e-6)
            assert [record["rpo_advantage"] for record in group] == pytest.approx(expected, abs=1e-3)
    (path,) = (run.folder / "validation").glob("*.jsonl")
    assert not any("rpo_kind" in json.loads(line) for line in path.read_text().splitlines())


def test_the_benches_read_this_run(run):
    read = steps.read_steps(run.folder / "metrics.jsonl", group_size=4)
    trained = [step for step in read if step.number > 0]
    assert len(trained) == STEPS
    assert [step.generated_tokens for step in trained] == [s["rpo/tokens/generated_total"] for s in run.steps]
    assert all((step.samples, step.groups) == (16, 4) for step in trained)
    assert sum(step.hit_groups for step in trained) == pytest.approx(4 / 6 * sum(step.groups for step in trained))
    for step, found in zip(trained, run.steps, strict=True):
        assert step.prefixed_groups == found["rpo/groups/prefixed_total"]
