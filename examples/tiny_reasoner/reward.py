"""Reward 1.0 when the text after the last '#' is exactly the right answer, else 0.0."""

from __future__ import annotations

from typing import Any


def compute_score(data_source: Any, solution_str: Any, ground_truth: Any, extra_info: Any = None, **kwargs) -> float:
    """Exact match of the final answer; self-contained because veRL loads this file by its path."""
    if not isinstance(solution_str, str) or not isinstance(ground_truth, str):
        return 0.0
    _, mark, answer = solution_str.rpartition("#")
    return float(bool(mark) and answer.strip() == ground_truth.strip())
