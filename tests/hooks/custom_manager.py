"""A user's own reward manager, loaded by its path."""

from verl.experimental.reward_loop.reward_manager.base import RewardManagerBase


class LengthManager(RewardManagerBase):
    """Rewards half a point, and shows what it was given."""

    async def run_single(self, data):
        row = data[0]
        tokens = row.batch["responses"][row.batch["attention_mask"][-row.batch["responses"].shape[-1] :].bool()]
        return {"reward_score": 0.5, "reward_extra_info": {"seen": self.tokenizer.decode(tokens)}}
