"""Run veRL and our own command line for the benches: train one arm and watch it, call `rpo-verl`, claim a folder."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import psutil

from benchmarks.steps import Step, read_steps
from benchmarks.tiny import RECIPE

COMMAND = Path(sys.executable).parent / "rpo-verl"
GROUP_SIZE = 8
SILENCE_S = 20
#: What Ray's log says when it has killed workers; veRL may wait for them for ever.
OUT_OF_MEMORY = "killed due to memory pressure"


def save_every(steps: int) -> tuple[str, ...]:
    """Overrides that save every so many steps and after the last one, as Hugging Face folders to evaluate."""
    return (f"trainer.save_freq={steps}", "actor_rollout_ref.actor.checkpoint.save_contents=[hf_model]")


#: Save once, after the last step.
SAVE = save_every(1_000_000)


def train(
    arm: str, folder: Path, overrides: Sequence[str], *, steps: int, seed: int, test_freq: int, **knobs: str
) -> list[Step]:
    """Train one arm with the tiny reasoner's recipe and report its steps as they come.

    Args:
        arm: its name, for the lines on the screen.
        folder: of the run; its parent has the questions, in `data`.
        overrides: of veRL's settings.
        steps: training steps.
        seed: of veRL.
        test_freq: steps between validations.
        knobs: of the recipe, such as GROUP_SIZE, or of the environment.

    Raises:
        SystemExit: if veRL ends with an error, or Ray has killed a worker for memory; names the log.
    """
    folder = folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    metrics, log = folder / "metrics.jsonl", folder / "verl.log"
    metrics.unlink(missing_ok=True)
    knobs = {
        "PYTHON": sys.executable, "DATA_DIR": str(folder.parent / "data"), "RUN_DIR": str(folder),
        "VERL_FILE_LOGGER_PATH": str(metrics), "EXPERIMENT": arm, "STEPS": str(steps), "SEED": str(seed),
        "TEST_FREQ": str(test_freq), "GROUP_SIZE": str(GROUP_SIZE), **knobs,
    }  # fmt: skip
    print(f"[{arm}] veRL with {' '.join(overrides) or 'nothing added'}")
    print(f"[{arm}] starting Ray, FSDP and vLLM (about a minute); their output is in {log}", flush=True)
    with log.open("w") as stream:
        process = subprocess.Popen(
            ["bash", str(RECIPE), *overrides], env=os.environ | knobs, stdout=stream, stderr=subprocess.STDOUT
        )
        shown, spoke, started, launched = 0, time.monotonic(), None, time.monotonic()
        while True:
            running = process.poll() is None
            logged = read_steps(metrics, int(knobs["GROUP_SIZE"]))
            for step in logged[shown:]:
                # Time left counts from the first step's start, so that the start-up does not blur it.
                started = started or time.monotonic() - step.step_s
                print(progress(arm, step, steps, started), flush=True)
                shown, spoke = shown + 1, time.monotonic()
            if not running:
                break
            if time.monotonic() - spoke > SILENCE_S:
                if OUT_OF_MEMORY in log.read_text(errors="replace"):
                    stop(process)
                    raise SystemExit(f"[{arm}] memory ran out, and Ray killed workers; see {log}. Run fewer at a time")
                print(f"[{arm}] … {time.monotonic() - launched:.0f} s since the start", flush=True)
                spoke = time.monotonic()
            time.sleep(0.5)
    if process.returncode != 0:
        raise SystemExit(f"[{arm}] veRL ended with status {process.returncode}; see {log}")
    return logged


def stop(process: subprocess.Popen[bytes]) -> None:
    """End a process and those that it started, and wait for them."""
    running = [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]
    for one in running:
        with suppress(psutil.NoSuchProcess):
            one.terminate()
    _, left = psutil.wait_procs(running, timeout=30)
    for one in left:
        with suppress(psutil.NoSuchProcess):
            one.kill()
    process.wait()


def progress(arm: str, step: Step, steps: int, started: float) -> str:
    """One line for one finished step."""
    if step.number == 0:
        return f"[{arm}] before training: validation accuracy {step.val_accuracy:.3f}"
    left = (time.monotonic() - started) / step.number * (steps - step.number)
    text = (
        f"[{arm}] step {step.number:>3}/{steps}  {step.step_s:5.1f} s (rollout {step.rollout_s:4.1f} s)  "
        f"generated {step.generated_tokens:>6} tokens  reward {step.reward:.2f}"
    )
    if step.val_accuracy is not None:
        text += f"  validation accuracy {step.val_accuracy:.3f}"
    return f"{text}  about {left / 60:.1f} min left"


def rpo_verl(*arguments: object) -> None:
    """Call `rpo-verl` on the CPU.

    Raises:
        SystemExit: if it fails; it has said why.
    """
    environment = {"VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1"} | os.environ | {"VERL_PLATFORM": "cpu"}
    status = subprocess.run([str(COMMAND), *map(str, arguments)], env=environment).returncode
    if status != 0:
        raise SystemExit(status)


def claim(out: Path, settings: dict[str, object]) -> None:
    """Make sure that everything in `out` was made with these settings.

    Raises:
        SystemExit: if it was not.
    """
    path = out / "settings.json"
    if path.exists() and json.loads(path.read_text()) != settings:
        raise SystemExit(
            f"{out} was made with {path.read_text().strip()}, now it is {json.dumps(settings)}: choose --out"
        )
    out.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(settings) + "\n")
