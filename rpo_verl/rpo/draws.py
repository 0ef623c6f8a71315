"""Random draws that are functions of their key alone: the same (seed, step, question, purpose) gives the same draw in
every process, whatever was drawn before and however many workers there are.
"""

from hashlib import blake2b

_BITS = 64


def _hash64(*key: int | str | bytes) -> int:
    digest = blake2b(digest_size=_BITS // 8)
    for part in key:
        data = part if isinstance(part, bytes) else str(part).encode()
        digest.update(len(data).to_bytes(4, "little") + data)
    return int.from_bytes(digest.digest(), "little")


def uniform(*key: int | str | bytes) -> float:
    """A float in [0, 1), uniform over keys."""
    return _hash64(*key) / 2**_BITS


def integer(low: int, high: int, *key: int | str | bytes) -> int:
    """An integer in {low, …, high}, uniform over keys (up to a bias of 2^-64 times the range).

    Raises:
        ValueError: if `high < low`.
    """
    if high < low:
        raise ValueError(f"no integer lies between low={low} and high={high}")
    return low + _hash64(*key) % (high - low + 1)
