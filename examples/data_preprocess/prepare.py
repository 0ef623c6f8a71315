"""What every data set here has in common: load, check, convert and write it for veRL.

A script beside this file describes one data set (`DataSet`) and calls `main`. The files it writes have one schema
whatever their source, so veRL can read several of them together (`data.val_files=[…]`).
"""

import argparse
import glob
import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any, get_args

import datasets
import pyarrow as pa
import pyarrow.parquet as pq

#: The rows written; `ground_truth` is LaTeX without the dollar signs around formulas, `index` the row in its source.
ROW = pa.schema(
    {
        "data_source": pa.string(),
        "prompt": pa.list_(pa.struct({"role": pa.string(), "content": pa.string()})),
        "ability": pa.string(),
        "reward_model": pa.struct({"style": pa.string(), "ground_truth": pa.string()}),
        "extra_info": pa.struct({"split": pa.string(), "index": pa.int64(), "question": pa.string()}),
    }
)

#: What `datasets` calls each kind of file that `--local_dataset_path` may be.
FORMATS = {".parquet": "parquet", ".json": "json", ".jsonl": "json", ".csv": "csv"}


class DataError(ValueError):
    """The data are not there, or not what the script expects; the message says which, and what to do."""


@dataclass(frozen=True)
class Split:
    """One split of the source; `rows` is how many it has at the pinned revision."""

    name: str
    rows: int


@dataclass(frozen=True)
class DataSet:
    """One data set: where it lies, what it looks like, and how a row becomes a question and its answer."""

    name: str
    """Becomes `data_source`, under which veRL reports validation metrics. None of these is a name that veRL's default
    reward function knows, so a run that forgot to set one ends at once instead of scoring by another format."""
    hub_id: str
    revision: str
    """Full commit of the hub's repository."""
    splits: dict[str, Split]
    """Name of the file to write, `train` or `test` → the source's split."""
    columns: dict[str, Any]
    """Column → its type: `str`, `str | int | float`, `[str]` for a list, a dictionary for a struct."""
    problem: Callable[[dict[str, Any]], tuple[str, str]]
    """Row → question and answer; an empty one leaves the row out."""
    template: str
    """What the user message says; `{question}` stands for the question."""
    config: str | None = None


@dataclass
class Report:
    """How many rows were read and kept, and the source's row numbers of those left out, by reason."""

    read: int = 0
    kept: int = 0
    left_out: dict[str, list[int]] = field(default_factory=dict)

    def leave_out(self, index: int, reason: str) -> None:
        """Note that row `index` was left out."""
        self.left_out.setdefault(reason, []).append(index)

    def __str__(self) -> str:
        lines = [f"{self.kept} of {self.read} rows"]
        lines += [f"  left out, {reason}: {len(rows)}, the first is row {rows[0]}"
                  for reason, rows in self.left_out.items()]  # fmt: skip
        return "\n".join(lines)


def load(data_set: DataSet, split: Split, path: Path | None, revision: str) -> datasets.Dataset:
    """One split, from the hub or from a local file or folder.

    Raises:
        DataError: if there is no such file, folder, repository, revision, configuration or split.
    """
    try:
        if path is None:
            return datasets.load_dataset(data_set.hub_id, data_set.config, split=split.name, revision=revision)
        if path.is_dir():
            # `datasets` takes brackets in a folder's name for a pattern.
            if glob.escape(str(path.resolve())) == str(path.resolve()):
                return _load_folder(data_set, split, path)
            with tempfile.TemporaryDirectory() as folder:
                _link(path, Path(folder))
                return _load_folder(data_set, split, Path(folder))
        if not path.exists():
            raise DataError(f"--local_dataset_path={path}: no such file or folder")
        if path.suffix not in FORMATS:
            raise DataError(f"--local_dataset_path={path}: not one of {', '.join(FORMATS)}, nor a folder of such files")
        return datasets.load_dataset(FORMATS[path.suffix], data_files=glob.escape(str(path)), split="train")
    except DataError:
        raise
    except Exception as error:
        where = path or f"{data_set.hub_id} at revision {revision}"
        reason = " ".join(str(error.__cause__ or error).split())
        hint = "" if path else " Without access to the hub, pass a copy of it as --local_dataset_path."
        raise DataError(f"{where} cannot be loaded: {reason[:500]}.{hint}") from error


