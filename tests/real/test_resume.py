"""The cache goes with veRL's checkpoints: saved, resumed exactly, deleted with them.

`test_dapo.py` resumes without it.
"""

import shutil

import pytest
from conftest import train_repeatably

from rpo_verl.rpo import store


def entries(folder, step):
    cache, manifest = store.load(folder / "checkpoints" / f"global_step_{step}" / "rpo")
    assert manifest.step == step
    return [
        (key, a.tokens.tolist(), a.question.tolist(), a.correct, a.reward, a.step, a.failures)
        for key, a in cache.items()
    ]


@pytest.fixture(scope="module")
def resumed(tmp_path_factory, data_dir, whole):
    """Three more steps, in another process, from what the first run had saved after three."""
    folder = tmp_path_factory.mktemp("resumed")
    shutil.copytree(whole.folder / "checkpoints" / "global_step_3", folder / "checkpoints" / "global_step_3")
    (folder / "checkpoints" / "latest_checkpointed_iteration.txt").write_text("3")
    return train_repeatably(folder, data_dir, 6, "trainer.save_freq=1", "trainer.max_actor_ckpt_to_keep=1")


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
