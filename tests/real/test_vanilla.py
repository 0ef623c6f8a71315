"""With the package installed and nothing of it selected, veRL trains exactly as without the package.

With `+lean=enabled` it trains the same, too, in less time.
"""

import json
import shutil

import pytest
from conftest import ROOT, run_recipe

from benchmarks.contents import without_ours
from benchmarks.waiting import waits

#: What a machine and its clock decide.
NOT_COMPARED = ("timing", "perf/", "actor/perf/", "throughput")

DETERMINISTIC = (
    # The most probable token always: what is sampled is then a function of the weights. (veRL's full_determinism needs
    # vLLM's batch-invariant kernels, which exist for GPUs only.) All members of a group are alike then, so that it is
    # the entropy bonus that moves the weights.
    "actor_rollout_ref.rollout.top_k=1",
    "actor_rollout_ref.actor.entropy_coeff=0.01",
    "data.shuffle=false",
    "trainer.val_before_train=false",
    "trainer.test_freq=-1",
)


def contents_dir(folder):
    """Where every process of a run writes what veRL's registries and classes hold."""
    found = folder / "contents"
    found.mkdir()
    return found


def contents_of(run):
    """One description of each set of modules that processes of a run had imported in the end."""
    found = [json.loads(path.read_text()) for path in (run.folder / "contents").glob("*.json")]
    return {tuple(one["modules"]): one for one in found}


@pytest.fixture(scope="module")
def with_package(tmp_path_factory, data_dir):
    folder = tmp_path_factory.mktemp("with")
    return run_recipe(
        folder, *DETERMINISTIC, f"trainer.rollout_data_dir={folder / 'rollouts'}", STEPS="2", DATA_DIR=str(data_dir),
        OMP_NUM_THREADS="1", PYTHONPATH=str(ROOT), VERL_USE_EXTERNAL_MODULES="benchmarks.contents",
        CONTENTS_DIR=str(contents_dir(folder)),
    )  # fmt: skip


@pytest.fixture(scope="module")
def without_package(tmp_path_factory, data_dir):
    """A veRL that finds the CPU platform, without which it could not run here, and nothing else of this package."""
    folder = tmp_path_factory.mktemp("without")
    site = folder / "site"
    (site / "rpo_verl").mkdir(parents=True)
    (site / "rpo_verl" / "__init__.py").write_text("")
    shutil.copytree(ROOT / "rpo_verl" / "cpu", site / "rpo_verl" / "cpu")
    shutil.copytree(ROOT / "hydra_configs" / "platform", site / "configs" / "platform")
    (site / "only_the_cpu_platform.py").write_text(
        "from rpo_verl.cpu import patches, platform\nassert platform\npatches.apply_to_verl()\nimport contents\n"
    )
    shutil.copy(ROOT / "benchmarks" / "contents.py", site / "contents.py")
    return run_recipe(
        folder, *DETERMINISTIC, f"trainer.rollout_data_dir={folder / 'rollouts'}",
        f"hydra.searchpath=[file://{site / 'configs'}]", STEPS="2", DATA_DIR=str(data_dir), OMP_NUM_THREADS="1",
        PYTHONPATH=str(site), CONTENTS_DIR=str(contents_dir(folder)),
        VERL_USE_EXTERNAL_PLUGINS="none", VERL_USE_EXTERNAL_MODULES="only_the_cpu_platform",
    )  # fmt: skip


@pytest.fixture(scope="module")
def lean(tmp_path_factory, data_dir):
    folder = tmp_path_factory.mktemp("lean")
    return run_recipe(
        folder, *DETERMINISTIC, "+lean=enabled", "lean.share_prefix=true",
        f"trainer.rollout_data_dir={folder / 'rollouts'}", STEPS="2", DATA_DIR=str(data_dir), OMP_NUM_THREADS="1",
        VERL_USE_EXTERNAL_MODULES="benchmarks.waiting", WAITING_FILE=str(folder / "waiting.jsonl"),
        PYTHONPATH=str(ROOT),
    )  # fmt: skip


def comparable(step):
    # The file logger writes NaN as null.
    return {
        name: float("nan") if value is None else value
        for name, value in step.items()
        if not name.startswith(NOT_COMPARED)
    }


def test_all_ran(with_package, without_package, lean):
    for run in (with_package, without_package, lean):
        assert run.returncode == 0, run.output[-4000:]
        assert len(run.steps) == 2
        assert any(step["actor/grad_norm"] > 0 for step in run.steps)


def test_same_sampled_tokens(with_package, without_package, lean):
    for step in ("1.jsonl", "2.jsonl"):
        texts = []
        for run in (with_package, without_package, lean):
            lines = (run.folder / "rollouts" / step).read_text().splitlines()
            # uid is random in veRL; everything else of a row has to be the same.
            texts.append(sorted(line.split('"uid"')[0] for line in lines))
        assert texts[0] == texts[1] == texts[2]
        assert len(texts[0]) == 16


def test_same_metrics(with_package, without_package):
    for ours, theirs in zip(with_package.steps, without_package.steps, strict=True):
        assert comparable(ours).keys() == comparable(theirs).keys()
        assert not any(name.startswith("rpo/") for name in ours)
        assert comparable(ours) == pytest.approx(comparable(theirs), rel=1e-5, abs=1e-6, nan_ok=True)


def test_registries_and_classes_hold_the_same_in_every_process(with_package, without_package):
    """Actor workers, TaskRunner, rollout and reward workers; tests/upstream/test_installed_only.py has more of them."""
    ours, theirs = contents_of(with_package), contents_of(without_package)
    assert any(one["registries"]["engines"] for one in ours.values())
    assert any(one["registries"]["trainers"] for one in ours.values())
    common = ours.keys() & theirs.keys()
    assert common, (ours.keys(), theirs.keys())
    for modules in common:
        assert ours[modules]["plugin"]
        assert not theirs[modules]["plugin"]
        assert without_ours(ours[modules]["registries"]) == theirs[modules]["registries"]
        assert ours[modules]["classes"] == theirs[modules]["classes"]


def test_lean_trains_the_same(with_package, lean):
    """Same batches, same losses and gradients, with shared prefixes: to the rounding of float32."""
    for ours, theirs in zip(lean.steps, with_package.steps, strict=True):
        shared = {name: value for name, value in comparable(ours).items() if not name.startswith("lean/")}
        assert shared.keys() == comparable(theirs).keys()
        assert shared == pytest.approx(comparable(theirs), rel=1e-3, abs=1e-5, nan_ok=True)
        assert ours["actor/grad_norm"] == pytest.approx(theirs["actor/grad_norm"], rel=1e-4)
        # Entropy has a gradient on every row. The members of a group are equal, so they are computed once.
        assert ours["lean/update/rows_share"] == 1
        assert ours["lean/update/computed_share"] < 0.5
        assert not any(name.startswith(("rpo/", "timing_s/rpo")) for name in ours)


def test_lean_does_not_wait_for_verls_poll(lean):
    # veRL looks at its replay buffer every 2 s; what waits is a finished batch, whatever its rollout took.
    found = waits(lean.folder / "waiting.jsonl")
    assert len(found) == 2
    assert max(found) < 1
