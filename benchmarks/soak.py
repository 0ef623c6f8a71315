"""A long run with bounds, checkpoints, resumes and mixed data, to see what grows: `make soak`.

Trains 300 steps in three processes. Each goes on from the checkpoint of the one before. The cache is bounded
below the number of questions, so that it evicts in every epoch; a sixth of the rows is another agent loop's, and a
sixth are harder questions. Every few seconds the memory and the open files of every process of the run are noted.

Writes soak.json and soak.png. Ends with status 1 if memory or files of any kind of process still grow in the second
half of its life.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.kill_and_resume import SMALL, kill_everything, latest_step, logged_steps
from benchmarks.machine import commit, machine, processor
from benchmarks.tiny import RECIPE, write_questions
from rpo_verl.tools.evaluation.results import markdown

#: Seconds between two looks at the processes.
EVERY_S = 5.0
#: A kind of process grows if its median memory in the last quarter of its life exceeds that of the third quarter by
#: more than this share and this many MB, or its open files by more than these. An allocator may take more at once as
#: late as at the second checkpoint, in the second quarter; what leaks goes on.
MOST_SHARE, MOST_MB, MOST_FILES = 0.02, 10.0, 4
QUESTIONS = 48
OVERRIDES = (
    "+rpo=enabled", "rpo.credit.rule=paid", "rpo.rollout.trunks=2", "rpo.rollout.full_rollout_every=0",
    "rpo.truncation.max_fraction=0.5", f"rpo.cache.max_entries={QUESTIONS // 2}", "trainer.save_freq=20",
    "trainer.resume_mode=auto", "trainer.val_before_train=false", "trainer.max_actor_ckpt_to_keep=2",
)  # fmt: skip


def write_mixed_questions(folder: Path) -> None:
    """Write train.parquet and val.parquet with easy and hard questions, and rows of another agent loop."""
    rows = []
    for steps, count in ((7, QUESTIONS * 5 // 6), (12, QUESTIONS // 6)):
        write_questions(folder / str(steps), train=count, val=8, seed=3, steps=steps)
        rows += pq.read_table(folder / str(steps) / "train.parquet").to_pylist()
    for number, row in enumerate(rows):
        row["agent_name"] = "tool_agent" if number % 6 == 5 else "single_turn_agent"
    pq.write_table(pa.Table.from_pylist(rows), folder / "train.parquet")
    validation = pq.read_table(folder / "7" / "val.parquet").to_pylist()
    pq.write_table(
        pa.Table.from_pylist([row | {"agent_name": "single_turn_agent"} for row in validation]), folder / "val.parquet"
    )


def kind_of(process: psutil.Process) -> str:
    """What a process of a run is: the class of a Ray actor, vLLM's title, or the name of the program."""
    title = " ".join(process.cmdline())
    found = re.search(r"ray::\w+|VLLM::\w+", title)
    if found:
        return found[0]
    for name in ("gcs_server", "raylet", "main_ppo", "dashboard", "log_monitor", "runtime_env"):
        if name in title:
            return name
    return process.name()


def look(mark: str) -> dict[str, dict[str, float]]:
    """Kind of process → `mb` of resident memory and open `files`, summed over the processes with the mark."""
    found: dict[str, dict[str, float]] = defaultdict(lambda: {"mb": 0.0, "files": 0})
    for process in psutil.process_iter():
        try:
            if process.environ().get("CRASH_TEST") == mark:
                one = found[kind_of(process)]
                one["mb"] += process.memory_info().rss / 2**20
                one["files"] += process.num_fds()
        except psutil.Error:
            continue
    return dict(found)


def series(looks: Sequence[Mapping[str, Any]], life: int, kind: str, what: str) -> list[tuple[int, float]]:
    """(step, value) of a kind of process in one of the run's lives, from the first finished step on."""
    return [
        (one["step"], one["processes"][kind][what])
        for one in looks
        if one["life"] == life and one["step"] and kind in one["processes"]
    ]


