"""A small table of one call of the demo, for readers who see the project for the first time."""

from collections.abc import Callable, Mapping
from statistics import fmean
from typing import Any

from benchmarks.results import accuracy_before, difference, final_accuracy, in_points
from benchmarks.statistics import Record, paired, reached

#: What the demo's plot has accuracy against.
AXES = ("tokens", "seconds")


def rows(results: Mapping[str, Any]) -> list[list[str]]:
    """Table of the arms side by side, head first; shares in brackets are of the first arm.

    Args:
        results: of `benchmarks.bench.collect`, of an exact suite.
    """
    runs: Mapping[str, Mapping[str, Record]] = results["runs"]
    baseline = next(iter(runs))
    ends = {seed: final_accuracy(run) for seed, run in runs[baseline].items()}
    shown: dict[str, tuple[Callable[[str, Record], float | None], str, bool]] = {
        "accuracy before": (lambda _, run: accuracy_before(run), "{:.3f}", False),
        "accuracy after": (lambda _, run: final_accuracy(run), "{:.3f}", False),
        "pass@32 after": (lambda _, run: run["exact"]["pass_at_k"]["32"], "{:.3f}", False),
        "generated tokens": (lambda _, run: run["generated_tokens"], "{:,.0f}", True),
        f"… until {baseline}'s accuracy": (lambda seed, run: reached(run, ends[seed], "tokens"), "{:,.0f}", True),
        "training time, s": (lambda _, run: run["train_s"], "{:.0f}", True),
    }
    table = [["", *runs]]
    for name, (of, form, with_share) in shown.items():
        cells, first = [], 0.0
        for arm, by_seed in runs.items():
            values = [of(seed, run) for seed, run in by_seed.items() if seed in ends]
            known = [value for value in values if value is not None]
            if len(known) < len(values):
                cells.append(f"in {len(known)} of {len(values)} seeds")
                continue
            mean = fmean(known)
            first = mean if arm == baseline else first
            cells.append(form.format(mean) + (f" ({mean / first:.0%})" if with_share and arm != baseline else ""))
        table.append([name, *cells])
    others = list(runs)[1:]
    points = [difference(paired(in_points(results, lambda _, run: final_accuracy(run), arm))) for arm in others]
    table.insert(3, [f"… against {baseline}, points", "", *points])
    return table
