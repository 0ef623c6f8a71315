"""What the report shows, independent of how it is drawn: lines with a spread over seeds, and stacked bars."""

from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from rpo_verl.report.runs import Run

Metrics = Mapping[str, float]

#: Parts of a step in their order; what they leave of `timing_s/step` is the rest.
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


@dataclass(frozen=True)
class Line:
    """One curve: the mean over the seeds of a label, and half the width of its band."""

    name: str
    x: list[float]
    y: list[float]
    spread: list[float]
    """Standard deviation over seeds; zeros for a single one."""


@dataclass(frozen=True)
class Chart:
    """One picture."""

    key: str
    title: str
    note: str
    y_label: str
    views: dict[str, list[Line]] = field(default_factory=dict)
    """Name → curves; where there are several, the reader switches between them."""

    x_label: str | None = None
    """None: the name of the view."""

    bars: dict[str, dict[str, float]] = field(default_factory=dict)
    """Run → part → seconds, in place of curves."""


def cumulated(run: Run, value: Callable[[Metrics], float]) -> dict[int, float]:
    """Step → sum of a value up to and including it."""
    total, sums = 0.0, {}
    for step, metrics in run.steps.items():
        total += value(metrics)
        sums[step] = total
    return sums


def generated_tokens(metrics: Metrics) -> float:
    """Tokens that were decoded in a step; without RPO those of all responses in the batch."""
    if "rpo/tokens/generated_total" in metrics:
        return metrics["rpo/tokens/generated_total"] + metrics.get("rpo/left_out/generated_total", 0.0)
    if "perf/total_num_tokens" not in metrics:
        return 0.0
    prompt, response = metrics["prompt_length/mean"], metrics["response_length/mean"]
    return metrics["perf/total_num_tokens"] * response / (prompt + response)


def seconds(metrics: Metrics) -> float:
    """Time of a step without validation."""
    return metrics.get("timing_s/step", 0.0)


def build_charts(runs: list[Run]) -> list[Chart]:
    """The report's pictures, those without data left out."""
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
            "Where a step's time goes",
            "Mean over the training steps.",
            "seconds per step",
            bars={label: _parts(group) for label, group in labels.items()},
        )
    )
    charts += [
        _over_steps(labels, "reward", "Training reward", "What the reward function paid.", "reward",
                    {"": ("critic/score/mean",)}),
        _over_steps(labels, "lengths", "Prefix and suffix",
                    "Mean tokens of a response; without RPO all of it is suffix.", "tokens",
                    {"prefix": ("rpo/prefix/length_mean",),
                     "suffix": ("rpo/suffix/length_mean", "response_length/mean")}),
        _over_steps(labels, "cache", "Cache", "Groups whose question had an answer; answers that were correct.",
                    "share", {"hit rate": ("rpo/cache/hit_rate",), "correct answers": ("rpo/cache/correct_share",)}),
        _over_steps(labels, "age", "Age of the cached answers",
                    "Steps since the oldest policy wrote a part of an answer, mean over the cache.", "steps",
                    {"": ("rpo/cache/age_mean",)}),
        _over_steps(labels, "signal", "Groups without a learning signal",
                    "Share of RPO's groups in which all rewards are alike, before and after shaping.", "share",
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
        "steps": lambda run: {step: float(step) for step in run.steps},
    }
    views = {
        axis: [
            line
            for label, group in labels.items()
            if (line := _line(label, group, x_of, lambda metrics: metrics.get(name))) is not None
        ]
        for axis, x_of in axes.items()
    }
    _, data_source, *metric = name.split("/")
    note = "By full rollouts, without a prefix. Time is without validation."
    return Chart(f"accuracy{number}", f"Validation: {data_source}", note, "/".join(metric), views)


def _over_steps(
    labels: dict[str, list[Run]], key: str, title: str, note: str, y_label: str, curves: dict[str, tuple[str, ...]]
) -> Chart:
    """A view for every entry of `curves`, name → metrics, of which the first that a run has counts."""
    views = {}
    for name, metrics_of in curves.items():
        lines = [
            line
            for label, group in labels.items()
            if (
                line := _line(
                    label,
                    group,
                    lambda run: {step: float(step) for step in run.steps},
                    lambda metrics, names=metrics_of: next((metrics[n] for n in names if n in metrics), None),
                )
            )
            is not None
        ]
        if lines:
            views[name] = lines
    return Chart(key, title, note, y_label, views, x_label="step")


def _line(
    name: str,
    group: list[Run],
    x_of: Callable[[Run], dict[int, float]],
    y_of: Callable[[Metrics], float | None],
) -> Line | None:
    points: dict[int, list[tuple[float, float]]] = defaultdict(list)
    for run in group:
        x = x_of(run)
        for step, metrics in run.steps.items():
            y = y_of(metrics)
            if y is not None:
                points[step].append((x[step], y))
    if not points:
        return None
    steps = sorted(points)
    values = [np.array(points[step]) for step in steps]
    return Line(
        name,
        [float(v[:, 0].mean()) for v in values],
        [float(v[:, 1].mean()) for v in values],
        [float(v[:, 1].std(ddof=1)) if len(v) > 1 else 0.0 for v in values],
    )


def _parts(group: list[Run]) -> dict[str, float]:
    trained = [metrics for run in group for metrics in run.steps.values() if "timing_s/step" in metrics]
    parts = {
        part: float(np.mean([sum(metrics.get(name, 0.0) for name in names) for metrics in trained]))
        for part, names in PARTS.items()
    }
    parts[REST] = max(0.0, float(np.mean([metrics["timing_s/step"] for metrics in trained])) - sum(parts.values()))
    return {part: value for part, value in parts.items() if value > 0}


def totals(runs: list[Run]) -> list[dict[str, float | str | None]]:
    """One row a run for the table on top of the page."""
    rows = []
    for run in runs:
        validated = [
            (step, metrics[name]) for step, metrics in run.steps.items() for name in metrics if _is_accuracy(name)
        ]
        trained = [metrics for metrics in run.steps.values() if "timing_s/step" in metrics]
        last = max((step for step, _ in validated), default=None)
        final = [value for step, value in validated if step == last]
        rows.append(
            {
                "run": run.label,
                "steps": len(trained),
                "accuracy at the end": float(np.mean(final)) if final else None,
                "best accuracy": max((value for _, value in validated), default=None),
                "generated tokens": sum(map(generated_tokens, trained)),
                "reused tokens": sum(metrics.get("rpo/tokens/reused_total", 0.0) for metrics in trained),
                "training time, s": sum(map(seconds, trained)),
            }
        )
    return rows
