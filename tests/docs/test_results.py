"""The tables and figures of results are what the commands wrote: `docs/results` has their JSON, as it came."""

import pytest
from conftest import ROOT, load_script

from rpo_verl.integration.contract import UPSTREAM_NAMES

for script in ("bench_results", "contamination", "summary"):  # which the tables are made with
    load_script(script)
results = load_script("result_blocks", ROOT / "tests" / "bench")
PLACES = [(page, place) for page in results.PAGES for place in results.PLACE.finditer(page.read_text())]


@pytest.mark.parametrize(("page", "place"), PLACES, ids=[f"{page.name}-{place['name']}" for page, place in PLACES])
def test_blocks(page, place):
    assert place["block"] == results.BLOCKS[place["name"]](), "`make results` writes it anew"


def test_every_block_has_its_place():
    assert {place["name"] for _, place in PLACES} == set(results.BLOCKS)
    assert len(PLACES) == sum(page.read_text().count("<!-- results") for page in results.PAGES)


def prose(page):
    """The page as one line."""
    return " ".join((ROOT / page).read_text().split())


def test_number_of_upstream_names():
    names = len(UPSTREAM_NAMES)
    assert f"verl 0.9.0: {names - 1} of {names} upstream names as expected" in prose("docs/upgrading-verl.md")


def test_figures_of_pass_at_k():
    found = results.result("pass-at-k")
    sets = {arm: evaluation["sets"]["tiny_reasoner"] for arm, evaluation in found["evaluations"].items()}
    differences = {arm: kinds["tiny_reasoner"] for arm, kinds in found["differences"].items()}
    base, grpo, rpo = (
        {k: f"{100 * passed['value']:.0f}" for k, passed in sets[arm]["pass_at_k"].items()}
        for arm in ("base", "grpo", "rpo")
    )
    assert grpo["1"] == rpo["1"]
    once = f"{base['1']} to {rpo['1']} %"
    readme, page = prose("README.md"), prose("docs/evaluation.md")
    broad = f"{base['32']} to {grpo['32']} and {rpo['32']} %"
    assert f"pass@1 goes from {once} with GRPO and with RPO, pass@32 from {broad}" in readme
    assert f"Training pays at the first try, {once} for both" in page
    assert "for k from 8 on the checkpoint that nobody trained finds more than GRPO's, by 5 points" in page
    for k in ("8", "16", "32"):
        assert round(100 * differences["base"][k]["value"]) == 5 and differences["base"][k]["low"] > 0
    assert "3 points above GRPO's for k from 4 on; but all its differences to GRPO have 0 in their intervals" in page
    assert {round(100 * differences["rpo"][k]["value"]) for k in ("4", "8", "16", "32")} == {3}
    assert all(difference["low"] < 0 < difference["high"] for difference in differences["rpo"].values())
    assert f"on answers of {sets['rpo']['response_tokens']:.0f} tokens" in page
