"""The fast lane's sampler against transformers' forward pass."""

import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from benchmarks.lab.policy import BrokenDown
from benchmarks.lab.sampler import Sampler
from benchmarks.tiny import CHECKPOINT

SHAPE = {"vocab_size": 11, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
         "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128}  # fmt: skip
SCALED = {"rope_type": "llama3", "rope_theta": 5e3, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 64}  # fmt: skip


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def llama():
    return LlamaForCausalLM(LlamaConfig(**SHAPE, rope_parameters=SCALED, initializer_range=0.3))


def qwen2():
    return Qwen2ForCausalLM(Qwen2Config(**SHAPE, tie_word_embeddings=True, initializer_range=0.3))


def qwen3():
    return Qwen3ForCausalLM(Qwen3Config(**SHAPE, head_dim=16, initializer_range=0.3))


def tiny():
    return AutoModelForCausalLM.from_pretrained(CHECKPOINT, dtype=torch.float32)


def random(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("make", [llama, qwen2, qwen3, tiny])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_log_probs_are_those_of_transformers(make, temperature):
    torch.manual_seed(0)
    model = make().eval()
    ids = torch.randint(2, SHAPE["vocab_size"], (40,), generator=random()).tolist()
    # Groups of one question, and contexts of unequal length, as behind prefixes.
    contexts, room = [ids[:3]] * 4 + [ids[:17]] * 4 + [ids[5:6], ids[4:30]], [24] * 4 + [3, 24, 9, 1] + [24, 24]
    found = Sampler(model, {1}).sample(contexts, room, random(1), temperature)
    lengths = [len(one.tokens) for one in found]
    assert all(1 <= n <= most for n, most in zip(lengths, room, strict=True))
    full = [n == most or 1 in one.tokens for n, most, one in zip(lengths, room, found, strict=True)]
    assert all(full), "only an end token leaves room"
    for context, one in zip(contexts, found, strict=True):
        assert 1 not in one.tokens[:-1], "nothing is written behind an end token"
        with torch.no_grad():
            logits = model(torch.tensor([[*context, *one.tokens]])).logits[0, len(context) - 1 : -1]
        expected = (logits / temperature).log_softmax(-1).gather(1, torch.tensor(one.tokens).long()[:, None])[:, 0]
        np.testing.assert_allclose(one.log_probs, expected.numpy(), atol=1e-4)


def test_in_bfloat16_log_probs_are_close():
    torch.manual_seed(0)
    model = llama().eval()
    contexts, room = [[2, 3, 4]] * 4 + [[5, 6]], [24] * 5
    found = Sampler(model, {1}, lambda: torch.autocast("cpu", torch.bfloat16)).sample(contexts, room, random())
    for context, one in zip(contexts, found, strict=True):
        with torch.no_grad():
            logits = model(torch.tensor([[*context, *one.tokens]])).logits[0, len(context) - 1 : -1]
        expected = logits.log_softmax(-1).gather(1, torch.tensor(one.tokens).long()[:, None])[:, 0].numpy()
        np.testing.assert_allclose(one.log_probs, expected, atol=0.2)
        assert not np.allclose(one.log_probs, expected, atol=1e-5)


def test_tokens_come_with_their_probabilities():
    torch.manual_seed(0)
    model, rows = llama().eval(), 4000
    found = Sampler(model, {1}).sample([[2, 3]] * rows, [1] * rows, random())
    with torch.no_grad():
        expected = model(torch.tensor([[2, 3]])).logits[0, -1].softmax(-1).double().numpy()
    shares = np.bincount([int(one.tokens[0]) for one in found], minlength=SHAPE["vocab_size"]) / rows
    bound = 4 * np.sqrt(expected * (1 - expected) / rows)
    assert (np.abs(shares - expected) < bound + 1e-3).all()
    assert expected.max() - expected.min() > 0.1, "or any distribution would do"


def test_the_generator_decides():
    torch.manual_seed(0)
    sampler = Sampler(qwen2().eval(), {1})
    first, again, other = (
        [one.tokens.tolist() for one in sampler.sample([[2, 3]] * 4, [8] * 4, random(seed))] for seed in (1, 1, 2)
    )
    assert first == again != other


def test_the_sampler_follows_the_weights():
    torch.manual_seed(0)
    model = qwen2().eval()
    sampler = Sampler(model, {1})
    before = sampler.sample([[2, 3]], [1], random())[0].log_probs
    with torch.no_grad():
        model.model.norm.weight.mul_(3)
    assert abs(sampler.sample([[2, 3]], [1], random())[0].log_probs - before) > 1e-3


def test_what_cannot_be_sampled_is_refused():
    sampler = Sampler(qwen2().eval(), {1})
    for contexts, room, temperature in ([[[]], [1], 1.0], [[[2]], [0], 1.0], [[[2]], [1], -1.0]):
        with pytest.raises(ValueError, match="every context needs a token"):
            sampler.sample(contexts, room, random(), temperature)
    sliding = Qwen2Config(**SHAPE, use_sliding_window=True, sliding_window=4, max_window_layers=1)
    with pytest.raises(ValueError, match=r"sliding_attention.*full attention"):
        Sampler(Qwen2ForCausalLM(sliding), {1})


def test_at_temperature_0_the_most_likely_token_is_taken():
    torch.manual_seed(0)
    model = qwen2().eval()
    (found,) = Sampler(model, {1}).sample([[2, 3, 4]], [12], random(), 0.0)
    with torch.no_grad():
        logits = model(torch.tensor([[2, 3, 4, *found.tokens]])).logits[0, 2:-1]
    assert found.tokens.tolist() == logits.argmax(-1).tolist()
    expected = logits.log_softmax(-1).max(-1).values.numpy()
    np.testing.assert_allclose(found.log_probs, expected, atol=1e-4)


def test_a_model_that_broke_is_named():
    model = llama().eval()
    model.lm_head.weight.data.fill_(torch.nan)
    with pytest.raises(BrokenDown, match="the learning rate is too high"):
        Sampler(model, {1}).sample([[2]], [3], random())
