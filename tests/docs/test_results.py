"""The tables and figures of results are what the commands wrote: `docs/results` has their JSON, as it came."""

import json
import re
from statistics import fmean

import pytest
from conftest import ROOT, load_script

from rpo_verl.rpo.options import RPOConfig
from rpo_verl.upstream.contract import UPSTREAM_NAMES

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
    """What the page says outside blocks of results and code, as one line."""
    text = results.PLACE.sub("", (ROOT / page).read_text())
    text = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    return " ".join(text.split())


def sentences_on_pass_at_k():
    """Page and sentence, with the figures of the file in it."""
    found = results.result("pass-at-k")
    sets = {arm: evaluation["sets"]["tiny_reasoner"] for arm, evaluation in found["evaluations"].items()}
    differences = {arm: kinds["tiny_reasoner"] for arm, kinds in found["differences"].items()}
    base, grpo, rpo = (
        {k: f"{100 * passed['value']:.0f}" for k, passed in sets[arm]["pass_at_k"].items()}
        for arm in ("base", "grpo", "rpo")
    )
    assert grpo["1"] == rpo["1"]
    for k in ("8", "16", "32"):
        assert round(100 * differences["base"][k]["value"]) == 5 and differences["base"][k]["low"] > 0
    assert {round(100 * differences["rpo"][k]["value"]) for k in ("4", "8", "16", "32")} == {3}
    assert all(difference["low"] < 0 < difference["high"] for difference in differences["rpo"].values())
    once, broad = f"{base['1']} to {rpo['1']} %", f"{base['32']} to {grpo['32']} and {rpo['32']} %"
    page = "docs/evaluation.md"
    return [
        ("README.md", f"pass@1 goes from {once} with GRPO and with RPO, pass@32 from {broad}"),
        (page, f"Training pays at the first try, {once} for both"),
        (
            page,
            "for k from 8 on the checkpoint that nobody trained finds more than GRPO's, by 5 points with an interval",
        ),
        (page, "3 points above GRPO's for k from 4 on; but all its differences to GRPO have 0 in their intervals"),
        (page, f"on answers of {sets['rpo']['response_tokens']:.0f} tokens"),
    ]


def sentences_on_the_tiny_reasoner():
    checkpoint = ROOT / "examples" / "tiny_reasoner" / "checkpoint"
    parameters = json.loads((checkpoint / "pretrain_log.jsonl").read_text().splitlines()[0])["parameters"]
    size = (checkpoint / "model.safetensors").stat().st_size / 1e6
    page = "examples/tiny_reasoner/README.md"
    return [
        (page, f"{parameters:,} parameters (float32, tied embeddings)"),
        (page, f"{size:.1f} MB on disk"),
        ("README.md", f"a {parameters / 1e6:.1f}-million-parameter model"),
        ("docs/quickstart-cpu.md", f"a model of {parameters / 1e6:.1f} million parameters"),
    ]


class Suite:
    """Runs with seeds, arm against arm on the same seeds."""

    def __init__(self, name):
        self.runs = results.result(f"bench-{name}")["runs"]
        self.ends = {seed: run["curve"][-1]["accuracy"] for seed, run in self.runs["grpo"].items()}

    def late(self, arm):
        """Seed → accuracy in the second half."""
        return {seed: results.bench_results.late_accuracy(run) for seed, run in self.runs[arm].items()}

    def mean(self, arm, key):
        return fmean(run[key] for run in self.runs[arm].values())

    def mean_late(self, arm):
        return fmean(self.late(arm).values())

    def to_the_end(self, arm, axis="tokens"):
        """Seed → where it reaches GRPO's end on the same seed; None if it does not on all of them."""
        reached = results.bench_results.reached
        found = {seed: reached(run, self.ends[seed], axis) for seed, run in self.runs[arm].items()}
        return None if None in found.values() else found

    def with_seeds(self):
        return [arm for arm, runs in self.runs.items() if len(runs) == 3]


def test_what_the_page_says_of_the_main_suite():
    """The verdicts below the first table in docs/benchmarks.md."""
    main = Suite("main")
    assert all(len(main.runs[arm]) == 3 for arm in ("grpo", "rpo", "dapo", "dapo-rpo"))
    for key in ("generated_tokens", "train_s"):
        assert main.mean("rpo", key) / main.mean("grpo", key) == pytest.approx(0.75, abs=0.03)
        assert main.mean("dapo-rpo", key) / main.mean("dapo", key) < 0.75
    grpo, rpo, dapo, dapo_rpo = (main.late(arm) for arm in ("grpo", "rpo", "dapo", "dapo-rpo"))
    assert all(rpo[seed] < grpo[seed] for seed in grpo)
    assert main.mean_late("grpo") - main.mean_late("rpo") < main.mean_late("grpo") - Suite("cuts").mean_late("grpo")
    assert main.mean_late("dapo-rpo") == pytest.approx(main.mean_late("dapo"), abs=0.01)
    assert {dapo_rpo[seed] > dapo[seed] for seed in dapo} == {True, False}


