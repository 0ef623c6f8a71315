"""The rollout head and its learner: a zero head changes nothing, the policy gets no gradient, and a bound holds."""

import json

import numpy as np
import pytest
import torch

from rpo_verl.r2po import state
from rpo_verl.r2po.head import RolloutHead
from rpo_verl.r2po.learner import HeadLearner
from rpo_verl.r2po.objective import KLPenalty, Tokens, head_losses
from rpo_verl.r2po.options import HeadConfig, R2POConfig, Stage1Config, trains_head

HIDDEN, VOCABULARY, TOKENS = 12, 20, 300


def tokens_of(seed=0, count=TOKENS, advantages=None):
    """Tokens drawn from a random policy, half of them good and half of them bad."""
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(count, HIDDEN, generator=generator)
    logits = torch.randn(count, VOCABULARY, generator=generator)
    log_probs = torch.log_softmax(logits, dim=-1)
    labels = torch.multinomial(log_probs.exp(), 1, generator=generator)[:, 0]
    if advantages is None:
        advantages = torch.where(labels % 2 == 0, 1.0, -1.0)
    return Tokens(hidden, logits, labels, advantages, log_probs.gather(-1, labels[:, None])[:, 0])


def learner_of(**stage1):
    options = R2POConfig(head=HeadConfig(rank=4), stage1=Stage1Config(**({"lr": 0.02} | stage1)))
    return HeadLearner(options, HIDDEN, VOCABULARY, "cpu")


def part(tokens, start, stop):
    names = ("hidden", "logits", "labels", "advantages", "old_log_probs")
    return Tokens(*(getattr(tokens, name)[start:stop] for name in names))


def alone(tensor):
    """A sum over one device."""


def train(learner, tokens, updates, temperature=1.0):
    found = []
    for _ in range(updates):
        learner.accumulate(tokens, temperature)
        found.append(learner.update(alone))
    return found


def exact_kl(head, tokens, temperature=1.0):
    """The mean KL(π_head‖π), by torch's own function."""
    log_policy = torch.log_softmax(tokens.logits.double() / temperature, dim=-1)
    log_head = torch.log_softmax((tokens.logits + head(tokens.hidden)).double() / temperature, dim=-1)
    return torch.nn.functional.kl_div(log_policy, log_head, log_target=True, reduction="batchmean").item()


def test_a_new_head_changes_no_logit():
    head, hidden = RolloutHead(HIDDEN, VOCABULARY, 4, None, 0), torch.randn(7, HIDDEN)
    logits = torch.randn(7, VOCABULARY)
    assert torch.equal(logits + head(hidden), logits)
    assert head.down.abs().sum() > 0
    assert head(hidden.bfloat16()).dtype == torch.float32


def test_full_width_and_the_authors_start():
    head = RolloutHead(HIDDEN, VOCABULARY, None, 1e-6, 0)
    assert (head.down.shape, head.up.shape) == ((HIDDEN, HIDDEN), (VOCABULARY, HIDDEN))
    assert 0 < head.up.std() < 2e-6
    assert 0 < head(torch.randn(7, HIDDEN)).abs().max() < 1e-9


def test_every_device_draws_the_same_head():
    torch.manual_seed(1)
    one = RolloutHead(HIDDEN, VOCABULARY, 4, 0.1, seed=3)
    torch.manual_seed(2)
    other, third = (RolloutHead(HIDDEN, VOCABULARY, 4, 0.1, seed=seed) for seed in (3, 4))
    assert torch.equal(one.up, other.up)
    assert torch.equal(one.down, other.down)
    assert not torch.equal(one.up, third.up)


