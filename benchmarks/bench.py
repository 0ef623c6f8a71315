"""GRPO and DAPO, their competitors and RPO, several seeds each: accuracy, tokens, time and what that is made of.

    python -m benchmarks.bench [--suite tiny] [--arms …] [--seeds 1,2,3] [--out runs/bench/SUITE]

Every run trains one arm with one seed through veRL's own command line. Where every question has one right solution, a
run exports its policy every few steps, and accuracy is computed from the exports after the run; it validates once, at
the end. Elsewhere every validation answers every held-out question several times. Several runs go on at a time
(`--lanes`), each on a core of its own. Seeds are the outer loop and every seed begins with another arm, so that slow
hours hit all arms; the first arm always comes first where others begin with its checkpoint. Finished runs are kept: a
second call goes on with the next run, on another machine with `--continue-from` and the results.json so far. After
every run results.json, results.md and, for a suite with few arms, curves.png are written again from the files of all
finished runs, those of earlier calls too.
"""

import argparse
import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from statistics import fmean, median
from typing import Any

import torch

from benchmarks import exact
from benchmarks.arms import SUITES, Arm, Suite
from benchmarks.lanes import in_lanes, seeds_outermost
from benchmarks.machine import commit, machine, processor
from benchmarks.policies import sha256
from benchmarks.results import page, plot_curves
from benchmarks.steps import Metrics, Step, parts_of, read_metrics, step_of, training_steps
from benchmarks.stores import PROBLEM_STEPS
from benchmarks.tiny import CHECKPOINT, ROOT, write_questions
from benchmarks.training import GROUP_SIZE, SAVE, claim, save_every, train
from benchmarks.waiting import waits
from rpo_verl.tools.evaluation.estimators import pass_at_k

#: In the folder of a finished run: its commit, its processor, the checksum of its first policy, and its arm.
FINISHED = "finished.json"
#: In the folder of a run that exported its policy: training step → what was computed from the export.
EXACT = "exact.json"
#: Modules that every process of a run loads.
MODULES = "benchmarks.waiting,benchmarks.raft"
#: Held-out questions that exact accuracy is computed on, the same for all seeds.
EXACT_QUESTIONS = exact.QUESTIONS
#: Questions to train and to validate on.
QUESTIONS, VAL_QUESTIONS = 64, 48
#: Answers to each held-out question in a validation.
SAMPLES = 8


def curve(steps: Sequence[Step], accuracies: Mapping[int, float]) -> list[dict[str, float]]:
    """Accuracies with the training steps, seconds and generated tokens that they took.

    Args:
        steps: of a run, in order.
        accuracies: training step → accuracy after it; 0 is the policy before training.
    """
    points, seconds, tokens = [], 0.0, 0
    if 0 in accuracies:
        points.append({"step": 0, "seconds": seconds, "tokens": tokens, "accuracy": accuracies[0]})
    for step in steps:
        seconds += step.step_s
        tokens += step.generated_tokens
        if step.number > 0 and step.number in accuracies:
            accuracy = accuracies[step.number]
            points.append({"step": step.number, "seconds": seconds, "tokens": tokens, "accuracy": accuracy})
    return points


def exact_of(folder: Path) -> dict[int, dict[str, Any]]:
    """Training step → what was computed from the policy after it; empty where a run validates by sampling."""
    path = folder / EXACT
    found = json.loads(path.read_text()) if path.exists() else {}
    return {int(step): measured for step, measured in found.items()}


def measure_exports(checkpoints: Path, before: Mapping[str, Any]) -> dict[int, Mapping[str, Any]]:
    """Compute the exact accuracy of every exported policy, and delete all exports but the last.

    Args:
        checkpoints: veRL's folder of them.
        before: measurements of the policy that the run began with.

    Returns:
        training step → measurements, 0 for `before`.

    Raises:
        ValueError: if the run exported nothing.
    """
    exports = {int(path.name.removeprefix("global_step_")): path for path in checkpoints.glob("global_step_*")}
    if not exports:
        raise ValueError(f"{checkpoints} has no global_step_*: the run exported no policy, see verl.log beside it")
    found = {0: before}
    for step in sorted(exports):
        found[step] = exact.measure_folder(exports[step] / "actor" / "huggingface", EXACT_QUESTIONS, PROBLEM_STEPS)
    for step in sorted(exports)[:-1]:
        shutil.rmtree(exports[step])
    return found


