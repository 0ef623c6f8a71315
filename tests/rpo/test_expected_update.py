"""What each credit rule does on average, by brute force: a policy of 14 numbers, all its answers, all its groups.

An answer is three tokens out of two; the policy has logits of its own in each of the seven contexts. The expected
update of a rule is the sum over all prefixes and all groups, each with its probability, of what `credit` and GRPO's
advantages (without the division by the standard deviation) give. It is compared with the exact gradient of the expected
reward: that of the prefix's tokens, and that of the suffix's.

What these tests state:

* A prefix that the current policy draws: `paid` and `imitate` are unbiased, `none` and `literal` give it nothing.
* A prefix of an older policy: unbiased with the weights π/π_then. Weights cut at 1 shrink the update.
* A prefix of the answer that the cache kept because it was right: biased, also with weights, towards prefixes of right
  answers, whose V(prefix) promises more than the question does.
* The suffix is unbiased given the prefix: under `imitate`, and times (G - 1)/G with GRPO's advantages under the others.
"""

from itertools import product

import numpy as np
import pytest
import torch

from rpo_verl.rpo.credit import credit, imitation
from rpo_verl.rpo.group import Group
from rpo_verl.rpo.options import CreditConfig
from rpo_verl.rpo.start import Start

LENGTH, CUT, G = 3, 2, 2
ANSWERS = list(product((0, 1), repeat=LENGTH))
PREFIXES = list(product((0, 1), repeat=CUT))
SUFFIXES = list(product((0, 1), repeat=LENGTH - CUT))
#: Right answers: one behind the first token 0, two behind the first token 1.
RIGHT = {(0, 0, 1), (1, 0, 0), (1, 1, 0)}


