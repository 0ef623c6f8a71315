"""The benchmark's arithmetic: from what a run left behind to its tables."""

import importlib
import importlib.util
import json
import os
import random
import re
import shutil
import sys
import threading
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from conftest import ROOT
from omegaconf import OmegaConf
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks import arms, bench, contamination, exact, overhead, policies, steps, stores, summary, waiting
from benchmarks import results as results_of
from benchmarks.learning_rates import learning_rate
from benchmarks.steps import Step
from benchmarks.tiny import CHECKPOINT, prompt_ids
from rpo_verl.config import out_of_range
from rpo_verl.lean.options import LeanConfig
from rpo_verl.rpo.options import RPOConfig, validate

_spec = importlib.util.spec_from_file_location("check", ROOT / "recipes" / "gpu_check" / "check.py")
check = importlib.util.module_from_spec(_spec)
sys.modules["check"] = check  # where its dataclasses look for themselves
_spec.loader.exec_module(check)

MAKEFILE = (ROOT / "Makefile").read_text()
#: Modules that make runs; shared_prefix has no options.
MODULES = ("demo", "bench", "policies", "pass_at_k", "contamination", "cache", "overhead", "kill_and_resume")


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
        "distinct_share": 0.5,
        "answer_tokens": 100.0,
        "groups_without_signal": None,
        "commit": "abc123",
        "processor": "some processor",
    }


#: What stands in a file of results beside its runs.
WRITTEN = {
    "suite": "cuts",
    "settings": bench.settings_of(arms.SUITES["cuts"].of_length(20)),
    "machine": bench.machine(),
}


@pytest.mark.parametrize("module", sorted(set(re.findall(r"-m (benchmarks\.\S+|benchmarks\.lab)", MAKEFILE))))
def test_what_the_makefile_runs_does_something(module):
    path = ROOT / module.replace(".", "/")
    text = (path / "__main__.py" if path.is_dir() else path.with_suffix(".py")).read_text()
    assert text.endswith('if __name__ == "__main__":\n    main()\n')


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
    assert results_of.spread([None], "{:.0f}", "–") == "–"


def test_a_table_for_each_question_that_is_asked():
    shaped = {"groups_without_signal": {"before": 0.5, "after": 0.25}}
    results = {
        "questions": {
            "cold or built": ["grpo", "rpo", "built"],
            "by itself": ["weak-grpo", "weak-rpo", "not-run"],
            "not begun": ["talk-grpo", "talk-rpo"],
        },
        "runs": {
            "grpo": {"1": run(0.5, 0.8)},
            "rpo": {"1": run(0.5, 0.9, seconds=50.0, tokens=400) | shaped},
            "built": {"1": run(0.5, 0.7, seconds=25.0, tokens=100) | shaped},
            "weak-grpo": {"1": run(0.1, 0.2, seconds=200.0)},
            "weak-rpo": {"1": run(0.1, 0.3) | shaped},
        },
    }
    _, grpo, rpo, built = results_of.question_rows(results, "cold or built")
    assert grpo == ["grpo", "0.500", "0.800", "0.800", "1.000", "100", "0.50", "–", "–", "100%", "100%"]
    assert rpo[-4:] == ["0.50", "0.25", "40%", "50%"]
    assert built[-2:] == ["10%", "25%"]
    _, grpo, rpo = results_of.question_rows(results, "by itself")
    assert (grpo[0], rpo[0], rpo[-1]) == ("weak-grpo", "weak-rpo", "50%")
    page = results_of.page(results | WRITTEN)
    assert "cold or built:" in page and "not begun" not in page


def test_accuracy_before():
    begun = run(0.5, 0.6)
    assert results_of.accuracy_before(begun) == 0.5
    assert results_of.accuracy_before(begun | {"curve": begun["curve"][1:]}) is None


def test_late_accuracy():
    assert results_of.late_accuracy(run(0.5, 0.6, 0.7, 0.8, 0.9)) == pytest.approx(0.8)
    assert results_of.late_accuracy(run(0.5, 0.7)) == 0.7


