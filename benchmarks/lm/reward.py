"""The verifiers of reasoning-gym as veRL's reward function (`reward.custom_reward_function.path`)."""

import json
from functools import cache
from typing import Any

from reasoning_gym.factory import get_score_answer_fn
from reasoning_gym.utils import extract_answer

verifier = cache(get_score_answer_fn)


def compute_score(
    data_source: str, solution_str: str, ground_truth: str, extra_info: Any = None, **kwargs: Any
) -> dict[str, float]:
    """Score the text between the last `<answer>` and `</answer>` by the verifier of `data_source`.

    A verifier may pay for a near miss, so `acc` says whether the answer is right.
    """
    score = float(verifier(data_source)(extract_answer(solution_str), json.loads(extra_info["entry"])))
    return {"score": score, "acc": float(score >= 1)}
