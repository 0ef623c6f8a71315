"""Which groups the cache may learn from."""

import numpy as np
import pytest

from rpo_verl.rpo.hooks.groups import Groups, Row, Updates, offer_to_cache
from rpo_verl.rpo.options import RPOConfig
from rpo_verl.rpo.partial_rollouts import PartialRollouts


@pytest.mark.parametrize(("rewards", "group_size"), [([1.0, np.nan], 2), ([1.0, np.inf], 2), ([1.0, 0.0], 3)])
def test_a_group_with_a_failed_response_or_a_reward_that_is_no_number_teaches_nothing(rewards, group_size):
    rows = [
        Row(
            group="a", key=b"k" * 16, kind="full", group_size=group_size, prefix_tokens=0, dropped=0, capped=False,
            response_tokens=5, oldest_policy=0, source_step=-1, reward=reward, correct=reward == 1.0,
        )
        for reward in rewards
    ]  # fmt: skip
    groups = Groups(["a_0", "a_1"], "train", rows, {"a": [0, 1]}, np.array(rewards), np.array(rewards))
    assert offer_to_cache(groups, PartialRollouts(RPOConfig(), 100), 1, lambda ids: b"", set()) == Updates()
