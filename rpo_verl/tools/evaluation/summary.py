"""Finished samples → what an evaluation says, as JSON and as a table."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rpo_verl.tools.evaluation.dataset import Question
from rpo_verl.tools.evaluation.errors import EvaluationError
from rpo_verl.tools.evaluation.estimators import METHOD, Estimate, macro_average, mean_interval, pass_at_k
from rpo_verl.tools.evaluation.store import Sample

RESULTS, TABLE = "results.json", "results.md"
SCHEMA_VERSION = 1


def default_ks(samples: int) -> list[int]:
    """1, 2, 4, … and the number of samples itself."""
    return sorted({2**power for power in range(samples.bit_length())} | {samples})


def summarize(
    finished: Mapping[str, Sequence[Sample]], questions: Sequence[Question], samples: int, ks: Sequence[int]
) -> dict[str, Any]:
    """Figures of every data set and their average.

    Args:
        finished: key of a question → its samples, all `samples` of them.
        questions: what was asked.
        samples: n, answers to each question.
        ks: for pass@k, each at most n.

    Returns:
        `samples`, `sets` (data source → figures) and `average` (over sets, each counting the same). Figures are
        `questions`, `samples`, `pass_at_k` (k → value, low, high), `response_tokens` (mean a sample),
        `truncated_share` (of samples) and, for sets, `correct` (key of a question → right answers).
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
    """Value and interval, in per cent."""
    value, low, high = (100 * estimate[name] for name in ("value", "low", "high"))
    return f"{value:.1f} [{low:.1f},{high:.1f}]"


def average_name(results: Mapping[str, Any]) -> str | None:
    """What the average is called; None where one data set is all there is."""
    count = len(results["sets"])
    return f"mean of {count} sets" if count > 1 else None


def cells_of(figures: Mapping[str, Any], ks: Sequence[str]) -> dict[str, str]:
    """Name → what the tables show of one data set, or of the average."""
    return {
        "questions": f"{figures['questions']:,}",
        "samples": f"{figures['samples']:,}",
        **{f"pass@{k}, %": show_estimate(figures["pass_at_k"][k]) for k in ks},
        "tokens a sample": f"{figures['response_tokens']:,.1f}",
        "truncated, %": f"{100 * figures['truncated_share']:.1f}",
    }


def sets_and_average(results: Mapping[str, Any]) -> dict[str, Any]:
    """Name → figures, of every data set and of the average of several."""
    average = average_name(results)
    return {**results["sets"], **({average: results["average"]} if average else {})}


def rows_of(results: Mapping[str, Any]) -> list[list[str]]:
    """The table of one evaluation, its head first: a column for every data set and for their average."""
    ks = list(results["average"]["pass_at_k"])
    columns = {name: cells_of(figures, ks) for name, figures in sets_and_average(results).items()}
    names = next(iter(columns.values()))
    return [["", *columns], *([name, *(cells[name] for cells in columns.values())] for name in names)]


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """Rows as a Markdown table, the first as its head; numbers are set to the right."""
    lines = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    lines.insert(1, ["---", *("---:" for _ in lines[0][1:])])
    return "".join(f"| {' | '.join(row)} |\n" for row in lines)


def write_text(path: Path, text: str) -> None:
    """Write a file in one move, so that nobody reads half of it."""
    temporary = path.with_name(f".{path.name}.writing")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def write_results(folder: Path, results: Mapping[str, Any]) -> None:
    """`results.json` and `results.md` in the folder of an evaluation."""
    write_text(folder / RESULTS, json.dumps({"schema_version": SCHEMA_VERSION, **results}, indent=2) + "\n")
    write_text(folder / TABLE, markdown(rows_of(results)))


def read_results(folder: Path) -> dict[str, Any]:
    """What `write_results` wrote.

    Raises:
        EvaluationError: if there is nothing like that.
    """
    path = folder / RESULTS
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise EvaluationError(f"{path} does not exist: no rpo-verl eval has finished in {folder}") from error
    except (OSError, ValueError) as error:
        raise EvaluationError(f"{path}: not a JSON file that can be read ({error})") from error
    version = results.get("schema_version") if isinstance(results, dict) else None
    if version != SCHEMA_VERSION:
        raise EvaluationError(
            f"{path}: schema version {version!r}, this rpo-verl reads {SCHEMA_VERSION}; run rpo-verl eval again"
        )
    return results
