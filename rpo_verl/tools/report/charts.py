"""The data of the report's charts: lines with a spread over seeds, and stacked bars.

NaN is a gap, in metrics and in lines.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np

from rpo_verl.tools.report.runs import STEP_TIME, Run

Metrics = Mapping[str, float]

#: Parts of a step, in order. The rest is `timing_s/step` minus their sum.
PARTS = {
    "rollout": ("timing_s/gen", "timing_s/rpo_injection"),
    "reward": ("timing_s/reward",),
    "log-probs": ("timing_s/old_log_prob", "timing_s/ref"),
    "values": ("timing_s/values", "timing_s/update_critic"),
    "advantage, cache": ("timing_s/adv",),
    "actor's update": ("timing_s/update_actor",),
    "weight sync": ("timing_s/update_weights",),
    "saving": ("timing_s/save_checkpoint",),
}
REST = "rest"
DISCARDED = ("training/filter_groups/evicted_samples", "training/filter_groups/discarded_surplus_samples")


@dataclass(frozen=True)
class Line:
    """One curve: the mean over the seeds of a label, and half the width of its band."""

    name: str
    x: list[float]
    y: list[float]
    """NaN in a gap."""

    spread: list[float]
    """Standard deviation over seeds; zeros for a single seed."""


@dataclass(frozen=True)
class Chart:
    """One chart."""

    key: str
    title: str
    note: str
    y_label: str
    views: dict[str, list[Line]] = field(default_factory=dict)
    """Name → curves. Buttons switch between several views."""

    x_label: str | None = None
    """None stands for the name of the view."""

    bars: dict[str, dict[str, float]] = field(default_factory=dict)
    """Run → part → seconds, instead of curves."""


def cumulated(run: Run, value: Callable[[Run, Metrics], float]) -> dict[int, float]:
    """Cumulative sum of a value: step → sum up to and including that step. Unknown values count as 0."""
    total, sums = 0.0, {}
    for step, metrics in run.steps.items():
        total += known(value(run, metrics))
        sums[step] = total
    return sums


def known(value: float) -> float:
    """The value, or 0 in place of NaN and infinity."""
    return value if math.isfinite(value) else 0.0


def generated_tokens(run: Run, metrics: Metrics) -> float:
    """Tokens decoded in a step, including groups that dynamic sampling discarded.

    Without RPO, veRL logs the number of discarded groups, not their tokens. They count with the mean length of the
    batch. That requires the batch size from the settings.

    Returns:
        0 for a validation; NaN if the log lacks the lengths of the batch.
    """
    if "perf/total_num_tokens" not in metrics and STEP_TIME not in metrics:
        return 0.0
    names = ("perf/total_num_tokens", "prompt_length/mean", "response_length/mean")
    tokens, prompt, response = (metrics.get(name, math.nan) for name in names)
    if not prompt + response > 0:
        return math.nan
    in_batch = tokens * response / (prompt + response)
    if "rpo/tokens/reused_total" in metrics:
        return in_batch - metrics["rpo/tokens/reused_total"] + metrics.get("rpo/left_out/generated_total", 0.0)
    groups = run.settings.get("data.train_batch_size")
    discarded = sum(known(metrics.get(name, 0.0)) for name in DISCARDED)
    return in_batch * (1 + discarded / groups) if groups else in_batch


def lost(run: Run) -> dict[str, float]:
    """Count what a run lost to failed rollouts and rewards: what it is → how many, without those that are 0."""
    names = {
        "responses without a rollout or a reward": "rpo/response/failed_total",
        "groups without a single response": "rpo/groups/failed_total",
        "failed groups that veRL replaced": "rpo/left_out/failed_total",
    }
    sums = {what: sum(known(metrics.get(name, 0.0)) for metrics in run.steps.values()) for what, name in names.items()}
    return {what: count for what, count in sums.items() if count > 0}


def seconds(run: Run, metrics: Metrics) -> float:
    """Duration of a step without validation. 0 for a validation alone; NaN if it is unknown."""
    return metrics.get(STEP_TIME, 0.0)


def build_charts(runs: list[Run]) -> list[Chart]:
    """Build the report's charts. Charts without data are omitted."""
    labels: dict[str, list[Run]] = defaultdict(list)
    for run in runs:
        labels[run.label].append(run)
    accuracy = sorted(
        {name for run in runs for metrics in run.steps.values() for name in metrics if _is_accuracy(name)}
    )
    charts = [_accuracy_chart(labels, name, number) for number, name in enumerate(accuracy)]
    charts.append(
        Chart(
            "time",
            "Time per part of a step",
            "Mean over the training steps.",
            "seconds per step",
            bars={label: parts for label, group in labels.items() if (parts := _parts(group))},
        )
    )
    charts += [
        _over_steps(labels, "reward", "Training reward", "Mean score of the reward function.", "reward",
                    {"": ("critic/score/mean",)}),
        _over_steps(labels, "lengths", "Prefix and suffix",
                    "Mean tokens of a response. Without RPO all of them are suffix.", "tokens",
                    {"prefix": ("rpo/prefix/length_mean",),
                     "suffix": ("rpo/suffix/length_mean", "response_length/mean")}),
        _over_steps(labels, "cache", "Cache", "Groups with a cached answer, and cached answers that are correct.",
                    "share", {"hit rate": ("rpo/cache/hit_rate",), "correct answers": ("rpo/cache/correct_share",)}),
        _over_steps(labels, "age", "Age of the cached answers",
                    "Steps since the oldest policy that wrote a part of the answer. Mean over the cache.", "steps",
                    {"": ("rpo/cache/age_mean",)}),
        _over_steps(labels, "signal", "Zero-advantage groups",
                    "Share of RPO's groups whose rewards are all equal, before and after shaping.", "share",
                    {"before shaping": ("rpo/groups/no_signal_share_before_shaping",),
                     "after shaping": ("rpo/groups/no_signal_share_after_shaping",)}),
        _over_steps(labels, "credit", "Credit of prefixes",
                    "Advantage of the trained prefixes: the share of correct responses behind them.", "",
                    {"mean": ("rpo/credit/advantage_mean",), "spread": ("rpo/credit/advantage_std",)}),
        _over_steps(labels, "kinds", "Generated tokens by kind of group",
                    "Tokens generated in the groups of a batch.", "tokens",
                    {kind: (f"rpo/tokens/{kind}_total",) for kind in ("full", "prefixed", "refreshed", "branched")}),
    ]  # fmt: skip
    return [chart for chart in charts if chart.bars or any(chart.views.values())]


