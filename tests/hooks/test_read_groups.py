"""Rows of the queue become groups. The queue is a dictionary here."""

import numpy as np
import pytest
import torch

from rpo_verl.correctness import RewardScale
from rpo_verl.rpo.hooks.groups import fetch_rows, read_groups
from rpo_verl.rpo.options import RewardConfig
from rpo_verl.rpo.start import Start
from rpo_verl.upstream import queue

FIRST, SECOND = Start(b"a" * 16, "prefixed", 2, 90, source_step=1), Start(b"b" * 16, "full", 2, 100)


class Rows:
    """Rows of the queue by key; counts what is fetched."""

    def __init__(self):
        self.rows, self.tags, self.fetched = {}, {}, []

    def add(self, key, start, reward=None, prefix=0, tokens=10, oldest=4, correct=None, scores=None, **tag):
        extra = {"rpo_prefix_tokens": prefix}
        if reward is not None:
            info = {"rpo_reward": reward, "rpo_correct": reward > 0 if correct is None else correct}
            extra["reward_extra_info"] = info
        self.rows[key] = {
            "rpo_start": start,
            "extra_fields": extra,
            "rm_scores": scores,
            "prompts": torch.tensor([1, 2]),
            "responses": torch.arange(tokens),
            "rollout_log_probs": -1.0 - torch.arange(tokens),
        }
        self.tags[key] = {"response_len": tokens, "min_global_steps": oldest, **tag}
        return self

    def read(self, keys, partition_id, *fields):
        assert partition_id == "train"
        self.fetched += [(key, name) for key in keys for name in fields]
        return tuple([self.rows[key][name] for key in keys] for name in fields)

    def groups(self, **options):
        return read_groups(list(self.rows), list(self.tags.values()), "train", RewardConfig(**options))


@pytest.fixture
def rows(monkeypatch):
    found = Rows()
    monkeypatch.setattr(queue, "read", found.read)
    return found


def test_groups_are_ordered_by_question_and_members_by_key(rows):
    rows.add("z_1_0", FIRST, 1.0).add("m_0_0", SECOND, 1.0).add("z_0_0", FIRST, 0.0).add("m_1_0", SECOND, 0.0)
    groups = rows.groups()
    assert [group.keys for group in groups] == [("z_0_0", "z_1_0"), ("m_0_0", "m_1_0")]
    assert [group.start for group in groups] == [FIRST, SECOND]


def test_one_question_twice_in_a_batch_is_two_groups(rows):
    rows.add("z_0_0", FIRST, 1.0).add("y_0_0", FIRST, 0.0)
    assert [group.keys for group in rows.groups()] == [("y_0_0",), ("z_0_0",)]


def test_arrays_of_a_group(rows):
    rows.add("u_0_0", FIRST, 1.0, prefix=6, tokens=8, oldest=1).add("u_1_0", FIRST, 0.0, prefix=6, tokens=96, oldest=2)
    (group,) = rows.groups(lo=0.25)
    assert group.prefix_tokens.tolist() == [6, 6]
    assert group.response_tokens.tolist() == [8, 96]
    assert group.generated.tolist() == [2, 90]
    assert group.capped.tolist() == [False, True]
    assert group.oldest_policy.tolist() == [1, 2]
    assert group.rewards.tolist() == [1.0, 0.0]
    assert group.correct.tolist() == [True, False]
    # Mean length 52: sigmoid(0.01 * 44).
    assert group.shaped.tolist() == pytest.approx([1 / (1 + np.exp(-0.44)), 0.0])
    assert (group.prefixed, group.complete, group.has_signal, len(group)) == (True, True, True, 2)


def test_padding_and_rows_passed_through_belong_to_no_group(rows):
    rows.add("p_0_0", None).add("u_0_0", FIRST, 1.0).add("u_1_0", FIRST, 1.0, is_padding=True).add("p_1_0", None)
    (group,) = rows.groups()
    assert group.keys == ("u_0_0",)
    assert not group.complete
    assert not any(name == "rm_scores" for _, name in rows.fetched), "token scores are large, and not needed here"