def record(folder: Path, group_size: int) -> dict[str, Any]:
    """Read the record of a finished run from its files."""
    metrics = read_metrics(folder / "metrics.jsonl")
    steps = [step_of(number, found, group_size) for number, found in metrics.items()]
    trained = [step for step in steps if step.number > 0]
    parts = parts_of(metrics, waits(folder / "waiting.jsonl"))
    generated = sum(step.generated_tokens for step in trained)
    exports = exact_of(folder)
    sampled = {step.number: step.val_accuracy for step in steps if step.val_accuracy is not None}
    accuracies = {step: measured["accuracy"] for step, measured in exports.items()} or sampled
    return {
        "curve": curve(steps, accuracies),
        "exact": exports[max(exports)] if exports else None,
        **answers_of(folder / "validation" / f"{trained[-1].number}.jsonl"),
        "train_s": sum(step.step_s for step in trained),
        "step_s": median(step.step_s for step in trained),
        "parts_s": {name: fmean(part[name] for part in parts) for name in parts[0]},
        "generated_tokens": generated,
        "generated_tokens_per_sample": generated / sum(step.samples for step in trained),
        "left_out_groups": sum(step.filtered_groups for step in trained),
        "prefixed_groups": sum(step.prefixed_groups for step in trained),
        "groups_without_signal": groups_without_signal(metrics),
    }


def answers_of(validation: Path) -> dict[str, Any]:
    """Measure the answers of the last validation: share of correct ones, length, share of distinct ones.

    An answer that veRL lost counts as wrong, as it does in veRL's own mean.
    """
    answers: dict[str, list[tuple[str, bool]]] = {}
    for line in validation.read_text().splitlines():
        answer = json.loads(line)
        answers.setdefault(answer["input"], []).append((answer["output"], answer["acc"] > 0))
    found = list(answers.values())
    return {
        "pass_at_k": {
            str(k): fmean(pass_at_k(SAMPLES, sum(right for _, right in of_one), k) for of_one in found)
            for k in (1, SAMPLES)
        },
        "distinct_share": fmean(len({text for text, _ in of_one}) / len(of_one) for of_one in found),
        # A character is a token here.
        "answer_tokens": fmean(len(text) for of_one in found for text, _ in of_one),
    }


def groups_without_signal(metrics: Mapping[int, Metrics]) -> dict[str, float] | None:
    """Share of zero-advantage groups, `before` shaping and `after`; None without RPO."""
    name = "rpo/groups/no_signal_share_{}_shaping"
    steps = training_steps(metrics).values()
    shares = {
        when: [data[name.format(when)] for data in steps if name.format(when) in data] for when in ("before", "after")
    }
    return {when: fmean(values) for when, values in shares.items()} if shares["before"] else None


def data_of(out: Path, seed: int) -> Path:
    """The folder of a seed's questions."""
    return out / f"data-seed{seed}"


def start_of(arm: Arm, out: Path) -> Path:
    """The checkpoint that the arm begins with."""
    return arm.model(out) if arm.model is not None else CHECKPOINT


def measured_start(arm: Arm, out: Path) -> dict[str, Any]:
    """Compute the exact accuracy of the policy that the arm begins with, once for all arms that share it."""
    policy = start_of(arm, out)
    path = out / f"start-{policy.name}.json"
    if not path.exists():
        path.write_text(json.dumps(exact.measure_folder(policy, EXACT_QUESTIONS, PROBLEM_STEPS)) + "\n")
    return json.loads(path.read_text())


def prepare(suite: Suite, arms: Sequence[Arm], seeds: Sequence[int], out: Path) -> None:
    """Make the questions, the policies and their measurements that runs share, before there are several at a time."""
    for seed in seeds:
        if not (data_of(out, seed) / "val.parquet").exists():
            write_questions(data_of(out, seed), train=QUESTIONS, val=VAL_QUESTIONS, seed=seed, steps=PROBLEM_STEPS)
    for arm in arms:
        start_of(arm, out)
        if suite.exact:
            measured_start(arm, out)


