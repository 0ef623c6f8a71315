"""The cache goes with veRL's checkpoints: saved, resumed exactly, deleted with them, missed loudly."""

import shutil

import pytest
from conftest import WITHOUT_CREDIT, run_recipe

from rpo_verl.rpo import store

#: Always the most probable token, so that a run can be repeated; the entropy bonus moves the weights.
SETTINGS = (
    *WITHOUT_CREDIT,
    "rpo.truncation.max_fraction=1",
    "rpo.rollout.full_rollout_every=5",
    "rpo.cache.max_failures=2",
    "actor_rollout_ref.rollout.top_k=1",
    "actor_rollout_ref.actor.entropy_coeff=0.01",
    "trainer.val_before_train=false",
    "trainer.resume_mode=auto",
)


def train(folder, data_dir, steps, *overrides):
    run = run_recipe(
        folder, *SETTINGS, *overrides, STEPS=str(steps), DATA_DIR=str(data_dir), OMP_NUM_THREADS="1",
        LEARNING_RATE_SCHEDULE="constant",
    )  # fmt: skip
    assert run.returncode == 0, run.output[-4000:]
    return run


def entries(folder, step):
    cache, manifest = store.load(folder / "checkpoints" / f"global_step_{step}" / "rpo")
    assert manifest.step == step
    return [
        (key, a.tokens.tolist(), a.question.tolist(), a.correct, a.reward, a.step, a.failures)
        for key, a in cache.items()
    ]


@pytest.fixture(scope="module")
def whole(tmp_path_factory, data_dir):
    """Six steps in one go."""
    return train(tmp_path_factory.mktemp("whole"), data_dir, 6, "trainer.save_freq=3")


@pytest.fixture(scope="module")
def resumed(tmp_path_factory, data_dir, whole):
    """Three more steps, in another process, from what the first run had saved after three."""
    folder = tmp_path_factory.mktemp("resumed")
    shutil.copytree(whole.folder / "checkpoints" / "global_step_3", folder / "checkpoints" / "global_step_3")
    (folder / "checkpoints" / "latest_checkpointed_iteration.txt").write_text("3")
    return train(folder, data_dir, 6, "trainer.save_freq=1", "trainer.max_actor_ckpt_to_keep=1")


def test_three_and_three_steps_are_six(whole, resumed):
    assert [step["step"] for step in resumed.steps] == [4, 5, 6]
    for one, other in zip(whole.steps[3:], resumed.steps, strict=True):
        for name in (
            "prefix/length_mean",
            "prefix/length_min",
            "tokens/reused_total",
            "groups/prefixed_total",
            "cache/bytes",
        ):
            assert one[f"rpo/{name}"] == other[f"rpo/{name}"], (one["step"], name)
    assert whole.steps[3]["rpo/groups/prefixed_total"] == 4
    assert len(entries(whole.folder, 6)) == 8
    assert entries(resumed.folder, 6) == entries(whole.folder, 6)
    assert entries(whole.folder, 6) != entries(whole.folder, 3)


def test_a_cache_goes_with_its_checkpoint(resumed):
    kept = {path.parent.name for path in (resumed.folder / "checkpoints").glob("global_step_*/rpo")}
    assert kept == {path.parent.name for path in (resumed.folder / "checkpoints").glob("global_step_*/actor")}
    assert "global_step_6" in kept
    assert not {"global_step_4", "global_step_5"} & kept


def test_a_missing_cache_is_a_loud_warning_and_a_cold_start(tmp_path, data_dir, whole):
    shutil.copytree(whole.folder / "checkpoints", tmp_path / "checkpoints")
    shutil.rmtree(tmp_path / "checkpoints" / "global_step_6" / "rpo")
    checkpoint = tmp_path / "checkpoints" / "global_step_6"
    run = train(tmp_path, data_dir, 7, "trainer.resume_mode=resume_path", f"trainer.resume_from_path={checkpoint}")
    assert run.output.count("NO EXPERIENCE CACHE") == 1
    assert str(tmp_path / "checkpoints" / "global_step_6" / "rpo") in run.output
    assert run.steps[0]["step"] == 7
    assert run.steps[0]["rpo/groups/full_total"] == 4
