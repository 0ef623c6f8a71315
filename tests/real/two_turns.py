"""An agent loop of two turns: what the environment says in between is in the response and not in its mask."""

from uuid import uuid4

from verl.experimental.agent_loop.single_turn_agent_loop import SingleTurnAgentLoop

FIRST_TURN = 24
SAYS = "\nGo on.\n"


class TwoTurns(SingleTurnAgentLoop):
    """Stops the policy after some tokens, says something, and lets it go on."""

    async def run(self, sampling_params, priority=0, **kwargs):
        output = await super().run(sampling_params | {"max_tokens": FIRST_TURN}, priority, **kwargs)
        said = self.tokenizer.encode(SAYS, add_special_tokens=False)
        before = output.response_ids + said
        second = await self.server_manager.generate(
            request_id=uuid4().hex,
            prompt_ids=output.prompt_ids + before,
            sampling_params=sampling_params | {"max_tokens": self.response_length - len(before)},
            priority=priority,
        )
        output.response_ids = before + second.token_ids
        output.response_mask += [0] * len(said) + [1] * len(second.token_ids)
        output.response_logprobs += [0.0] * len(said) + second.log_probs
        output.num_turns = 4
        return output
