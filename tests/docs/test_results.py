"""The tables of results are what the commands wrote: `docs/results` has their JSON, as it came."""

import json
import sys

import pytest
from conftest import ROOT, TINY

from rpo_verl.evaluation.summary import markdown

sys.path.insert(0, str(TINY))
from summary import HEADLINES, rows

RESULTS = ROOT / "docs" / "results"


@pytest.mark.parametrize(
    ("name", "page"), [("demo", "README.md"), ("demo", "docs/index.md"), ("demo-dapo", "README.md")]
)
def test_tables_of_the_demos(name, page):
    summary = json.loads((RESULTS / f"{name}.json").read_text())
    assert markdown(rows(summary, HEADLINES)) in (ROOT / page).read_text()
