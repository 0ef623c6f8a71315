"""vLLM offline: start it, and stream answers from it."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np


@dataclass(frozen=True)
class Sampling:
    """Sampling parameters with vLLM's names; `max_response_length` is its `max_tokens`."""

    temperature: float
    top_p: float
    top_k: int
    max_response_length: int

    @property
    def whole(self) -> bool:
        """Whether answers are drawn from the whole distribution, so that their log-probabilities can weigh them."""
        return self.temperature > 0 and self.top_p == 1 and self.top_k in (-1, 0)

    def parameters(self, seed: int | None = None, logprobs: bool = False) -> Any:
        """The `vllm.SamplingParams` of one request.

        Args:
            seed: None: it draws from the engine's.
            logprobs: whether to report those of the sampled tokens.
        """
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        return SamplingParams(
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
            max_tokens=self.max_response_length,
            seed=seed,
            logprobs=0 if logprobs else None,
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )


def start_vllm(model: str, *, gpus: int, **options: Any) -> Any:
    """Start vLLM's offline engine. `gpus` is the tensor parallel size; `options` are further ones of `vllm.LLM`."""
    from vllm import LLM

    return LLM(model=model, tensor_parallel_size=gpus, **options)


class Answered(NamedTuple):
    """An answer from vLLM."""

    position: int
    """Of its question among the prompts."""

    tokens: list[int]
    truncated: bool
    """Whether the token limit ended it."""

    logprobs: np.ndarray | None
    """(l,) float64, of its tokens; None where nobody asked for them."""


def stream_answers(engine: Any, prompts: list[list[int]], parameters: list[Any]) -> Iterator[Answered]:
    """Yield answers in the order in which they finish. A batch would wait for its longest answer.

    Args:
        engine: from `start_vllm`.
        prompts: token ids of the questions.
        parameters: a `vllm.SamplingParams` for each.
    """
    for number, (ids, own) in enumerate(zip(prompts, parameters, strict=True)):
        engine.llm_engine.add_request(str(number), {"prompt_token_ids": ids}, own)
    while engine.llm_engine.has_unfinished_requests():
        for output in engine.llm_engine.step():
            if output.finished:
                (answer,) = output.outputs
                tokens, logprobs = list(answer.token_ids), None
                if answer.logprobs is not None:
                    found = zip(answer.logprobs, tokens, strict=True)
                    logprobs = np.array([of_one[token].logprob for of_one, token in found])
                yield Answered(int(output.request_id), tokens, answer.finish_reason == "length", logprobs)
