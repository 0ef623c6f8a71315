"""A model as the reward, on devices of its own and on those of the rollout: it scores whole responses.

On devices of its own it is asked by a reward function: veRL 0.9.1 asks such a model itself too, and then stumbles over
the answer (`KeyError: 'reward_extra_info'`), with and without RPO.
"""

import json
from pathlib import Path

import pytest
import torch
from conftest import FROM_PREFIXES, TINY, run_recipe
from transformers import AutoTokenizer, Qwen2ForSequenceClassification

STEPS = 4


@pytest.fixture(scope="module")
def reward_model(tmp_path_factory):
    """The tiny reasoner with a head that nobody trained: what it thinks of a text depends on all of it."""
    folder = tmp_path_factory.mktemp("reward_model")
    torch.manual_seed(0)
    model = Qwen2ForSequenceClassification.from_pretrained(TINY / "checkpoint", num_labels=1, dtype=torch.float32)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(TINY / "checkpoint").save_pretrained(folder)
    return folder


@pytest.mark.parametrize("place", ["separate", "colocated"])
def test_the_reward_model_scores_whole_responses(place, reward_model, data_dir, tmp_path):
    separate = place == "separate"
    function = Path(__file__).with_name("model_reward.py") if separate else "null"
    run = run_recipe(
        tmp_path,
        *FROM_PREFIXES,
        f"trainer.rollout_data_dir={tmp_path / 'rollouts'}",
        f"reward.custom_reward_function.path={function}",
        "reward.reward_model.enable=true",
        f"reward.reward_model.enable_resource_pool={separate}",
        "reward.reward_model.n_gpus_per_node=1",
        "reward.reward_model.nnodes=1",
        f"reward.reward_model.model_path={reward_model}",
        "reward.reward_model.rollout.max_model_len=320",
        f"ray_kwargs.ray_init.num_gpus={1 + separate}",
        STEPS=str(STEPS),
        DATA_DIR=str(data_dir),
        REWARD_MODEL=str(reward_model),
    )
    assert run.returncode == 0, run.output[-4000:]
    assert [step["step"] for step in run.steps] == list(range(1, STEPS + 1))
    assert any(step["rpo/groups/prefixed_total"] > 0 for step in run.steps)

    model = Qwen2ForSequenceClassification.from_pretrained(reward_model, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(reward_model)

    def opinion(question: str, answer: str) -> float:
        chat = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        text = tokenizer.apply_chat_template(chat[separate:], tokenize=False)
        with torch.no_grad():
            return model(**tokenizer(text, add_special_tokens=False, return_tensors="pt")).logits.item()

    prefixed = told_apart = 0
    for step in range(1, STEPS + 1):
        for row in map(json.loads, (tmp_path / "rollouts" / f"{step}.jsonl").read_text().splitlines()):
            question, prefix = row["input"].strip("\n"), row["rpo_prefix_text"]
            assert row["rpo_base_reward"] == pytest.approx(opinion(question, row["output"]), abs=1e-3)
            if prefix:
                prefixed += 1
                of_suffix = opinion(question, row["output"].removeprefix(prefix))
                told_apart += row["rpo_base_reward"] != pytest.approx(of_suffix, abs=1e-2)
    assert prefixed
    assert told_apart > prefixed / 2