def policy(seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(7, 2, generator=generator, dtype=torch.float64)


NOW, THEN = policy(1), policy(2)


def logprob(logits, tokens, begin=0):
    """Log-probability of the tokens from position `begin` on."""
    total, context = logits.new_zeros(()), 0
    for position, token in enumerate(tokens):
        if position >= begin:
            total = total + torch.log_softmax(logits[context], -1)[token]
        context = 2 * context + 1 + token
    return total


def probability(logits, tokens, begin=0):
    return float(logprob(logits, tokens, begin).exp())


def score(tokens, begin, stop):
    """Gradient of the log-probability of the tokens from `begin` to `stop`, under the current policy."""
    logits = NOW.clone().requires_grad_()
    return torch.autograd.grad(logprob(logits, tokens[:stop], begin), logits)[0]


def is_right(tokens):
    return float(tuple(tokens) in RIGHT)


EXACT_PREFIX = sum(probability(NOW, y) * is_right(y) * score(y, 0, CUT) for y in ANSWERS)
EXACT_SUFFIX = sum(probability(NOW, y) * is_right(y) * score(y, CUT, LENGTH) for y in ANSWERS)
SUCCESS = sum(probability(NOW, y) * is_right(y) for y in ANSWERS)


def group_of(prefix, suffixes):
    right = np.array([is_right((*prefix, *suffix)) for suffix in suffixes])
    size = np.full(G, LENGTH)
    return Group(
        start=Start(b"k" * 16, "prefixed", G, LENGTH),
        keys=("u_0_0", "u_1_0"),
        prefix_tokens=np.full(G, CUT),
        response_tokens=size,
        oldest_policy=np.zeros(G, dtype=int),
        rewards=right,
        correct=right.astype(bool),
        shaped=right,
    )


def expected_update(rule, prefixes, weight=lambda prefix: 1.0):
    """(of the prefix's tokens, of the suffix's): mean over prefixes and groups, per response.

    Args:
        rule: of credit.
        prefixes: prefix → probability that a group starts from it.
        weight: of a prefix, on its credit.
    """
    options = CreditConfig(rule=rule)
    of_prefix, of_suffix = torch.zeros_like(NOW), torch.zeros_like(NOW)
    for prefix, chance in prefixes.items():
        for suffixes in product(SUFFIXES, repeat=G):
            group = group_of(prefix, suffixes)
            p = chance * np.prod([probability(NOW, (*prefix, *suffix), CUT) for suffix in suffixes])
            advantages = group.rewards - group.rewards.mean()
            if rule == "imitate":
                advantages = imitation(group, [(*prefix, *suffix) for suffix in suffixes])
            for suffix, advantage in zip(suffixes, advantages, strict=True):
                of_suffix += p * advantage * score((*prefix, *suffix), CUT, LENGTH) / G
            for spans in credit(group, advantages, options, "token-mean"):
                for start, stop, advantage in spans:
                    of_prefix += p * advantage * weight(prefix) * score(prefix, start, stop) / G
    return of_prefix, of_suffix


def drawn_by(logits):
    return {prefix: probability(logits, prefix) for prefix in PREFIXES}


def kept_of_group(logits):
    """Distribution of the prefix of a cached answer: of two answers a right one, the first of equals."""
    found = dict.fromkeys(PREFIXES, 0.0)
    for first, second in product(ANSWERS, repeat=2):
        best = second if is_right(second) > is_right(first) else first
        found[best[:CUT]] += probability(logits, first) * probability(logits, second)
    return found


def ratio(prefix):
    return probability(NOW, prefix) / probability(THEN, prefix)


def test_of_a_prefix_that_the_policy_draws_now_the_update_is_the_policy_gradient():
    of_prefix, of_suffix = expected_update("paid", drawn_by(NOW))
    torch.testing.assert_close(of_prefix, EXACT_PREFIX)
    torch.testing.assert_close(of_suffix, (G - 1) / G * EXACT_SUFFIX)


def test_by_imitation_it_is_the_policy_gradient_of_all_tokens():
    of_prefix, of_suffix = expected_update("imitate", drawn_by(NOW))
    torch.testing.assert_close(of_prefix, EXACT_PREFIX)
    torch.testing.assert_close(of_suffix, EXACT_SUFFIX)


@pytest.mark.parametrize("rule", ["none", "literal"])
def test_without_credit_a_shared_prefix_learns_nothing(rule):
    of_prefix, of_suffix = expected_update(rule, drawn_by(NOW))
    torch.testing.assert_close(of_prefix, torch.zeros_like(NOW))
    assert EXACT_PREFIX.norm() > 0.1
    torch.testing.assert_close(of_suffix, (G - 1) / G * EXACT_SUFFIX)


def test_of_an_older_prefix_weights_make_it_the_policy_gradient():
    of_prefix, _ = expected_update("paid", drawn_by(THEN), ratio)
    torch.testing.assert_close(of_prefix, EXACT_PREFIX)
    without, _ = expected_update("paid", drawn_by(THEN))
    assert (without - EXACT_PREFIX).norm() > 0.1 * EXACT_PREFIX.norm()


def value(prefix):
    """V(prefix)."""
    return sum(probability(NOW, (*prefix, *suffix), CUT) * is_right((*prefix, *suffix)) for suffix in SUFFIXES)


def test_weights_cut_at_one_lose_what_the_policy_makes_more_likely_now():
    whole, _ = expected_update("paid", drawn_by(THEN), ratio)
    cut, _ = expected_update("paid", drawn_by(THEN), lambda prefix: min(1.0, ratio(prefix)))
    lost = torch.zeros_like(NOW)
    for prefix, chance in drawn_by(THEN).items():
        lost += chance * max(0.0, ratio(prefix) - 1) * value(prefix) * score(prefix, 0, CUT)
    torch.testing.assert_close(whole - cut, lost)
    assert lost.norm() > 0.01


def test_of_a_kept_answer_the_update_is_biased_towards_right_answers():
    of_prefix, _ = expected_update("paid", kept_of_group(NOW))
    bias = of_prefix - EXACT_PREFIX
    assert bias.norm() > 0.1 * EXACT_PREFIX.norm()


def test_a_kept_answer_promises_more_than_its_question():
    own, kept = (
        sum(chance * (value(prefix) - SUCCESS) for prefix, chance in prefixes.items())
        for prefixes in (drawn_by(NOW), kept_of_group(NOW))
    )
    assert own == pytest.approx(0)
    assert kept > 0.02