def test_what_the_page_says_of_overhead():
    """The verdict below the table in docs/benchmarks.md."""
    assert results.tables.most_overhead(results.result("overhead")) < 0.01


def test_what_the_page_says_of_the_cuts():
    """The verdicts below the tables in docs/benchmarks.md."""
    tiny, talkative = Suite("cuts"), Suite("talkative")
    # The defaults are those of an arm.
    defaults = RPOConfig()
    chosen = results.result("bench-talkative")["arms"]["L1-step-full4"]["overrides"]
    assert chosen[1:] == [
        f"rpo.truncation.max_fraction={defaults.truncation.max_fraction}",
        f"rpo.truncation.distribution={defaults.truncation.distribution}",
        f"rpo.truncation.draw_per={defaults.truncation.draw_per}",
        f"rpo.rollout.full_rollout_every={defaults.rollout.full_rollout_every}",
    ]
    assert len(talkative.runs["L1-step-full4"]) == 3
    own = talkative.late("L1-step-full4")
    assert all(own[seed] >= grpo for seed, grpo in talkative.late("grpo").items())
    assert talkative.mean("L1-step-full4", "train_s") < talkative.mean("grpo", "train_s")
    assert talkative.mean("L1-step-full4", "generated_tokens") < talkative.mean("grpo", "generated_tokens")
    for arm in talkative.runs:
        if arm not in ("grpo", "L1-step-full4"):
            assert talkative.mean_late(arm) < talkative.mean_late("grpo")
    own = tiny.late("L1-step")
    assert all(own[seed] > grpo for seed, grpo in tiny.late("grpo").items())
    # Short cuts: GRPO's end on every seed with the fewest tokens; and below where it began.
    assert all(len(tiny.runs[arm]) == 3 for arm in tiny.runs)
    short = tiny.to_the_end("L0.1")
    for other in filter(None, (tiny.to_the_end(arm) for arm in tiny.runs if arm != "L0.1")):
        assert fmean(short.values()) < fmean(other.values())
    for seed, run in talkative.runs["L0.1"].items():
        assert talkative.late("L0.1")[seed] < results.bench_results.accuracy_before(run)
    assert tiny.mean_late("L0.1") > tiny.mean_late("grpo")
    assert all(tiny.late("dapo-L0.1")[seed] < dapo for seed, dapo in tiny.late("dapo").items())
    # A draw a step, a tail.
    assert tiny.mean("L1", "generated_tokens") == pytest.approx(tiny.mean("L1-step", "generated_tokens"), rel=0.1)
    assert tiny.mean("L1-step", "train_s") < tiny.mean("L1", "train_s")
    close = [arm for arm in talkative.with_seeds() if talkative.mean_late(arm) > talkative.mean_late("grpo") - 0.02]
    assert min(close, key=lambda arm: talkative.mean(arm, "generated_tokens")) == "tail-step"
    # Adaptive cuts.
    assert tiny.to_the_end("adaptive")
    assert tiny.mean("adaptive", "generated_tokens") > 0.97 * tiny.mean("grpo", "generated_tokens")
    # Chance.
    late = tiny.late("L0.1-full4").values()
    assert round(100 * (max(late) - min(late))) == 11


