"""A reward that holds one response back for ten seconds and says so, so that a test can act while its rollout lasts."""

import asyncio
from itertools import count
from pathlib import Path
from typing import Any

calls = count(1)


async def compute_score(solution_str: str, ground_truth: str, hold: int, marker: str, **kwargs: Any) -> float:
    """Exact match of the final answer; the `hold`-th call of this process writes `marker` and waits."""
    if next(calls) == hold:
        Path(marker).touch()
        await asyncio.sleep(10)
    return float("#" in solution_str and solution_str.rpartition("#")[2].strip() == ground_truth)
