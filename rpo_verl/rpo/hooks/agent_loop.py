"""One rollout from a shared prefix: vLLM gets question ‖ prefix and returns the suffix; the response is their join."""

from typing import Any

import numpy as np
from verl.experimental.agent_loop.agent_loop import AgentLoopOutput
from verl.experimental.agent_loop.single_turn_agent_loop import SingleTurnAgentLoop

from rpo_verl.rpo.cut import dropped_tokens, prefix_length
from rpo_verl.rpo.hooks.trunks import trunk_of
from rpo_verl.rpo.start import NO_LOGPROBS, Start

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
        """Generate one member of a group and return the whole response.

        Args:
            sampling_params: veRL's sampling parameters; `max_tokens` is set to the room that the prefix leaves.
            priority: request priority, passed on.
            rpo_start: what the row's group starts from.
            kwargs: the other fields of the row, `uid` and `session_id` among them.

        Returns:
            prompt = question; response = prefix ‖ suffix; `response_mask` is 0 on the prefix; its log-probabilities
            are those of the policy that wrote it, 0 where they are not known. `extra_fields` tell how many tokens of
            the response are its prefix; those of a trunk are its own.
        """

        async def continue_from(start: Start) -> AgentLoopOutput:
            return await self._continue(start, sampling_params, priority, kwargs)

        if not rpo_start.trunks:
            return await continue_from(rpo_start)
        number, place = rpo_start.branch_of(int(kwargs["session_id"]))

        async def grow() -> tuple[AgentLoopOutput, Start]:
            trunk = await continue_from(rpo_start)
            return trunk, self._branch(rpo_start, number, trunk)

        write = None if place else grow
        trunk, branch = await trunk_of(kwargs["uid"], number, rpo_start.branch_size(number), write)
        if place:
            return await continue_from(branch)
        kept = len(branch.prefix)
        trunk.response_mask = [0] * kept + trunk.response_mask[kept:]
        trunk.extra_fields[PREFIX_TOKENS] = kept
        return trunk

    def _branch(self, start: Start, number: int, trunk: AgentLoopOutput) -> Start:
        """Where the other members of a branch begin: at the head of its trunk."""
        # The last token is an end token, or there was no room for more.
        length = len(trunk.response_ids) - 1
        dropped = dropped_tokens(length, self.config.rpo.truncation, start.share)
        kept = prefix_length(length, dropped, start.room)
        logprobs = trunk.response_logprobs
        return start.branch(
            number,
            np.array(trunk.response_ids, dtype=np.int32),
            NO_LOGPROBS if logprobs is None else np.array(logprobs, dtype=np.float32),
            kept,
            trunk.extra_fields.get("min_global_steps") or 0,
        )

    async def _continue(
        self, start: Start, sampling_params: dict[str, Any], priority: int, row: dict[str, Any]
    ) -> AgentLoopOutput:
        """Generate a suffix behind the prefix of `start`, or a whole answer if it has none."""
        self._prefix = start.prefix.tolist()
        reused = len(self._prefix)
        if reused:
            sampling_params = {**sampling_params, "max_tokens": start.room}
        output = await super().run(sampling_params, priority, **row)
        if reused:
            assert output.prompt_ids[-reused:] == self._prefix, "veRL's prompt does not end in the injected prefix"
            output.prompt_ids = output.prompt_ids[:-reused]
            output.response_ids = self._prefix + output.response_ids
            output.response_mask = [0] * reused + output.response_mask
            if output.response_logprobs is not None:
                known = start.prefix_logprobs.tolist() or [0.0] * reused
                output.response_logprobs = known + output.response_logprobs
            # The oldest policy behind the response: veRL's off-policy metrics then show how stale prefixes are.
            weights = output.extra_fields.get("min_global_steps")
            if weights is not None:
                output.extra_fields["min_global_steps"] = min(weights, start.source_step)
        output.extra_fields[PREFIX_TOKENS] = reused
        return output