def _load_folder(data_set: DataSet, split: Split, path: Path) -> datasets.Dataset:
    """A copy of the hub's repository, or any folder whose files are named after their split."""
    config = data_set.config
    if config and config not in datasets.get_dataset_config_names(str(path)):
        # Without the repository's own description, `datasets` would mix all configurations into one.
        path, config = (path / config if (path / config).is_dir() else path), None
    found = datasets.load_dataset(str(path), config)
    if split.name in found:
        return found[split.name]
    if len(found) == len(data_set.splits) == 1:
        return next(iter(found.values()))
    raise DataError(f"--local_dataset_path has no split {split.name!r}, only {', '.join(map(repr, found))}")


def _link(source: Path, target: Path) -> None:
    """Every file of a folder as a link in another."""
    for file in filter(Path.is_file, source.resolve().rglob("*")):
        link = target / file.relative_to(source.resolve())
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(file)


def check_columns(data_set: DataSet, dataset: datasets.Dataset) -> None:
    """Raises DataError, naming every missing or wrongly typed column and the columns found."""
    found = {name: _shape(feature) for name, feature in dataset.features.items()}
    missing = [name for name in data_set.columns if name not in found]
    wrong = [
        f"{name} is {_words(found[name])} instead of {_words(expected)}"
        for name, expected in data_set.columns.items()
        if name in found and not _fits(expected, found[name])
    ]
    if missing or wrong:
        problems = [f"no column {', '.join(missing)}"] * bool(missing) + wrong
        columns = ", ".join(f"{name} ({_words(shape)})" for name, shape in found.items())
        separator = next((mark for mark in ";\t|" if len(found) == 1 and mark in next(iter(found))), None)
        hint = f" A CSV file needs commas between its columns; this one has {separator!r}." if separator else ""
        raise DataError(f"not the columns of {data_set.hub_id}: {'; '.join(problems)}. Found: {columns}.{hint}")


def _shape(feature: Any) -> Any:
    """A column's type in the words of `DataSet.columns`."""
    if isinstance(feature, dict):
        return {name: _shape(inner) for name, inner in feature.items()}
    if isinstance(feature, (datasets.List, datasets.LargeList)):
        return [_shape(feature.feature)]
    dtype = getattr(feature, "dtype", "")
    if dtype in ("string", "large_string"):
        return str
    return next((kind for kind in (bool, int, float) if dtype.lstrip("u").startswith(kind.__name__)), dtype or feature)


def _fits(expected: Any, found: Any) -> bool:
    if isinstance(expected, dict):
        return isinstance(found, dict) and all(
            name in found and _fits(inner, found[name]) for name, inner in expected.items()
        )
    if isinstance(expected, list):
        return isinstance(found, list) and _fits(expected[0], found[0])
    return found in (get_args(expected) or (expected,))


def _words(shape: Any) -> str:
    if isinstance(shape, dict):
        return "{" + ", ".join(f"{name}: {_words(inner)}" for name, inner in shape.items()) + "}"
    if isinstance(shape, list):
        return f"list of {_words(shape[0])}"
    return " or ".join(getattr(kind, "__name__", str(kind)) for kind in (get_args(shape) or (shape,)))


def convert(data_set: DataSet, dataset: datasets.Dataset, target: str, template: str) -> tuple[list[dict], Report]:
    """Rows in veRL's format.

    A question that a training split repeats is kept once, and left out where its answers differ. Test splits keep their
    repetitions: a benchmark's figure is a mean over its rows. An answer that nothing can match leaves its row out.

    Args:
        target: `train` or `test`.
        template: the user message, with `{question}` in it.
    """
    report, questions = Report(), {}
    for index, row in enumerate(_rows(dataset, list(data_set.columns))):
        report.read += 1
        question, answer = data_set.problem(row)
        question, answer = question.strip(), without_dollars(answer)
        if not question or not answer:
            report.leave_out(index, f"no {'answer' if question else 'question'}")
            continue
        key = question if target == "train" else index
        if key not in questions:
            questions[key] = (index, question, answer)
        elif questions[key] and _same(questions[key][2], answer):
            report.leave_out(index, "repeated")
        else:
            if questions[key]:
                report.leave_out(questions[key][0], "repeated with another answer")
            questions[key] = None
            report.leave_out(index, "repeated with another answer")
    kept = list(filter(None, questions.values()))
    faults = _faults({answer for _, _, answer in kept})
    for index, _, answer in kept:
        if answer in faults:
            report.leave_out(index, f"its answer {answer[:200]!r} {faults[answer]}")
    rows = [
        {
            "data_source": data_set.name,
            "prompt": [{"role": "user", "content": template.replace("{question}", question)}],
            "ability": "math",
            "reward_model": {"style": "rule", "ground_truth": answer},
            "extra_info": {"split": target, "index": index, "question": question},
        }
        for index, question, answer in kept
        if answer not in faults
    ]
    report.kept = len(rows)
    return rows, report


