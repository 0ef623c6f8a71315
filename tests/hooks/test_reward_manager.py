"""The registered reward manager around each of veRL's own and a user's: the reward is theirs, on the whole response."""

import asyncio
import math
from pathlib import Path

import numpy as np
import pytest
import ray
import torch
from conftest import TINY
from hydra import compose, initialize_config_module
from transformers import AutoTokenizer
from verl import DataProto
from verl.trainer.ppo.reward import load_reward_manager, resolve_reward_manager_cls

from rpo_verl.rpo.hooks.reward import _failures, failures_in_worker
from rpo_verl.rpo.hooks.settings import take_over, users_config
from rpo_verl.rpo.start import Start

QUESTION, PREFIX, SUFFIX = "30a+1", "a30+1", "=31;#31"
CUSTOM = Path(__file__).parent / "custom_manager.py"


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(TINY / "checkpoint")


def configure(*overrides, reward="compute_score", reward_file=TINY / "reward.py"):
    with initialize_config_module("verl.trainer.config", version_base=None):
        config = compose(
            "ppo_trainer",
            [
                "+rpo=enabled",
                f"actor_rollout_ref.model.path={TINY / 'checkpoint'}",
                "actor_rollout_ref.rollout.n=4",
                "actor_rollout_ref.rollout.name=vllm",
                "data.max_response_length=64",
                f"reward.custom_reward_function.path={reward_file}",
                f"reward.custom_reward_function.name={reward}",
                *overrides,
            ],
        )
    take_over(config)
    return config


def row(tokenizer, answer, training=True):
    """One row as veRL's reward workers get it."""
    prompt, response = (torch.tensor([tokenizer.encode(text, add_special_tokens=False)]) for text in (QUESTION, answer))
    extra = {
        "data_source": "tiny_reasoner",
        "reward_model": {"ground_truth": "31"},
        "extra_info": {"split": "train"},
        "raw_prompt": [{"role": "user", "content": QUESTION}],
    }
    if training:
        extra["rpo_start"] = Start(b"k" * 16, "prefixed", 4, 60)
    batch = {
        "prompts": prompt,
        "responses": response,
        "attention_mask": torch.ones(1, prompt.shape[1] + response.shape[1], dtype=torch.int64),
    }
    return DataProto.from_dict(
        tensors=batch, non_tensors={key: np.array([value, None], dtype=object)[:1] for key, value in extra.items()}
    )


def score(config, tokenizer, answer=PREFIX + SUFFIX, **kwargs):
    async def run():
        return await load_reward_manager(config, tokenizer).run_single(row(tokenizer, answer, **kwargs))

    return asyncio.run(run())


@pytest.fixture(scope="module")
def cluster():
    # Each remote manager takes a CPU per worker until Python collects it, which may be after the last of them.
    ray.init(num_cpus=16, include_dashboard=False)
    yield
    ray.shutdown()


@pytest.mark.parametrize("manager", ["naive", "dapo", "rate_limited", "remote", "gdpo"])
@pytest.mark.parametrize(("answer", "expected"), [(PREFIX + SUFFIX, 1.0), (PREFIX + "=99;#99", 0.0), (SUFFIX, 0.0)])
def test_verls_managers_see_the_whole_response(manager, answer, expected, tokenizer, cluster, tmp_path):
    path = tmp_path / "reward.py"
    path.write_text(
        f"def compute_score(solution_str, **kwargs):\n    return float(solution_str == {PREFIX + SUFFIX!r})\n"
    )
    result = score(configure(f"reward.reward_manager.name={manager}", reward_file=path), tokenizer, answer)
    assert result["reward_score"] == expected
    assert result["reward_extra_info"]["rpo_correct"] is bool(expected)


def test_a_users_manager(tokenizer):
    overrides = ["reward.reward_manager.source=importlib", "reward.reward_manager.name=LengthManager"]
    config = configure(*overrides, f"reward.reward_manager.module.path={CUSTOM}")
    result = score(config, tokenizer)
    assert result["reward_score"] == 0.5
    assert result["reward_extra_info"]["seen"] == PREFIX + SUFFIX
    assert resolve_reward_manager_cls(users_config(config)).__name__ == "LengthManager"


def test_the_overlong_penalty_counts_the_prefix(tokenizer):
    # 12 tokens, of which 8 are free: the penalty is 4 of 8. The suffix alone has 7.
    overlong = "{enable: true, len: 8, penalty_factor: 1.0, log: true}"
    config = configure(
        "reward.reward_manager.name=dapo",
        f"+reward.reward_kwargs.overlong_buffer_cfg={overlong}",
        "+reward.reward_kwargs.max_resp_len=16",
    )
    result = score(config, tokenizer)
    assert len(tokenizer.encode(PREFIX + SUFFIX, add_special_tokens=False)) == 12
    assert result["reward_score"] == pytest.approx(0.5)
    assert result["reward_extra_info"]["rpo_correct"] is True  # by acc, which knows no penalty


