"""From the records of bench.py's runs to its page. Needs neither the model nor the tasks."""

from collections.abc import Mapping
from typing import Any

from benchmarks.lab.publish import end_rows
from benchmarks.results import final_accuracy, late_accuracy, origin, spread, time_rows
from benchmarks.statistics import Record, reached
from rpo_verl.tools.evaluation.results import markdown


def rows(runs: Mapping[str, Mapping[str, Record]]) -> list[list[str]]:
    """Table of the arms, one per row, head first: means over seeds, in brackets the least and the largest.

    The last two columns say where an arm reaches the final accuracy of the first one on the same seed.
    """
    first = next(iter(runs))
    ends = {seed: final_accuracy(run) for seed, run in runs[first].items()}
    columns = {
        "before": (lambda run, _: run["curve"][0]["accuracy"], "{:.3f}"),
        "after": (lambda run, _: final_accuracy(run), "{:.3f}"),
        "second half": (lambda run, _: late_accuracy(run), "{:.3f}"),
        "tokens": (lambda run, _: run["generated_tokens"], "{:,.0f}"),
        "… a sample": (lambda run, _: run["generated_tokens_per_sample"], "{:.1f}"),
        "training, s": (lambda run, _: run["train_s"], "{:,.0f}"),
        "… a step": (lambda run, _: run["step_s"], "{:.1f}"),
        f"tokens to {first}'s end": (lambda run, seed: reached(run, ends[seed], "tokens"), "{:,.0f}"),
        f"s to {first}'s end": (lambda run, seed: reached(run, ends[seed], "seconds"), "{:,.0f}"),
    }
    table = [["arm", "seeds", *columns]]
    for arm, by_seed in runs.items():
        shared = {seed: found for seed, found in by_seed.items() if seed in ends}
        cells = [spread([of(found, seed) for seed, found in shared.items()], form) for of, form in columns.values()]
        table.append([arm, str(len(shared)), *cells])
    return table


def parts(found: Mapping[str, Any]) -> list[list[str]]:
    """Table of the parts of a step, in seconds, one arm per row, head first."""
    return time_rows({"runs": found["runs"]})


def ends(found: Mapping[str, Any]) -> list[list[str]]:
    """Table of what trained models do on held-out questions, the same for all runs, one arm per row, head first.

    `at the end` is on more questions than the other columns, with one answer to each.
    """
    runs = {
        arm: {seed: run | run["end"] | {"curve": [run["end"]]} for seed, run in of.items()}
        for arm, of in found["runs"].items()
    }
    _, *rest = zip(*end_rows({"runs": {found["settings"]["task"]: runs}}), strict=True)
    return [list(row) for row in zip(*rest, strict=True)]


def provenance(found: Mapping[str, Any]) -> str:
    """One sentence: command, length, learning rate, machine, versions, commits."""
    settings = found["settings"]
    knobs = settings["knobs"]
    runs = [run for by_seed in found["runs"].values() for run in by_seed.values()]
    rates = {arm: "/".join(sorted({run["lr"] for run in by_seed.values()})) for arm, by_seed in found["runs"].items()}
    rated = ", ".join(f"{lr} ({arm})" for arm, lr in rates.items())
    return (
        f"`python -m benchmarks.lm.bench --task {settings['task']}`: {settings['questions']} questions, "
        f"{knobs['QUESTIONS_PER_STEP']} a step with {knobs['GROUP_SIZE']} answers each, {settings['steps']} training "
        f"steps, learning rates {rated}, validated every {settings['test_freq']} on "
        f"{settings['val_questions']} questions, answers to each: {settings['samples']}; "
        f"{origin(found['machine'], runs)}"
    )


def page(found: Mapping[str, Any]) -> str:
    """All tables as Markdown, and where they come from."""
    tables = (rows(found["runs"]), ends(found), parts(found))
    return "\n".join([*map(markdown, tables), provenance(found)]) + "\n"