def test_grid():
    runs = {"talk-L0.5-alpha0": 0.5, "talk-L0.5-alpha0.1": 0.7, "talk-L12-alpha0": 0.6, "grpo": 0.1}
    results = {"runs": {arm: {"1": run(accuracy)} for arm, accuracy in runs.items()}}
    assert results_of.grid_rows(results, *results_of.GRIDS["accuracy in the second half"]) == [
        ["L", "alpha 0", "alpha 0.1", "mean"],
        ["0.5", "0.500", "0.700", "0.600"],
        ["12", "0.600", "–", "0.600"],
        ["mean", "0.550", "0.700", "0.600"],
    ]


def test_tables(tmp_path):
    results = {
        "questions": {},
        "runs": {
            "grpo": {"1": run(0.5, 0.7, 0.8), "2": run(0.5, 0.7, 0.9)},
            "rpo": {"1": run(0.5, 0.8, 0.9, seconds=50.0, tokens=400, generation=1.0)},
        },
    }
    head, grpo, rpo = results_of.accuracy_rows(results)
    # GRPO's final validation accuracy on the same seed.
    assert head[-2:] == ["s to grpo's end", "tokens to grpo's end"]
    assert grpo[:4] == ["grpo", "2", "0.775 [0.750, 0.800]", "0.850 [0.800, 0.900]"]
    assert grpo[-2:] == ["200 [200, 200]", "2,000 [2,000, 2,000]"]
    assert rpo[-2:] == ["50", "400"]
    assert results_of.time_rows(results)[1:] == [["grpo", "2.50", "2.000", "0.500"], ["rpo", "1.50", "1.000", "0.500"]]
    results |= WRITTEN
    page = results_of.page(results)
    assert page.count("| grpo |") == 3
    assert "64 questions, 20 training steps, validated every 5 on 48 questions, 8 answers to each;" in page
    assert page.endswith("; commit abc123.\n")
    # Of a seed whose first arm is still to come, the start is not known yet.
    beheaded = run(0.5, 0.8, 0.9)
    beheaded["curve"] = beheaded["curve"][1:]
    results["runs"]["rpo"]["2"] = beheaded
    for plot, drawn in ((results_of.plot_curves, results), (results_of.plot_frontier, results["runs"])):
        plot(drawn, tmp_path / "plot.png")
        assert (tmp_path / "plot.png").stat().st_size > 10_000


def test_the_demo_side_by_side():
    def measured(accuracies, tokens, seconds, pass_at_32):
        exact_end = {"pass_at_k": {"32": pass_at_32}}
        return run(*accuracies, tokens=tokens, seconds=seconds) | {"exact": exact_end}

    runs = {
        "grpo": {"1": measured((0.5, 0.8), 1000, 100.0, 0.9), "2": measured((0.5, 0.7), 1000, 100.0, 0.8)},
        "rpo": {"1": measured((0.5, 0.8), 200, 50.0, 0.9), "2": measured((0.5, 0.9), 300, 50.0, 1.0)},
        "L1": {"1": measured((0.5, 0.6), 500, 60.0, 0.7), "2": measured((0.5, 0.9), 500, 60.0, 0.7)},
    }
    found = {row[0]: row[1:] for row in summary.rows({"runs": runs})}
    assert found[""] == ["grpo", "rpo", "L1"]
    assert found["accuracy before"] == ["0.500"] * 3 and found["accuracy after"] == ["0.750", "0.850", "0.750"]
    assert found["… against grpo, points"][:2] == ["", "+10.0 [-117.1, +137.1]"]
    assert found["pass@32 after"] == ["0.850", "0.950", "0.700"]
    assert found["generated tokens"] == ["1,000", "250 (25%)", "500 (50%)"]
    assert found["… until grpo's accuracy"] == ["1,000", "175 (18%)", "in 1 of 2 seeds"]
    assert found["training time, s"] == ["100", "50 (50%)", "60 (60%)"]


