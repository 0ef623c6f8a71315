"""Samples from the real vLLM with R²PO's worker extension, in every state of the head; writes them as JSON.

python head_in_vllm.py MODEL OUT
"""

import json
import sys
from pathlib import Path

import torch

from rpo_verl.r2po.head import PREFIX, RolloutHead

EXTENSION = "rpo_verl.r2po.hooks.vllm.RolloutHeadExtension"
TEMPERATURE, TOKENS = 0.8, 24
PROMPTS = [list(range(40 + i, 60 + 2 * i)) for i in range(6)]


def arrive(worker, tensors):
    """As from veRL's weight update: the head's tensors behind those of the model."""
    norm = next(value for name, value in worker.model_runner.model.named_parameters() if name == "model.norm.weight")
    weights = [("model.norm.weight", norm.detach().clone()), *tensors.items()]
    worker._update_weights(weights, peft_config=None, base_sync_done=True)


def main(model: str, out: str) -> None:
    """Sample with seeds of the requests' own, which fix what is sampled."""
    from vllm import LLM, SamplingParams

    llm = LLM(
        model, dtype="float32", enforce_eager=True, max_model_len=128, logprobs_mode="processed_logprobs",
        worker_extension_cls=EXTENSION, enable_prefix_caching=False,
    )  # fmt: skip
    config = llm.llm_engine.vllm_config.model_config.hf_config
    llm.collective_rpc("monkey_patch_model", kwargs={"vocab_size": config.vocab_size, "banned_token_ids": [50]})

    def samples(prompt_logprobs=None):
        parameters = [
            SamplingParams(
                temperature=TEMPERATURE, max_tokens=TOKENS, seed=i, logprobs=0, ignore_eos=True,
                prompt_logprobs=prompt_logprobs, detokenize=False,
            )
            for i in range(len(PROMPTS))
        ]  # fmt: skip
        outputs = llm.generate([{"prompt_token_ids": ids} for ids in PROMPTS], parameters, use_tqdm=False)
        found = []
        for output in outputs:
            (answer,) = output.outputs
            ids = list(answer.token_ids)
            prompt = [
                step[token].logprob
                for token, step in zip(output.prompt_token_ids[1:], (output.prompt_logprobs or [])[1:], strict=False)
            ]
            logprobs = [step[token].logprob for token, step in zip(ids, answer.logprobs, strict=True)]
            found.append({"ids": ids, "logprobs": logprobs, "prompt_logprobs": prompt})
        return found

    results = {"untouched": samples()}
    try:
        llm.collective_rpc("set_rollout_head", args=(True,))
    except RuntimeError as error:
        results["refusal"] = str(error)
    for name, std in (("zero", None), ("random", 0.3)):
        head = RolloutHead(config.hidden_size, config.vocab_size, 16, std, seed=0)
        tensors = {f"{PREFIX}{key}": value.detach() for key, value in head.named_parameters()}
        llm.collective_rpc(arrive, args=(tensors,))
        results[f"{name}_off"] = samples()
        llm.collective_rpc("set_rollout_head", args=(True,))
        results[f"{name}_on"] = samples(prompt_logprobs=0 if std else None)
        llm.collective_rpc("set_rollout_head", args=(False,))
    results["off_again"] = samples()
    torch.save(head.state_dict(), Path(out).with_suffix(".pt"))
    Path(out).write_text(json.dumps(results))


if __name__ == "__main__":
    main(*sys.argv[1:])
