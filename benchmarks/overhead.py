"""Measure RPO where it saves nothing: every group is a full rollout, and veRL alone does every other step of one run.

`make bench-overhead` trains the tiny reasoner, prints a table and writes runs/bench/overhead.json. Steps come in pairs
of neighbours, so a slow machine slows both. Odd steps bypass the plug-in's code
(alternating.py). The poll interval and the rows in the update are the same in all steps.
"""

import argparse
import json
import os
import random
import subprocess
import sys
from pathlib import Path
from statistics import median

from benchmarks.steps import EVERY_STEP, OWN_PARTS, PARTS, SAVING, STEP, read_metrics, seconds
from benchmarks.tables import overhead_rows, show
from benchmarks.tiny import RECIPE, ROOT, write_questions

RPO = ["+rpo=enabled", "rpo.rollout.full_rollout_every=1", "lean.skip_zero_advantage=false"]
#: The first pair has the start-up's slowness, the second may.
WARM_UP = 2
#: The timers of other processes, which take nearly all of a step and of its noise, and of the save. None of them
#: contains the dispatch of questions, and so injection.
ELSEWHERE = (*(t for part in ("generation", "log-probs", "update", "weight sync") for t in PARTS[part]), *SAVING)


def with_interval(values: list[float], draws: int = 10_000) -> dict[str, float]:
    """The median with its 95 % bootstrap interval."""
    rng = random.Random(0)
    medians = sorted(median(rng.choices(values, k=len(values))) for _ in range(draws))
    return {"value": median(values), "low": medians[int(0.025 * draws)], "high": medians[int(0.975 * draws)]}


def main() -> None:
    """Command line entry."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=60)
    parser.add_argument("--out", type=Path, default=Path("runs/bench/overhead"))
    args = parser.parse_args()
    steps, out = 2 * (args.pairs + WARM_UP), args.out.resolve()
    data, metrics = out / "data", out / "metrics.jsonl"
    write_questions(data, train=64, val=8, seed=0)
    metrics.unlink(missing_ok=True)
    environment = os.environ | {
        "PYTHON": sys.executable, "DATA_DIR": str(data), "RUN_DIR": str(out), "STEPS": str(steps), "TEST_FREQ": "-1",
        "VERL_FILE_LOGGER_PATH": str(metrics), "VERL_USE_EXTERNAL_MODULES": "benchmarks.alternating",
        "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
    }  # fmt: skip
    print(f"{steps} steps; veRL's output is in {out / 'verl.log'}", flush=True)
    # The weights stay as they are, so that all steps have the same to do.
    same = ["trainer.val_before_train=false", "actor_rollout_ref.actor.optim.lr=1e-9", "trainer.save_freq=20"]
    with (out / "verl.log").open("w") as log:
        done = subprocess.run(["bash", str(RECIPE), *RPO, *same], env=environment, stdout=log, stderr=log)
    if done.returncode != 0:
        raise SystemExit(f"veRL ended with status {done.returncode}; see {out / 'verl.log'}")
    by_step = read_metrics(metrics)

    def step_s(step: int, without: tuple[str, ...] = SAVING) -> float:
        return by_step[step][STEP] - seconds(by_step[step], without)

    pairs = [(step, step + 1) for step in range(2 * WARM_UP + 1, steps, 2)]
    alone, with_rpo = ([step_s(step) for step in side] for side in zip(*pairs, strict=True))
    ratios = [b / a for a, b in zip(alone, with_rpo, strict=True)]
    more = [step_s(b, ELSEWHERE) - step_s(a, ELSEWHERE) for a, b in pairs]
    own = {
        part: median(data[name] for step, data in by_step.items() if step % 2 == 0 and data.get(name))
        for part, name in OWN_PARTS.items()
    }
    found = {
        "pairs": len(ratios), "step_s_verl": median(alone), "step_s_rpo": median(with_rpo),
        "ratio": with_interval(ratios), "task_runner_s": median(step_s(a, ELSEWHERE) for a, _ in pairs),
        "more_in_task_runner_s": with_interval(more), "own_s": own,
        "own_share": sum(own[part] for part in EVERY_STEP) / median(alone),
    }  # fmt: skip
    (out.parent / "overhead.json").write_text(json.dumps(found, indent=2) + "\n")

    show("what RPO costs where it saves nothing", overhead_rows(found))
    print(f"written: {out.parent / 'overhead.json'}")


if __name__ == "__main__":
    main()
