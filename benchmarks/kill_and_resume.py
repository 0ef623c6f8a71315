"""Kill a training with SIGKILL at random moments and check that every restart resumes: `make crash-test`.

Everything veRL started dies at once: driver, Ray, trainer, vLLM. After each kill the newest finished checkpoint has to
hold a sound cache with every entry that the finished checkpoints before it held, and the next start has to resume from
that very step.
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil

from benchmarks.steps import read_metrics
from benchmarks.tiny import RECIPE, write_questions
from rpo_verl.rpo import store

#: Knobs of the recipe for short steps: 4 questions, 4 responses each.
SMALL = {
    "QUESTIONS_PER_STEP": "4", "GROUP_SIZE": "4", "MICRO_BATCH_SIZE": "8", "BYPASS_OLD_LOG_PROB": "false",
    "TEST_FREQ": "-1",
}  # fmt: skip


def latest_step(checkpoints: Path) -> int:
    """Step of the newest finished checkpoint, 0 if there is none."""
    tracker = checkpoints / "latest_checkpointed_iteration.txt"
    text = tracker.read_text() if tracker.exists() else ""
    return int(text) if text else 0


def keys(checkpoints: Path, step: int) -> set[bytes]:
    """Questions in the cache of a finished checkpoint, whose answers have all their log-probabilities."""
    cache, manifest = store.load(checkpoints / f"global_step_{step}" / "rpo")
    assert manifest.step == step, f"checkpoint {step} has the cache of step {manifest.step}"
    answers = dict(cache.items())
    known = all(len(answer.logprobs) == len(answer.tokens) for answer in answers.values())
    assert known, f"checkpoint {step} lacks log-probabilities"
    return set(answers)


def kill_everything(mark: str) -> None:
    """SIGKILL every process whose environment has the mark of this run."""
    for process in psutil.process_iter():
        try:
            if process.environ().get("CRASH_TEST") == mark:
                process.send_signal(signal.SIGKILL)
        except psutil.Error:
            continue


def logged_steps(metrics: Path) -> list[int]:
    """Steps in veRL's metrics file so far."""
    return list(read_metrics(metrics)) if metrics.exists() else []


def main() -> None:
    """Command line entry; exit status 1 at the first restart that does not resume, or at a lost entry."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/crash-test"))
    parser.add_argument("--within", type=float, default=30.0, help="seconds after the first step to kill within")
    args = parser.parse_args()
    out, rng = args.out.resolve(), random.Random(args.seed)
    if out.exists():
        parser.error(f"{out} exists; delete it or choose another --out")
    out.mkdir(parents=True)
    write_questions(out / "data", train=64, val=8, seed=3, steps=7)
    checkpoints, mark, known, began = out / "checkpoints", str(os.getpid()), set(), time.monotonic()
    for kill in range(1, args.kills + 1):
        start = latest_step(checkpoints)
        metrics = out / f"metrics_{kill:02d}.jsonl"
        environment = SMALL | {
            "PYTHON": sys.executable, "RUN_DIR": str(out), "DATA_DIR": str(out / "data"), "STEPS": "100000",
            "VERL_FILE_LOGGER_PATH": str(metrics), "CRASH_TEST": mark, "LEARNING_RATE_SCHEDULE": "constant",
        }  # fmt: skip
        # Nothing may leave the cache but by a crash.
        overrides = ["+rpo=enabled", "rpo.cache.max_failures=null", "rpo.credit.rule=paid", "rpo.rollout.trunks=2"]
        overrides += ["trainer.save_freq=1", "trainer.resume_mode=auto"]
        overrides += ["trainer.val_before_train=false", "trainer.max_actor_ckpt_to_keep=2"]
        with (out / f"verl_{kill:02d}.log").open("w") as log:
            process = subprocess.Popen(
                ["bash", str(RECIPE), *overrides], env=os.environ | environment, stdout=log, stderr=log,
                start_new_session=True,
            )  # fmt: skip
            while not logged_steps(metrics):
                if process.poll() is not None:
                    raise SystemExit(f"restart {kill} from step {start} ended with {process.returncode}: {log.name}")
                time.sleep(0.2)
            wait = rng.uniform(0, args.within)
            time.sleep(wait)
            kill_everything(mark)
            process.wait()
        steps, latest = logged_steps(metrics), latest_step(checkpoints)
        if steps[0] != start + 1:
            raise SystemExit(f"restart {kill} began with step {steps[0]} after the checkpoint of step {start}")
        if latest:
            held = keys(checkpoints, latest)
            if known - held:
                raise SystemExit(f"checkpoint {latest} lost {len(known - held)} entries that an earlier one held")
            known = held
        minutes = (time.monotonic() - began) / 60
        print(
            f"kill {kill}/{args.kills}, {wait:.1f} s after the first step: resumed from {start}, reached {steps[-1]}, "
            f"newest checkpoint {latest} with {len(known)} entries; {minutes:.0f} min so far, about "
            f"{minutes / kill * (args.kills - kill):.0f} left",
            flush=True,
        )
    print(f"{args.kills} kills, every restart resumed, no entry of a finished checkpoint lost")


if __name__ == "__main__":
    main()
