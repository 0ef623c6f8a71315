"""Evaluations of several checkpoints side by side: one table, paired differences, pass@k curves."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rpo_verl.tools.errors import CommandError
from rpo_verl.tools.evaluation.estimators import Estimate, macro_average, mean_interval, pass_at_k
from rpo_verl.tools.evaluation.results import average_name, cells_of, markdown, read_results, sets_and_average
from rpo_verl.tools.files import write_text
from rpo_verl.tools.visible import visible

#: Comparable evaluations have the same values of these options. They differ in the policy.
SHARED = ("questions", "temperature", "top_p", "top_k", "max_response_length", "chat_template_options", "reward")

ByDataSet = dict[str, dict[str, dict[str, float]]]
"""Data set → k → value, low and high."""


def load_evaluations(arguments: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Load the results of evaluations given as `LABEL=FOLDER`, in that order.

    Raises:
        CommandError: if an argument has another form, a folder has no results, or two evaluations cannot be compared.
    """
    loaded: dict[str, dict[str, Any]] = {}
    for argument in arguments:
        label, separator, folder = argument.partition("=")
        if not (label and separator and folder):
            raise CommandError(f"{argument}: expected LABEL=FOLDER, such as grpo=runs/eval/grpo")
        if label in loaded:
            raise CommandError(f"{argument}: the label {label} is used twice")
        loaded[label] = read_results(Path(folder).expanduser())
    (first, reference), *others = loaded.items()
    for label, results in others:
        differing = [
            f"{name}: {reference['options'].get(name)!r} in {first}, {results['options'].get(name)!r} in {label}"
            for name in SHARED
            if reference["options"].get(name) != results["options"].get(name)
        ]
        if differing:
            raise CommandError(f"{first} and {label} cannot be compared ({'; '.join(differing)})")
    if not common_ks(loaded):
        raise CommandError(f"{', '.join(loaded)} have no k in common; evaluate them with the same --k")
    return loaded


def common_ks(evaluations: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Values of k that all evaluations have, ascending."""
    known = [set(results["average"]["pass_at_k"]) for results in evaluations.values()]
    return sorted(set.intersection(*known), key=int)


def differences(evaluations: Mapping[str, Mapping[str, Any]], baseline: str) -> dict[str, ByDataSet]:
    """Average the difference of pass@k to the baseline over questions.

    Both answered the same questions, so the difference is paired by question. Questions that are hard for both do not
    widen its interval, which is `mean_interval` on [-1, 1]. An interval without 0 indicates a difference.

    Returns:
        label → data set, or the mean of several → k → value, low, high.
    """
    ks, base = common_ks(evaluations), evaluations[baseline]
    average = average_name(base)
    table: dict[str, ByDataSet] = {}
    for label, other in evaluations.items():
        if label == baseline:
            continue
        found = {source: {k: _paired(base, other, source, int(k)) for k in ks} for source in base["sets"]}
        if average:
            found[average] = {k: macro_average([by_k[k] for by_k in found.values()]) for k in ks}
        table[label] = {s: {k: asdict(estimate) for k, estimate in by_k.items()} for s, by_k in found.items()}
    return table


def _paired(base: Mapping[str, Any], other: Mapping[str, Any], source: str, k: int) -> Estimate:
    before, after = base["sets"][source]["correct"], other["sets"][source]["correct"]
    return mean_interval(
        [
            pass_at_k(other["samples"], after[question], k) - pass_at_k(base["samples"], before[question], k)
            for question in before
        ],
        lowest=-1.0,
        highest=1.0,
    )


def comparison_rows(
    evaluations: Mapping[str, Mapping[str, Any]], found: Mapping[str, ByDataSet], baseline: str
) -> list[list[str]]:
    """One table, header first. Each evaluation and each difference, in percentage points, has a column."""
    ks = common_ks(evaluations)
    rows = [["data set", "", *evaluations, *(f"{label} − {baseline}" for label in found)]]
    for source in sets_and_average(next(iter(evaluations.values()))):
        columns = [cells_of(sets_and_average(results)[source], ks) for results in evaluations.values()]
        pairs = [{f"pass@{k}, %": e for k, e in sets[source].items()} for sets in found.values()]
        for name in columns[0]:
            cells = (_show_difference(pair[name]) if name in pair else "" for pair in pairs)
            rows.append([source, name, *(column[name] for column in columns), *cells])
    return rows


def _show_difference(estimate: Mapping[str, float]) -> str:
    value, low, high = (100 * estimate[name] for name in ("value", "low", "high"))
    return f"{value:+.1f} [{low:+.1f},{high:+.1f}]"


def plot(evaluations: Mapping[str, Mapping[str, Any]], path: Path) -> None:
    """Plot pass@k against k, with confidence bands. Each data set and the average of several have a panel."""
    import matplotlib

    matplotlib.use("Agg")
    # A name with dollar signs is no formula.
    with matplotlib.rc_context({"text.parse_math": False}):
        _plot(evaluations, path)


def _plot(evaluations: Mapping[str, Mapping[str, Any]], path: Path) -> None:
    from matplotlib import pyplot

    ks = common_ks(evaluations)
    numbers = [int(k) for k in ks]
    first = next(iter(evaluations.values()))
    panels = list(sets_and_average(first))
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    figure, axes = pyplot.subplots(
        rows, columns, figsize=(5.4 * columns, 4.2 * rows), sharex=True, squeeze=False, layout="constrained"
    )
    for axis, panel in zip(axes.flat, panels, strict=False):
        for label, results in evaluations.items():
            points = [sets_and_average(results)[panel]["pass_at_k"][k] for k in ks]
            (line,) = axis.plot(
                numbers, [100 * p["value"] for p in points], marker="o", markersize=4, label=visible(label)
            )
            bounds = [[100 * p[end] for p in points] for end in ("low", "high")]
            axis.fill_between(numbers, *bounds, color=line.get_color(), alpha=0.15, linewidth=0)
        axis.set_xscale("log", base=2)
        axis.set_xticks(numbers, ks)
        axis.set(title=visible(panel), xlabel="k", ylabel="pass@k, %")
        axis.grid(alpha=0.3)
        axis.legend()
    for axis in list(axes.flat)[len(panels) :]:
        axis.set_visible(False)
    figure.savefig(path, dpi=130)
    pyplot.close(figure)


def write_comparison(
    folder: Path,
    evaluations: Mapping[str, Mapping[str, Any]],
    found: Mapping[str, ByDataSet],
    baseline: str,
) -> list[Path]:
    """Write `compare.json`, `compare.md` and `pass_at_k.png` to `folder`, and return their paths.

    Raises:
        CommandError: if matplotlib is missing.
    """
    folder.mkdir(parents=True, exist_ok=True)
    document, page, picture = (folder / name for name in ("compare.json", "compare.md", "pass_at_k.png"))
    try:
        plot(evaluations, picture)
    except ImportError as error:
        raise CommandError(f"the plot needs more packages: pip install 'rpo-verl[report]' ({error})") from error
    write_text(page, markdown(comparison_rows(evaluations, found, baseline)))
    parts = ("model", "options", "samples", "interval", "sets", "average")
    kept = {label: {part: results[part] for part in parts} for label, results in evaluations.items()}
    content = {"baseline": baseline, "evaluations": kept, "differences": found}
    write_text(document, json.dumps(content, indent=2) + "\n")
    return [document, page, picture]