def test_parts_of_a_step(tmp_path):
    metrics = tmp_path / "metrics.jsonl"
    timed = {
        "step": 10.0, "gen": 6.0, "update_actor": 2.0, "update_weights": 0.5, "rpo_injection": 0.1, "rpo_shaping": 0.05,
        "rpo_cache_update": 0.15,
    }  # fmt: skip
    timed = {f"timing_s/{name}": seconds for name, seconds in timed.items()}
    lines = [{"step": 0, "data": {"val": 1.0}}, {"step": 1, "data": timed}, {"step": 2, "data": timed}]
    metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))
    first, second = steps.parts_of(steps.read_metrics(metrics), [1.5, 0.5])
    assert (first["waiting"], first["generation"]) == (1.5, 4.5)
    assert second["generation"] == 5.5
    assert first["plug-in"] == pytest.approx(0.3)
    assert first["log-probs"] == 0
    assert first["rest"] == pytest.approx(1.2)
    assert sum(first.values()) == pytest.approx(10)


def test_saving_is_no_training():
    timed = {"timing_s/step": 10.0, "timing_s/gen": 6.0, "timing_s/save_checkpoint": 3.0, "critic/score/mean": 0.5}
    sizes = {"perf/total_num_tokens": 160.0, "prompt_length/mean": 10.0, "response_length/mean": 30.0}
    (parts,) = steps.parts_of({1: timed}, [0.5])
    assert (parts["rest"], sum(parts.values())) == (pytest.approx(1), pytest.approx(7))
    assert steps.step_of(1, timed | sizes, group_size=2).step_s == pytest.approx(7)


def test_batches_and_steps_have_to_agree(tmp_path):
    metrics = tmp_path / "metrics.jsonl"
    metrics.write_text(json.dumps({"step": 1, "data": {"timing_s/step": 1.0}}) + "\n")
    with pytest.raises(ValueError, match="1 steps, and 2 batches"):
        steps.parts_of(steps.read_metrics(metrics), [0.5, 0.5])


def test_whose_validation_of_the_first_policy_counts():
    suite = arms.SUITES["ablations"]
    assert [suite.beginning(arm) for arm in ("grpo", "L0.1", "weak-truth", "talk-unshaped")] == [
        "grpo", "grpo", "weak-grpo", "talk-grpo"
    ]  # fmt: skip


def test_every_seed_begins_with_another_arm():
    tiny, ablations = arms.SUITES["tiny"], arms.SUITES["ablations"]
    assert bench.in_turns(["grpo", "rpo", "L1"], [1, 2], tiny) == [
        ("grpo", 1), ("rpo", 1), ("L1", 1), ("rpo", 2), ("L1", 2), ("grpo", 2)
    ]  # fmt: skip
    # Unless others begin with what the first has made.
    assert bench.in_turns(["grpo", "rpo", "cache-strong"], [1, 2], ablations)[3:] == [
        ("grpo", 2), ("cache-strong", 2), ("rpo", 2)
    ]  # fmt: skip
    with pytest.raises(SystemExit, match="run that arm first"):
        stores.trained_answers(Path("nowhere/cache-strong-seed1"), Path(), 1)