def test_what_the_page_says_of_the_ablations():
    """The verdicts in docs/ablations.md, each arm a run."""
    bench = results.bench_results
    runs = {arm: seeds["1"] for arm, seeds in results.result("bench-ablations")["runs"].items()}
    late = {arm: bench.late_accuracy(run) for arm, run in runs.items()}
    tokens = {arm: run["generated_tokens"] for arm, run in runs.items()}
    distinct = {arm: run["distinct_share"] for arm, run in runs.items()}
    cut = {(L, a): f"talk-L{L}-alpha{a}" for L in ("12", "0.25", "0.5", "1") for a in ("0", "0.01", "0.1", "1")}

    # Where answers are cut.
    assert max(late[arm] for arm in runs if arm.startswith("talk-") and arm != "talk-grpo") < late["talk-grpo"]
    assert late["talk-L0.1"] < bench.accuracy_before(runs["talk-L0.1"])
    means = [fmean(late[arm] for (row, _), arm in cut.items() if row == L) for L in ("0.25", "0.5", "1")]
    assert means == sorted(means)
    for L in ("12", "0.25", "0.5", "1"):
        shorter = runs[cut[L, "1"]]["answer_tokens"]
        assert all(shorter < runs[cut[L, alpha]]["answer_tokens"] for alpha in ("0", "0.01", "0.1"))
    for L in ("0.25", "0.5"):
        assert late[cut[L, "1"]] < min(late[cut[L, alpha]] for alpha in ("0", "0.01", "0.1")) - 0.1
    # Diversity.
    unshaped = ("talk-L0.1", "talk-unshaped", "talk-unshaped-full4", "talk-unshaped-greedy0")
    assert all(distinct[arm] > 0.98 and runs[arm]["pass_at_k"]["8"] == 1 for arm in unshaped)
    assert late["talk-L0.1"] < late["talk-unshaped-full4"]
    # Weak policies.
    assert late["weak-L0.1"] > late["weak-grpo"] > max(late["weak-truth"], late["weak-strong"])
    assert 0.4 < tokens["weak-L0.1"] / tokens["weak-grpo"] < 0.5
    assert all(late[arm] < 0.01 for arm in runs if arm.startswith("weakest-"))
    without = {arm: runs[f"weakest-{arm}"]["groups_without_signal"]["before"] for arm in ("L0.1", "truth", "strong")}
    assert without["L0.1"] > 0.95 and max(without["truth"], without["strong"]) < 0.5
    # What the cache begins with.
    for arm in ("cache-built", "cache-truth", "cache-strong"):
        assert late[arm] < late["L0.1"] and tokens[arm] < tokens["L0.1"] and distinct[arm] > distinct["L0.1"]
    # Greedy, full rollouts, loss, sizes, ranges.
    assert late["L0.1"] < min(late[f"greedy{prob}"] for prob in ("0", "0.1", "0.5", "1"))
    seeds = results.result("bench-cuts")["runs"]["L0.1"].values()
    assert len(seeds) == 3 and late["L0.1"] < min(map(bench.late_accuracy, seeds))
    assert min(late["full-groups0.05"], late["full-groups0.1"]) > max(
        late[arm] for arm in runs if arm in ("L0.1", "full-never", "full-steps0.05", "full-steps0.25")
    )
    assert late["full-groups0.25"] == min(late[arm] for arm in runs if arm.startswith("full-"))
    for steps, groups in (("full-steps0.05", "full-groups0.05"), ("full-steps0.25", "full-groups0.25")):
        assert runs[steps]["train_s"] < runs[groups]["train_s"]
    assert runs["prefix-in-loss"]["train_s"] > runs["L0.1"]["train_s"] and late["prefix-in-loss"] < late["L0.1"]
    assert tokens["G4"] / tokens["L0.1"] == pytest.approx(0.5, abs=0.03)
    assert tokens["G16"] / tokens["L0.1"] == pytest.approx(2, abs=0.1)
    assert late["G4"] < late["L0.1"] and distinct["G4"] > distinct["L0.1"]
    assert late["tail"] > max(late["grpo"], late["L0.1"], late["L24"])
    assert tokens["tail"] < 0.5 * tokens["grpo"]


SENTENCES = [*sentences_on_pass_at_k(), *sentences_on_the_tiny_reasoner()]
#: A number with a unit that a measurement may have.
FIGURE = re.compile(
    r"(?<![\w.=/])[+−-]?\d[\d,]*(?:\.\d+)? ?(?:%|points?\b|times\b|seconds?\b|m?s\b|minutes?\b|hours?\b|[MG]i?B\b)"
)
#: Figures that nothing was measured for, with what tells them.
NOT_MEASURED = {
    "README.md": ["its replay buffer every 2 s", "looks every 0.05 s", "are about 120 MB"],
    "docs/benchmarks.md": ["replay buffer every 2 s", "looks every 0.05 s"],
    "docs/cache.md": ["4,096 tokens take 1.6 GB", "a million 16 GB"],
    "docs/evaluation.md": [
        "**Intervals** are 95 %",
        "do not make 100 % certain",
        "by up to 37 points",
        "close to 100 %",
    ],
    "examples/tiny_reasoner/README.md": ["outside 40% to 55%"],
    "docs/troubleshooting.md": ["4,096 tokens take 1.6 GB", "veRL's poll of 2 s"],
}


@pytest.mark.parametrize(("page", "sentence"), SENTENCES)
def test_sentences(page, sentence):
    assert sentence in prose(page)


@pytest.mark.parametrize("path", [path for path in results.PAGES if path.name != "log.md"], ids=lambda path: path.name)
def test_no_figure_without_a_file_behind_it(path):
    page = str(path.relative_to(ROOT))
    text = prose(page)
    for known in [*(sentence for of, sentence in SENTENCES if of == page), *NOT_MEASURED.get(page, [])]:
        assert known in text
        text = text.replace(known, "")
    assert FIGURE.findall(text) == [], "put it into a block, or into SENTENCES with what it comes from"


def test_number_of_upstream_names():
    names = len(UPSTREAM_NAMES)
    page = (ROOT / "docs" / "upgrading-verl.md").read_text()
    assert f"verl 0.9.0: {names - 1} of {names} upstream names as expected" in page
