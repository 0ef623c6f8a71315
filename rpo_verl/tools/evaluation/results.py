"""Finished samples → the results of an evaluation, as JSON and as a table."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rpo_verl.tools.errors import CommandError
from rpo_verl.tools.evaluation.dataset import Question
from rpo_verl.tools.evaluation.estimators import METHOD, Estimate, macro_average, mean_interval, pass_at_k
from rpo_verl.tools.evaluation.samples import Sample
from rpo_verl.tools.files import write_text

RESULTS, TABLE = "results.json", "results.md"
SCHEMA_VERSION = 1


def default_ks(samples: int) -> list[int]:
    """Powers of two up to the number of samples, and that number."""
    return sorted({2**power for power in range(samples.bit_length())} | {samples})


def summarize(
    finished: Mapping[str, Sequence[Sample]], questions: Sequence[Question], samples: int, ks: Sequence[int]
) -> dict[str, Any]:
    """Compute the figures of every data set and their average.

    Args:
        finished: key of a question → its `samples` samples.
        questions: of the evaluation.
        samples: n, answers per question.
        ks: for pass@k, each at most n.

    Returns:
        `samples`, `sets` (data source → figures) and `average` (over sets, with equal weights). Figures are
        `questions`, `samples`, `pass_at_k` (k → value, low, high), `response_tokens` (mean per sample),
        `truncated_share` (of samples) and, for sets, `correct` (key of a question → correct answers).
    """
    sets: dict[str, dict[str, Any]] = {}
    for source in dict.fromkeys(question.data_source for question in questions):
        answers = {q.key: finished[q.key] for q in questions if q.data_source == source}
        correct = {key: sum(sample.correct for sample in group) for key, group in answers.items()}
        flat = [sample for group in answers.values() for sample in group]
        sets[source] = {
            "questions": len(answers),
            "samples": len(flat),
            "pass_at_k": {
                str(k): asdict(mean_interval([pass_at_k(samples, right, k) for right in correct.values()])) for k in ks
            },
            "response_tokens": sum(sample.tokens for sample in flat) / len(flat),
            "truncated_share": sum(sample.truncated for sample in flat) / len(flat),
            "correct": correct,
        }
    return {"samples": samples, "interval": METHOD, "sets": sets, "average": _average(list(sets.values()), ks)}


def _average(sets: list[dict[str, Any]], ks: Sequence[int]) -> dict[str, Any]:
    return {
        "sets": len(sets),
        "questions": sum(figures["questions"] for figures in sets),
        "samples": sum(figures["samples"] for figures in sets),
        "pass_at_k": {
            str(k): asdict(macro_average([Estimate(**figures["pass_at_k"][str(k)]) for figures in sets])) for k in ks
        },
        "response_tokens": sum(figures["response_tokens"] for figures in sets) / len(sets),
        "truncated_share": sum(figures["truncated_share"] for figures in sets) / len(sets),
    }


def show_estimate(estimate: Mapping[str, float]) -> str:
    """Value and interval, in percent."""
    value, low, high = (100 * estimate[name] for name in ("value", "low", "high"))
    return f"{value:.1f} [{low:.1f},{high:.1f}]"


def average_name(results: Mapping[str, Any]) -> str | None:
    """The name of the average; None if there is only one data set."""
    count = len(results["sets"])
    return f"mean of {count} sets" if count > 1 else None


def cells_of(figures: Mapping[str, Any], ks: Sequence[str]) -> dict[str, str]:
    """Table cells of one data set, or of the average, by name."""
    return {
        "questions": f"{figures['questions']:,}",
        "samples": f"{figures['samples']:,}",
        **{f"pass@{k}, %": show_estimate(figures["pass_at_k"][k]) for k in ks},
        "tokens a sample": f"{figures['response_tokens']:,.1f}",
        "truncated, %": f"{100 * figures['truncated_share']:.1f}",
    }


def sets_and_average(results: Mapping[str, Any]) -> dict[str, Any]:
    """Figures by name: every data set, and the average of several."""
    average = average_name(results)
    return {**results["sets"], **({average: results["average"]} if average else {})}


def rows_of(results: Mapping[str, Any]) -> list[list[str]]:
    """The table of one evaluation, header first. Each data set and their average have a column."""
    ks = list(results["average"]["pass_at_k"])
    columns = {name: cells_of(figures, ks) for name, figures in sets_and_average(results).items()}
    names = next(iter(columns.values()))
    return [["", *columns], *([name, *(cells[name] for cells in columns.values())] for name in names)]


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """Format rows as a Markdown table. The first row is the header; numbers are aligned right."""
    lines = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    lines.insert(1, ["---", *("---:" for _ in lines[0][1:])])
    return "".join(f"| {' | '.join(row)} |\n" for row in lines)


def write_results(folder: Path, results: Mapping[str, Any]) -> None:
    """Write `results.json` and `results.md` to the folder of an evaluation."""
    write_text(folder / RESULTS, json.dumps({"schema_version": SCHEMA_VERSION, **results}, indent=2) + "\n")
    write_text(folder / TABLE, markdown(rows_of(results)))


def read_results(folder: Path) -> dict[str, Any]:
    """Read `results.json` from the folder of an evaluation.

    Raises:
        CommandError: if it is missing or unreadable.
    """
    path = folder / RESULTS
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CommandError(f"{path} does not exist: no rpo-verl eval has finished in {folder}") from error
    except (OSError, ValueError) as error:
        raise CommandError(f"{path}: not a readable JSON file ({error})") from error
    version = results.get("schema_version") if isinstance(results, dict) else None
    if version != SCHEMA_VERSION:
        raise CommandError(
            f"{path}: schema version {version!r}, this rpo-verl reads {SCHEMA_VERSION}. Run rpo-verl eval again."
        )
    return results
