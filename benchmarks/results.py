"""From the records of bench.py's runs to its page and its curves."""

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks.statistics import Difference, Record, area, differences, overturned, paired, reached
from rpo_verl.tools.evaluation.results import markdown

#: Options of arms whose runs are published, and which no longer exist.
REMOVED_OPTIONS = ("rpo.truncation.adaptive", "rpo.rollout.full_rollout_prob")


def label(results: Mapping[str, Any], arm: str) -> str:
    """The arm's name for a table, marked where it used an option that no longer exists."""
    overrides = results.get("arms", {}).get(arm, {}).get("overrides", ())
    removed = any(override.split("=")[0] in REMOVED_OPTIONS for override in overrides)
    return f"{arm} (option removed since)" if removed else arm


def spread(values: Sequence[float | None], form: str, none: str = "never") -> str:
    """Mean over seeds, with the least and the largest where there are several; runs without a value are counted."""
    known = [value for value in values if value is not None]
    if not known:
        return none
    text = form.format(fmean(known))
    if len(known) > 1:
        text += f" [{form.format(min(known))}, {form.format(max(known))}]"
    return text if len(known) == len(values) else f"{text} in {len(known)} of {len(values)}"


def accuracy_before(run: Record) -> float | None:
    """Accuracy of the policy that the run began with; None where nothing validated it."""
    first = run["curve"][0]
    return first["accuracy"] if first["step"] == 0 else None


def late_accuracy(run: Record) -> float:
    """Mean of the validations in the second half of a run, which chance moves less than the last one."""
    half = run["curve"][-1]["step"] / 2
    return fmean(point["accuracy"] for point in run["curve"] if point["step"] >= half)


def accuracy_rows(results: Mapping[str, Any]) -> list[list[str]]:
    """Table of accuracies and costs, one arm per row, head first.

    Means over seeds, least and largest in brackets. `second half` is the accuracy of the validations there. The last
    two columns say where an arm reaches the final accuracy of the first one on the same seed, on the same questions.
    """
    runs = results["runs"]
    baseline = next(iter(runs))
    targets = {seed: run["curve"][-1]["accuracy"] for seed, run in runs[baseline].items()}
    reaching: dict[str, tuple[Callable[[Record, float], float | None], str]] = {
        f"s to {baseline}'s end": (lambda run, target: reached(run, target, "seconds"), "{:.0f}"),
        f"tokens to {baseline}'s end": (lambda run, target: reached(run, target, "tokens"), "{:,.0f}"),
    }
    sampled: dict[str, tuple[Callable[[Record, float], float | None], str]] = {
        f"pass@{k}": (lambda run, _, k=k: run["pass_at_k"][k], "{:.3f}") for k in ("1", "8")
    }
    columns: dict[str, tuple[Callable[[Record, float], float | None], str]] = {
        "second half": (lambda run, _: late_accuracy(run), "{:.3f}"),
        # Exact ones have a table of their own.
        **({} if is_exact(results) else sampled),
        "training, s": (lambda run, _: run["train_s"], "{:.0f}"),
        "tokens": (lambda run, _: run["generated_tokens"], "{:,.0f}"),
        "… a sample": (lambda run, _: run["generated_tokens_per_sample"], "{:.1f}"),
        **reaching,
    }
    rows = [["arm", "seeds", *columns]]
    for arm, by_seed in runs.items():
        compared = [(run, targets[seed]) for seed, run in by_seed.items() if seed in targets]
        cells = (spread([of(*pair) for pair in compared], form) for of, form in columns.values())
        rows.append([label(results, arm), str(len(compared)), *cells])
    return rows


def difference(found: Difference, form: str = "{:+.1f}") -> str:
    """The mean difference, with its interval where there is one."""
    text = form.format(found.mean)
    return text if found.low is None else f"{text} [{form.format(found.low)}, {form.format(found.high)}]"


def final_accuracy(run: Record) -> float:
    """Accuracy at the end of a run."""
    return run["curve"][-1]["accuracy"]


def in_points(results: Mapping[str, Any], of: Callable[[str, Record], float], arm: str) -> list[float]:
    """Differences of an arm from the suite's first arm, in points, one per seed that both have.

    Args:
        results: of a suite.
        of: from seed and run to an accuracy.
        arm: the arm.
    """
    runs = results["runs"]
    values = [{seed: 100 * of(seed, run) for seed, run in runs[name].items()} for name in (arm, next(iter(runs)))]
    return differences(*values)


def same_processor(run: Record, other: Record) -> bool:
    """Whether the seconds of two runs can be compared."""
    return run.get("processor") == other.get("processor")


