"""A reward for a model that knows nothing: right or wrong by a coin that depends on the response alone."""

from typing import Any
from zlib import crc32


def compute_score(solution_str: str, **kwargs: Any) -> float:
    """0.0 or 1.0, so that nearly every group has a signal and every row is in the update."""
    return float(crc32(solution_str.encode("utf-8", "replace")) % 2)
