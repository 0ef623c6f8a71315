"""The tables of the benches that write JSON, for the screen and for the pages of the documentation."""

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.steps import OWN_PARTS

Rows = list[list[str]]


def most_overhead(found: Mapping[str, Any]) -> float:
    """Upper end of the interval of RPO's difference in the TaskRunner, as a share of a step."""
    return found["more_in_task_runner_s"]["high"] / found["step_s_verl"]


def overhead_rows(found: Mapping[str, Any]) -> Rows:
    """Table of steps by veRL alone and with RPO, in pairs, and of RPO's own code in them, head first."""
    more = {end: 1000 * seconds for end, seconds in found["more_in_task_runner_s"].items()}
    rows = [
        [f"medians of {found['pairs']} pairs of steps", ""],
        ["step by veRL alone, s", f"{found['step_s_verl']:.3f}"],
        ["step with RPO, every group a full rollout, s", f"{found['step_s_rpo']:.3f}"],
        ["ratio within a pair [95 %]", "{value:.4f} [{low:.4f}, {high:.4f}]".format(**found["ratio"])],
        ["of a step by veRL alone, in the TaskRunner, ms", f"{1000 * found['task_runner_s']:.1f}"],
        [
            "difference within a pair, in the TaskRunner, ms [95 %]",
            "{value:+.1f} [{low:+.1f}, {high:+.1f}]".format(**more),
        ],
    ]
    # Recorded runs may lack a part that came later.
    rows += [[f"{part}, ms", f"{1000 * found['own_s'][part]:.2f}"] for part in OWN_PARTS if part in found["own_s"]]
    rows.append(["RPO's own share of a step", f"{found['own_share']:.2%}"])
    rows.append(["upper end of the difference in the TaskRunner, share of a step", f"{most_overhead(found):.2%}"])
    return rows


def shared_prefix_rows(results: Mapping[str, Any]) -> Rows:
    """Table of seconds of a forward and backward pass, and their ratios, one micro-batch per row, head first."""
    arms = [f"{arm}, s" for arm in next(iter(results.values()))["seconds"]]
    rows = [["micro-batch", "G", "shared", "own", "bound", *arms, "packed / padded", "… / one call"]]
    for name, found in results.items():
        padded, one_call, packed = found["seconds"].values()
        rows.append(
            [
                name, *(str(found[key]) for key in ("members", "shared_tokens", "own_tokens")), f"{found['bound']:.2f}",
                *(f"{value:.3f}" for value in (padded, one_call, packed)),
                f"{packed / padded:.2f}", f"{packed / one_call:.2f}",
            ]
        )  # fmt: skip
    return rows


def cache_rows(results: Sequence[Mapping[str, Any]]) -> Rows:
    """Table of the cache's time per step and checkpoint, and of its memory, one size per row, head first."""
    rows = [
        ["questions", "tokens", "bytes a token", "look up and cut, ms", "update, ms", "save, s", "load, s",
         "memory, × raw bytes", "… after loading"]
    ]  # fmt: skip
    for found in results:
        times = (f"{found[name]:.1f}" for name in ("look_up_ms", "update_ms"))
        times_of_all = (f"{found[name]:.2f}" for name in ("save_s", "load_s"))
        shares = (f"{found[name]:.2f}" for name in ("resident_share", "resident_share_after_load"))
        # With log-probabilities six.
        each = "6" if found.get("logprobs") else "4"
        rows.append([f"{found['entries']:,}", f"{found['tokens']:,}", each, *times, *times_of_all, *shares])
    return rows


def show(title: str, rows: Rows) -> None:
    """Print a table."""
    from rich.console import Console
    from rich.table import Table

    head, *rest = rows
    view = Table(title=title)
    view.add_column(head[0])
    for column in head[1:]:
        view.add_column(column, justify="right")
    for row in rest:
        view.add_row(*row)
    Console(width=150).print(view)