def test_the_head_learns_and_the_policy_gets_no_gradient():
    drawn = tokens_of()
    hidden, logits = (values.clone().requires_grad_() for values in (drawn.hidden, drawn.logits))
    tokens = Tokens(hidden, logits, drawn.labels, drawn.advantages, drawn.old_log_probs)
    learner = learner_of(kl_bound=None, kl_weight=0.0)
    before = head_losses(learner.head, tokens, 1.0, 0.2)
    assert before.error.item() == pytest.approx(0, abs=1e-3)
    assert before.kl.item() == pytest.approx(0, abs=1e-3)
    assert before.clipped.item() == 0
    metrics = train(learner, tokens, 20)
    assert hidden.grad is None
    assert logits.grad is None
    after = head_losses(learner.head, tokens, 1.0, 0.2)
    assert after.surrogate < before.surrogate - 1
    assert metrics[-1]["clipped_share"] > 0
    even = tokens.labels % 2 == 0
    chosen = torch.log_softmax(logits + learner.head(hidden), -1).gather(-1, tokens.labels[:, None])[:, 0]
    gain = (chosen - tokens.old_log_probs).detach()
    assert gain[even].mean() > 0 > gain[~even].mean()


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_the_objective_is_ppos_and_the_kl_is_exact(temperature):
    tokens, learner = tokens_of(), learner_of(kl_bound=None)
    train(learner, tokens, 5)
    losses = head_losses(learner.head, tokens, temperature, 0.2)
    assert losses.kl.item() / TOKENS == pytest.approx(exact_kl(learner.head, tokens, temperature), rel=1e-4)
    logits = ((tokens.logits + learner.head(tokens.hidden)) / temperature).detach().numpy().astype(np.float64)
    log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    chosen = log_probs[np.arange(TOKENS), tokens.labels.numpy()]
    ratio, advantages = np.exp(chosen - tokens.old_log_probs.numpy()), tokens.advantages.numpy()
    expected = -np.minimum(ratio * advantages, np.clip(ratio, 0.8, 1.2) * advantages).sum()
    assert losses.surrogate.item() == pytest.approx(expected, rel=1e-4)


def test_a_token_without_probability_is_no_nan():
    drawn = tokens_of(count=6)
    logits = drawn.logits.clone()
    logits[:, 7] = -torch.inf
    labels = torch.where(drawn.labels == 7, 3, drawn.labels)
    tokens = Tokens(drawn.hidden, logits, labels, drawn.advantages, drawn.old_log_probs)
    learner = learner_of(kl_weight=1.0)
    metrics = train(learner, tokens, 3)
    assert all(np.isfinite(value) for found in metrics for value in found.values())
    assert metrics[-1]["kl"] > 0


def test_parts_and_devices_add_up():
    tokens = tokens_of()
    whole = learner_of()
    expected = train(whole, tokens, 3)

    one, other = learner_of(), learner_of()
    for step in range(3):
        for start in range(0, 100, 7):
            one.accumulate(part(tokens, start, min(start + 7, 100)), 1.0)
        other.accumulate(part(tokens, 100, TOKENS), 1.0)
        shared = [[p.grad for p in each.head.parameters()] + [each._sums] for each in (one, other)]
        summed = [a + b for a, b in zip(*shared, strict=True)]
        found = []
        for learner in (one, other):
            rest = iter(summed)
            found.append(learner.update(lambda tensor, rest=rest: tensor.copy_(next(rest))))
        assert found[0] == found[1] == pytest.approx(expected[step], rel=1e-3, abs=1e-6)
    assert torch.equal(one.head.up, other.head.up)
    assert torch.allclose(one.head.up, whole.head.up, atol=1e-5)


def test_the_weight_of_the_penalty_adapts():
    penalty = KLPenalty(1.0, 0.02)
    for kl, weight in ((0.021, 1.1), (0.03, 1.21), (0.02, 1.21), (0.011, 1.21), (0.009, 1.1), (0.0, 1.0)):
        penalty.adapt(kl)
        assert penalty.weight == pytest.approx(weight)
    for _ in range(100):
        penalty.adapt(0.0)
    assert penalty.weight == 1e-3
    for _ in range(200):
        penalty.adapt(1.0)
    assert penalty.weight == 1e3
    fixed = KLPenalty(0.04, None)
    fixed.adapt(5.0)
    assert fixed.weight == 0.04
    nothing = KLPenalty(0.0, 0.02)
    nothing.adapt(1.0)
    assert nothing.weight > 0


