"""The data of the report's charts: lines with a spread over seeds, and stacked bars."""

from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from rpo_verl.tools.report.runs import Run

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
    """Cumulative sum of a value: step → sum up to and including that step."""
    total, sums = 0.0, {}
    for step, metrics in run.steps.items():
        total += value(run, metrics)
        sums[step] = total
    return sums


def generated_tokens(run: Run, metrics: Metrics) -> float:
    """Tokens decoded in a step, including groups that dynamic sampling discarded.

    Without RPO, veRL logs the number of discarded groups, not their tokens. They count with the mean length of the
    batch. That requires the batch size from the settings.
    """
    if "perf/total_num_tokens" not in metrics:
        return 0.0
    prompt, response = metrics["prompt_length/mean"], metrics["response_length/mean"]
    in_batch = metrics["perf/total_num_tokens"] * response / (prompt + response)
    if "rpo/tokens/reused_total" in metrics:
        return in_batch - metrics["rpo/tokens/reused_total"] + metrics.get("rpo/left_out/generated_total", 0.0)
    groups = run.settings.get("data.train_batch_size")
    discarded = sum(metrics.get(name, 0.0) for name in DISCARDED)
    return in_batch * (1 + discarded / groups) if groups else in_batch


def lost(run: Run) -> dict[str, float]:
    """Count what a run lost to failed rollouts and rewards: what it is → how many, without those that are 0."""
    names = {
        "responses without a rollout or a reward": "rpo/response/failed_total",
        "groups without a single response": "rpo/groups/failed_total",
        "failed groups that veRL replaced": "rpo/left_out/failed_total",
    }
    sums = {what: sum(metrics.get(name, 0.0) for metrics in run.steps.values()) for what, name in names.items()}
    return {what: count for what, count in sums.items() if count > 0}


def seconds(run: Run, metrics: Metrics) -> float:
    """Duration of a step without validation."""
    return metrics.get("timing_s/step", 0.0)


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
            bars={label: _parts(group) for label, group in labels.items()},
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
    ]  # fmt: skip
    return [chart for chart in charts if chart.bars or any(chart.views.values())]


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
    return Chart(key, title, note, y_label, {name: lines for name, lines in views.items() if lines}, x_label="step")


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
        if points:
            values = [np.array(points[step]) for step in sorted(points)]
            means = [v.mean(axis=0).tolist() for v in values]
            spread = [float(v[:, 1].std(ddof=1)) if len(v) > 1 else 0.0 for v in values]
            lines.append(Line(label, [x for x, _ in means], [y for _, y in means], spread))
    return lines


def _parts(group: list[Run]) -> dict[str, float]:
    trained = [metrics for run in group for metrics in run.steps.values() if "timing_s/step" in metrics]
    parts = {
        part: float(np.mean([sum(metrics.get(name, 0.0) for name in names) for metrics in trained]))
        for part, names in PARTS.items()
    }
    parts[REST] = max(0.0, float(np.mean([metrics["timing_s/step"] for metrics in trained])) - sum(parts.values()))
    return {part: value for part, value in parts.items() if value > 0}


def totals(runs: list[Run]) -> list[dict[str, float | str | None]]:
    """Summarize each run in one row. Accuracies are means over validation sets."""
    rows = []
    for run in runs:
        validated = {
            step: float(np.mean(values))
            for step, metrics in run.steps.items()
            if (values := [value for name, value in metrics.items() if _is_accuracy(name)])
        }
        trained = {step: metrics for step, metrics in run.steps.items() if "timing_s/step" in metrics}
        rows.append(
            {
                "run": run.label,
                "steps": len(trained),
                "accuracy at the end": validated[max(validated)] if validated else None,
                "best accuracy": max(validated.values(), default=None),
                "generated tokens": sum(generated_tokens(run, metrics) for metrics in trained.values()),
                "reused tokens": sum(metrics.get("rpo/tokens/reused_total", 0.0) for metrics in trained.values()),
                "training time, s": sum(seconds(run, metrics) for metrics in trained.values()),
            }
        )
    return rows
