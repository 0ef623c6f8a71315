"""The registered reward manager: the user's own manager and reward function on the whole response, and a verdict."""

import math
from typing import Any

from omegaconf import DictConfig
from verl import DataProto
from verl.experimental.reward_loop.reward_manager.base import RewardManagerBase
from verl.experimental.reward_loop.reward_manager.registry import register
from verl.trainer.ppo.reward import load_reward_manager

from rpo_verl.rpo.hooks import NAME
from rpo_verl.rpo.hooks.agent_loop import START
from rpo_verl.rpo.hooks.settings import WRAPPED, users_config
from rpo_verl.rpo.shaping import is_correct

#: Keys in veRL's `reward_extra_info` that tell the trainer verdict and reward, so that it need not fetch token scores.
CORRECT, REWARD = "rpo_correct", "rpo_reward"


def verdict(reward: float, reward_extra_info: dict[str, Any], config: DictConfig) -> bool:
    """Whether a response counts as correct, from its reward and the `acc` its reward function may have reported."""
    accuracy = reward_extra_info.get("acc")
    return is_correct(reward, None if accuracy is None else float(accuracy), config.correct_above)


@register(NAME)
class WholeResponseRewardManager(RewardManagerBase):
    """Wraps the reward manager that the user configured; the reward itself is passed on unchanged."""

    def __init__(self, config: DictConfig, tokenizer: Any, compute_score: Any, **kwargs: Any) -> None:
        super().__init__(config, tokenizer, compute_score)
        self._options = config.rpo.reward
        self._inner = load_reward_manager(users_config(config), tokenizer, **kwargs)

    async def run_single(self, data: DataProto) -> dict[str, Any]:
        """Reward of one response, prefix and suffix together.

        Args:
            data: one row, `responses` holds prefix ‖ suffix. Rows that RPO did not start, as those of a validation, are
                passed on untouched.

        Returns:
            what the user's manager returned; `reward_extra_info` gains the verdict `rpo_correct` and `rpo_reward`.

        Raises:
            ValueError: if the user's reward is not a finite number; the response then fails as veRL fails it.
        """
        result = await self._inner.run_single(data)
        starts = data.non_tensor_batch.get(START)
        if starts is None or starts[-1] is None:
            return result
        reward, info = result["reward_score"], result.get("reward_extra_info", {})
        if reward is None or not math.isfinite(reward):
            raise ValueError(
                f"the reward function returned {reward!r}; RPO needs a finite number for every response. "
                f"Reward manager: {self.config[WRAPPED].reward_manager!r}."
            )
        result["reward_extra_info"] = {
            **info,
            CORRECT: verdict(reward, info, self._options),
            REWARD: float(reward),
        }
        return result
