"""One rollout from a shared prefix: vLLM gets question ‖ prefix and returns the suffix; the response is their join."""

from typing import Any

from verl.experimental.agent_loop.agent_loop import AgentLoopOutput
from verl.experimental.agent_loop.single_turn_agent_loop import SingleTurnAgentLoop

from rpo_verl.rpo.hooks.shipment import Shipment


class PrefixAgentLoop(SingleTurnAgentLoop):
    """veRL's single-turn loop, started behind the prefix. Token ids only: nothing is decoded and tokenized again."""

    async def ct_build_initial_tokens(self, *args: Any, **kwargs: Any) -> list[int]:
        """The question's ids, as veRL builds and caps them, followed by the prefix."""
        question = await super().ct_build_initial_tokens(*args, **kwargs)
        return question + self._prefix

    async def run(
        self, sampling_params: dict[str, Any], priority: int = 0, *, rpo_start: Shipment, **kwargs: Any
    ) -> AgentLoopOutput:
        """Generate one suffix and return the whole response.

        Args:
            sampling_params: veRL's sampling parameters; `max_tokens` is set to what the prefix leaves.
            priority: request priority, passed on.
            rpo_start: brings what the row's group starts from.
            kwargs: the other fields of the row.

        Returns:
            prompt = question; response = prefix ‖ suffix; `response_mask` and log-probabilities are 0 on the prefix.
            `extra_fields["rpo"]` tells the trainer how the group started.
        """
        start = rpo_start.start
        self._prefix = start.prefix.tolist()
        reused = len(self._prefix)
        if reused:
            sampling_params = {**sampling_params, "max_tokens": start.suffix_max_tokens}
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
                output.extra_fields["min_global_steps"] = min(weights, start.source_step)
        suffix_tokens = len(output.response_ids) - reused
        output.extra_fields["rpo"] = {
            "key": start.key,
            "kind": start.kind,
            "group_size": rpo_start.group_size,
            "prefix_tokens": reused,
            "dropped": start.dropped,
            "source_step": start.source_step,
            "capped": suffix_tokens >= start.suffix_max_tokens,
        }
        return output