def run(name: str, suite: Suite, seed: int, out: Path) -> None:
    """Train and evaluate one arm with one seed."""
    arm = suite.arms[name]
    folder = out / f"{name}-seed{seed}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    data = data_of(out, seed)
    overrides = [
        f"actor_rollout_ref.rollout.val_kwargs.n={SAMPLES}",
        f"trainer.validation_data_dir={(folder / 'validation').resolve()}",
        f"trainer.val_before_train={not suite.exact and name == suite.beginning(name)}",
        # veRL gives vLLM the same random numbers for every data.seed.
        f"actor_rollout_ref.rollout.seed={seed}",
        *([f"rpo.seed={seed}"] if "+rpo=enabled" in arm.overrides else []),
        *arm.overrides,
    ]
    if suite.exact:
        overrides += save_every(suite.test_freq)
    elif name == suite.donor:
        overrides += SAVE
    if arm.cache is not None:
        overrides.append(f"rpo.cache.path={arm.cache(folder, data, seed).resolve()}")
    knobs = {"GROUP_SIZE": str(GROUP_SIZE), "MODEL_PATH": str(start_of(arm, out).resolve()), **arm.all_knobs}
    steps, made_by = suite.steps_of(name), commit()
    train(
        folder.name,
        folder,
        overrides,
        steps=steps,
        seed=seed,
        test_freq=steps if suite.exact else suite.test_freq,
        DATA_DIR=str(data.resolve()),
        MAX_RESPONSE_LENGTH=str(arm.max_response_length),
        OMP_NUM_THREADS="1",
        PYTHONPATH=os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
        VERL_USE_EXTERNAL_MODULES=MODULES,
        WAITING_FILE=str((folder / "waiting.jsonl").resolve()),
        **knobs,
    )
    if suite.exact:
        measured = measure_exports(folder / "checkpoints", measured_start(arm, out))
        (folder / EXACT).write_text(json.dumps(measured) + "\n")
    record(folder, int(knobs["GROUP_SIZE"]))  # raises where a file is missing
    origin = {"commit": made_by, "processor": processor(), "policy": sha256(start_of(arm, out)), "arm": describe(arm)}
    (folder / FINISHED).write_text(json.dumps(origin) + "\n")


def run_in_lanes(
    todo: Sequence[tuple[str, int]], suite: Suite, out: Path, lanes: int, after: Callable[[], None]
) -> None:
    """Run all, `lanes` at a time; `after` every one of them. Raises as `in_lanes` does."""
    in_lanes([partial(run, name, suite, seed, out) for name, seed in todo], lanes, after)


def in_turns(arms: Sequence[str], seeds: Sequence[int], suite: Suite) -> list[tuple[str, int]]:
    """Every arm with every seed, in the order of running."""
    return seeds_outermost(arms, seeds, suite.donor)


