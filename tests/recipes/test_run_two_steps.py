"""`make test-recipes`: every recipe trains for two steps on the CPU, the tiny reasoner put in through its knobs."""

import pytest
from conftest import ROOT, TINY, run_script
from scripts import SCRIPTS

STEPS = 2


@pytest.mark.parametrize("script", SCRIPTS, ids=str)
def test_two_steps(script, data_dir, tmp_path):
    run = run_script(
        ROOT / "recipes" / script,
        tmp_path,
        "+platform=cpu",
        f"trainer.total_training_steps={STEPS}",
        "trainer.val_before_train=false",
        "trainer.resume_mode=disable",
        VERL_PLATFORM="cpu",
        SCALE="one_gpu",
        MODEL_PATH=str(TINY / "checkpoint"),
        TRAIN_FILES=str(data_dir / "train.parquet"),
        VAL_FILES=str(data_dir / "val.parquet"),
        REWARD_FILE=str(TINY / "reward.py"),
        QUESTIONS_PER_STEP="8",
        MINI_BATCH="8",
        GROUP_SIZE="4",
        MAX_PROMPT_LENGTH="72",
        MAX_RESPONSE_LENGTH="208",
        MAX_TOKENS_PER_GPU="2240",
        OFFLOAD="False",
        OFFLOAD_POLICY="False",
        USE_REMOVE_PADDING="False",
        LOGGER="['console','file']",
        TEST_FREQ="-1",
        SAVE_FREQ="-1",
    )
    assert run.returncode == 0, run.output[-4000:]
    assert [step["step"] for step in run.steps] == [1, 2]
    if not script.stem.endswith("_rpo"):
        assert not any(name.startswith("rpo/") for name in run.steps[-1])
        return
    # There are 8 questions, so that the second step meets those of the first again.
    assert run.steps[0]["rpo/groups/full_total"] + run.steps[0]["rpo/left_out/groups_total"] >= 8
    assert run.steps[1]["rpo/groups/prefixed_total"] > 0