def difference_rows(results: Mapping[str, Any]) -> list[list[str]]:
    """Table of the arms against the first one over paired seeds, one arm per row, head first.

    Differences are in points of accuracy, means over seeds with 95 % t intervals. The areas are those under accuracy
    against tokens and against seconds, up to what the first arm spends on the seed. The last two columns say where an
    arm reaches the first arm's final accuracy, as a share of what that arm spends in all; where some seeds never do, in
    how many it does. Seconds of different processors are not compared.
    """
    runs = results["runs"]
    baseline = next(iter(runs))
    # The start of a seed is missing until the arm that validates it for all has run.
    begun = {arm: {s: run for s, run in of.items() if run["curve"][0]["step"] == 0} for arm, of in runs.items()}
    ends = {seed: run["curve"][-1] for seed, run in begun[baseline].items()}

    def under(axis: str) -> Callable[[str, Record], float]:
        return lambda seed, run: area(run, axis, ends[seed][axis])

    def share(axis: str) -> Callable[[str, Record], float | None]:
        def of(seed: str, run: Record) -> float | None:
            at = reached(run, ends[seed]["accuracy"], axis)
            return None if at is None else at / ends[seed][axis]

        return of

    rows = [
        ["arm", "seeds", "at the end", f"against {baseline}, points", "area over tokens, points",
         "area over time, points", f"tokens to {baseline}'s end", f"time to {baseline}'s end"]
    ]  # fmt: skip
    for arm, by_seed in begun.items():
        compared = {seed: run for seed, run in by_seed.items() if seed in ends}
        if not compared:
            continue
        cells = [label(results, arm), str(len(compared)), f"{fmean(map(final_accuracy, compared.values())):.3f}"]
        timed = {seed: run for seed, run in compared.items() if same_processor(run, begun[baseline][seed])}
        of_axis = {"tokens": compared, "seconds": timed}
        if arm == baseline:
            cells += ["", "", ""]
        else:
            of_all = [(lambda _, run: final_accuracy(run), compared)]
            of_all += [(under(axis), own) for axis, own in of_axis.items()]
            for of, own in of_all:
                shared = {"runs": {baseline: begun[baseline], arm: own}}
                cells.append(difference(paired(in_points(shared, of, arm))) if own else "–")
        for axis, own in of_axis.items():
            shares = [share(axis)(seed, run) for seed, run in own.items()]
            known = [value for value in shares if value is not None]
            # A mean over those that arrive would flatter an arm that seldom does.
            reaches = spread(shares, "{:.0%}") if known == shares else f"in {len(known)} of {len(shares)} seeds"
            cells.append(reaches if own else "–")
        rows.append(cells)
    return rows


def overturning(results: Mapping[str, Any]) -> list[str]:
    """One sentence per arm: whether its end differs from the first arm's, and what would undo that."""
    baseline, *others = results["runs"]
    shared = [arm for arm in others if set(results["runs"][arm]) & set(results["runs"][baseline])]
    ends = {arm: in_points(results, lambda _, run: final_accuracy(run), arm) for arm in shared}
    return [f"`{arm}` against `{baseline}`: {overturned(found)}" for arm, found in ends.items()]


def end_rows(results: Mapping[str, Any]) -> list[list[str]]:
    """Table of the policies at the end of runs with exact accuracy, one arm per row, head first: means over seeds."""
    columns: dict[str, tuple[Callable[[Record], float], str]] = {
        "T = 1, exact": (lambda run: run["exact"]["accuracy"], "{:.3f}"),
        "greedy": (lambda run: run["exact"]["greedy"], "{:.3f}"),
        **{f"pass@{k}": (lambda run, k=k: run["exact"]["pass_at_k"][str(k)], "{:.3f}") for k in (2, 8, 32)},
        "entropy, nats a token": (lambda run: run["exact"]["entropy"], "{:.4f}"),
        "sampled": (lambda run: run["pass_at_k"]["1"], "{:.3f}"),
        "answer, tokens": (lambda run: run["answer_tokens"], "{:.1f}"),
    }
    rows = [["arm", "seeds", *columns]]
    for arm, by_seed in results["runs"].items():
        found = (spread([of(run) for run in by_seed.values()], form) for of, form in columns.values())
        rows.append([label(results, arm), str(len(by_seed)), *found])
    return rows


