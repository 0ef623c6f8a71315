"""Reward functions for veRL's `reward.custom_reward_function`."""
