"""A reward function that asks the reward model beside the rollout, as veRL's users write them."""

import os
from typing import Any

import aiohttp


async def compute_score(
    solution_str: str, reward_router_address: str, reward_model_tokenizer: Any, **kwargs: Any
) -> float:
    """What the model at `$REWARD_MODEL` thinks of an answer."""
    text = reward_model_tokenizer.apply_chat_template([{"role": "assistant", "content": solution_str}], tokenize=False)
    payload = {"model": os.environ["REWARD_MODEL"], "input": text, "use_activation": False}
    url = f"http://{reward_router_address}/classify"
    async with aiohttp.ClientSession() as session, session.post(url, json=payload) as response:
        response.raise_for_status()
        return (await response.json())["data"][-1]["probs"][-1]