def growth(looks: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What every kind of process had in the third and in the last quarter of each life, as medians."""
    rows = []
    for life in sorted({one["life"] for one in looks}):
        for kind in sorted({kind for one in looks if one["life"] == life for kind in one["processes"]}):
            found = {"life": life, "kind": kind}
            for what in ("mb", "files"):
                values = [value for _, value in series(looks, life, kind, what)]
                if len(values) < 8:
                    break
                quarter = len(values) // 4
                found[what] = [round(median(part), 1) for part in (values[-2 * quarter : -quarter], values[-quarter:])]
            else:
                (mb, mb_end), (files, files_end) = found["mb"], found["files"]
                found["grows"] = mb_end - mb > max(MOST_MB, MOST_SHARE * mb) or files_end - files > MOST_FILES
                rows.append(found)
    return rows


def rows_of(found: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """Table of `growth`, head first."""
    table = [["life", "process", "memory, MB, third quarter", "last quarter", "files, third quarter", "last quarter"]]
    for row in found:
        (mb, mb_end), (files, files_end) = row["mb"], row["files"]
        cells = [f"{mb:,.0f}", f"{mb_end:,.0f}", f"{files:.0f}", f"{files_end:.0f}"]
        table.append([str(row["life"]), row["kind"], *cells])
    return table


def plot(looks: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draw memory and open files over the training steps, a line per kind of process."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(14, 4.5), layout="constrained")
    kinds = sorted({kind for one in looks for kind in one["processes"]})
    for number, kind in enumerate(kinds):
        for axis, what in zip(axes, ("mb", "files"), strict=True):
            for life in sorted({one["life"] for one in looks}):
                points = series(looks, life, kind, what)
                if points:
                    style = "-" if number < 10 else "--"
                    axis.plot(
                        *zip(*points, strict=True), style, color=f"C{number % 10}", label=kind if life == 1 else None
                    )
    axes[0].set(xlabel="training step", ylabel="resident memory, MB", yscale="log")
    axes[1].set(xlabel="training step", ylabel="open files", yscale="log")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right upper", fontsize="small")
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def live(out: Path, life: int, until: int, mark: str, looks: list[dict[str, Any]]) -> None:
    """Train up to a step in one process, and note what its processes take.

    Raises:
        SystemExit: if veRL ends with an error, or before that step.
    """
    metrics = out / f"metrics_{life}.jsonl"
    environment = SMALL | {
        "PYTHON": sys.executable, "RUN_DIR": str(out), "DATA_DIR": str(out / "data"), "STEPS": str(until),
        "VERL_FILE_LOGGER_PATH": str(metrics), "CRASH_TEST": mark, "LEARNING_RATE_SCHEDULE": "constant",
        "LEARNING_RATE": "1e-5", "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    with (out / f"verl_{life}.log").open("w") as log:
        process = subprocess.Popen(
            ["bash", str(RECIPE), *OVERRIDES], env=os.environ | environment, stdout=log, stderr=log,
            start_new_session=True,
        )  # fmt: skip
        while process.poll() is None:
            steps = logged_steps(metrics)
            looks.append({"life": life, "step": steps[-1] if steps else 0, "processes": look(mark)})
            time.sleep(EVERY_S)
        # Ray's own processes outlive the driver for a moment.
        kill_everything(mark)
    steps = logged_steps(metrics)
    if process.returncode or not steps or steps[-1] != until:
        raise SystemExit(f"life {life} ended with {process.returncode} after step {steps[-1:]}: {log.name}")
    print(f"life {life}: steps {steps[0]} to {steps[-1]}", flush=True)


def main() -> None:
    """Command line entry; exit status 1 if something grows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--lives", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("runs/soak"))
    args = parser.parse_args()
    out = args.out.resolve()
    if out.exists():
        parser.error(f"{out} exists; delete it or choose another --out")
    out.mkdir(parents=True)
    write_mixed_questions(out / "data")
    looks: list[dict[str, Any]] = []
    made_by = commit()
    for life in range(1, args.lives + 1):
        start = latest_step(out / "checkpoints")
        live(out, life, args.steps * life // args.lives, f"soak{os.getpid()}", looks)
        first = logged_steps(out / f"metrics_{life}.jsonl")[0]
        if first != start + 1:
            raise SystemExit(f"life {life} began with step {first} after the checkpoint of step {start}")
    found = growth(looks)
    result = {
        "command": f"python -m benchmarks.soak --steps {args.steps} --lives {args.lives}", "commit": made_by,
        "machine": machine() | {"processor": processor()}, "growth": found,
    }  # fmt: skip
    (out / "soak.json").write_text(json.dumps(result, indent=1) + "\n")
    (out / "looks.json").write_text(json.dumps(looks) + "\n")
    plot(looks, out / "soak.png")
    print(markdown(rows_of(found)))
    growing = [f"{row['kind']} in life {row['life']}" for row in found if row["grows"]]
    if growing:
        raise SystemExit(f"these grow: {', '.join(growing)}")
    print("nothing grows")


if __name__ == "__main__":
    main()
