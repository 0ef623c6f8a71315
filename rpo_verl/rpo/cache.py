"""The experience cache: one answer per question, in a bounded amount of memory."""

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import islice

import numpy as np

from rpo_verl.rpo.start import NO_LOGPROBS, NO_TOKENS

#: Of a token id, and of a token's log-probability where it is kept.
TOKEN_BYTES, LOGPROB_BYTES = 4, 2
#: Upper bound on what an entry takes beside its tokens: key, header, objects, dictionary (`make bench-cache`).
ENTRY_BYTES = 300

# Reward, step, failures, correct, number of question and of answer tokens.
_HEADER = struct.Struct("<diIIII")


@dataclass(frozen=True, slots=True)
class CachedAnswer:
    """The answer kept for a question."""

    tokens: np.ndarray
    """(l,) int32 response token ids without the final EOS."""

    correct: bool
    reward: float
    """Base reward `r` of the response it came from."""

    step: int
    """Version of the oldest policy that wrote a part of it: the step after whose update that policy was there."""

    question: np.ndarray = field(default_factory=lambda: NO_TOKENS)
    """(q,) int32 token ids of the question, chat template applied."""

    failures: int = 0
    """Consecutive all-wrong groups that started from a prefix of it."""

    logprobs: np.ndarray = field(default_factory=lambda: NO_LOGPROBS)
    """(l,) float16, log-probability of each token under the policy that wrote it; empty where they are not known."""

    @property
    def id(self) -> int:
        """Identity of the answer among those of its question, by its tokens: the same in every process."""
        return len(self.tokens) << 32 | zlib.crc32(self.tokens)


def _pack(answer: CachedAnswer) -> bytes:
    counts = (len(answer.question), len(answer.tokens))
    header = _HEADER.pack(answer.reward, answer.step, answer.failures, bool(answer.correct), *counts)
    ids = (np.ascontiguousarray(ids, dtype="<i4") for ids in (answer.question, answer.tokens))
    return b"".join((header, *ids, np.ascontiguousarray(answer.logprobs, dtype="<f2")))


def _unpack(packed: bytes) -> CachedAnswer:
    reward, step, failures, correct, asked, answered = _HEADER.unpack_from(packed)
    ids = np.frombuffer(packed, dtype="<i4", count=asked + answered, offset=_HEADER.size)
    logprobs = np.frombuffer(packed, dtype="<f2", offset=_HEADER.size + ids.nbytes)
    return CachedAnswer(ids[asked:], bool(correct), reward, step, ids[:asked], failures, logprobs)


class ExperienceCache:
    """Maps question keys to answers, least recently updated first.

    An entry is one `bytes` object rather than an array and its attributes, which would cost as much as 60 tokens.

    Args:
        keep_correct: a correct answer never gives way to a wrong one.
        max_entries: bound on the number of entries; None: unbounded.
        max_bytes: bound on `TOKEN_BYTES` per token (of question and answer), `LOGPROB_BYTES` per log-probability and
            `ENTRY_BYTES` per entry.
    """

    def __init__(self, keep_correct: bool = True, max_entries: int | None = None, max_bytes: int | None = None) -> None:
        self.keep_correct, self.max_entries, self.max_bytes = keep_correct, max_entries, max_bytes
        self.evictions = 0
        self._entries: dict[bytes, bytes] = {}
        self._packed_bytes = self._step_sum = self._correct = 0

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def token_bytes(self) -> int:
        """Bytes of cached token ids, questions included, and of log-probabilities."""
        return self._packed_bytes - _HEADER.size * len(self)

    @property
    def bytes(self) -> int:
        """What the cache takes in memory, at most."""
        return self.token_bytes + ENTRY_BYTES * len(self)

    def get(self, key: bytes) -> CachedAnswer | None:
        """The question's answer, or None if it has none. Arrays are read-only views of the entry."""
        packed = self._entries.get(key)
        return None if packed is None else _unpack(packed)

    def put(self, key: bytes, answer: CachedAnswer) -> bool:
        """Make `answer` the question's answer, and the question the most recently updated one.

        Bounds are kept by `evict`, which the caller runs after a batch of updates.

        Returns:
            False if `keep_correct` keeps the old answer.
        """
        kept = self._entries.pop(key, None)
        if kept is not None:
            old = _unpack(kept)
            if self.keep_correct and old.correct and not answer.correct:
                self._entries[key] = kept
                return False
            self._count(old, len(kept), -1)
        packed = _pack(answer)
        self._entries[key] = packed
        self._count(answer, len(packed), 1)
        return True

    def drop(self, key: bytes) -> None:
        """Forget the question's answer.

        Raises:
            KeyError: if it has none.
        """
        packed = self._entries.pop(key)
        self._count(_unpack(packed), len(packed), -1)

    def amend(self, key: bytes, failures: int) -> None:
        """Keep the answer of `key`, which must have one, with what another group showed of it."""
        packed = self._entries[key]
        self._entries[key] = _pack(replace(_unpack(packed), failures=failures))

    def _count(self, answer: CachedAnswer, packed_bytes: int, sign: int) -> None:
        self._packed_bytes += sign * packed_bytes
        self._step_sum += sign * answer.step
        self._correct += sign * answer.correct

    def evict(self) -> int:
        """Drop the least recently updated entries until the bounds are kept; returns how many."""
        excess = max(0, len(self) - self.max_entries) if self.max_entries is not None else 0
        if self.max_bytes is not None:
            over, sizes = self.bytes - self.max_bytes, map(len, self._entries.values())
            dropped = 0
            while over > 0:
                over -= next(sizes) - _HEADER.size + ENTRY_BYTES
                dropped += 1
            excess = max(excess, dropped)
        # One pass for all of them: finding the oldest key of a dict costs a scan over the places of deleted ones.
        for key in list(islice(self._entries, excess)):
            self.drop(key)
        self.evictions += excess
        return excess

    def items(self) -> Iterator[tuple[bytes, CachedAnswer]]:
        """Keys and answers, least recently updated first."""
        return ((key, _unpack(packed)) for key, packed in self._entries.items())

    def metrics(self, step: int) -> dict[str, float]:
        """Size, evictions, share of correct entries, and mean age in training steps at `step`."""
        entries = max(1, len(self))
        return {
            "rpo/cache/entries": len(self),
            "rpo/cache/bytes": self.bytes,
            "rpo/cache/evictions": self.evictions,
            "rpo/cache/correct_share": self._correct / entries,
            "rpo/cache/age_mean": step - self._step_sum / entries if len(self) else 0.0,
        }