def test_the_bound_holds_where_the_objective_would_leave_it():
    tokens = tokens_of()
    free, bound = learner_of(kl_bound=None, kl_weight=0.0), learner_of(kl_bound=0.02)
    train(free, tokens, 150)
    kls = [found["kl"] for found in train(bound, tokens, 150)]
    assert exact_kl(free.head, tokens) > 0.1
    assert max(kls) > 0.02, "it was never reached"
    assert max(kls[-50:]) < 0.02
    assert exact_kl(bound.head, tokens) > 0.005


def test_another_vocabulary_is_named():
    drawn = tokens_of(count=4)
    tokens = Tokens(drawn.hidden, drawn.logits[:, :10], drawn.labels % 10, drawn.advantages, drawn.old_log_probs)
    with pytest.raises(ValueError, match="the model has 10 logits and the rollout head 20"):
        learner_of().accumulate(tokens, 1.0)


def test_a_gradient_that_is_not_finite_is_an_error():
    learner = learner_of()
    learner.accumulate(tokens_of(advantages=torch.full((TOKENS,), torch.nan)), 1.0)
    with pytest.raises(FloatingPointError, match="nan"):
        learner.update(alone)


def test_an_update_without_tokens_moves_nothing():
    learner = learner_of()
    before = learner.head.up.clone()
    learner.accumulate(tokens_of(count=0), 1.0)
    assert learner.update(alone)["kl"] == 0
    assert torch.equal(before, learner.head.up)


@pytest.mark.parametrize("trained", [0, 3])
def test_three_and_three_updates_are_six(tmp_path, trained):
    tokens, whole = tokens_of(), learner_of()
    train(whole, tokens, trained)
    whole.best_reward = 2.25
    state.save(whole, tmp_path / "r2po", 3)
    resumed = learner_of()
    state.load(resumed, tmp_path / "r2po", 3)
    assert train(resumed, tokens, 3) == train(whole, tokens, 3)
    assert torch.equal(resumed.head.up, whole.head.up)
    assert torch.equal(resumed.head.down, whole.head.down)
    assert (resumed.updates, resumed.penalty.weight) == (whole.updates, whole.penalty.weight)
    assert resumed.best_reward == 2.25


def test_a_saved_head_is_replaced_whole(tmp_path):
    learner = learner_of()
    for step in (1, 2):
        train(learner, tokens_of(), 1)
        state.save(learner, tmp_path / "r2po", step)
    assert json.loads((tmp_path / "r2po" / "state.json").read_text())["step"] == 2
    assert [path.name for path in tmp_path.iterdir()] == ["r2po"]


def _drop(folder):
    (folder / "head.safetensors").unlink()


def _damage(folder):
    (folder / "head.safetensors").write_bytes(b"nothing")


def _forget(folder):
    (folder / "state.json").write_text("{}")


def _age(folder):
    text = (folder / "state.json").read_text()
    (folder / "state.json").write_text(text.replace('"schema_version": 1', '"schema_version": 9'))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [(_drop, "no rollout head can be read"), (_damage, "no rollout head can be read"),
     (_forget, "no rollout head can be read"), (_age, "schema_version 9"), (None, "the head of step 3")],
)  # fmt: skip
def test_a_head_that_does_not_belong_is_refused(tmp_path, spoil, message):
    learner = learner_of()
    train(learner, tokens_of(), 1)
    state.save(learner, tmp_path / "r2po", 3)
    if spoil:
        spoil(tmp_path / "r2po")
    with pytest.raises(state.HeadError, match=message):
        state.load(learner, tmp_path / "r2po", 3 if spoil else 4)


def test_a_head_of_another_size_is_refused(tmp_path):
    state.save(learner_of(), tmp_path / "r2po", 3)
    wider = HeadLearner(R2POConfig(head=HeadConfig(rank=8)), HIDDEN, VOCABULARY, "cpu")
    with pytest.raises(state.HeadError, match=r"down has the shape \(4, 12\), this run needs \(8, 12\)"):
        state.load(wider, tmp_path / "r2po", 3)


@pytest.mark.parametrize(
    ("every", "steps", "expected"),
    [(5, 1, [1, 6, 11]), (4, 2, [1, 2, 5, 6, 9, 10]), (3, 0, [])],
)
def test_the_schedule(every, steps, expected):
    options = R2POConfig(head_every=every, head_steps=steps)
    assert [step for step in range(1, 12) if trains_head(step, options)] == expected
