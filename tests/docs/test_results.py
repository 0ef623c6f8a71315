"""The tables and figures of results are what the commands wrote: `docs/results` has their JSON, as it came."""

import pytest
from conftest import ROOT, load_script

for script in ("bench_results", "contamination", "summary"):  # which the tables are made with
    load_script(script)
results = load_script("result_tables", ROOT / "tests" / "bench")
PLACES = [(page, place) for page in results.PAGES for place in results.PLACE.finditer(page.read_text())]


@pytest.mark.parametrize(("page", "place"), PLACES, ids=[f"{page.name}-{place['name']}" for page, place in PLACES])
def test_tables(page, place):
    assert place["table"] == results.markdown(results.TABLES[place["name"]]()), "`make results` writes it anew"


def test_every_table_has_its_place():
    assert {place["name"] for _, place in PLACES} == set(results.TABLES)
