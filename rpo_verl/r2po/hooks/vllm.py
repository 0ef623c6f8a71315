"""The rollout head inside vLLM: a worker extension that adds its residual to the logits that are sampled from.

Read in vLLM 0.24 and 0.28: both model runners call `model.compute_logits(hidden_states)` outside CUDA graphs, for
sampling and for log-probabilities of prompts. Under tensor parallelism it gets the whole hidden state and returns the
whole vocabulary, so every worker has the whole head. vLLM names this class by `worker_extension_cls`.
"""

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from verl.workers.rollout.vllm_rollout.utils import vLLMColocateWorkerExtension

from rpo_verl.r2po.head import PREFIX, residual

#: Tensors of a head, (r, H) and (V, r).
DOWN, UP = f"{PREFIX}down", f"{PREFIX}up"


class SampledHead:
    """The head of one vLLM worker; off until somebody switches it on."""

    def __init__(self) -> None:
        self.weights: dict[str, torch.Tensor] = {}
        self.on = self.paused = False

    def add_to(self, logits: torch.Tensor | None, hidden: torch.Tensor) -> torch.Tensor | None:
        """Logits to sample from.

        Args:
            logits: (N, V) float, of the policy; None on a worker that does not sample.
            hidden: (N, H) float, input of the output layer that gave them.

        Returns:
            (N, V): float32 with the residual, in which vLLM samples anyway, or the logits as they are.
        """
        if logits is None or self.paused or not self.on:
            return logits
        return logits.float() + residual(hidden, self.weights[DOWN], self.weights[UP])

    def pause_during(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """A function during which the logits are the policy's own."""

        @wraps(function)
        def paused(*args: Any, **kwargs: Any) -> Any:
            self.paused = True
            try:
                return function(*args, **kwargs)
            finally:
                self.paused = False

        return paused


class RolloutHeadExtension(vLLMColocateWorkerExtension):
    """veRL's worker extension with the rollout head; without `set_rollout_head(True)` it samples as veRL's does.

    The head's weights come with every weight update of veRL's. They stay outside the model, which may have a loader of
    its own, LoRA layers, or quantized weights.
    """

    _sampled_head: SampledHead | None = None

    def monkey_patch_model(self, vocab_size: int, banned_token_ids: list[int] | None = None) -> None:
        """Put the head under veRL's own patch of the logits, which masks tokens that must not be sampled."""
        head = self._sampled_head = SampledHead()
        runner = self.model_runner
        original = runner.model.compute_logits

        @wraps(original)
        def compute_logits(hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor | None:
            return head.add_to(original(hidden_states, *args, **kwargs), hidden_states)

        runner.model.compute_logits = compute_logits
        # Model runner V1, then V2.
        if hasattr(runner, "_get_prompt_logprobs_dict"):
            runner._get_prompt_logprobs_dict = head.pause_during(runner._get_prompt_logprobs_dict)
        else:
            worker = runner.prompt_logprobs_worker
            worker.compute_prompt_logprobs = head.pause_during(worker.compute_prompt_logprobs)
        super().monkey_patch_model(vocab_size, banned_token_ids)

    def _update_weights(self, weights: list[tuple[str, torch.Tensor]], peft_config: dict, base_sync_done: bool) -> None:
        """Keep the head's tensors, and hand veRL the others."""
        others = []
        for name, tensor in weights:
            if name.startswith(PREFIX):
                # A copy: veRL uses the buffer again.
                self._sampled_head.weights[name] = tensor.to(self.device, torch.float32, copy=True)
            else:
                others.append((name, tensor))
        if others:
            super()._update_weights(others, peft_config=peft_config, base_sync_done=base_sync_done)

    def set_rollout_head(self, on: bool) -> None:
        """Switch the head on for training rollouts, or off for validation. For `collective_rpc`.

        Raises:
            RuntimeError: if it is to be switched on and never arrived.
        """
        missing = {DOWN, UP} - self._sampled_head.weights.keys()
        if on and missing:
            raise RuntimeError(f"rpo_verl: R²PO's rollout head has not arrived in vLLM ({', '.join(sorted(missing))})")
        self._sampled_head.on = on