def test_without_rows_of_rpo_there_are_no_groups(rows):
    assert rows.add("p_0_0", None).groups() == []
    rows.rows.clear()
    rows.tags.clear()
    assert rows.groups() == []


def test_rewards_of_a_colocated_reward_model_are_read_from_token_scores(rows):
    rows.add("u_0_0", FIRST, scores=torch.tensor([0.0, 0.0, 0.7])).add("u_1_0", FIRST, 1.0)
    rows.add("u_2_0", FIRST, scores=torch.tensor([0.0, 0.2])).add("p_0_0", None)
    (group,) = rows.groups(correct_above=0.5, shaping=False)
    assert group.rewards.tolist() == pytest.approx([0.7, 1.0, 0.2])
    assert group.correct.tolist() == [True, True, False]
    assert group.shaped.tolist() == group.rewards.tolist()
    assert [key for key, name in rows.fetched if name == "rm_scores"] == ["u_0_0", "u_2_0"]


def test_an_accuracy_reported_with_a_late_reward_is_the_verdict(rows):
    rows.add("u_0_0", FIRST, scores=torch.tensor([0.7])).add("u_1_0", FIRST, scores=torch.tensor([-1.0]))
    rows.rows["u_0_0"]["extra_fields"]["reward_extra_info"] = {"acc": 0.0}
    rows.rows["u_1_0"]["extra_fields"]["reward_extra_info"] = {"acc": 1.0}
    assert rows.groups()[0].correct.tolist() == [False, True]


def test_the_verdict_of_the_reward_manager_stands(rows):
    rows.add("u_0_0", FIRST, 0.3, correct=False).add("u_1_0", FIRST, -0.3, correct=True)
    assert rows.groups()[0].correct.tolist() == [False, True]


def test_a_reward_that_is_not_finite_makes_a_group_incomplete(rows):
    rows.add("u_0_0", FIRST, float("nan")).add("u_1_0", FIRST, 1.0)
    (group,) = rows.groups()
    assert not group.complete
    assert not group.correct[0]


def test_rows_are_fetched_with_log_probabilities_if_asked_for(rows):
    rows.add("u_0_0", FIRST, 1.0, tokens=3).add("u_1_0", FIRST, 1.0, tokens=1)
    for asked_for, expected in ((False, [[], []]), (True, [[-1], [-1, -2, -3]])):
        found = fetch_rows("train", asked_for)(["u_1_0", "u_0_0"])
        assert [(question.tolist(), response.tolist()) for question, response, _ in found] == [
            ([1, 2], [0]),
            ([1, 2], [0, 1, 2]),
        ]
        assert [logprobs.tolist() for *_, logprobs in found] == expected
        assert [[array.dtype for array in row] for row in found] == [[np.int32, np.int32, np.float16]] * 2


def test_the_scale_of_the_data_source_raises_the_bar(rows):
    essays = [Start(name, "full", 2, 100, data_source="essays") for name in (b"c" * 16, b"d" * 16)]
    rows.add("u_0_0", essays[0], 3.0).add("u_1_0", essays[0], 10.0).add("v_0_0", essays[1], 5.0)
    rows.add("w_0_0", SECOND, 1.0)
    scale = RewardScale()
    groups = read_groups(list(rows.rows), list(rows.tags.values()), "train", RewardConfig(), scale)
    correct = {key: bool(right) for group in groups for key, right in zip(group.keys, group.correct, strict=True)}
    assert correct == {"u_0_0": False, "u_1_0": True, "v_0_0": False, "w_0_0": True}
    assert (scale.best("essays"), scale.best("")) == (10.0, 1.0)
    # A threshold of the user's stands.
    groups = read_groups(list(rows.rows), list(rows.tags.values()), "train", RewardConfig(correct_above=0.0), scale)
    assert all(group.correct.all() for group in groups)
