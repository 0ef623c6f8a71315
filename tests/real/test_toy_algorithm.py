"""The table of algorithms is real: one of another package, found by its entry point, trains through the same doors."""

import shutil
from pathlib import Path

import pytest
from conftest import run_main_ppo, run_recipe

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A package as pip would install it: two modules, and metadata with the entry point."""
    folder = tmp_path_factory.mktemp("toy") / "site"
    metadata = folder / "toy-1.0.dist-info"
    metadata.mkdir(parents=True)
    for name in ("toy_algorithm.py", "toy_estimator.py"):
        shutil.copy(HERE / name, folder)
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: toy\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text("[rpo_verl.algorithms]\ntoy = toy_algorithm:TOY\n")
    return folder


def test_it_trains(tmp_path, data_dir, site):
    run = run_recipe(
        tmp_path, "+toy=enabled", "toy.scale=3.0", "algorithm.adv_estimator=toy", "trainer.val_before_train=false",
        STEPS="2", DATA_DIR=str(data_dir), PYTHONPATH=str(site),
    )  # fmt: skip
    assert run.returncode == 0, run.output[-4000:]
    assert [step["step"] for step in run.steps] == [1, 2]
    for step in run.steps:
        assert step["toy/scale"] == 3.0
        # Its estimator: twice the reward plus one. GRPO's advantages have a mean of zero in every group.
        assert step["critic/advantages/min"] >= 2
        assert step["critic/advantages/max"] <= 4
        assert step["actor/grad_norm"] > 0
        # Lean came along, RPO did not.
        assert step["lean/update/rows_share"] == 1
        assert not any(name.startswith("rpo/") for name in step)


@pytest.mark.parametrize(
    ("overrides", "fragment"),
    [
        (["+toy=enabled", "toy.scale=0"], "toy.scale=0.0: must be above 0"),
        (["+toy.scale=1"], "+toy=enabled"),
    ],
)
def test_its_options_are_checked_like_ours(tmp_path, site, overrides, fragment):
    run = run_main_ppo(tmp_path, *overrides, PYTHONPATH=str(site))
    assert run.returncode != 0
    assert fragment in run.output, run.output[-2000:]
    assert "Started a local Ray instance" not in run.output