@pytest.mark.parametrize("returned", ["float('nan')", "float('inf')", "None", "{'score': float('-inf'), 'acc': 1.0}"])
def test_a_reward_that_is_no_finite_number_fails_its_response(returned, tokenizer, tmp_path):
    path = tmp_path / "reward.py"
    path.write_text(f"def compute_score(**kwargs):\n    return {returned}\n")
    with pytest.raises((ValueError, TypeError), match=r"finite|NoneType"):
        score(configure(reward_file=path), tokenizer)


@pytest.mark.parametrize(
    ("returned", "named"),
    [
        ("'0.5'", "returned '0.5'"),
        ("[1.0]", "returned [1.0]"),
        ("{'score': 1.0, 'acc': 'yes'}", "reported acc='yes'"),
        ("{'score': 1.0, 'acc': float('nan')}", "reported acc=nan"),
        ("{'score': 1.0, 'acc': [1, 0]}", "reported acc=[1, 0]"),
        ("{'score': 1.0, 'rpo_correct': True}", "reported rpo_correct"),
        ("{'score': 1.0, 'rpo_kind': 'mine', 'rpo_reward': 2}", "reported rpo_kind, rpo_reward"),
        ("'x' * 1000", "returned 'xxx"),
    ],
)
def test_an_unusable_reward_ends_with_the_value_and_the_row(returned, named, tokenizer, tmp_path):
    path = tmp_path / "reward.py"
    path.write_text(f"def compute_score(**kwargs):\n    return {returned}\n")
    with pytest.raises(ValueError, match="the reward function re") as error:
        score(configure(reward_file=path), tokenizer)
    assert named in str(error.value)
    assert "data_source 'tiny_reasoner'" in str(error.value)
    assert f"question '{QUESTION}'" in str(error.value)
    assert len(str(error.value)) < 600
    assert str(error.value) in failures_in_worker(None)


def test_other_keys_that_begin_with_rpo_pass(tokenizer, tmp_path):
    path = tmp_path / "reward.py"
    path.write_text("def compute_score(**kwargs):\n    return {'score': 1, 'rpo_mine': 7}\n")
    result = score(configure(reward_file=path), tokenizer)
    assert result["reward_extra_info"] == {"score": 1, "rpo_mine": 7, "rpo_correct": True, "rpo_reward": 1.0}


@pytest.mark.parametrize(
    ("returned", "correct"),
    [("0.5", False), ("0.05", False), ("1", True), ("0.6", True), ("-1.0", False), ("{'score': 0.5, 'acc': 1}", True),
     ("{'score': 1.0, 'acc': False}", False)],
)  # fmt: skip
def test_partial_credit_of_a_half_is_not_correct(returned, correct, tokenizer, tmp_path):
    path = tmp_path / "reward.py"
    path.write_text(f"def compute_score(**kwargs):\n    return {returned}\n")
    assert score(configure(reward_file=path), tokenizer)["reward_extra_info"]["rpo_correct"] is correct


def test_reward_model_as_text_is_named(tokenizer):
    data = row(tokenizer, PREFIX + SUFFIX)
    data.non_tensor_batch["reward_model"] = np.array(['{"ground_truth": "31"}'], dtype=object)

    async def run():
        return await load_reward_manager(configure(), tokenizer).run_single(data)

    with pytest.raises(TypeError) as error:
        asyncio.run(run())
    (note,) = error.value.__notes__
    assert "Its reward_model is text; veRL's reward managers need a mapping with ground_truth in it" in note
    assert "row: data_source 'tiny_reasoner'" in note


@pytest.fixture(autouse=True)
def no_failures_before():
    _failures.clear()


@pytest.mark.parametrize("asynchronous", [True, False])
def test_extra_keys_pass_through(asynchronous, tokenizer, tmp_path):
    path = tmp_path / "reward.py"
    keyword = "async def" if asynchronous else "def"
    path.write_text(f"{keyword} mine(**kwargs):\n    return {{'score': -2.5, 'acc': 0.0, 'format': 'bad'}}\n")
    result = score(configure(reward="mine", reward_file=path), tokenizer)
    assert result["reward_score"] == -2.5
    assert result["reward_extra_info"] == {
        "score": -2.5, "acc": 0.0, "format": "bad", "rpo_correct": False, "rpo_reward": -2.5
    }  # fmt: skip


def test_validation_is_left_to_verl(tokenizer, tmp_path):
    assert "rpo_correct" not in score(configure(), tokenizer, training=False)["reward_extra_info"]
    path = tmp_path / "reward.py"
    path.write_text("def compute_score(**kwargs):\n    return float('nan')\n")
    assert math.isnan(score(configure(reward_file=path), tokenizer, training=False)["reward_score"])


def test_an_exception_of_the_users_function_is_the_users(tokenizer, tmp_path):
    path = tmp_path / "reward.py"
    path.write_text("def compute_score(**kwargs):\n    raise KeyError('mine')\n")
    with pytest.raises(KeyError, match="mine"):
        score(configure(reward_file=path), tokenizer)
    (failure,) = failures_in_worker(None)
    assert failure.startswith("KeyError: 'mine' (row: data_source 'tiny_reasoner'")
