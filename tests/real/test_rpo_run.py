"""RPO through the real veRL, from the wheel: one run, many assertions."""

import json
import re
from collections import defaultdict

import numpy as np
import pytest
from conftest import ROOT, run_recipe

from benchmarks import steps, summary

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
        tuple(step[f"rpo/groups/{kind}_total"] for kind in ("full", "prefixed", "refreshed")) for step in run.steps
    ]
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
        # 16 rows in micro-batches of 8; a group of 4 with signal stays whole.
        with_signal = 1 - step["rpo/groups/no_signal_share_after_shaping"]
        assert step["lean/update/rows_share"] == (1.0 if with_signal > 0.5 else 0.5)
    assert any(step["lean/update/rows_share"] == 0.5 for step in run.steps)


def test_tokens_are_accounted_for(run):
    for step in run.steps:
        responses = 16 * step["response_length/mean"]
        assert step["rpo/tokens/generated_total"] + step["rpo/tokens/reused_total"] == pytest.approx(responses)
    assert all(step["rpo/tokens/reused_total"] == 0 for step in (*run.steps[:EPOCH], run.steps[4]))
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


def test_the_response_is_prefix_then_suffix(run):
    """The model's tokenizer has one token per character, so texts show the ids."""
    earlier, checked = defaultdict(list), 0
    for step in range(1, STEPS + 1):
        groups = defaultdict(list)
        for record in dumped(run, step):
            groups[record["input"]].append(record)
        for question, records in groups.items():
            heads = {record["output"][: record["rpo_prefix_tokens"]] for record in records}
            assert len(heads) == 1, "the members of a group share one prefix"
            (head,) = heads
            if records[0]["rpo_kind"] == "prefixed":
                assert head
                assert any(response.startswith(head) for response in earlier[question])
                checked += 1
            else:
                assert not head
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
            assert (record["rpo_kind"] == "prefixed") == (record["rpo_prefix_tokens"] > 0)
            assert record["rpo_base_reward"] == record["score"]
            assert record["rpo_shaped_reward"] <= record["score"]
            if record["rpo_prefix_tokens"]:
                assert record["rpo_age"] == step["step"] - record["rpo_source_step"] > 0
                assert record["rpo_dropped"] >= 1
        mean = sum(record["rpo_shaped_reward"] for record in records) / 16
        assert step["rpo/reward/shaped_mean"] == pytest.approx(mean)
        groups = defaultdict(list)
        for record in records:
            groups[record["uid"].split("_")[0]].append(record)
        for group in groups.values():
            shaped = np.array([record["rpo_shaped_reward"] for record in group])
            expected = (shaped - shaped.mean()) / (shaped.std(ddof=1) + 1e-6)
            assert [record["rpo_advantage"] for record in group] == pytest.approx(expected, abs=1e-3)
    (path,) = (run.folder / "validation").glob("*.jsonl")
    assert not any("rpo_kind" in json.loads(line) for line in path.read_text().splitlines())


def test_the_demos_summary_reads_this_run(run):
    read = steps.read_steps(run.folder / "metrics.jsonl", group_size=4)
    found = summary.summarize(read, seed=1)
    trained = run.steps
    assert found["steps"] == STEPS
    assert found["generated_tokens_total"] == sum(step["rpo/tokens/generated_total"] for step in trained)
    assert found["generated_tokens_per_sample"] == found["generated_tokens_total"] / (STEPS * 16)
    assert found["cache_hit_rate"] == pytest.approx(4 / 6)
    on_hit = [step for step in trained if step["rpo/groups/prefixed_total"] == 4]
    generated = sum(step["rpo/tokens/generated_total"] for step in on_hit)
    assert found["generated_tokens_per_sample_on_hit"] == pytest.approx(generated / (16 * len(on_hit)))
    assert found["rollout_s_per_step_on_hit"] > 0
    summary.plot({"rpo": read}, run.folder / "plot.png")
    summary.table({"rpo": found})
    assert (run.folder / "plot.png").stat().st_size > 10_000
