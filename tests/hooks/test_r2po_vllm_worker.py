"""The rollout head in a vLLM worker, around runners that have the names of both of vLLM's.

tests/slow/test_r2po_vllm.py runs model runner V1. Model runner V2 needs Triton, which the CPU build does not have.
"""

import importlib.metadata
from types import MethodType, SimpleNamespace

import pytest
import torch

from rpo_verl.cpu.patches import answer_for_the_vllm_distribution

with pytest.MonkeyPatch.context() as patch:
    # veRL looks for vLLM's distribution when its module is imported; what answers goes again.
    patch.setattr(importlib.metadata, "version", importlib.metadata.version)
    answer_for_the_vllm_distribution()
    from rpo_verl.r2po.hooks.vllm import DOWN, UP, RolloutHeadExtension, SampledHead

VOCABULARY, HIDDEN = 6, 4
#: What veRL's patch of the model reads.
CONFIG = SimpleNamespace(speculative_config=None)
#: Of the head: every residual is the sum of the hidden state's positive part.
WEIGHTS = [(DOWN, torch.eye(HIDDEN)), (UP, torch.ones(VOCABULARY, HIDDEN))]


class Model:
    model = SimpleNamespace(layers=[])

    def compute_logits(self, hidden_states):
        return torch.zeros(len(hidden_states), VOCABULARY)


def read_prompt(runner, hidden, fail=False):
    """What the log-probabilities of a prompt are computed from."""
    if fail:
        raise KeyError("a request that is gone")
    return runner.model.compute_logits(hidden)


def v1():
    runner = SimpleNamespace(model=Model(), vllm_config=CONFIG)
    runner._get_prompt_logprobs_dict = MethodType(read_prompt, runner)
    return runner, lambda: runner._get_prompt_logprobs_dict


def v2():
    runner = SimpleNamespace(model=Model(), vllm_config=CONFIG, prompt_logprobs_worker=SimpleNamespace())
    runner.prompt_logprobs_worker.compute_prompt_logprobs = MethodType(read_prompt, runner)
    return runner, lambda: runner.prompt_logprobs_worker.compute_prompt_logprobs


@pytest.fixture(params=[v1, v2])
def worker(request):
    """A worker with the head in it, and the function that reads prompts."""
    runner, reader = request.param()
    made = object.__new__(RolloutHeadExtension)
    made.model_runner, made.device = runner, torch.device("cpu")
    made.monkey_patch_model(VOCABULARY - 1)
    return made, reader()


def test_rollouts_have_the_head_and_prompts_do_not(worker):
    made, read = worker
    hidden = torch.tensor([[1.0, 2.0, -5.0, 0.0]])
    logits = made.model_runner.model.compute_logits
    made._update_weights(WEIGHTS, peft_config={}, base_sync_done=True)
    assert logits(hidden)[0, 0] == 0, "off until it is switched on"
    made.set_rollout_head(True)
    assert logits(hidden)[0].tolist() == [3.0] * (VOCABULARY - 1) + [-torch.inf], "veRL's mask is on top of the head"
    assert read(hidden)[0, 0] == 0
    assert logits(hidden)[0, 0] == 3, "on again behind a prompt"
    with pytest.raises(KeyError):
        read(hidden, fail=True)
    assert logits(hidden)[0, 0] == 3, "and behind a fault"
    made.set_rollout_head(False)
    assert logits(hidden)[0, 0] == 0


def test_a_head_that_never_arrived_is_an_error(worker):
    made, _ = worker
    made._update_weights(WEIGHTS[:1], peft_config={}, base_sync_done=True)
    with pytest.raises(RuntimeError, match=f"has not arrived in vLLM .{UP}."):
        made.set_rollout_head(True)


def test_weights_are_copies(worker):
    """veRL uses the buffer of a weight update again."""
    made, _ = worker
    buffer = [(name, tensor.clone()) for name, tensor in WEIGHTS]
    made._update_weights(buffer, peft_config={}, base_sync_done=True)
    for _, tensor in buffer:
        tensor.zero_()
    made.set_rollout_head(True)
    assert made.model_runner.model.compute_logits(torch.ones(1, HIDDEN))[0, 0] == HIDDEN


def test_a_worker_without_logits_gets_none():
    """Under tensor parallelism vLLM may gather the logits on one worker."""
    head = SampledHead()
    head.weights, head.on = dict(WEIGHTS), True
    assert head.add_to(None, torch.ones(1, HIDDEN)) is None