def finished(suite: Suite, out: Path, earlier: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Arm → seed → record of the runs in `out` and of those from `earlier` results, in the order of the suite.

    Raises:
        SystemExit: if a run was made with other settings than its arm has now.
    """
    runs: dict[str, dict[str, Any]] = {}
    for name, arm in suite.arms.items():
        group_size = int(arm.knobs.get("GROUP_SIZE", GROUP_SIZE))
        found = dict(earlier.get("runs", {}).get(name, {}))
        if found:
            _same_arm(name, earlier["arms"][name], arm, "--continue-from")
        for mark in out.glob(f"{name}-seed*/{FINISHED}"):
            seed = mark.parent.name.removeprefix(f"{name}-seed")
            origin = json.loads(mark.read_text())
            _same_arm(name, origin.pop("arm"), arm, str(mark.parent))
            found[seed] = record(mark.parent, group_size) | origin
        if found:
            runs[name] = {seed: found[seed] for seed in sorted(found, key=int)}
    for name, by_seed in runs.items():
        for seed, validated in runs.get(suite.beginning(name), {}).items():
            before, *_ = validated["curve"]
            if seed in by_seed and by_seed[seed]["curve"][0]["step"] > before["step"] == 0:
                by_seed[seed]["curve"].insert(0, before)
    return runs


def _same_arm(name: str, then: Mapping[str, Any], now: Arm, where: str) -> None:
    described = json.loads(json.dumps(describe(now)))
    if then != described:
        other = {key: (then.get(key), value) for key, value in described.items() if then.get(key) != value}
        raise SystemExit(f"{where}: {name} ran with other settings (then, now): {other}. Delete the run to repeat it.")


def settings_of(suite: Suite) -> dict[str, int]:
    """The settings that runs must share to be compared."""
    return {
        "problem_steps": PROBLEM_STEPS, "questions": QUESTIONS, "steps": suite.steps, "test_freq": suite.test_freq,
        "val_questions": VAL_QUESTIONS, "samples": SAMPLES,
    } | ({"exact_questions": EXACT_QUESTIONS} if suite.exact else {})  # fmt: skip


def collect(name: str, suite: Suite, out: Path, earlier: Mapping[str, Any]) -> dict[str, Any]:
    """The results of all finished runs of a suite, in `out` and in `earlier`."""
    runs = finished(suite, out, earlier)
    return {
        "suite": name,
        "machine": machine(),
        "settings": settings_of(suite),
        "questions": {asked: list(arms) for asked, arms in suite.questions.items()},
        "arms": {arm: describe(suite.arms[arm]) for arm in runs},
        "runs": runs,
    }


def write_results(name: str, suite: Suite, out: Path, earlier: Mapping[str, Any]) -> None:
    """Write results.json, results.md and, where arms are few, curves.png of all finished runs."""
    results = collect(name, suite, out, earlier)
    (out / "results.json").write_text(json.dumps(results, indent=2) + "\n")
    (out / "results.md").write_text(page(results))
    if not suite.questions:
        plot_curves(results, out / "curves.png")


def describe(arm: Arm) -> dict[str, Any]:
    """The arm as the results have it."""
    made = {name: getattr(arm, name) for name in ("cache", "model")}
    names = {name: function.__name__ if function else None for name, function in made.items()}
    return asdict(arm) | names | {"learning_rate": asdict(arm.learning_rate)}


def main() -> None:
    """Command line entry."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--suite", choices=SUITES, default="tiny")
    parser.add_argument("--arms", help="comma-separated; default: all of the suite")
    parser.add_argument("--seeds", help="comma-separated; default: those of the suite")
    parser.add_argument("--steps", type=int, help="of every run; default: those of the suite")
    parser.add_argument("--lanes", type=int, default=2, help="runs at a time, each on a core of its own; default: 2")
    parser.add_argument("--continue-from", type=Path, help="results.json of a call on another machine")
    parser.add_argument("--out", type=Path, help="default: runs/bench/SUITE")
    args = parser.parse_args()
    suite = SUITES[args.suite]
    if args.steps:
        suite = suite.of_length(args.steps)
    arms = args.arms.split(",") if args.arms else list(suite.arms)
    if unknown := [arm for arm in arms if arm not in suite.arms]:
        parser.error(f"--arms={args.arms}: {unknown} not among {', '.join(suite.arms)}")
    if not 1 <= args.lanes <= (cores := len(os.sched_getaffinity(0))):
        parser.error(f"--lanes={args.lanes}: there are {cores} cores, and each lane takes one")
    seeds = [int(seed) for seed in args.seeds.split(",")] if args.seeds else list(suite.seeds)
    out = args.out or Path("runs/bench") / args.suite
    claim(out, {"suite": args.suite} | settings_of(suite))
    earlier = json.loads(args.continue_from.read_text()) if args.continue_from else {}
    if earlier and (earlier["suite"], earlier["settings"]) != (args.suite, settings_of(suite)):
        parser.error(f"--continue-from={args.continue_from}: of suite {earlier['suite']} with {earlier['settings']}")
    kept = {(name, int(seed)) for name, by_seed in finished(suite, out, earlier).items() for seed in by_seed}
    todo = [job for job in in_turns(arms, seeds, suite) if job not in kept]
    print(f"{len(todo)} runs; {len(kept)} kept from earlier calls", flush=True)
    # A lane measures exports on its own core.
    torch.set_num_threads(1)
    prepare(suite, [suite.arms[name] for name in arms], seeds, out)
    run_in_lanes(todo, suite, out, args.lanes, lambda: write_results(args.suite, suite, out, earlier))
    write_results(args.suite, suite, out, earlier)
    print((out / "results.md").read_text())


if __name__ == "__main__":
    main()
