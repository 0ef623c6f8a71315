"""The cache against a simple model, its bounds, and what an entry costs."""

import gc
import tracemalloc
from collections import OrderedDict
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from rpo_verl.rpo.cache import ENTRY_BYTES, LOGPROB_BYTES, TOKEN_BYTES, CachedAnswer, ExperienceCache

KEYS = st.integers(0, 7).map(lambda i: bytes([i]) * 16)
ANSWERS = st.builds(
    lambda tokens, question, correct, reward, step, failures, known: CachedAnswer(
        np.array(tokens, dtype=np.int32),
        correct,
        reward,
        step,
        np.array(question, dtype=np.int32),
        failures,
        np.array([-1 / (1 + i) for i in range(len(tokens))] if known else [], dtype=np.float16),
    ),
    st.lists(st.integers(0, 2**31 - 1), max_size=6),
    st.lists(st.integers(0, 2**31 - 1), max_size=3),
    st.booleans(),
    st.floats(allow_nan=False),
    st.integers(-1, 10_000),
    st.integers(0, 3),
    st.booleans(),
)


def same(a: CachedAnswer, b: CachedAnswer) -> bool:
    return (
        a.tokens.tolist() == b.tokens.tolist()
        and a.question.tolist() == b.question.tolist()
        and a.logprobs.tolist() == b.logprobs.tolist()
        and (a.correct, a.reward, a.step, a.failures) == (b.correct, b.reward, b.step, b.failures)
    )


class CacheMachine(RuleBasedStateMachine):
    """Random operations on the cache and on an ordered dict of plain objects have to give the same."""

    def __init__(self):
        super().__init__()
        self.cache = ExperienceCache(keep_correct=True, max_entries=5, max_bytes=5 * ENTRY_BYTES)
        self.model: OrderedDict[bytes, CachedAnswer] = OrderedDict()
        self.evictions = 0

    def model_bytes(self):
        return sum(
            TOKEN_BYTES * (len(a.tokens) + len(a.question)) + LOGPROB_BYTES * len(a.logprobs) + ENTRY_BYTES
            for a in self.model.values()
        )

    @rule(key=KEYS, answer=ANSWERS)
    def put(self, key, answer):
        old = self.model.get(key)
        refused = old is not None and old.correct and not answer.correct
        assert self.cache.put(key, answer) is not refused
        if not refused:
            self.model[key] = answer
        self.model.move_to_end(key)

    @rule()
    def evict(self):
        before = len(self.model)
        while len(self.model) > 5 or self.model_bytes() > 5 * ENTRY_BYTES:
            self.model.popitem(last=False)
        assert self.cache.evict() == before - len(self.model)
        self.evictions += before - len(self.model)

    @rule(key=KEYS)
    def drop(self, key):
        if key in self.model:
            del self.model[key]
            self.cache.drop(key)
        else:
            with pytest.raises(KeyError):
                self.cache.drop(key)

    @rule(key=KEYS, failures=st.integers(0, 5))
    def amend(self, key, failures):
        if key in self.model:
            self.model[key] = replace(self.model[key], failures=failures)
            self.cache.amend(key, failures)

    @invariant()
    def agree(self):
        assert [key for key, _ in self.cache.items()] == list(self.model)
        for key, answer in self.model.items():
            assert same(self.cache.get(key), answer)
        metrics = self.cache.metrics(step=10_000)
        assert metrics["rpo/cache/bytes"] == self.cache.bytes == self.model_bytes()
        assert metrics["rpo/cache/evictions"] == self.evictions
        assert metrics["rpo/cache/entries"] == len(self.cache) == len(self.model)
        if self.model:
            answers = self.model.values()
            assert metrics["rpo/cache/correct_share"] == sum(a.correct for a in answers) / len(answers)
            assert metrics["rpo/cache/age_mean"] == pytest.approx(10_000 - np.mean([a.step for a in answers]))


TestCache = CacheMachine.TestCase


@pytest.mark.parametrize("entries", [1_000, 21_846, 50_000])
def test_an_entry_takes_at_most_what_it_is_accounted_for(entries):
    """21,846 is the first size after the dictionary has grown, its most wasteful moment."""
    question, tokens = np.arange(20, dtype=np.int32), np.arange(100, dtype=np.int32)
    gc.collect()
    tracemalloc.start()
    try:
        cache = ExperienceCache()
        for i in range(entries):
            cache.put(i.to_bytes(16, "little"), CachedAnswer(tokens, True, 1.0, i, question))
        gc.collect()
        taken, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert taken <= cache.bytes == entries * (120 * TOKEN_BYTES + ENTRY_BYTES)
