"""`rpo/*` in every tracker that veRL logs to and that works without an account, as in the file logger.

`make test-slow` installs mlflow and swanlab into build/trackers (`requirements/trackers.lock`).
"""

import json
import sys

import pytest
from conftest import ROOT, run_recipe

TRACKERS = ROOT / "build" / "trackers"
STEPS = 3


@pytest.fixture(scope="module")
def run(tmp_path_factory, data_dir):
    folder = tmp_path_factory.mktemp("trackers")
    for name in ("wandb", "swanlog"):
        (folder / name).mkdir()
    run = run_recipe(
        folder,
        "+rpo=enabled",
        "trainer.logger=[console,file,tensorboard,wandb,mlflow,swanlab]",
        "trainer.val_before_train=false",
        STEPS=str(STEPS),
        DATA_DIR=str(data_dir),
        PYTHONPATH=str(TRACKERS),
        TENSORBOARD_DIR=str(folder / "tensorboard"),
        WANDB_MODE="offline",
        WANDB_DIR=str(folder / "wandb"),
        MLFLOW_TRACKING_URI=f"file://{folder / 'mlruns'}",
        MLFLOW_ALLOW_FILE_STORE="true",
        SWANLAB_MODE="offline",
        SWANLAB_LOG_DIR=str(folder / "swanlog"),
    )
    assert run.returncode == 0, run.output[-4000:]
    return run


@pytest.fixture
def trackers(monkeypatch):
    """What reads the trackers' own files back."""
    monkeypatch.setattr(sys, "path", [*sys.path, str(TRACKERS)])


def read_tensorboard(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0})
    events.Reload()
    return {(tag, event.step): event.value for tag in events.Tags()["scalars"] for event in events.Scalars(tag)}


def read_wandb(folder):
    from swanlab.converter.wb.wbdatastore import WBDataStoreReader
    from wandb.proto.wandb_internal_pb2 import Record

    (path,) = (folder / "wandb").glob("wandb/offline-run-*/run-*.wandb")
    reader, values = WBDataStoreReader(), {}
    reader.open(path)
    while (data := reader.scan()) is not None:
        record = Record.FromString(data)
        if record.WhichOneof("record_type") == "history":
            for item in record.history.item:
                values["/".join(item.nested_key) or item.key, record.history.step.num] = json.loads(item.value_json)
    return values


def read_mlflow(folder):
    values = {}
    for metrics in (folder / "mlruns").glob("*/*/metrics"):
        for path in filter(lambda path: path.is_file(), metrics.rglob("*")):
            for line in path.read_text().splitlines():
                _, value, step = line.split()[:3]
                values[str(path.relative_to(metrics)), int(step)] = float(value)
    return values


def read_swanlab(folder):
    from swanlab.proto.swanlab.record.v1.record_pb2 import Record
    from swanlab.sdk.internal.core_python.store import DataStoreReader

    (path,) = (folder / "swanlog").glob("run-*/*.swanlab")
    reader, values = DataStoreReader(), {}
    reader.open(path)
    for data in reader:
        record = Record.FromString(data)
        if record.HasField("scalar"):
            values[record.scalar.key, record.scalar.step] = record.scalar.value.number
    return values


@pytest.mark.parametrize("read", [read_tensorboard, read_wandb, read_mlflow, read_swanlab])
def test_every_metric_of_rpo_is_there(run, trackers, read):
    logged = read(run.folder)
    assert len(run.steps) == STEPS
    for step in run.steps:
        expected = {name: value for name, value in step.items() if name.startswith("rpo/")}
        assert len(expected) > 30
        assert {name: logged.get((name, step["step"])) for name in expected} == pytest.approx(expected, rel=1e-5)
