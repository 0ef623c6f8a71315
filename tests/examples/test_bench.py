"""The benchmark's arithmetic: from what a run left behind to its tables."""

import json
from pathlib import Path

import pytest
import torch
from conftest import TINY, load_script
from transformers import AutoModelForCausalLM

bench, arms, results_of, waiting = map(load_script, ("bench", "bench_arms", "bench_results", "waiting"))
Step = load_script("summary").Step


def run(*accuracy, seconds=100.0, tokens=1000, **parts):
    """A record whose validations lie equally far apart."""
    points = [
        {"step": 10 * i, "seconds": seconds * i, "tokens": tokens * i, "accuracy": a} for i, a in enumerate(accuracy)
    ]
    return {
        "curve": points,
        "pass_at_k": {"1": accuracy[-1], "8": 1.0},
        "train_s": points[-1]["seconds"],
        "parts_s": {"generation": 2.0, "waiting": 0.5} | parts,
        "generated_tokens": points[-1]["tokens"],
        "generated_tokens_per_sample": 10.0,
        "commit": "abc123",
    }


def test_where_an_accuracy_is_reached():
    rising = run(0.5, 0.7, 0.8)
    assert results_of.reached(rising, 0.7, "seconds") == pytest.approx(100)
    assert results_of.reached(rising, 0.75, "seconds") == pytest.approx(150)
    assert results_of.reached(rising, 0.75, "tokens") == pytest.approx(1500)
    assert results_of.reached(rising, 0.4, "tokens") == 0
    assert results_of.reached(rising, 0.9, "seconds") is None
    # The first time counts, though it falls again.
    assert results_of.reached(run(0.5, 0.7, 0.6, 0.8), 0.6, "seconds") == pytest.approx(50)


def test_spread_over_seeds():
    assert results_of.spread([1.0], "{:.1f}") == "1.0"
    assert results_of.spread([1.0, 2.0, 6.0], "{:.1f}") == "3.0 [1.0, 6.0]"
    assert results_of.spread([1.0, None, 3.0], "{:.0f}") == "2 [1, 3] in 2 of 3"
    assert results_of.spread([None, None], "{:.0f}") == "never"


def test_tables(tmp_path):
    results = {
        "suite": "main",
        "settings": {"steps": 20, "test_freq": 10, "val_questions": 512},
        "machine": bench.machine(),
        "runs": {
            "grpo": {"1": run(0.5, 0.7, 0.8), "2": run(0.5, 0.7, 0.9)},
            "rpo": {"1": run(0.5, 0.8, 0.9, seconds=50.0, tokens=400, generation=1.0)},
        },
    }
    head, grpo, rpo = results_of.accuracy_rows(results)
    # GRPO's final validation accuracy, mean over its seeds.
    assert head[-2:] == ["s to 0.850", "tokens to 0.850"]
    assert grpo[:3] == ["grpo", "2", "0.850 [0.800, 0.900]"]
    assert grpo[-2:] == ["175 in 1 of 2", "1,750 in 1 of 2"]
    assert rpo[-2:] == ["75", "600"]
    assert results_of.time_rows(results)[1:] == [["grpo", "2.50", "2.000", "0.500"], ["rpo", "1.50", "1.000", "0.500"]]
    page = results_of.page(results)
    assert page.count("| grpo |") == 2
    assert "--suite main`: 20 steps, validated every 10 on 512 questions;" in page
    assert page.endswith("; commit abc123.\n")
    results_of.plot_curves(results, tmp_path / "curves.png")
    assert (tmp_path / "curves.png").stat().st_size > 10_000


def test_parts_of_a_step(tmp_path):
    metrics = tmp_path / "metrics.jsonl"
    timed = {
        "step": 10.0, "gen": 6.0, "update_actor": 2.0, "update_weights": 0.5, "rpo_injection": 0.1, "rpo_shaping": 0.05,
        "rpo_cache_update": 0.15,
    }  # fmt: skip
    timed = {f"timing_s/{name}": seconds for name, seconds in timed.items()}
    lines = [{"step": 0, "data": {"val": 1.0}}, {"step": 1, "data": timed}, {"step": 2, "data": timed}]
    metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))
    first, second = bench.parts_of(metrics, [1.5, 0.5])
    assert (first["waiting"], first["generation"]) == (1.5, 4.5)
    assert second["generation"] == 5.5
    assert first["plug-in"] == pytest.approx(0.3)
    assert first["log-probs"] == 0
    assert first["rest"] == pytest.approx(1.2)
    assert sum(first.values()) == pytest.approx(10)


def test_batches_and_steps_have_to_agree(tmp_path):
    metrics = tmp_path / "metrics.jsonl"
    metrics.write_text(json.dumps({"step": 1, "data": {"timing_s/step": 1.0}}) + "\n")
    with pytest.raises(ValueError, match="1 steps, and 2 batches"):
        bench.parts_of(metrics, [0.5, 0.5])


def test_every_seed_begins_with_another_arm():
    cuts, ablations = arms.SUITES["cuts"], arms.SUITES["ablations"]
    assert bench.in_turns(["grpo", "rpo", "L1"], [1, 2], cuts) == [
        ("grpo", 1), ("rpo", 1), ("L1", 1), ("rpo", 2), ("L1", 2), ("grpo", 2)
    ]  # fmt: skip
    # Unless others begin with what the first has made.
    assert bench.in_turns(["grpo", "rpo", "cache-strong"], [1, 2], ablations)[3:] == [
        ("grpo", 2), ("cache-strong", 2), ("rpo", 2)
    ]  # fmt: skip
    with pytest.raises(SystemExit, match="run that arm first"):
        arms.trained_answers(Path("nowhere/cache-strong-seed1"), Path(), 1)


