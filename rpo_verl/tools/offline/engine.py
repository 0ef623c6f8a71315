"""vLLM offline: start it, and stream answers from it."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Sampling:
    """Sampling parameters with vLLM's names; `max_response_length` is its `max_tokens`."""

    temperature: float
    top_p: float
    top_k: int
    max_response_length: int

    def parameters(self, seed: int | None = None) -> Any:
        """The `vllm.SamplingParams` of one request. Without a seed it draws from the engine's."""
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        return SamplingParams(
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
            max_tokens=self.max_response_length,
            seed=seed,
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )


def start_vllm(model: str, *, gpus: int, **options: Any) -> Any:
    """Start vLLM's offline engine. `gpus` is the tensor parallel size; `options` are further ones of `vllm.LLM`."""
    from vllm import LLM

    return LLM(model=model, tensor_parallel_size=gpus, **options)


def stream_answers(
    engine: Any, prompts: list[list[int]], parameters: list[Any]
) -> Iterator[tuple[int, list[int], bool]]:
    """Yield answers in the order in which they finish. A batch would wait for its longest answer.

    Args:
        engine: from `start_vllm`.
        prompts: token ids of the questions.
        parameters: a `vllm.SamplingParams` for each.

    Yields:
        position in `prompts`, token ids of the answer, whether the token limit truncated it.
    """
    for number, (ids, own) in enumerate(zip(prompts, parameters, strict=True)):
        engine.llm_engine.add_request(str(number), {"prompt_token_ids": ids}, own)
    while engine.llm_engine.has_unfinished_requests():
        for output in engine.llm_engine.step():
            if output.finished:
                (answer,) = output.outputs
                yield int(output.request_id), list(answer.token_ids), answer.finish_reason == "length"
