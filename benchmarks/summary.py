"""From veRL's metrics file to the demo's figures: one record a step, one summary an arm, a table and a plot."""

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from rpo_verl.tools.evaluation.summary import markdown
from rpo_verl.tools.report.charts import LEFT_OUT

#: The mean over as many samples of a question as `val_kwargs.n` says.
VAL_ACCURACY = re.compile(r"val-core/tiny_reasoner/acc/mean@\d+")


@dataclass(frozen=True)
class Step:
    """What one training step cost and brought; step 0 is the validation before training."""

    number: int
    samples: int = 0
    generated_tokens: int = 0
    """Groups that dynamic sampling left out included."""
    response_tokens: int = 0
    prefix_tokens: int = 0
    rollout_s: float = 0.0
    """Seconds from submitting the questions to having all responses, RPO's own part included."""
    step_s: float = 0.0
    """Seconds of the whole step without validation."""
    reward: float = 0.0
    groups: int = 0
    hit_groups: int = 0
    prefixed_groups: int = 0
    filtered_groups: int = 0
    """Generated and left out of the batch for want of a signal; veRL refills for them."""
    surplus_groups: int = 0
    """Generated beyond what the batch needs."""
    generated_per_sample_on_hit: float | None = None
    is_rpo: bool = False
    val_accuracy: float | None = None


def parse_step(line: str, group_size: int) -> Step:
    """One line of veRL's file logger.

    veRL does not say how many tokens the groups had that DAPO left out; without RPO they count with the batch's mean.
    """
    record = json.loads(line)
    data = record["data"]
    if "timing_s/step" not in data:
        return Step(record["step"], val_accuracy=_val_accuracy(data))
    response_tokens = round(data["perf/total_num_tokens"] * _response_share(data))
    samples = round(response_tokens / data["response_length/mean"])
    is_rpo = "rpo/tokens/generated_total" in data
    filtered, surplus = (round(data.get(name, 0)) for name in LEFT_OUT)
    if is_rpo:
        generated = data["rpo/tokens/generated_total"] + data["rpo/left_out/generated_total"]
    else:
        generated = response_tokens * (1 + (filtered + surplus) * group_size / samples)
    full, prefixed, refreshed = (
        int(data.get(f"rpo/groups/{kind}_total", 0)) for kind in ("full", "prefixed", "refreshed")
    )
    return Step(
        number=record["step"],
        samples=samples,
        generated_tokens=round(generated),
        response_tokens=response_tokens,
        prefix_tokens=int(data.get("rpo/tokens/reused_total", 0)),
        rollout_s=data["timing_s/gen"] + data.get("timing_s/rpo_injection", 0.0),
        step_s=data["timing_s/step"],
        reward=data["critic/score/mean"],
        groups=full + prefixed + refreshed,
        hit_groups=prefixed + refreshed,
        prefixed_groups=prefixed,
        filtered_groups=filtered,
        surplus_groups=surplus,
        generated_per_sample_on_hit=data.get("rpo/tokens/generated_per_sample_on_hit"),
        is_rpo=is_rpo,
        val_accuracy=_val_accuracy(data),
    )


def _val_accuracy(data: dict[str, Any]) -> float | None:
    return next((value for name, value in data.items() if VAL_ACCURACY.fullmatch(name)), None)


def _response_share(data: dict[str, Any]) -> float:
    prompt, response = data["prompt_length/mean"], data["response_length/mean"]
    return response / (prompt + response)


def read_metrics(path: Path, group_size: int) -> list[Step]:
    """The steps logged so far; a last line that is still being written is left for the next call."""
    if not path.exists():
        return []
    text = path.read_text()
    return [parse_step(line, group_size) for line in text[: text.rfind("\n") + 1].splitlines()]


def summarize(steps: list[Step], seed: int) -> dict[str, float]:
    """The summary of one arm. Times in seconds, lengths in tokens; `train_s` leaves start-up and validation out."""
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
    "filtered_groups": ("groups left out for want of a signal", "{:,.0f}"),
    "surplus_groups": ("groups beyond what batches need", "{:,.0f}"),
    "response_tokens_per_sample": ("response tokens per sample", "{:.1f}"),
    "train_s": ("training time, s", "{:.0f}"),
    "step_s": ("… per step, s (median)", "{:.2f}"),
    "rollout_s_per_step": ("rollout per step, s (median)", "{:.2f}"),
    "rollout_s_per_step_on_hit": ("… of steps from cached prefixes, s", "{:.2f}"),
    "cache_hit_rate": ("cache hit rate", "{:.2f}"),
    "prefixed_group_rate": ("groups from a cached prefix", "{:.2f}"),
}


#: Rows that tell the story; README has these.
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
    """The arms side by side, head first; the first arm is the baseline of the percentages."""
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


def show(rows: list[list[str]], title: str | None = None) -> None:
    """Print a table, head first."""
    from rich.console import Console
    from rich.table import Table

    head, *body = rows
    view = Table(title=title)
    for name in head:
        view.add_column(name, justify="right" if name else "left")
    for row in body:
        view.add_row(*row)
    Console(width=120).print(view)


def table(summary: dict[str, dict[str, float]]) -> None:
    """Print everything that is known of the arms."""
    first = next(iter(summary.values()))
    show(rows(summary, ROWS), f"tiny reasoner, {first['steps']} steps, seed {first['seed']}")


def write(summary: dict[str, dict[str, float]], folder: Path) -> None:
    """`summary.json` with everything, and `summary.md` with the headlines."""
    (folder / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    (folder / "summary.md").write_text(markdown(rows(summary, HEADLINES)))


def plot(runs: dict[str, list[Step]], path: Path) -> None:
    """Validation accuracy against training time and against generated tokens, one curve an arm."""
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
