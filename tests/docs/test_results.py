"""The tables of results are what the commands wrote: `docs/results` has their JSON, as it came."""

import json

import pytest
from conftest import ROOT, load_script

from rpo_verl.evaluation.compare import comparison_rows
from rpo_verl.evaluation.summary import markdown

summary, tables = load_script("summary"), load_script("tables", ROOT / "tests" / "bench")
RESULTS = ROOT / "docs" / "results"


@pytest.mark.parametrize(
    ("name", "page"), [("demo", "README.md"), ("demo", "docs/index.md"), ("demo-dapo", "README.md")]
)
def test_tables_of_the_demos(name, page):
    arms = json.loads((RESULTS / f"{name}.json").read_text())
    assert markdown(summary.rows(arms, summary.HEADLINES)) in (ROOT / page).read_text()


def test_table_of_pass_at_k():
    found = json.loads((RESULTS / "pass-at-k.json").read_text())
    table = markdown(comparison_rows(found["evaluations"], found["differences"], found["baseline"]))
    assert table in (ROOT / "docs" / "evaluation.md").read_text()


@pytest.mark.parametrize("name", ["shared-prefix", "overhead"])
def test_tables_of_the_benches(name):
    rows = {"shared-prefix": tables.shared_prefix_rows, "overhead": tables.overhead_rows}[name]
    found = json.loads((RESULTS / f"{name}.json").read_text())
    assert markdown(rows(found)) in (ROOT / "docs" / "benchmarks.md").read_text()