def question_rows(results: Mapping[str, Any], question: str) -> list[list[str]]:
    """Table of the arms that answer a question, one per row, head first; tokens and time are shares of the first."""
    runs = results["runs"]
    arms = [arm for arm in results["questions"][question] if arm in runs]
    reference = runs[arms[0]].values()

    def share(key: str) -> Callable[[Record], float]:
        whole = fmean(run[key] for run in reference)
        return lambda run: run[key] / whole

    def without_signal(when: str) -> Callable[[Record], float | None]:
        return lambda run: run["groups_without_signal"] and run["groups_without_signal"][when]

    columns: dict[str, tuple[Callable[[Record], float | None], str]] = {
        "before": (accuracy_before, "{:.3f}"),
        "second half": (late_accuracy, "{:.3f}"),
        "pass@1": (lambda run: run["pass_at_k"]["1"], "{:.3f}"),
        "pass@8": (lambda run: run["pass_at_k"]["8"], "{:.3f}"),
        "answer, tokens": (lambda run: run["answer_tokens"], "{:.0f}"),
        "distinct answers": (lambda run: run["distinct_share"], "{:.2f}"),
        "zero-advantage groups": (without_signal("before"), "{:.2f}"),
        "… shaped": (without_signal("after"), "{:.2f}"),
        "tokens": (share("generated_tokens"), "{:.0%}"),
        "time": (share("train_s"), "{:.0%}"),
    }
    rows = [["arm", *columns]]
    for arm in arms:
        found = (spread([of(run) for run in runs[arm].values()], form, "–") for of, form in columns.values())
        rows.append([label(results, arm), *found])
    return rows


#: Names of arms that are cells of a grid, such as talk-L0.5-alpha0.1.
GRID = re.compile(r"talk-L(?P<row>[\d.]+)-alpha(?P<column>[\d.]+)")


def grid_rows(results: Mapping[str, Any], of: Callable[[Record], float], form: str) -> list[list[str]]:
    """Table of a figure over the cut (down) and alpha (across), with the means of both, head first."""
    cells = {}
    for arm, by_seed in results["runs"].items():
        if place := GRID.fullmatch(arm):
            cells[place["row"], place["column"]] = fmean(of(run) for run in by_seed.values())
    across, down = (list(dict.fromkeys(place[axis] for place in cells)) for axis in (1, 0))

    def mean(row: str | None, column: str | None) -> str:
        return form.format(fmean(v for (r, c), v in cells.items() if row in (None, r) and column in (None, c)))

    rows = [["L", *(f"alpha {column}" for column in across), "mean"]]
    for row in down:
        found = [form.format(cells[row, column]) if (row, column) in cells else "–" for column in across]
        rows.append([row, *found, mean(row, None)])
    return [*rows, ["mean", *(mean(None, column) for column in across), mean(None, None)]]


#: Figures that are shown over the grid, and their formats.
GRIDS: dict[str, tuple[Callable[[Record], float], str]] = {
    "accuracy in the second half": (late_accuracy, "{:.3f}"),
    "answer, tokens": (lambda run: run["answer_tokens"], "{:.0f}"),
    "distinct answers": (lambda run: run["distinct_share"], "{:.2f}"),
}


def time_rows(results: Mapping[str, Any]) -> list[list[str]]:
    """Table of the parts of a step: means over steps and seeds in seconds, one arm per row, head first."""
    runs = results["runs"]
    parts = list(next(iter(next(iter(runs.values())).values()))["parts_s"])
    rows = [["arm", "step, s", *parts]]
    for arm, by_seed in runs.items():
        means = {part: fmean(run["parts_s"][part] for run in by_seed.values()) for part in parts}
        rows.append([label(results, arm), f"{sum(means.values()):.2f}", *(f"{means[part]:.3f}" for part in parts)])
    return rows


def is_exact(results: Mapping[str, Any]) -> bool:
    """Whether the accuracies were computed and not sampled."""
    return "exact_questions" in results.get("settings", {})


def origin(machine: Mapping[str, Any], runs: Sequence[Record]) -> str:
    """The end of a sentence on where runs come from: machine, versions, commits."""
    commits, processors = (sorted({run[key] for run in runs}) for key in ("commit", "processor"))
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    return (
        f"a run a core, {machine['cores']} cores of {' and '.join(processors)}, Python {machine['python']}, "
        f"{versions}; commit {', '.join(commits)}."
    )


def provenance(results: Mapping[str, Any]) -> str:
    """One sentence: command, length, machine, versions, commits."""
    settings = results["settings"]
    runs = [run for by_seed in results["runs"].values() for run in by_seed.values()]
    validated = (
        f"validated every {settings['test_freq']} on {settings['val_questions']} questions, "
        f"{settings['samples']} answers to each"
    )
    if is_exact(results):
        validated = (
            f"exact accuracy every {settings['test_freq']} on {settings['exact_questions']:,} questions, at the end "
            f"{settings['samples']} answers to each of {settings['val_questions']} besides"
        )
    return (
        f"`python -m benchmarks.bench --suite {results['suite']}`: problems of {settings['problem_steps']} "
        f"operations, {settings['questions']} questions, {settings['steps']} training steps, "
        f"{validated}; {origin(results['machine'], runs)}"
    )


