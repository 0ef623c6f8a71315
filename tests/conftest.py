"""Shared by all tests: where the project is, and how veRL is run for real."""

import importlib
import os
import signal
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType

import pytest

from benchmarks.steps import read_metrics

ROOT = Path(__file__).resolve().parent.parent
TINY = ROOT / "examples" / "tiny_reasoner"

#: A run small enough for a test: 4 questions a step, 4 responses each.
SMALL = {
    "QUESTIONS_PER_STEP": "4",
    "GROUP_SIZE": "4",
    "MICRO_BATCH_SIZE": "8",
    "BYPASS_OLD_LOG_PROB": "false",
    "TEST_FREQ": "-1",
}

#: RPO with full first visits and the loss on suffixes alone, as in the paper's algorithm. Credit has tests of its own.
WITHOUT_CREDIT = ("+rpo=enabled", "rpo.credit.rule=none", "rpo.rollout.trunks=0")
#: The same where a few steps have to show it: suffixes of up to half an answer, no validation.
FROM_PREFIXES = (
    *WITHOUT_CREDIT,
    "rpo.truncation.max_fraction=0.5",
    "trainer.val_before_train=false",
)


def load_script(name: str) -> ModuleType:
    """Import one of the tiny reasoner's scripts the way they import each other, or else a module of the laboratory."""
    if not (TINY / f"{name}.py").exists():
        return importlib.import_module(f"benchmarks.{name}")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(TINY))
        module = importlib.import_module(name)
    assert Path(module.__file__).parent == TINY, f"another module named {name} was imported first"
    return module


@dataclass
class Run:
    """A finished run of veRL."""

    returncode: int
    output: str
    folder: Path
    steps: list[dict] = field(default_factory=list)
    """Metrics of each logged step, the step number under the key `step`."""


def _run(command: list[str], folder: Path, environment: dict[str, str], timeout: float) -> Run:
    """Run in `folder`, which is not the repository; output goes to a file, because Ray's daemons may outlive a pipe."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "output.log").open("w") as stream:
        process = subprocess.Popen(
            command, cwd=folder, env=os.environ | environment, stdout=stream, stderr=stream, start_new_session=True
        )
        try:
            process.wait(timeout)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            raise
    metrics, steps = folder / "metrics.jsonl", []
    if metrics.exists():
        steps = [{"step": step} | values for step, values in read_metrics(metrics).items()]
    return Run(process.returncode, (folder / "output.log").read_text(), folder, steps)


def run_recipe(folder: Path, *overrides: str, timeout: float = 900, **environment: str) -> Run:
    """Run recipes/tiny_reasoner through veRL's command line."""
    script = ROOT / "recipes" / "tiny_reasoner" / "run_tiny_reasoner_cpu.sh"
    return run_script(script, folder, *overrides, timeout=timeout, **(SMALL | environment))


def run_script(script: Path, folder: Path, *overrides: str, timeout: float = 900, **environment: str) -> Run:
    """Run a recipe whose knobs `PYTHON` and `RUN_DIR` say with what and where."""
    settings = {"PYTHON": sys.executable, "RUN_DIR": str(folder)} | environment
    return _run(["bash", str(script), *overrides], folder, settings, timeout)


def run_main_ppo(folder: Path, *arguments: str, timeout: float = 300, **environment: str) -> Run:
    """Run `python -m verl.trainer.main_ppo` with nothing but these arguments."""
    command = [sys.executable, "-m", "verl.trainer.main_ppo", *arguments]
    return _run(command, folder, {"VERL_PLATFORM": "cpu"} | environment, timeout)


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory) -> Path:
    """8 training and 8 validation questions of 7 steps each, in veRL's format."""
    folder = tmp_path_factory.mktemp("data")
    command = [sys.executable, str(TINY / "prepare_data.py"), "--out", str(folder)]
    command += ["--train-size", "8", "--val-size", "8", "--steps", "7", "--seed", "3"]
    subprocess.run(command, check=True)
    return folder


@pytest.fixture(scope="session")
def wheel_dir(tmp_path_factory) -> Path:
    """The package as its wheel installs it, in a folder of its own to be put on PYTHONPATH."""
    built, target = tmp_path_factory.mktemp("wheel"), tmp_path_factory.mktemp("site")
    # From a copy, because setuptools leaves a build folder behind.
    source = tmp_path_factory.mktemp("source") / "rpo_verl"
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    for name in filter(None, tracked.split("\0")):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_bytes((ROOT / name).read_bytes())
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    subprocess.run(
        [*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(built), str(source)], check=True
    )
    (wheel,) = built.glob("*.whl")
    subprocess.run([*pip, "install", "--no-deps", "--target", str(target), str(wheel)], check=True)
    return target


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the trainings first: they last, and what takes milliseconds fills the rest of the time."""
    items.sort(key=lambda item: "real" not in item.path.parts)
