"""R²PO's head in the real vLLM: a head of zeros samples the same tokens, another one samples from what it says."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import TINY
from head_in_vllm import PROMPTS, TEMPERATURE, TOKENS
from transformers import AutoModelForCausalLM

from rpo_verl.r2po.head import RolloutHead

SCRIPT = Path(__file__).parent / "head_in_vllm.py"


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    out = tmp_path_factory.mktemp("head") / "samples.json"
    environment = os.environ | {
        "VERL_PLATFORM": "cpu", "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_KVCACHE_SPACE": "1",
    }  # fmt: skip
    command = [sys.executable, str(SCRIPT), str(TINY / "checkpoint"), str(out)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    return json.loads(out.read_text()) | {"head": torch.load(out.with_suffix(".pt"), weights_only=True)}


def ids(samples):
    return [sample["ids"] for sample in samples]


def expected_logprobs(samples, head, whole):
    """Log-probabilities of sampled tokens by transformers; `whole` names the key of the tokens that are meant."""
    model = AutoModelForCausalLM.from_pretrained(TINY / "checkpoint", dtype=torch.float32).eval()
    model.lm_head.register_forward_pre_hook(lambda module, inputs: hidden.append(inputs[0]))
    for prompt, sample in zip(PROMPTS, samples, strict=True):
        hidden = []
        tokens = torch.tensor([prompt + sample["ids"]])
        with torch.no_grad():
            logits = model(tokens).logits
            logits = logits if head is None else logits + head(hidden[0])
        if whole:
            # Prompts are not sampled: no temperature, and no mask of vLLM's on them but that of banned tokens.
            chosen = range(len(prompt) - 1)
        else:
            chosen, logits = range(len(prompt) - 1, len(prompt) + TOKENS - 1), logits / TEMPERATURE
        logits[..., 50] = -torch.inf
        log_probs = torch.log_softmax(logits[0], dim=-1)
        yield [log_probs[place, tokens[0, place + 1]].item() for place in chosen]


def test_a_head_of_zeros_samples_the_same_tokens(found):
    assert ids(found["zero_on"]) == ids(found["zero_off"]) == ids(found["untouched"])
    assert [s["logprobs"] for s in found["zero_on"]] == [s["logprobs"] for s in found["untouched"]]
    assert all(len(one) == TOKENS for one in ids(found["untouched"]))


def test_a_head_that_is_off_samples_the_same_tokens(found):
    assert ids(found["random_off"]) == ids(found["off_again"]) == ids(found["untouched"])
    assert ids(found["random_on"]) != ids(found["untouched"])


def test_a_head_that_never_arrived_is_not_switched_on(found):
    assert "R²PO's rollout head has not arrived" in found["refusal"]


def test_what_is_sampled_has_the_heads_log_probabilities(found):
    vocabulary, rank = found["head"]["up"].shape
    head = RolloutHead(found["head"]["down"].shape[1], vocabulary, rank, None, 0)
    head.load_state_dict(found["head"])
    expected = expected_logprobs(found["random_on"], head, whole=False)
    for sample, log_probs in zip(found["random_on"], expected, strict=True):
        assert sample["logprobs"] == pytest.approx(log_probs, abs=1e-3)
    # A token that veRL bans stays banned.
    assert not any(50 in sample["ids"] for sample in found["random_on"])


def test_log_probabilities_of_prompts_are_the_policys(found):
    expected = expected_logprobs(found["random_on"], None, whole=True)
    for prompt, sample, log_probs in zip(PROMPTS, found["random_on"], expected, strict=True):
        assert len(sample["prompt_logprobs"]) == len(prompt) - 1
        known = [pair for pair in zip(sample["prompt_logprobs"], log_probs, strict=True) if pair[1] > -100]
        assert [one for one, _ in known] == pytest.approx([other for _, other in known], abs=1e-3)
