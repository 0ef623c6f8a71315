"""From veRL's metrics file to one record per training step: its tokens, its time and the parts of that time."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rpo_verl.tools.report import charts
from rpo_verl.tools.report.runs import Run, read_metrics

#: Mean over the samples per question, whose number is `val_kwargs.n`, of the one task that a bench has.
VAL_ACCURACY = re.compile(r"val-core/[^/]+/acc/mean@\d+")

#: RPO's own part of a step → its timer.
OWN_PARTS = {
    "injection, look-ups included": "timing_s/rpo_injection",
    "… look-ups": "timing_s/rpo_look_up",
    "reading the groups, shaping": "timing_s/rpo_shaping",
    "credit": "timing_s/rpo_credit",
    "cache update, metrics": "timing_s/rpo_cache_update",
    "saving the cache, in steps that save": "timing_s/rpo_cache_save",
}
#: Those of every step; none of them contains another.
EVERY_STEP = ("injection, look-ups included", "reading the groups, shaping", "credit", "cache update, metrics")

#: Part of a step → its timers. The report's table has the metrics; injection counts as the plug-in's here.
PARTS = {
    "generation": ("timing_s/gen",),
    "log-probs": charts.PARTS["log-probs"],
    "update": charts.PARTS["actor's update"],
    "weight sync": charts.PARTS["weight sync"],
    "plug-in": tuple(OWN_PARTS[part] for part in EVERY_STEP),
}
STEP = "timing_s/step"
#: veRL counts it as a part of the step. It is no part of training: benches save to measure.
SAVING = charts.PARTS["saving"]

Metrics = Mapping[str, float]


def training_steps(metrics: Mapping[int, Metrics]) -> dict[int, Metrics]:
    """The steps that trained, without the validation before them."""
    return {step: found for step, found in metrics.items() if STEP in found}


def seconds(metrics: Metrics, timers: Iterable[str]) -> float:
    """Sum of the timers that a step has."""
    return sum(metrics.get(timer, 0.0) for timer in timers)


def step_seconds(metrics: Metrics) -> float:
    """Seconds of a training step, without validation and saving."""
    return metrics[STEP] - seconds(metrics, SAVING)


def parts_of(metrics: Mapping[int, Metrics], waited: Sequence[float]) -> list[dict[str, float]]:
    """Seconds of every training step by part, without saving; `waiting` is taken out of `generation`.

    Raises:
        ValueError: if the number of waits is not that of the training steps.
    """
    steps = training_steps(metrics)
    if len(waited) != len(steps):
        raise ValueError(f"{len(steps)} steps, and {len(waited)} batches were seen taken from the queue")
    found = []
    for data, waiting in zip(steps.values(), waited, strict=True):
        parts = {part: seconds(data, timers) for part, timers in PARTS.items()}
        parts["waiting"] = waiting
        parts["generation"] -= parts["waiting"]
        parts["rest"] = step_seconds(data) - sum(parts.values())
        found.append(parts)
    return found


@dataclass(frozen=True)
class Step:
    """Cost and outcome of one training step; step 0 is the validation before training."""

    number: int
    samples: int = 0
    generated_tokens: int = 0
    """Those of groups that dynamic sampling discarded are included."""
    response_tokens: int = 0
    prefix_tokens: int = 0
    rollout_s: float = 0.0
    """Seconds from submitting the questions to having all responses, RPO's injection included."""
    step_s: float = 0.0
    """Seconds of the whole step without validation and saving."""
    reward: float = 0.0
    groups: int = 0
    hit_groups: int = 0
    prefixed_groups: int = 0
    filtered_groups: int = 0
    """Zero-advantage groups that dynamic sampling discarded; veRL generates others for them."""
    surplus_groups: int = 0
    """Groups beyond the size of the batch."""
    generated_per_sample_on_hit: float | None = None
    is_rpo: bool = False
    val_accuracy: float | None = None


def read_steps(path: Path, group_size: int) -> list[Step]:
    """Read the steps logged so far; none where there is no file yet."""
    if not path.exists():
        return []
    return [step_of(number, metrics, group_size) for number, metrics in read_metrics(path).items()]


def step_of(number: int, data: Metrics, group_size: int) -> Step:
    """Build the record of one step from its metrics."""
    accuracy = next((value for name, value in data.items() if VAL_ACCURACY.fullmatch(name)), None)
    if STEP not in data:
        return Step(number, val_accuracy=accuracy)
    prompt, response = data["prompt_length/mean"], data["response_length/mean"]
    response_tokens = round(data["perf/total_num_tokens"] * response / (prompt + response))
    samples = round(response_tokens / response)
    # The report's count of generated tokens takes the number of groups in a batch from the settings.
    batch = Run("", Path(), {}, {"data.train_batch_size": samples / group_size})
    full, prefixed, refreshed, branched = (
        int(data.get(f"rpo/groups/{kind}_total", 0)) for kind in ("full", "prefixed", "refreshed", "branched")
    )
    filtered, surplus = (round(data.get(name, 0)) for name in charts.DISCARDED)
    return Step(
        number=number,
        samples=samples,
        generated_tokens=round(charts.generated_tokens(batch, data)),
        response_tokens=response_tokens,
        prefix_tokens=int(data.get("rpo/tokens/reused_total", 0)),
        rollout_s=seconds(data, charts.PARTS["rollout"]),
        step_s=step_seconds(data),
        reward=data["critic/score/mean"],
        groups=full + prefixed + refreshed + branched,
        hit_groups=prefixed + refreshed,
        prefixed_groups=prefixed,
        filtered_groups=filtered,
        surplus_groups=surplus,
        generated_per_sample_on_hit=data.get("rpo/tokens/generated_per_sample_on_hit"),
        is_rpo="rpo/tokens/generated_total" in data,
        val_accuracy=accuracy,
    )
