"""Rows of veRL's queue → groups for stage 1: who belongs together, what is correct, which tokens were generated."""

import numpy as np
import pytest
import torch

from rpo_verl.correctness import RewardScale
from rpo_verl.r2po.hooks import groups
from rpo_verl.r2po.hooks.groups import read_groups
from rpo_verl.r2po.options import RarityConfig
from rpo_verl.upstream.queue import Batch


def row(reward, response, mask=None, acc=None):
    scores = torch.zeros(len(response))
    scores[-1] = reward
    mask = torch.tensor(mask or [1] * len(response))
    extra = {"reward_extra_info": {} if acc is None else {"acc": acc}}
    return {"rm_scores": scores, "response_mask": mask, "responses": torch.tensor(response), "extra_fields": extra}


@pytest.fixture
def queue(monkeypatch):
    """A queue of these rows: key → fields; `filling` names rows that only fill up the batch."""

    def of(rows, filling=()):
        monkeypatch.setattr(
            groups.queue, "read", lambda keys, _, *names: tuple([rows[key][name] for key in keys] for name in names)
        )
        tags = [{"is_padding": key in filling} for key in rows]
        return Batch(keys=list(rows), tags=tags, partition_id="train")

    return of


def test_rows_of_a_question_are_a_group_without_those_that_fill_up(queue):
    batch = queue(
        {"b_1_0": row(0.0, [4, 5]), "a_0_0": row(1.0, [1, 2]), "b_0_0": row(1.0, [3]), "a_9_0": row(0.0, [9])},
        filling={"a_9_0"},
    )
    one, other = read_groups(batch, RarityConfig(), RewardScale())
    assert (one.keys, other.keys) == (("a_0_0",), ("b_0_0", "b_1_0"))
    assert other.rewards.tolist() == [1, 0]
    assert other.correct.tolist() == [True, False]
    assert [tokens.tolist() for tokens in other.responses] == [[3], [4, 5]]


def test_a_session_with_several_outputs_is_one_member(queue):
    batch = queue({"a_0_0": row(0.0, [1]), "a_0_1": row(1.0, [2]), "a_1_0": row(0.0, [3])})
    (group,) = read_groups(batch, RarityConfig(), RewardScale())
    assert group.keys == ("a_0_1", "a_1_0")
    assert group.correct.tolist() == [True, False]
    assert group.responses[0].tolist() == [2]


def test_tokens_that_the_model_did_not_generate_are_none_of_its_response(queue):
    batch = queue({"a_0_0": row(1.0, [7, 7, 1, 2], mask=[0, 0, 1, 1])})
    ((tokens,),) = (group.responses for group in read_groups(batch, RarityConfig(), RewardScale()))
    assert tokens.tolist() == [1, 2]


def test_the_one_rule_for_correct(queue):
    rows = {"a_0_0": row(0.6, [1]), "a_1_0": row(0.0, [1], acc=1.0), "a_2_0": row(1.0, [1], acc=0.0)}
    scale = RewardScale()
    (group,) = read_groups(queue(rows), RarityConfig(), scale)
    assert group.correct.tolist() == [True, True, False]
    (group,) = read_groups(queue(rows), RarityConfig(correct_above=0.7), scale)
    assert group.correct.tolist() == [False, True, False]
    # Where a better reward was seen, half of that is the bar.
    (group,) = read_groups(queue(rows | {"a_3_0": row(2.0, [1])}), RarityConfig(), scale)
    assert group.correct.tolist() == [False, False, False, True]


@pytest.mark.parametrize("acc", [np.nan, float("inf")])
def test_an_accuracy_that_is_no_number_is_named(queue, acc):
    with pytest.raises(ValueError, match=f"acc={acc}"):
        read_groups(queue({"a_0_0": row(1.0, [1], acc=acc)}), RarityConfig(), RewardScale())