def page(results: Mapping[str, Any]) -> str:
    """All tables as Markdown, and where they come from.

    A suite that asks questions has a table for each: its arms do not all begin with the same policy.
    """
    tables = []
    if not results["questions"]:
        shown = [accuracy_rows, difference_rows, *([end_rows] if is_exact(results) else []), time_rows]
        tables = [markdown(rows_of(results)) for rows_of in shown]
        tables.insert(2, "".join(f"- {sentence}\n" for sentence in overturning(results)))
    for question, arms in results["questions"].items():
        if arms[0] in results["runs"]:
            tables.append(f"{question}:\n\n{markdown(question_rows(results, question))}")
    if any(GRID.fullmatch(arm) for arm in results["runs"]):
        tables += [f"{name}:\n\n{markdown(grid_rows(results, *shown))}" for name, shown in GRIDS.items()]
    return "\n".join([*tables, provenance(results)]) + "\n"


#: Axis → its label, and the unit that it divides by.
AXES = {
    "step": ("training steps", 1),
    "seconds": ("training time, minutes", 60),
    "tokens": ("generated tokens, thousands", 1000),
}


def plot_curves(results: Mapping[str, Any], path: Path, over: Sequence[str] = tuple(AXES)) -> None:
    """Draw the accuracy of full rollouts: means over seeds, every seed faintly.

    Args:
        results: of a suite.
        path: of the image.
        over: what accuracy is drawn against, some of `AXES`.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    axes_of = {name: AXES[name] for name in over}
    width = 5 * len(axes_of)
    figure, axes = pyplot.subplots(1, len(axes_of), figsize=(width, 4.2), sharey=True, layout="constrained")
    for number, (arm, by_seed) in enumerate(results["runs"].items()):
        curves = [run["curve"] for run in by_seed.values()]
        # The start is missing where the arm that validates it for all is not there yet.
        by_step = [{point["step"]: point for point in points} for points in curves]
        shared = [step for step in by_step[0] if all(step in points for points in by_step)]
        mean = [{key: fmean(points[step][key] for points in by_step) for key in curves[0][0]} for step in shared]
        for axis, (name, (_, unit)) in zip(axes, axes_of.items(), strict=True):
            for curve, style in [*((curve, {"alpha": 0.2}) for curve in curves), (mean, {"label": arm, "lw": 2})]:
                values = [point[name] / unit for point in curve]
                axis.plot(values, [point["accuracy"] for point in curve], color=f"C{number % 10}", **style)
    for axis, (name, _) in zip(axes, axes_of.values(), strict=True):
        axis.set(xlabel=name)
        axis.grid(alpha=0.3)
    axes[0].set(ylabel="accuracy of full rollouts")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right upper")
    figure.savefig(path, dpi=130)
    pyplot.close(figure)


def plot_frontier(runs: Mapping[str, Mapping[str, Record]], path: Path) -> None:
    """Draw where arms end against what they generated: means over seeds, with the least and the largest.

    Args:
        runs: arm → seed → run; tokens are shares of the first arm's.
        path: of the image.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    whole = fmean(run["generated_tokens"] for run in next(iter(runs.values())).values())
    figure, axis = pyplot.subplots(figsize=(9, 5.4), layout="constrained")
    for number, (arm, by_seed) in enumerate(runs.items()):
        ends = [final_accuracy(run) for run in by_seed.values()]
        at = fmean(run["generated_tokens"] for run in by_seed.values()) / whole
        mean = fmean(ends)
        reach = [[mean - min(ends)], [max(ends) - mean]]
        look = {"color": f"C{number % 10}", "marker": "os^D"[number // 10 % 4]}
        axis.errorbar(at, mean, reach, **look, capsize=3, label=f"{arm} ({len(ends)})")
    axis.set(xscale="log", xlabel="generated tokens, share of the first arm's", ylabel="accuracy at the end")
    ticks = (0.1, 0.2, 0.3, 0.5, 1.0)
    axis.set_xticks(ticks, [f"{tick:.0%}" for tick in ticks])
    axis.minorticks_off()
    axis.grid(alpha=0.3)
    figure.legend(*axis.get_legend_handles_labels(), loc="outside right upper", title="arm (seeds)")
    figure.savefig(path, dpi=130)
    pyplot.close(figure)
