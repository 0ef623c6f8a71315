"""Verified drafts: what is accepted, and which distribution results."""

from collections import Counter

import numpy as np
import pytest

from benchmarks.lab.drafts import Drafts, accepted
from benchmarks.lab.questions import Question
from benchmarks.lab.sampler import Continuation

END = 2
THEN, NOW = np.array([0.7, 0.2, 0.1]), np.array([0.3, 0.6, 0.1])


def test_the_first_rejection_ends_the_prefix():
    then, now = np.log([0.5, 0.5, 0.5]), np.log([0.5, 0.25, 0.5])
    assert accepted(now, then, np.array([0.99, 0.49, 0.99]), 1) == 3
    assert accepted(now, then, np.array([0.99, 0.51, 0.0]), 1) == 1
    assert accepted(now, then, np.array([0.99, 0.99, 0.99]), 2) == 3, "λ = 2 makes up for the halved probability"
    assert accepted(now, then, np.array([0.0, 0.0, 0.0]), 0.1) == 3
    assert accepted(now[:0], then[:0], np.zeros(0), 1) == 0


def resulting(lenience, draws=200_000):
    """Frequencies of the first token that comes out of drafts drawn from THEN under the policy NOW."""
    rng = np.random.default_rng(0)
    drafts, again = rng.choice(3, draws, p=THEN), rng.choice(3, draws, p=NOW)
    uniforms = rng.random(draws)
    found = Counter()
    for draft, fresh, uniform in zip(drafts.tolist(), again.tolist(), uniforms, strict=True):
        kept = accepted(np.log(NOW[[draft]]), np.log(THEN[[draft]]), np.array([uniform]), lenience)
        found[draft if kept else fresh] += 1
    return np.array([found[token] / draws for token in range(3)])


@pytest.mark.parametrize("lenience", [1.0, 1.65, 100.0])
def test_the_distribution_that_results_is_the_stated_one(lenience):
    taken = np.minimum(THEN, lenience * NOW)
    stated = taken + (1 - taken.sum()) * NOW
    assert resulting(lenience) == pytest.approx(stated, abs=0.005)
    # Between the draft's distribution and the policy's, and with much lenience the draft's own.
    assert np.abs(stated - NOW).sum() > 0.2
    if lenience == 100:
        assert stated == pytest.approx(THEN)


def test_a_residual_draw_would_give_the_policy_itself():
    taken = np.minimum(THEN, NOW)
    residual = (NOW - taken) / (NOW - taken).sum()
    assert taken + (1 - taken.sum()) * residual == pytest.approx(NOW)


def test_members_write_on_behind_what_is_accepted():
    asked, contexts = Question((1,), "x"), []

    def sample(given, room):
        contexts.append((given, room))
        return [Continuation(np.array([7, END], np.int32), np.full(2, -1, np.float32)) for _ in given]

    def log_probs(_, responses):
        # The policy is as before on the first token, and does not believe in the second.
        return np.array([[-1.0, -50.0]] * len(responses))

    drafts = Drafts(lenience=1, seed=0)
    ask = (2, 10, sample, log_probs, lambda _, response: (float(len(response) > 2),) * 2)
    (first,) = drafts.roll_out([asked], 1, *ask)
    assert first.group.prefix_tokens.tolist() == [0, 0] and first.group.generated.tolist() == [2, 2]
    (second,) = drafts.roll_out([asked], 2, *ask)
    assert contexts == [([[1], [1]], [10, 10]), ([[1, 7], [1, 7]], [9, 9])]
    assert second.group.prefix_tokens.tolist() == [1, 1] and second.group.generated.tolist() == [2, 2]
    assert [response.tolist() for response in second.responses] == [[7, 7, END]] * 2
    assert second.log_probs[0].tolist() == [-1, -1, -1]

    (third,) = drafts.roll_out([asked], 3, 2, 10, sample, lambda _, r: np.full((len(r), 3), -1.0), ask[-1])
    assert third.group.generated.tolist() == [0, 0] and len(contexts) == 2, "whole drafts need no generation"