def axis_range(values: Iterable[float]) -> tuple[float, float] | None:
    """The range of an axis on which all values are the same: from 0 to twice the value. None: leave it to the plotter.

    Plotters show such a value within ±1, which suits neither a share of 0.5 nor 3,000 tokens.
    """
    finite = [value for value in values if math.isfinite(value)]
    if not finite or not math.isclose(min(finite), max(finite), rel_tol=1e-9):
        return None
    value = finite[0]
    return (min(0.0, 2 * value), max(0.0, 2 * value)) if value else (0.0, 1.0)


def _is_accuracy(name: str) -> bool:
    return name.startswith("val-core/") and "/mean@" in name


def _accuracy_chart(labels: dict[str, list[Run]], name: str, number: int) -> Chart:
    axes = {
        "training time, minutes": lambda run: {s: v / 60 for s, v in cumulated(run, seconds).items()},
        "generated tokens, thousands": lambda run: {s: v / 1000 for s, v in cumulated(run, generated_tokens).items()},
        "steps": _steps,
    }
    views = {axis: _lines(labels, x_of, lambda metrics: metrics.get(name)) for axis, x_of in axes.items()}
    data_source, *metric = name.removeprefix("val-core/").rsplit("/", 2)
    note = "Full rollouts without a prefix. Training time excludes validation."
    return Chart(f"accuracy{number}", f"Validation: {data_source}", note, "/".join(metric), views)


def _over_steps(
    labels: dict[str, list[Run]], key: str, title: str, note: str, y_label: str, curves: dict[str, tuple[str, ...]]
) -> Chart:
    """Build a chart over steps, a view per entry of `curves`: name → metrics. A run shows the first that it has."""

    def first_of(names: tuple[str, ...]) -> Callable[[Metrics], float | None]:
        return lambda metrics: next((metrics[name] for name in names if name in metrics), None)

    views = {name: _lines(labels, _steps, first_of(names)) for name, names in curves.items()}
    views = {name: [_with_holes(line) for line in lines] for name, lines in views.items() if lines}
    return Chart(key, title, note, y_label, views, x_label="step")


def _with_holes(line: Line) -> Line:
    """Insert a gap where steps are missing from the log, because veRL logs every training step."""
    x, y, spread = [], [], []
    for step, value, width in zip(line.x, line.y, line.spread, strict=True):
        if x and step - x[-1] > 1:
            x, y, spread = [*x, x[-1] + 1], [*y, math.nan], [*spread, 0.0]
        x, y, spread = [*x, step], [*y, value], [*spread, width]
    return Line(line.name, x, y, spread)


def _steps(run: Run) -> dict[int, float]:
    return {step: float(step) for step in run.steps}


