"""`rpo-verl cache build` with the real vLLM: interrupted, continued, and trained from."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import TINY, run_recipe

from rpo_verl.rpo import store

COMMAND = Path(sys.executable).parent / "rpo-verl"


def start_build(folder, data_dir, *options):
    command = [
        str(COMMAND),
        "cache",
        "build",
        "--data",
        str(data_dir / "train.parquet"),
        "--out",
        str(folder / "store"),
    ]
    command += ["--model", str(TINY / "checkpoint"), "--max-prompt-length", "72", "--max-response-length", "208"]
    command += ["--reward-file", str(TINY / "reward.py"), "--dtype", "float32", "--batch-size", "3"]
    environment = os.environ | {"VERL_PLATFORM": "cpu", "VLLM_CPU_KVCACHE_SPACE": "1"}
    with (folder / "build.log").open("a") as log:
        return subprocess.Popen(
            [*command, *options], cwd=folder, env=environment, stdout=log, stderr=log, start_new_session=True
        )


@pytest.fixture(scope="module")
def built(tmp_path_factory, data_dir):
    """A store of 8 answers; the first build was killed after its first batch of 3."""
    folder = tmp_path_factory.mktemp("build")
    process = start_build(folder, data_dir)
    first = folder / "store.partial" / "part-000000003" / "manifest.json"
    deadline = time.monotonic() + 300
    while not first.exists():
        assert process.poll() is None and time.monotonic() < deadline, (folder / "build.log").read_text()[-4000:]
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    parts = {path.name: (path / "manifest.json").read_bytes() for path in first.parent.parent.glob("part-*")}
    assert not (folder / "store").exists(), "the build was too fast to be interrupted"
    refused = start_build(folder, data_dir, "--temperature", "0.5")
    assert refused.wait(300) == 1
    assert "temperature: 1.0 then, 0.5 now" in " ".join((folder / "build.log").read_text().split())
    assert {p.name: (p / "manifest.json").read_bytes() for p in first.parent.parent.glob("part-*")} == parts
    finished = start_build(folder, data_dir)
    assert finished.wait(300) == 0, (folder / "build.log").read_text()[-4000:]
    return folder


def test_one_answer_per_question_without_the_end_token(built):
    cache, manifest = store.load(built / "store")
    assert (manifest.entries, manifest.step) == (8, 0)
    assert not (built / "store.partial").exists()
    for _, answer in cache.items():
        assert 0 < len(answer.tokens) < 208
        assert int(answer.tokens.max()) < 256  # characters only
        assert answer.reward == float(answer.correct)


def test_training_from_it_has_prefixes_from_the_first_step(built, data_dir, tmp_path):
    # The default step's draw may ask for whole answers, and the first one does.
    run = run_recipe(
        tmp_path, "+rpo=enabled", f"rpo.cache.path={built / 'store'}", "rpo.truncation.max_fraction=0.5",
        "trainer.val_before_train=false", STEPS="1", DATA_DIR=str(data_dir),
    )  # fmt: skip
    assert run.returncode == 0, run.output[-4000:]
    assert run.steps[0]["rpo/groups/prefixed_total"] == 4
    # Some of the built answers are wrong, and one from whose prefix a whole group failed is dropped.
    assert run.steps[0]["rpo/cache/entries"] + run.steps[0]["rpo/cache/dropped_total"] == 8
