r"""Reward 1.0 when the final answer of a response equals the ground truth by math-verify, else 0.0.

    reward.custom_reward_function.path=pkg://rpo_verl.rewards.math reward.custom_reward_function.name=compute_score

`extraction.py` finds the answer: the last box; where there is none, what is marked as the answer; else what math-verify
finds in the last sentence. `normalization.py` takes off its dress and `quantities.py` its unit; `verification.py`
compares. A response can neither hang nor crash it: the comparison runs in a process with limits on time and memory.
"""

import functools
import math
from typing import Any

from rpo_verl.rewards import verification
from rpo_verl.rewards.extraction import final_answer
from rpo_verl.rewards.workers import WorkerDied, Workers, shared


def compute_score(
    data_source: Any,
    solution_str: str,
    ground_truth: str | int | float | bool | list,
    extra_info: Any = None,
    *,
    timeout: float = 5.0,
    memory_mb: int = 512,
    processes: int = 2,
    tail_chars: int = 65536,
    max_answer_chars: int = 500,
    read_unfinished_thinking: bool = False,
    reward_router_address: Any = None,
    reward_model_tokenizer: Any = None,
) -> dict[str, Any]:
    """Score of one response; veRL calls it by these names, and takes settings from `reward_kwargs`.

    Args:
        solution_str: the response; what it says before `</think>` is not read.
        ground_truth: LaTeX, a number, True or False; or a list of answers, all of which the response must give.
        timeout: seconds that one comparison may take; a ground truth that was not seen before is checked first, in ten
            times that, because a busy machine is no error in the data.
        memory_mb: MiB that a comparison may take.
        processes: comparisons at once in each of veRL's reward workers.
        tail_chars: characters at the end of the response that are read.
        max_answer_chars: characters of the longest answer that is compared.
        read_unfinished_thinking: read an answer also in a `<think>` that was never closed. By default such a response
            has no answer, whatever its thoughts say.
        data_source, extra_info: name the row in an error; `extra_info["index"]` is its number.
        reward_router_address, reward_model_tokenizer: passed by veRL, not used.

    Returns:
        `score` and `acc`, 1.0 or 0.0; `pred`, the answer as it was read, at most 200 characters; and why there was no
        comparison, each 1.0 or 0.0: `no_answer`, `too_long`, `timed_out`, `crashed`. The keys are always the same.

    Raises:
        ValueError: if no response could match the ground truth, which is an error in the data. It names value and row.
    """
    workers = shared(processes, memory_mb)
    truth = _text(ground_truth)
    reason = _fault(truth, max_answer_chars, timeout, workers)
    if reason:
        row = f", row {extra_info['index']}" if isinstance(extra_info, dict) and "index" in extra_info else ""
        raise ValueError(
            f"{data_source}{row}: the ground truth {_shown(ground_truth)} {reason}. "
            "Correct it in the data set, or leave its row out."
        )
    found = final_answer(solution_str, tail_chars, read_unfinished_thinking)
    if found is None:
        return _result(no_answer=True)
    text = _printable(found.text)
    if found.whole and len(text) > max_answer_chars:
        return _result(text, too_long=True)
    try:
        correct, answer = workers.call(verification.compare, truth, text, found.whole, timeout=timeout)
    except TimeoutError:
        return _result(text, timed_out=True)
    except WorkerDied:
        return _result(text, crashed=True)
    return _result(answer or "", correct, no_answer=answer is None)


def unmatchable(ground_truth: Any, timeout: float = 5.0) -> str | None:
    """Why no response can match a ground truth, in words that follow `the ground truth …`; None if one can."""
    return _fault(_text(ground_truth), 500, timeout, shared(2, 512))


def _text(ground_truth: Any) -> str:
    """A ground truth as LaTeX; empty if it has no value."""
    if hasattr(ground_truth, "tolist"):  # numpy, as Parquet files are read
        ground_truth = ground_truth.tolist()
    if isinstance(ground_truth, (list, tuple)):
        return ", ".join(map(_text, ground_truth))
    if isinstance(ground_truth, float) and not math.isfinite(ground_truth):
        return ""
    return str(ground_truth) if isinstance(ground_truth, (str, int, float)) else ""


def _shown(ground_truth: Any) -> str:
    return repr(ground_truth[:200] if isinstance(ground_truth, str) else ground_truth)[:300]


@functools.lru_cache(maxsize=2**16)
def _fault(ground_truth: str, max_answer_chars: int, timeout: float, workers: Workers) -> str | None:
    """Why no response could match a ground truth; found out once for each."""
    if len(ground_truth) > max_answer_chars:
        return f"has {len(ground_truth)} characters, more than max_answer_chars={max_answer_chars}"
    if ground_truth.isascii() and ground_truth.isdecimal():
        return None
    try:
        return workers.call(verification.unreadable, ground_truth, timeout=10 * timeout)
    except TimeoutError:
        return f"takes math-verify more than 10 * timeout = {10 * timeout} s"
    except WorkerDied as error:
        return f"crashes math-verify ({error})"


def _printable(text: str) -> str:
    """`text` with a space in place of control characters and lone surrogates, which neither sympy nor logs bear."""
    return "".join(character if character.isprintable() or character in "\n\t" else " " for character in text)


def _result(answer: str = "", correct: bool = False, **reasons: bool) -> dict[str, Any]:
    names = ("no_answer", "too_long", "timed_out", "crashed")
    return {
        "score": float(correct),
        "acc": float(correct),
        "pred": answer[:200],
        **{name: float(reasons.get(name, False)) for name in names},
    }