def leave_behind(folder, *, rpo):
    """What a finished run of two steps leaves behind."""
    timed = {"timing_s/step": 10.0, "timing_s/gen": 6.0, "timing_s/update_actor": 3.0}
    sizes = {"perf/total_num_tokens": 160, "prompt_length/mean": 10, "response_length/mean": 30}
    data = timed | sizes | {"critic/score/mean": 0.5}
    if rpo:
        no_signal = {"rpo/groups/no_signal_share_before_shaping": 0.5, "rpo/groups/no_signal_share_after_shaping": 0.25}
        data |= {"rpo/tokens/generated_total": 24, "rpo/left_out/generated_total": 0} | no_signal
    accuracy = "val-core/tiny_reasoner/acc/mean@1"
    lines = [
        {"step": 0, "data": {accuracy: 0.5}},
        {"step": 1, "data": data},
        {"step": 2, "data": data | {accuracy: 0.75}},
    ]
    (folder / "eval").mkdir(parents=True)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    events = [{"time": 1.0, "finished": "a"}, {"time": 1.5, "taken": ["a"]}]
    (folder / "waiting.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events * 2))
    passed = {"average": {"pass_at_k": {"1": {"value": 0.75}, "8": {"value": 1.0}}}}
    (folder / "eval" / "results.json").write_text(json.dumps(passed))
    answers = [("p", "1"), ("q", "2"), ("p", "1"), ("q", "3")]
    (folder / "eval" / "samples.jsonl").write_text(
        "".join(json.dumps({"question": question, "text": text}) + "\n" for question, text in answers)
    )
    (folder / "record.json").write_text(json.dumps({"commit": "abc123"}))


def test_results_are_of_all_finished_runs(tmp_path):
    suite = arms.SUITES["cuts"]
    for folder in ("grpo-seed1", "grpo-seed10", "grpo-seed2", "rpo-seed1", "unknown-seed1"):
        leave_behind(tmp_path / folder, rpo=folder.startswith("rpo"))
    (tmp_path / "L1-seed1").mkdir()  # not finished
    runs = bench.finished(suite, tmp_path)
    assert {arm: list(by_seed) for arm, by_seed in runs.items()} == {"grpo": ["1", "2", "10"], "rpo": ["1"]}
    assert runs["grpo"]["1"] == {
        "curve": [{"step": 0, "seconds": 0.0, "tokens": 0, "accuracy": 0.5},
                  {"step": 2, "seconds": 20.0, "tokens": 240, "accuracy": 0.75}],
        "pass_at_k": {"1": 0.75, "8": 1.0},
        "distinct_share": 0.75,
        "train_s": 20.0,
        "step_s": 10.0,
        "parts_s": {"generation": 5.5, "log-probs": 0, "update": 3.0, "weight sync": 0, "plug-in": 0, "waiting": 0.5,
                    "rest": 1.0},
        "generated_tokens": 240,
        "generated_tokens_per_sample": 30,
        "left_out_groups": 0,
        "prefixed_groups": 0,
        "groups_without_signal": None,
        "commit": "abc123",
    }  # fmt: skip
    assert runs["rpo"]["1"]["generated_tokens_per_sample"] == 6
    assert runs["rpo"]["1"]["groups_without_signal"] == {"before": 0.5, "after": 0.25}
    bench.write_results("cuts", suite, tmp_path)
    assert sorted(path.name for path in tmp_path.glob("*.*")) == ["curves.png", "results.json", "results.md"]


def test_waiting_is_from_the_last_group_of_the_batch_to_its_taking(tmp_path):
    events = [
        {"time": 1.0, "finished": "a"},
        {"time": 2.0, "finished": "late"},
        {"time": 1.5, "finished": "b"},
        {"time": 3.0, "taken": ["a", "b"]},
        {"time": 5.0, "taken": ["late"]},
    ]
    path = tmp_path / "waiting.jsonl"
    path.write_text("".join(json.dumps(event) + "\n" for event in events))
    assert waiting.waits(path) == [1.5, 3.0]


def test_curve_counts_what_was_spent_so_far():
    steps = [
        Step(0, val_accuracy=0.5),
        Step(1, step_s=2.0, generated_tokens=10),
        Step(2, step_s=3.0, generated_tokens=20, val_accuracy=0.6),
    ]
    assert bench.curve(steps) == [
        {"step": 0, "seconds": 0.0, "tokens": 0, "accuracy": 0.5},
        {"step": 2, "seconds": 5.0, "tokens": 30, "accuracy": 0.6},
    ]


def test_the_weak_policy_is_a_flatter_one(tmp_path):
    weak = AutoModelForCausalLM.from_pretrained(arms.weakened(tmp_path))
    tiny = AutoModelForCausalLM.from_pretrained(TINY / "checkpoint")
    ids = torch.arange(40)[None]
    assert torch.allclose(weak(ids).logits * 1.4, tiny(ids).logits, atol=1e-4)
    assert arms.weakened(tmp_path) == tmp_path / "weakened"


def test_suites():
    for suite in arms.SUITES.values():
        assert next(iter(suite.arms)) == "grpo"
        assert suite.steps % suite.test_freq == 0
        overrides = [(arm.overrides, tuple(arm.knobs.items()), arm.cache, arm.model) for arm in suite.arms.values()]
        assert len(set(overrides)) == len(overrides), "two arms are the same"
    assert arms.SUITES["main"].of_length(10).test_freq == 2