def leave_behind(folder, *, rpo, suite="talkative"):
    """What a finished run of two steps leaves behind."""
    timed = {"timing_s/step": 10.0, "timing_s/gen": 6.0, "timing_s/update_actor": 3.0}
    sizes = {"perf/total_num_tokens": 160, "prompt_length/mean": 10, "response_length/mean": 30}
    data = timed | sizes | {"critic/score/mean": 0.5}
    if rpo:
        no_signal = {"rpo/groups/no_signal_share_before_shaping": 0.5, "rpo/groups/no_signal_share_after_shaping": 0.25}
        data |= {"rpo/tokens/generated_total": 24, "rpo/tokens/reused_total": 96, "rpo/left_out/generated_total": 0}
        data |= no_signal
    accuracy = "val-core/tiny_reasoner/acc/mean@8"
    lines = [
        *([] if rpo else [{"step": 0, "data": {accuracy: 0.5}}]),
        {"step": 1, "data": data},
        {"step": 2, "data": data | {accuracy: 0.75}},
    ]
    (folder / "validation").mkdir(parents=True)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    events = [{"time": 1.0, "finished": "a"}, {"time": 1.5, "taken": ["a"]}]
    (folder / "waiting.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events * 2))
    # Two questions, eight answers to each, one of them lost: all the same and right, and two kinds, one of them right.
    answers = [("p", "#12", 1.0)] * 8 + [("q", "a;#4", 1.0)] * 4 + [("q", "#5", 0.0)] * 3
    (folder / "validation" / "2.jsonl").write_text(
        "".join(json.dumps(dict(zip(("input", "output", "acc"), answer, strict=True))) + "\n" for answer in answers)
    )
    arm = arms.SUITES[suite].arms.get(folder.name.rpartition("-seed")[0], arms.GRPO)
    origin = {"commit": "abc123", "processor": "some processor", "arm": bench.describe(arm)}
    (folder / "finished.json").write_text(json.dumps(origin))


def test_results_are_of_all_finished_runs(tmp_path):
    suite = arms.SUITES["talkative"]
    for folder in ("grpo-seed1", "grpo-seed10", "grpo-seed2", "rpo-seed1", "unknown-seed1"):
        leave_behind(tmp_path / folder, rpo=folder.startswith("rpo"))
    (tmp_path / "L1-seed1").mkdir()  # not finished
    runs = bench.finished(suite, tmp_path, {})
    assert {arm: list(by_seed) for arm, by_seed in runs.items()} == {"grpo": ["1", "2", "10"], "rpo": ["1"]}
    assert runs["grpo"]["1"] == {
        "curve": [{"step": 0, "seconds": 0.0, "tokens": 0, "accuracy": 0.5},
                  {"step": 2, "seconds": 20.0, "tokens": 240, "accuracy": 0.75}],
        "exact": None,
        "pass_at_k": {"1": 0.75, "8": 1.0},
        "distinct_share": (1 / 8 + 2 / 7) / 2,
        "answer_tokens": pytest.approx(46 / 15),
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
        "processor": "some processor",
    }  # fmt: skip
    assert runs["rpo"]["1"]["generated_tokens_per_sample"] == 6
    assert runs["rpo"]["1"]["groups_without_signal"] == {"before": 0.5, "after": 0.25}
    # All arms begin with the same policy, which only the first one's run validates.
    assert [point["step"] for point in runs["rpo"]["1"]["curve"]] == [0, 2]
    assert runs["rpo"]["1"]["curve"][0] == runs["grpo"]["1"]["curve"][0]
    bench.write_results("talkative", suite, tmp_path, {})
    assert sorted(path.name for path in tmp_path.glob("*.*")) == ["curves.png", "results.json", "results.md"]

    # On another machine it goes on from these.
    earlier = json.loads((tmp_path / "results.json").read_text())
    leave_behind(tmp_path / "elsewhere" / "rpo-seed2", rpo=True)
    both = bench.finished(suite, tmp_path / "elsewhere", earlier)
    assert {arm: list(by_seed) for arm, by_seed in both.items()} == {"grpo": ["1", "2", "10"], "rpo": ["1", "2"]}
    assert both["grpo"] == runs["grpo"] and both["rpo"]["1"] == runs["rpo"]["1"]

    # But not with other settings under an old name.
    other = replace(suite, arms={**suite.arms, "rpo": arms.tenth()})
    with pytest.raises(SystemExit, match=r"rpo-seed1: rpo ran with other settings .*overrides"):
        bench.finished(other, tmp_path, {})
    with pytest.raises(SystemExit, match=r"--continue-from: rpo ran with other settings"):
        bench.finished(other, tmp_path / "nowhere", earlier)
    assert both["rpo"]["2"]["curve"] == runs["rpo"]["1"]["curve"]


def test_accuracy_of_a_run_that_exports_is_that_of_its_exports(tmp_path):
    suite, folder = arms.SUITES["tiny"], tmp_path / "rpo-seed1"
    leave_behind(folder, rpo=True, suite="tiny")
    measured = {"accuracy": 0.4, "greedy": 0.6, "pass_at_k": {"2": 0.5, "8": 0.7, "32": 0.9}, "entropy": 0.03}
    exports = {"0": measured, "1": measured | {"accuracy": 0.5}, "2": measured | {"accuracy": 0.625}}
    (folder / "exact.json").write_text(json.dumps(exports))
    found = bench.finished(suite, tmp_path, {})["rpo"]["1"]
    assert [(point["step"], point["accuracy"]) for point in found["curve"]] == [(0, 0.4), (1, 0.5), (2, 0.625)]
    assert (found["curve"][0]["seconds"], found["curve"][0]["tokens"]) == (0, 0)
    assert found["exact"]["accuracy"] == 0.625 and found["pass_at_k"]["1"] == 0.75, "that of samples, beside it"
    results = {"suite": "tiny", "settings": bench.settings_of(suite), "machine": bench.machine(), "questions": {}}
    results |= {"runs": {"rpo": {"1": found}}, "arms": {"rpo": bench.describe(suite.arms["rpo"])}}
    assert results_of.end_rows(results)[1][2:] == [
        "0.625", "0.600", "0.500", "0.700", "0.900", "0.0300", "0.750", f"{46 / 15:.1f}"
    ]  # fmt: skip
    assert "exact accuracy every 8 on 1,024 questions" in results_of.page(results)
    assert results["arms"]["rpo"]["learning_rate"] == asdict(learning_rate("tiny", "rpo"))


def test_exports_are_measured_and_deleted_but_for_the_last(tmp_path, monkeypatch, one_thread):
    monkeypatch.setattr(bench, "EXACT_QUESTIONS", 4)
    before = exact.measure_folder(CHECKPOINT, 4, stores.PROBLEM_STEPS)
    for step in (8, 16):
        shutil.copytree(CHECKPOINT, tmp_path / f"global_step_{step}" / "actor" / "huggingface")
    # Where veRL says which one is the latest.
    (tmp_path / "latest_checkpointed_iteration.txt").write_text("16")
    found = bench.measure_exports(tmp_path, before)
    assert list(found) == [0, 8, 16] and found[8] == found[16] == before
    assert [path.name for path in tmp_path.glob("global_step_*")] == ["global_step_16"]
    with pytest.raises(ValueError, match="exported no policy"):
        bench.measure_exports(tmp_path / "nothing", before)


def test_every_lane_has_its_core(monkeypatch):
    began, meeting = [], threading.Barrier(2)

    def run(name, suite, seed, out):
        meeting.wait(60)  # both lanes are at work at a time
        began.append((name, frozenset(os.sched_getaffinity(0))))

    monkeypatch.setattr(bench, "run", run)
    cores = os.sched_getaffinity(0)
    if len(cores) < 2:
        pytest.skip("one core")
    finished = []
    jobs = [(name, 1) for name in "abcd"]
    bench.run_in_lanes(jobs, arms.SUITES["tiny"], Path(), 2, lambda: finished.append(len(began)))
    assert sorted(name for name, _ in began) == list("abcd")
    assert {share for _, share in began} == {frozenset({core}) for core in sorted(cores)[:2]}
    assert len(finished) == 4
    assert os.sched_getaffinity(0) == cores, "that of the caller"


def test_a_failing_run_ends_the_bench_and_lets_others_finish(monkeypatch):
    began = []

    def run(name, suite, seed, out):
        began.append(name)
        if name == "bad":
            raise SystemExit("[bad] veRL ended with status 1")

    monkeypatch.setattr(bench, "run", run)
    with pytest.raises(SystemExit, match="bad"):
        bench.run_in_lanes([("good", 1), ("bad", 1), ("x", 1)], arms.SUITES["tiny"], Path(), 1, lambda: None)
    assert began[:2] == ["good", "bad"]


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
    logged = [
        Step(0, val_accuracy=0.5),
        Step(1, step_s=2.0, generated_tokens=10),
        Step(2, step_s=3.0, generated_tokens=20, val_accuracy=0.6),
    ]
    assert bench.curve(logged, {0: 0.5, 2: 0.6}) == [
        {"step": 0, "seconds": 0.0, "tokens": 0, "accuracy": 0.5},
        {"step": 2, "seconds": 5.0, "tokens": 30, "accuracy": 0.6},
    ]


@pytest.mark.parametrize(("policy", "divisor"), [("weakened", 1.4), ("weakest", 2.0)])
def test_the_weak_policies_are_flatter_ones(tmp_path, policy, divisor):
    made = getattr(policies, policy)
    weak = AutoModelForCausalLM.from_pretrained(made(tmp_path))
    tiny = AutoModelForCausalLM.from_pretrained(CHECKPOINT)
    ids = torch.arange(40)[None]
    assert torch.allclose(weak(ids).logits * divisor, tiny(ids).logits, atol=1e-4)
    assert made(tmp_path) == tmp_path / policy


def test_remarks_stand_between_steps():
    solution = "a30*3=90;b90-8=82;#82"
    rng = random.Random(0)
    drawn = {policies.with_remarks(solution, 0.5, rng) for _ in range(50)}
    assert drawn == {
        solution, "a30*3=90;well;b90-8=82;#82", "a30*3=90;b90-8=82;well;#82", "a30*3=90;well;b90-8=82;well;#82"
    }  # fmt: skip
    assert policies.with_remarks(solution, 0.0, rng) == solution
    with pytest.raises(ValueError, match="ends with #"):
        policies.with_remarks("a30*3=90;", 0.5, rng)


@pytest.fixture
def one_thread():
    """Small batches on a busy machine take many times as long with more."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_tuning_learns_remarks_and_is_the_same_every_time(one_thread):
    def tuned():
        model = AutoModelForCausalLM.from_pretrained(CHECKPOINT, dtype=torch.float32)
        policies.tune(model, tokenizer, policies.Phase(policies.talkative_solution, updates=3, peak=1e-3, seed=1))
        return model

    tokenizer = AutoTokenizer.from_pretrained(CHECKPOINT)
    tiny = AutoModelForCausalLM.from_pretrained(CHECKPOINT, dtype=torch.float32)
    talks = tuned()
    said = tokenizer.encode("a30*3=90;well;b90-8=82;#82", add_special_tokens=False)
    ids = torch.tensor([[*prompt_ids(tokenizer, "30a*3b-8"), *said]])
    with torch.no_grad():
        losses = [model(input_ids=ids, labels=ids).loss for model in (tiny, talks)]
    assert losses[1] < losses[0] - 0.1
    assert torch.equal(talks.lm_head.weight, tuned().lm_head.weight)


def test_suites():
    for suite in arms.SUITES.values():
        assert next(iter(suite.arms)) == "grpo"
        assert suite.steps % suite.test_freq == 0
        overrides = [
            (arm.overrides, tuple(arm.knobs.items()), arm.cache, arm.model, arm.share_of_steps)
            for arm in suite.arms.values()
        ]
        assert len(set(overrides)) == len(overrides), "two arms are the same"
    assert arms.SUITES["cuts"].of_length(10).test_freq == 2


def every_arm():
    """Name and arm, in the demo and in every suite."""
    for arms_of in (*arms.DEMO.values(), *(suite.arms for suite in arms.SUITES.values())):
        yield from arms_of.items()


def test_a_name_means_one_thing():
    """But for the policy, which is one for all arms of a suite, and the room for its answers."""
    seen = {}
    for name, arm in every_arm():
        if not name.startswith(("talk-", "weak")):
            bare = replace(arm, model=None, max_response_length=128)
            assert seen.setdefault(name, bare) == bare, name
    contaminated = contamination.ARMS["L0.1"]
    assert contaminated.wrong_share is None and arms.tenth(*contaminated.overrides) == seen["L0.1"]
    assert (seen["rpo"].overrides, seen["dapo-rpo"].overrides[-1:]) == (("+rpo=enabled",),) * 2
    assert seen["grpo-plain"].overrides == ()
    assert seen["dapo"].overrides == (*seen["dapo-plain"].overrides, "+lean=enabled")


def test_the_suites_of_a_policy_have_the_same_arms():
    tiny = arms.SUITES["tiny"]
    for name in ("biased", "biased-more", "talkative"):
        suite = arms.SUITES[name]
        assert list(suite.arms) == list(tiny.arms) and len(suite.seeds) >= 5
        assert {arm.model for arm in suite.arms.values()} == {getattr(policies, name.replace("-", "_"))}
        assert suite.exact == (name != "talkative")


def test_every_arm_has_the_lean_layer_but_those_of_verl_as_it_comes():
    """RPO brings the layer along."""
    for name, arm in every_arm():
        assert (name.endswith("-plain")) == (not {"+lean=enabled", "+rpo=enabled", "+rpo=paper"} & {*arm.overrides}), (
            name
        )


def test_an_arm_at_the_tokens_of_another_has_fewer_steps():
    tiny = arms.SUITES["tiny"]
    assert (tiny.steps_of("raft"), tiny.steps_of("raft-rpo-tokens")) == (48, 9)
    assert tiny.steps_of("grpo-4epochs-quarter") == 12


OVERRIDES = {
    **{" ".join(arm.overrides): arm.overrides for _, arm in every_arm()},
    **{name: arm.overrides for name, arm in contamination.ARMS.items()},
    "overhead": overhead.RPO,
    "gpu_check": check.shape_overrides(check.SHAPES["cpu"], check.Arm(12, share_prefix=True)),
}


@pytest.mark.parametrize("overrides", OVERRIDES.values())
def test_options_exist_and_are_in_range(overrides):
    sections = OmegaConf.create({"rpo": OmegaConf.structured(RPOConfig), "lean": OmegaConf.structured(LeanConfig)})
    given = [override for override in overrides if re.match(r"(rpo|lean)\.", override)]
    found = OmegaConf.merge(sections, OmegaConf.from_dotlist(given))
    validate(OmegaConf.to_object(found.rpo), max_response_length=128, group_size=8)
    assert not list(out_of_range(OmegaConf.to_object(found.lean), "lean"))


def test_arms_of_removed_options_are_marked():
    results = {"arms": {"adaptive": {"overrides": ["+rpo=enabled", "rpo.truncation.adaptive=true"]}, "L1": {}}}
    assert results_of.label(results, "adaptive") == "adaptive (option removed since)"
    assert results_of.label(results, "L1") == "L1"


def test_generated_tokens_of_a_step():
    """Groups that dynamic sampling discarded count with the mean of the batch, or with RPO as RPO says."""
    sizes = {"timing_s/step": 1.0, "timing_s/gen": 0.5, "critic/score/mean": 0.5, "perf/total_num_tokens": 160.0,
             "prompt_length/mean": 10.0, "response_length/mean": 30.0}  # fmt: skip
    left = {"training/filter_groups/evicted_samples": 2.0, "training/filter_groups/discarded_surplus_samples": 1.0}
    alone = steps.step_of(1, sizes | left, group_size=2)
    assert (alone.samples, alone.response_tokens, alone.generated_tokens) == (4, 120, 300)
    assert (alone.filtered_groups, alone.surplus_groups, alone.is_rpo) == (2, 1, False)
    own = {"rpo/tokens/generated_total": 50.0, "rpo/tokens/reused_total": 70.0, "rpo/left_out/generated_total": 25.0}
    assert steps.step_of(1, sizes | left | own, group_size=2).generated_tokens == 75


def test_metrics_of_a_run_in_progress(tmp_path):
    path = tmp_path / "metrics.jsonl"
    assert steps.read_steps(path, 2) == []
    path.write_text('{"step": 0, "data": {"a": 1, "text": "b"}}\n{"step": 1, "da')
    assert steps.read_metrics(path) == {0: {"a": 1.0}}
    path.write_text('{"step": 0, "da\n{"step": 1, "data": {}}\n')
    with pytest.raises(ValueError, match="not a record"):
        steps.read_metrics(path)


@pytest.mark.parametrize("module", MODULES)
def test_every_command_starts(module, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [module, "--help"])
    with pytest.raises(SystemExit) as ended:
        importlib.import_module(f"benchmarks.{module}").main()
    assert ended.value.code == 0 and "usage:" in capsys.readouterr().out
    assert (
        f"-m benchmarks.{module} $(ARGS)" in MAKEFILE
        or f"-m benchmarks.{module}\n" in MAKEFILE
        or (module == "contamination")
    )


def test_the_laboratory_is_not_installed():
    assert "benchmarks" not in (ROOT / "setup.py").read_text()
