r"""Reward 1.0 when the final answer of a response equals the ground truth by math-verify, else 0.0.

    reward.custom_reward_function.path=pkg://rpo_verl.rewards.math reward.custom_reward_function.name=compute_score

The answer is the last box of the response; where there is none, what math-verify finds (`Answer: 3`, the last formula,
the last number). A response can neither hang nor crash it: only the end of the response is read, and that is compared
in a process with limits on time and memory.
"""

import functools
from typing import Any

from rpo_verl.rewards import verification
from rpo_verl.rewards.boxed import last_boxed
from rpo_verl.rewards.workers import WorkerDied, Workers, shared


def compute_score(
    data_source: Any,
    solution_str: str,
    ground_truth: str | int | float,
    extra_info: Any = None,
    *,
    timeout: float = 5.0,
    memory_mb: int = 512,
    processes: int = 2,
    tail_chars: int = 4096,
    max_answer_chars: int = 500,
    reward_router_address: Any = None,
    reward_model_tokenizer: Any = None,
) -> dict[str, Any]:
    """Score of one response; veRL calls it by these names, and takes settings from `reward_kwargs`.

    Args:
        solution_str: the response; what it says before `</think>` is not read.
        ground_truth: LaTeX without dollar signs, or a number.
        timeout: seconds that one comparison may take; a ground truth that was not seen before is checked first, in ten
            times that, because a busy machine is no error in the data.
        memory_mb: MiB that a comparison may take.
        processes: comparisons at once in each of veRL's reward workers.
        tail_chars: characters at the end of the response that are read.
        max_answer_chars: characters of the longest box that is compared.
        data_source, extra_info, reward_router_address, reward_model_tokenizer: passed by veRL, not used.

    Returns:
        `score` and `acc`, 1.0 or 0.0; `pred`, the answer as it was read, at most 200 characters; and why there was no
        comparison, each 1.0 or 0.0: `no_answer`, `too_long`, `timed_out`, `crashed`. The keys are always the same.

    Raises:
        ValueError: if the ground truth cannot be read, which is an error in the data and no property of the response.
    """
    workers = shared(processes, memory_mb)
    ground_truth = str(ground_truth)
    _check(ground_truth, max_answer_chars, timeout, workers)
    tail = _printable(solution_str.rpartition("</think>")[2][-tail_chars:])
    box = last_boxed(tail)
    text = (tail if box is None else box).strip()
    if not text:
        return _result(no_answer=True)
    if box is not None and len(box) > max_answer_chars:
        return _result(box, too_long=True)
    try:
        correct, answer = workers.call(verification.compare, ground_truth, text, box is not None, timeout=timeout)
    except TimeoutError:
        return _result(text, timed_out=True)
    except WorkerDied:
        return _result(text, crashed=True)
    return _result(answer or "", correct, no_answer=answer is None)


@functools.lru_cache(maxsize=2**16)
def _check(ground_truth: str, max_answer_chars: int, timeout: float, workers: Workers) -> None:
    """Once for every ground truth: raises ValueError if no response could ever equal it."""
    reason = None
    if len(ground_truth) > max_answer_chars:
        reason = f"has {len(ground_truth)} characters, more than max_answer_chars={max_answer_chars}"
    else:
        try:
            if workers.call(verification.unreadable, ground_truth, timeout=10 * timeout):
                reason = "cannot be read by math-verify"
        except TimeoutError:
            reason = f"takes math-verify more than 10 * timeout = {10 * timeout} s"
        except WorkerDied as error:
            reason = f"crashes math-verify ({error})"
    if reason:
        raise ValueError(
            f"the ground truth {ground_truth[:200]!r} {reason}. Correct it in the data set, or leave its row out."
        )


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
