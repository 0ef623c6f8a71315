"""One run with what else veRL users switch on: RLOO, KL twice, entropy, dynamic batches, several updates per step, an
asynchronous reward that fails at times; and in the same batches rows of the tool agent, of an agent loop of two turns,
and with messages in parts, as rows with images have them (images need torchvision, which has no build for a CPU torch
here).
"""

import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from conftest import TINY, WITHOUT_CREDIT, run_recipe

from rpo_verl.rpo import store

STEPS = 6
HERE = Path(__file__).parent
#: The tiny reasoner's, which joins a message's parts as chat templates of vision models do.
TEMPLATE = (
    "{%- for message in messages -%}{%- set content = message['content'] -%}"
    "{%- if content is not string -%}{%- set content = content | map(attribute='text') | join -%}{%- endif -%}"
    "{{- '<|' + message['role'] + '|>' + content + '<|im_end|>\n' -}}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|assistant|>' -}}{%- endif -%}"
)


@pytest.fixture(scope="module")
def run(tmp_path_factory, data_dir):
    folder = tmp_path_factory.mktemp("settings")
    for split in ("train", "val"):
        rows = pq.read_table(data_dir / f"{split}.parquet").to_pylist()
        for i, row in enumerate(rows):
            row["agent_name"] = {3: "two_turns", 7: "tool_agent"}.get(i, "single_turn_agent")
        pq.write_table(pa.Table.from_pylist(rows), folder / f"{split}.parquet")
    loops = [{"name": "two_turns", "_target_": "two_turns.TwoTurns"}]
    (folder / "loops.yaml").write_text(yaml.safe_dump(loops))
    shutil.copytree(TINY / "checkpoint", folder / "model")
    (folder / "model" / "chat_template.jinja").write_text(TEMPLATE)
    run = run_recipe(
        folder,
        f"data.custom_cls.path={HERE / 'parts_dataset.py'}",
        "data.custom_cls.name=PartsDataset",
        f"actor_rollout_ref.rollout.agent.agent_loop_config_path={folder / 'loops.yaml'}",
        *WITHOUT_CREDIT,
        "rpo.truncation.max_fraction=0.5",
        "data.shuffle=false",
        "trainer.val_before_train=false",
        f"trainer.save_freq={STEPS}",
        "algorithm.adv_estimator=rloo",
        "algorithm.use_kl_in_reward=true",
        "actor_rollout_ref.actor.use_kl_loss=true",
        "actor_rollout_ref.actor.entropy_coeff=0.001",
        "actor_rollout_ref.actor.loss_agg_mode=seq-mean-token-mean",
        "actor_rollout_ref.actor.use_dynamic_bsz=true",
        "actor_rollout_ref.actor.ppo_max_token_len_per_gpu=1024",
        "actor_rollout_ref.actor.ppo_mini_batch_size=2",
        "actor_rollout_ref.actor.ppo_epochs=2",
        PYTHONPATH=str(HERE),
        STEPS=str(STEPS),
        DATA_DIR=str(folder),
        MODEL_PATH=str(folder / "model"),
        REWARD_FILE=str(HERE / "troublesome_reward.py"),
        TEST_FREQ=str(STEPS),
    )
    assert run.returncode == 0, run.output[-4000:]
    return run


def test_the_run_trains_with_all_of_it(run):
    assert [step["step"] for step in run.steps] == list(range(1, STEPS + 1))
    for step in run.steps:
        assert step["actor/grad_norm"] > 0
        assert step["actor/kl_loss"] >= 0
        assert "actor/reward_kl_penalty" in step
        assert step["actor/entropy"] > 0
        # With KL and entropy in the loss every row has a gradient.
        assert step["lean/update/rows_share"] == 1


def test_rows_that_rpo_does_not_touch_train_beside_its_own(run):
    for step in run.steps:
        odd = step["step"] % 2
        # Questions 3 and 7 are other loops', the message of 6 is a list of parts.
        assert step["rpo/groups/passed_through_total"] == (1 if odd else 2)
        assert step["num_turns/max"] == (4 if odd else 2)
        own = sum(step[f"rpo/groups/{kind}_total"] for kind in ("full", "prefixed", "refreshed"))
        # Of 0, 1 and 2 the first fails, and the second where all its answers are right.
        assert own in ((1, 2) if odd else (2,))


def test_rewards_keep_their_scale(run):
    for step in run.steps:
        assert -2 <= step["rpo/reward/base_mean"] <= 3
        assert step["rpo/reward/shaped_mean"] <= step["rpo/reward/base_mean"]
    assert run.steps[-1]["val-core/tiny_reasoner/acc/mean@1"] >= 0


def test_what_fails_never_enters_the_cache(run):
    assert "no reward for question 0" in run.output
    assert "RPO needs a finite number" in run.output
    cache, _ = store.load(run.folder / "checkpoints" / f"global_step_{STEPS}" / "rpo")
    # Not question 0; question 1 only with a wrong answer; not 3, 6 and 7.
    assert 3 <= len(cache) <= 4
    assert all(answer.reward in (3.0, -2.0) for _, answer in cache.items())
    assert all(answer.correct == (answer.reward == 3.0) for _, answer in cache.items())
