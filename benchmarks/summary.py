"""From the steps of the demo's arms to a summary per arm, a table and a plot."""

import json
from collections.abc import Iterable
from pathlib import Path
from statistics import median

from benchmarks.steps import Step
from benchmarks.tables import show
from rpo_verl.tools.evaluation.results import markdown


def summarize(steps: list[Step], seed: int) -> dict[str, float]:
    """Summarize one arm: times in seconds, lengths in tokens; `train_s` is without start-up and validation."""
    trained = [step for step in steps if step.number > 0]
    validated = [step.val_accuracy for step in steps if step.val_accuracy is not None]
    samples = sum(step.samples for step in trained)
    generated = sum(step.generated_tokens for step in trained)
    summary = {
        "steps": len(trained),
        "seed": seed,
        "generated_tokens_per_sample": generated / samples,
        "generated_tokens_total": generated,
        "rollout_s_per_step": median(step.rollout_s for step in trained),
        "step_s": median(step.step_s for step in trained),
        "train_s": sum(step.step_s for step in trained),
        "val_acc_before": validated[0],
        "val_acc_after": validated[-1],
        "filtered_groups": sum(step.filtered_groups for step in trained),
        "surplus_groups": sum(step.surplus_groups for step in trained),
        "response_tokens_per_sample": sum(step.response_tokens for step in trained) / samples,
    }
    if trained[0].is_rpo:
        on_hit = [step for step in trained if step.prefixed_groups == step.groups]
        weighted = [(s.prefixed_groups, s.generated_per_sample_on_hit) for s in trained if s.prefixed_groups]
        summary |= {
            "cache_hit_rate": sum(step.hit_groups for step in trained) / sum(step.groups for step in trained),
            "prefixed_group_rate": sum(step.prefixed_groups for step in trained) / sum(s.groups for s in trained),
            "prefix_tokens_per_sample": sum(step.prefix_tokens for step in trained) / samples,
        }
        if weighted:
            summary["generated_tokens_per_sample_on_hit"] = sum(n * t for n, t in weighted) / sum(
                n for n, _ in weighted
            )
        if on_hit:
            summary["rollout_s_per_step_on_hit"] = median(step.rollout_s for step in on_hit)
    return summary


ROWS = {
    "val_acc_before": ("accuracy before (full rollouts)", "{:.3f}"),
    "val_acc_after": ("accuracy after (full rollouts)", "{:.3f}"),
    "generated_tokens_total": ("generated tokens", "{:,.0f}"),
    "generated_tokens_per_sample": ("… per sample", "{:.1f}"),
    "generated_tokens_per_sample_on_hit": ("… per sample from a cached prefix", "{:.1f}"),
    "filtered_groups": ("zero-advantage groups discarded", "{:,.0f}"),
    "surplus_groups": ("surplus groups discarded", "{:,.0f}"),
    "response_tokens_per_sample": ("response tokens per sample", "{:.1f}"),
    "train_s": ("training time, s", "{:.0f}"),
    "step_s": ("… per step, s (median)", "{:.2f}"),
    "rollout_s_per_step": ("rollout per step, s (median)", "{:.2f}"),
    "rollout_s_per_step_on_hit": ("… of steps from cached prefixes, s", "{:.2f}"),
    "cache_hit_rate": ("cache hit rate", "{:.2f}"),
    "prefixed_group_rate": ("groups from a cached prefix", "{:.2f}"),
}


#: The rows that README has.
HEADLINES = (
    "val_acc_before",
    "val_acc_after",
    "generated_tokens_total",
    "generated_tokens_per_sample",
    "generated_tokens_per_sample_on_hit",
    "filtered_groups",
    "train_s",
    "rollout_s_per_step",
    "rollout_s_per_step_on_hit",
)


def rows(summary: dict[str, dict[str, float]], keys: Iterable[str]) -> list[list[str]]:
    """Table of the arms side by side, head first; percentages are of the first arm."""
    baseline = next(iter(summary))
    found = [["", *summary]]
    for key in keys:
        if not any(values.get(key) for values in summary.values()):
            continue
        label, form = ROWS[key]
        cells = []
        for arm, values in summary.items():
            cell = form.format(values[key]) if key in values else "–"
            reference = summary[baseline].get(key.removesuffix("_on_hit"))
            if arm != baseline and key in values and reference and not key.startswith(("val_acc", "cache")):
                cell += f" ({values[key] / reference:.0%})"
            cells.append(cell)
        found.append([label, *cells])
    return found


def table(summary: dict[str, dict[str, float]]) -> None:
    """Print all rows of the arms."""
    first = next(iter(summary.values()))
    show(f"tiny reasoner, {first['steps']} steps, seed {first['seed']}", rows(summary, ROWS))


def write(summary: dict[str, dict[str, float]], folder: Path) -> None:
    """Write `summary.json` with everything, and `summary.md` with the headlines."""
    (folder / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    (folder / "summary.md").write_text(markdown(rows(summary, HEADLINES)))


def plot(runs: dict[str, list[Step]], path: Path) -> None:
    """Draw validation accuracy against training time and against generated tokens, one curve per arm."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(11, 4.2), sharey=True, layout="constrained")
    for arm, steps in runs.items():
        seconds = tokens = 0.0
        points = []
        for step in steps:
            seconds += step.step_s
            tokens += step.generated_tokens
            if step.val_accuracy is not None:
                points.append((seconds / 60, tokens / 1000, step.val_accuracy))
        minutes, thousands, accuracy = zip(*points, strict=True)
        axes[0].plot(minutes, accuracy, marker="o", label=arm)
        axes[1].plot(thousands, accuracy, marker="o", label=arm)
    axes[0].set(xlabel="training time, minutes (without validation)", ylabel="validation accuracy (full rollouts)")
    axes[1].set(xlabel="generated tokens, thousands")
    for axis in axes:
        axis.grid(alpha=0.3)
        axis.legend()
    figure.savefig(path, dpi=130)
    pyplot.close(figure)