def _lines(
    labels: dict[str, list[Run]], x_of: Callable[[Run], dict[int, float]], y_of: Callable[[Metrics], float | None]
) -> list[Line]:
    """Compute a line for every label that has values."""
    lines = []
    for label, group in labels.items():
        points: dict[int, list[tuple[float, float]]] = defaultdict(list)
        for run in group:
            x = x_of(run)
            for step, metrics in run.steps.items():
                if (y := y_of(metrics)) is not None:
                    points[step].append((x[step], y))
        if any(math.isfinite(y) for values in points.values() for _, y in values):
            values = [np.array(points[step]) for step in sorted(points)]
            x = [float(v[:, 0].mean()) for v in values]
            # Of the seeds that have a value at a step.
            y = [v[np.isfinite(v[:, 1]), 1] for v in values]
            means = [float(v.mean()) if len(v) else math.nan for v in y]
            lines.append(Line(label, x, means, [float(v.std(ddof=1)) if len(v) > 1 else 0.0 for v in y]))
    return lines


def _parts(group: list[Run]) -> dict[str, float]:
    """Mean seconds of each part, over the steps whose time is known."""
    trained = [m for run in group for m in run.steps.values() if math.isfinite(m.get(STEP_TIME, math.nan))]
    if not trained:
        return {}
    parts = {
        part: float(np.mean([sum(known(metrics.get(name, 0.0)) for name in names) for metrics in trained]))
        for part, names in PARTS.items()
    }
    parts[REST] = max(0.0, float(np.mean([metrics[STEP_TIME] for metrics in trained])) - sum(parts.values()))
    return {part: value for part, value in parts.items() if value > 0}


def totals(runs: list[Run]) -> list[dict[str, float | str | None]]:
    """Summarize each run in one row. Accuracies are means over validation sets. None stands for what is unknown."""
    rows = []
    for run in runs:
        validated = validations(run)
        finite = [value for value in validated.values() if math.isfinite(value)]
        last = validated.get(max(run.steps), math.nan)
        trained = [metrics for metrics in run.steps.values() if STEP_TIME in metrics]
        rows.append(
            {
                "run": run.label,
                "steps": len(trained),
                "accuracy at the end": last if math.isfinite(last) else None,
                "best accuracy": max(finite, default=None),
                "generated tokens": _total(generated_tokens(run, metrics) for metrics in trained),
                "reused tokens": sum(known(metrics.get("rpo/tokens/reused_total", 0.0)) for metrics in trained),
                "training time, s": _total(seconds(run, metrics) for metrics in trained),
            }
        )
    return rows


def validations(run: Run) -> dict[int, float]:
    """Accuracy by step, as the mean over validation sets. NaN where one of them has no value."""
    sets = {name for metrics in run.steps.values() for name in metrics if _is_accuracy(name)}
    if not sets:
        return {}
    return {
        step: float(np.mean([metrics.get(name, math.nan) for name in sets]))
        for step, metrics in run.steps.items()
        if any(name in metrics for name in sets)
    }


def _total(values: Iterable[float]) -> float | None:
    """Sum of the known values; None if there is none."""
    finite = [value for value in values if math.isfinite(value)]
    return sum(finite) if finite else None


def gaps(run: Run) -> list[str]:
    """Sentences on what the log lacks, and what the figures do about it."""
    trained = {step: metrics for step, metrics in run.steps.items() if STEP_TIME in metrics}
    validated, notes = validations(run), []

    def note(steps: list[int], what: str, effect: str) -> None:
        if steps:
            notes.append(f"{run.path}: {what} in {len(steps)} steps ({_listed(steps)}). {effect}")

    first, last = min(trained), max(trained)
    if len(trained) <= last - first:
        absent = [step for above, step in pairwise(sorted(trained)) for step in range(above + 1, min(step, above + 20))]
        notes.append(
            f"{run.path}: {last - first + 1 - len(trained)} steps between {first} and {last} are missing from the log "
            f"({_listed(absent)}). Totals leave them out."
        )
    untimed = [step for step, metrics in trained.items() if not math.isfinite(metrics[STEP_TIME])]
    note(untimed, f"{STEP_TIME} is NaN or null", "Training time leaves them out.")
    unknown = [step for step, metrics in trained.items() if not math.isfinite(generated_tokens(run, metrics))]
    note(
        unknown,
        "perf/total_num_tokens, prompt_length/mean or response_length/mean is missing, zero, NaN or null",
        "Generated tokens leave them out. Log veRL's metrics unfiltered.",
    )
    note(
        [step for step, value in validated.items() if not math.isfinite(value)],
        "a validation set has no accuracy",
        "The accuracy is a gap there.",
    )
    if validated and max(validated) < last:
        notes.append(
            f"{run.path}: the last step is {last}, and nobody knows its accuracy. The last validation is that of step "
            f"{max(validated)} ({validated[max(validated)]:.3f})."
        )
    return notes


def _listed(steps: list[int]) -> str:
    return ", ".join(map(str, steps[:5])) + (", …" if len(steps) > 5 else "")
