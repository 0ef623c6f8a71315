"""Measure how long finished rollouts wait for the trainer. VERL_USE_EXTERNAL_MODULES loads it into every process.

veRL looks at its replay buffer every 2 s, and no metric of its own tells how much of a rollout's time that is. So this
module watches TransferQueue, with and without RPO. A group has finished when its worker marks it so. A batch is taken
when the trainer clears the entries of its questions. Both events go to $WAITING_FILE, one JSON line each.
"""

import json
import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import wrapt

PATH = os.environ.get("WAITING_FILE")


def waits(path: Path) -> list[float]:
    """Seconds from the end of a training batch's last group to the moment the trainer took it, batch by batch."""
    finished: dict[str, float] = {}
    found = []
    for line in path.read_text().splitlines():
        event = json.loads(line)
        if "finished" in event:
            finished[event["finished"]] = event["time"]
        else:
            found.append(event["time"] - max(finished[uid] for uid in event["taken"]))
    return found


def _record(**event: Any) -> None:
    # One small write in append mode is whole, whichever process makes it.
    with open(PATH, "ab", buffering=0) as file:
        file.write(json.dumps({"time": time.time(), **event}).encode() + b"\n")


def _finished(put: Callable, _: Any, arguments: tuple, named: dict[str, Any]) -> Any:
    if (named.get("tag") or {}).get("status") in ("finished", "failure") and named["partition_id"] == "train":
        _record(finished=named["key"])
    return put(*arguments, **named)


def _taken(clear: Callable, _: Any, arguments: tuple, named: dict[str, Any]) -> Any:
    keys: Iterable[str] = list(named["keys"])
    # Groups that are thrown away are cleared together with their responses, whose keys are `question_session_index`.
    if named["partition_id"] == "train" and keys and not any("_" in key for key in keys):
        _record(taken=list(keys))
    return clear(*arguments, **named)


def _watch(queue: Any) -> None:
    wrapt.wrap_function_wrapper(queue, "async_kv_put", _finished)
    wrapt.wrap_function_wrapper(queue, "kv_clear", _taken)


if PATH:
    wrapt.register_post_import_hook(_watch, "transfer_queue")