def without_dollars(answer: str) -> str:
    r"""An answer without the dollar signs around formulas; `\$`, a sum of money, stays."""
    return re.sub(r"(?<!\\)\$", "", answer).strip()


def _same(one: str, other: str) -> bool:
    """Whether two answers are one: the same text but for blanks, or the same number (`05`, `5`, `5.0`)."""
    try:
        return Decimal(one.replace(",", "")) == Decimal(other.replace(",", ""))
    except InvalidOperation:
        return "".join(one.split()) == "".join(other.split())


def _faults(answers: set[str]) -> dict[str, str]:
    """Answer → why no response can match it, by the reward function of rpo_verl."""
    try:
        from rpo_verl.rewards.math import unmatchable
    except ImportError as error:
        print(f"note: answers were not checked. {error}")
        return {}
    with ThreadPoolExecutor(2) as threads:
        faults = zip(answers, threads.map(unmatchable, answers), strict=True)
        return {answer: fault for answer, fault in faults if fault}


def _rows(dataset: datasets.Dataset, columns: list[str]) -> Iterator[dict[str, Any]]:
    """The rows as dictionaries in which a missing text is an empty one."""
    for table in dataset.select_columns(columns).with_format("arrow").iter(batch_size=1000):
        for row in table.to_pylist():
            yield {name: "" if value is None else value for name, value in row.items()}


def number(value: str | int | float) -> str:
    """An answer that some copies of a data set hold as a number: 27.0 becomes 27."""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def main(data_set: DataSet, argv: list[str] | None = None) -> None:
    """Command line of a script: writes `<local_save_dir>/<split>.parquet`; ends with one message if it cannot."""
    parser = argparse.ArgumentParser(description=f"Prepare {data_set.hub_id} for veRL.")
    parser.add_argument("--local_dataset_path", type=Path, help="file or folder to read instead of the hub")
    parser.add_argument("--local_save_dir", type=Path, default=Path("~/data") / Path(sys.argv[0]).stem,
                        help="folder for the Parquet files (%(default)s)")  # fmt: skip
    parser.add_argument("--revision", default=data_set.revision, help="commit of the hub's repository (%(default)s)")
    parser.add_argument("--split", choices=data_set.splits, help="write only this one; a single file needs it named")
    parser.add_argument("--template", default=data_set.template,
                        help="the user message, {question} stands for the question")  # fmt: skip
    args = parser.parse_args(argv)
    path = args.local_dataset_path and args.local_dataset_path.expanduser()
    try:
        if "{question}" not in args.template:
            raise DataError(f"--template={args.template!r} has no {{question}} in it")
        if path and path.is_file() and not args.split and len(data_set.splits) > 1:
            raise DataError(f"--local_dataset_path={path} is one file; say with --split which split it holds, "
                            f"{' or '.join(data_set.splits)}")  # fmt: skip
        tables = {}
        for target in [args.split] if args.split else data_set.splits:
            split = data_set.splits[target]
            dataset = load(data_set, split, path, args.revision)
            check_columns(data_set, dataset)
            rows, report = convert(data_set, dataset, target, args.template)
            if not rows:
                raise DataError(f"{path or data_set.hub_id}: nothing left of split {split.name!r}, {report}")
            tables[target] = (rows, report, split)
    except DataError as error:
        raise SystemExit(f"{data_set.name}: {error}") from error
    folder = args.local_save_dir.expanduser()
    folder.mkdir(parents=True, exist_ok=True)
    for target, (rows, report, split) in tables.items():
        out = folder / f"{target}.parquet"
        unfinished = out.with_suffix(".unfinished")
        pq.write_table(pa.Table.from_pylist(rows, ROW), unfinished)
        os.replace(unfinished, out)
        print(f"{out}: {report}")
        if report.read != split.rows:
            print(f"  note: {data_set.hub_id} has {split.rows} rows in this split at {data_set.revision[:8]}")
