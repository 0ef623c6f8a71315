"""One rollout from a shared prefix: vLLM gets question ‖ prefix and returns the suffix; the response is their join."""

from typing import Any

from verl.experimental.agent_loop.agent_loop import AgentLoopOutput
from verl.experimental.agent_loop.single_turn_agent_loop import SingleTurnAgentLoop

from rpo_verl.rpo.start import Start

#: Field of a row that holds the `Start` of its group; None in rows that RPO does not start.
START = "rpo_start"
#: Extra field of a rollout: tokens of the response that were reused.
PREFIX_TOKENS = "rpo_prefix_tokens"


class PrefixAgentLoop(SingleTurnAgentLoop):
    """veRL's single-turn loop, started behind the prefix. Token ids only: nothing is decoded and tokenized again."""

    async def ct_build_initial_tokens(self, *args: Any, **kwargs: Any) -> list[int]:
        """Append the prefix to the question's ids, as veRL builds and caps them."""
        question = await super().ct_build_initial_tokens(*args, **kwargs)
        return question + self._prefix

    async def run(
        self, sampling_params: dict[str, Any], priority: int = 0, *, rpo_start: Start, **kwargs: Any
    ) -> AgentLoopOutput:
        """Generate one suffix and return the whole response.

        Args:
            sampling_params: veRL's sampling parameters; `max_tokens` is set to the room that the prefix leaves.
            priority: request priority, passed on.
            rpo_start: what the row's group starts from.
            kwargs: the other fields of the row.

        Returns:
            prompt = question; response = prefix ‖ suffix; `response_mask` and log-probabilities are 0 on the prefix.
            `extra_fields` tell how many tokens of the response are its prefix.
        """
        self._prefix = rpo_start.prefix.tolist()
        reused = len(self._prefix)
        if reused:
            sampling_params = {**sampling_params, "max_tokens": rpo_start.room}
        output = await super().run(sampling_params, priority, **kwargs)
        if reused:
            assert output.prompt_ids[-reused:] == self._prefix, "veRL's prompt does not end in the injected prefix"
            output.prompt_ids = output.prompt_ids[:-reused]
            output.response_ids = self._prefix + output.response_ids
            output.response_mask = [0] * reused + output.response_mask
            if output.response_logprobs is not None:
                output.response_logprobs = [0.0] * reused + output.response_logprobs
            # The oldest policy behind the response: veRL's off-policy metrics then show how stale prefixes are.
            weights = output.extra_fields.get("min_global_steps")
            if weights is not None:
                output.extra_fields["min_global_steps"] = min(weights, rpo_start.source_step)
        output.extra_fields[PREFIX_TOKENS] = reused
        return output
