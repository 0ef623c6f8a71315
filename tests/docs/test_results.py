"""The generated blocks are those of `docs/results`, and verdicts of the pages hold for its figures."""

from statistics import fmean

import pytest

from benchmarks import arms, blocks, contamination, tables
from benchmarks import results as bench
from benchmarks.lab import suites
from benchmarks.learning_rates import LR_SUITE, SWEPT, SWEPT_AS
from benchmarks.statistics import paired, reached
from rpo_verl.r2po.options import R2POConfig

PLACES = [(page, place) for page in blocks.PAGES for place in blocks.PLACE.finditer(page.read_text())]


@pytest.mark.parametrize(("page", "place"), PLACES, ids=[f"{page.name}-{place['name']}" for page, place in PLACES])
def test_blocks(page, place):
    assert place["block"] == blocks.BLOCKS[place["name"]](), "`make results` writes it again"


def test_every_block_has_its_place():
    assert {place["name"] for _, place in PLACES} == set(blocks.BLOCKS)
    assert len(PLACES) == sum(page.read_text().count("<!-- results") for page in blocks.PAGES)


#: File of results → suite of today; `talkative` has another name.
RECORDED = {"biased": "biased", "cuts": "cuts", "talkative": "talkative-cuts", "ablations": "ablations"}


def test_recorded_arms_are_those_of_today():
    """By name; an arm of an option that no longer exists is marked in the tables."""
    marked = set()
    assert {f"bench-{name}" for name in RECORDED} == {path.stem for path in blocks.RESULTS.glob("bench-*.json")}
    for name, today in RECORDED.items():
        found, suite = blocks.result(f"bench-{name}"), arms.SUITES[today]
        others = {arm for arm in found["arms"] if arm not in suite.arms}
        assert others == {arm for arm in found["arms"] if bench.label(found, arm) != arm}
        assert set(found["questions"]) == set(suite.questions)
        marked |= others
    assert marked == {"adaptive", "full-groups0.05", "full-groups0.1", "full-groups0.25"}
    assert list(blocks.demo()["runs"]) == list(arms.DEMO["grpo"])[:2]
    assert set(blocks.result("pass-at-k")["evaluations"]) <= {"base", *arms.BASELINES}
    for call in ("contamination", "contamination-one-failure"):
        assert set(blocks.result(call)) <= set(contamination.ARMS)


def test_a_recorded_arm_trained_with_the_settings_of_its_name():
    """Those of the baselines: a file from before the lean layer has none without `-plain`."""
    baselines = {"grpo", "grpo-plain", "dapo", "dapo-plain"}
    for name, today in RECORDED.items():
        for arm, recorded in blocks.result(f"bench-{name}")["arms"].items():
            if arm in baselines or arm.endswith(("-grpo", "-grpo-plain")):
                assert tuple(recorded["overrides"]) == arms.SUITES[today].arms[arm].overrides, (name, arm)


def test_verdicts_on_the_language_model():
    """Those of docs/benchmarks.md."""
    grpo, rpo = (blocks.result("lm")["runs"][arm]["1"] for arm in ("grpo", "rpo"))
    for run, first, last, end, once in (
        (grpo, 0.402, 0.496, 0.461, 0.48),
        (rpo, 0.375, 0.477, 0.434, 0.432),
    ):
        assert [round(run["curve"][at]["accuracy"], 3) for at in (0, -1)] == [first, last]
        assert round(run["end"]["accuracy"], 3) == end and round(run["end"]["pass_at_k"]["1"], 3) == once
    assert f"{rpo['generated_tokens'] / grpo['generated_tokens']:.0%}" == "31%"
    assert f"{rpo['train_s'] / grpo['train_s']:.0%}" == "71%"


def test_verdicts_on_pass_at_k():
    """Those of docs/evaluation.md."""
    found = blocks.result("pass-at-k")
    passed = {arm: evaluation["sets"]["tiny_reasoner"]["pass_at_k"] for arm, evaluation in found["evaluations"].items()}
    differences = {arm: kinds["tiny_reasoner"] for arm, kinds in found["differences"].items()}
    assert round(100 * passed["grpo-plain"]["1"]["value"]) == round(100 * passed["L0.1"]["1"]["value"])
    for k in ("8", "16", "32"):
        assert round(100 * differences["base"][k]["value"]) == 5 and differences["base"][k]["low"] > 0
    assert {round(100 * differences["L0.1"][k]["value"]) for k in ("4", "8", "16", "32")} == {3}
    assert all(difference["low"] < 0 < difference["high"] for difference in differences["L0.1"].values())


class Suite:
    """Runs with seeds, arm against arm on the same seeds."""

    def __init__(self, name):
        self.runs = blocks.result(f"bench-{name}")["runs"]
        self.ends = {seed: run["curve"][-1]["accuracy"] for seed, run in self.runs["grpo-plain"].items()}

    def late(self, arm):
        """Seed → accuracy in the second half."""
        return {seed: bench.late_accuracy(run) for seed, run in self.runs[arm].items()}

    def mean(self, arm, key):
        return fmean(run[key] for run in self.runs[arm].values())

    def mean_late(self, arm):
        return fmean(self.late(arm).values())

    def to_the_end(self, arm, axis="tokens"):
        """Seed → where it reaches GRPO's end on the same seed; None if it does not on all of them."""
        found = {seed: bench.reached(run, self.ends[seed], axis) for seed, run in self.runs[arm].items()}
        return None if None in found.values() else found

    def with_seeds(self):
        return [arm for arm, runs in self.runs.items() if len(runs) == 3]


def test_verdicts_on_the_biased_policy():
    """Those of README and docs/benchmarks.md: every seed, a fifth of the tokens, two thirds of the time."""
    runs = blocks.result("bench-biased")["runs"]
    grpo, rpo = runs["grpo"], runs["rpo"]
    assert list(grpo) == list(rpo) == ["1", "2", "3", "4", "5"]
    for seed, run in rpo.items():
        end = bench.final_accuracy(grpo[seed])
        assert bench.final_accuracy(run) > end
        assert run["generated_tokens"] < 0.2 * grpo[seed]["generated_tokens"]
        assert run["train_s"] < 0.67 * grpo[seed]["train_s"]
        assert reached(run, end, "tokens") < 0.15 * grpo[seed]["generated_tokens"]
        assert reached(run, end, "seconds") < 0.4 * grpo[seed]["train_s"]

    def mean(arm, of):
        return fmean(of(run) for run in runs[arm].values())

    assert mean("rpo", lambda run: run["exact"]["pass_at_k"]["32"]) > mean(
        "grpo", lambda run: run["exact"]["pass_at_k"]["32"]
    )
    assert mean("rpo", lambda run: run["exact"]["entropy"]) < mean("grpo", lambda run: run["exact"]["entropy"])
    # Where the time goes: of the 2.5 s a step, generation has 1.8 and the update 0.8.
    saved = {
        part: mean("grpo", lambda run, part=part: run["parts_s"][part])
        - mean("rpo", lambda run, part=part: run["parts_s"][part])
        for part in ("generation", "update", "waiting")
    }
    assert saved == pytest.approx({"generation": 1.8, "update": 0.8, "waiting": 0.0}, abs=0.06)
    tokens = {arm: mean(arm, lambda run: run["generated_tokens"]) for arm in runs}
    slope = 48 * saved["generation"] / (tokens["grpo"] - tokens["rpo"])
    at_none = mean("rpo", lambda run: run["parts_s"]["generation"]) - slope * tokens["rpo"] / 48
    assert at_none == pytest.approx(2.6, abs=0.05)
    # 8 steps of 8 questions visit each once.
    assert all(run["curve"][1]["step"] == 8 for by_seed in runs.values() for run in by_seed.values())
    first = {arm: mean(arm, lambda run: run["curve"][1]["tokens"]) for arm in runs}
    assert first["rpo"] / first["grpo"] == pytest.approx(0.53, abs=0.01)
    assert (tokens["rpo"] - first["rpo"]) / (tokens["grpo"] - first["grpo"]) == pytest.approx(0.12, abs=0.01)


def test_verdict_on_overhead():
    """That of docs/benchmarks.md."""
    assert tables.most_overhead(blocks.result("overhead")) < 0.01


def test_verdicts_on_the_cuts():
    """Those of docs/benchmarks.md."""
    tiny, talkative = Suite("cuts"), Suite("talkative")
    # What RPO without credit is in today's suites.
    chosen = blocks.result("bench-talkative")["arms"]["L1-step-full4"]["overrides"]
    assert "rpo.truncation.max_fraction=1.0" in chosen and "rpo.truncation.max_fraction=1" in arms.UNCREDITED.overrides
    assert {"rpo.rollout.full_rollout_every=4"} <= {*chosen} & {*arms.UNCREDITED.overrides}
    assert len(talkative.runs["L1-step-full4"]) == 3
    own = talkative.late("L1-step-full4")
    assert all(own[seed] >= grpo for seed, grpo in talkative.late("grpo-plain").items())
    assert talkative.mean("L1-step-full4", "train_s") < talkative.mean("grpo-plain", "train_s")
    assert talkative.mean("L1-step-full4", "generated_tokens") < talkative.mean("grpo-plain", "generated_tokens")
    for arm in talkative.runs:
        if arm not in ("grpo-plain", "L1-step-full4"):
            assert talkative.mean_late(arm) < talkative.mean_late("grpo-plain")
    own = tiny.late("L1-step")
    assert all(own[seed] > grpo for seed, grpo in tiny.late("grpo-plain").items())
    # Short cuts: GRPO's end on every seed with the fewest tokens; and below where it began.
    assert all(len(tiny.runs[arm]) == 3 for arm in tiny.runs)
    short = tiny.to_the_end("L0.1")
    for other in filter(None, (tiny.to_the_end(arm) for arm in tiny.runs if arm != "L0.1")):
        assert fmean(short.values()) < fmean(other.values())
    for seed, run in talkative.runs["L0.1"].items():
        assert talkative.late("L0.1")[seed] < bench.accuracy_before(run)
    assert tiny.mean_late("L0.1") > tiny.mean_late("grpo-plain")
    assert all(tiny.late("dapo-L0.1")[seed] < dapo for seed, dapo in tiny.late("dapo-plain").items())
    # A draw a step, a tail.
    assert tiny.mean("L1", "generated_tokens") == pytest.approx(tiny.mean("L1-step", "generated_tokens"), rel=0.1)
    assert tiny.mean("L1-step", "train_s") < tiny.mean("L1", "train_s")
    close = [
        arm for arm in talkative.with_seeds() if talkative.mean_late(arm) > talkative.mean_late("grpo-plain") - 0.02
    ]
    assert min(close, key=lambda arm: talkative.mean(arm, "generated_tokens")) == "tail-step"
    # Adaptive cuts.
    assert tiny.to_the_end("adaptive")
    assert tiny.mean("adaptive", "generated_tokens") > 0.97 * tiny.mean("grpo-plain", "generated_tokens")
    # Chance.
    late = tiny.late("L0.1-full4").values()
    assert round(100 * (max(late) - min(late))) == 11


def test_verdicts_on_the_ablations():
    """Those of docs/ablations.md, each arm a run."""
    runs = {arm: seeds["1"] for arm, seeds in blocks.result("bench-ablations")["runs"].items()}
    late = {arm: bench.late_accuracy(run) for arm, run in runs.items()}
    tokens = {arm: run["generated_tokens"] for arm, run in runs.items()}
    distinct = {arm: run["distinct_share"] for arm, run in runs.items()}
    cut = {(L, a): f"talk-L{L}-alpha{a}" for L in ("12", "0.25", "0.5", "1") for a in ("0", "0.01", "0.1", "1")}

    # Where answers are cut.
    assert (
        max(late[arm] for arm in runs if arm.startswith("talk-") and arm != "talk-grpo-plain") < late["talk-grpo-plain"]
    )
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
    assert late["weak-L0.1"] > late["weak-grpo-plain"] > max(late["weak-truth"], late["weak-strong"])
    assert 0.4 < tokens["weak-L0.1"] / tokens["weak-grpo-plain"] < 0.5
    assert all(late[arm] < 0.01 for arm in runs if arm.startswith("weakest-"))
    without = {arm: runs[f"weakest-{arm}"]["groups_without_signal"]["before"] for arm in ("L0.1", "truth", "strong")}
    assert without["L0.1"] > 0.95 and max(without["truth"], without["strong"]) < 0.5
    # What the cache begins with.
    for arm in ("cache-built", "cache-truth", "cache-strong"):
        assert late[arm] < late["L0.1"] and tokens[arm] < tokens["L0.1"] and distinct[arm] > distinct["L0.1"]
    # Greedy, full rollouts, loss, sizes, ranges.
    assert late["L0.1"] < min(late[f"greedy{prob}"] for prob in ("0", "0.1", "0.5", "1"))
    seeds = blocks.result("bench-cuts")["runs"]["L0.1"].values()
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
    assert late["tail"] > max(late["grpo-plain"], late["L0.1"], late["L24"])
    assert tokens["tail"] < 0.5 * tokens["grpo-plain"]


def test_learning_rates_are_the_best_of_their_sweep():
    found = blocks.result("lab-lr")["runs"]
    for (policy, family), chosen in SWEPT.items():
        means = {
            arm.rpartition("-lr")[2]: fmean(run["curve"][-1]["accuracy"] for run in by_seed.values())
            for arm, by_seed in found[policy].items()
            if arm.startswith(f"{SWEPT_AS.get(family, family)}-lr")
        }
        assert chosen.value == max(means, key=means.get), (policy, family)
        assert chosen.sweep == LR_SUITE


def test_verdicts_of_the_fast_lane():
    """Of docs/lab.md and README: every seed, a fifth of the tokens, a third of the time, an eighth of the way."""
    runs = blocks.result("lab-reuse")["runs"]["biased"]
    grpo, trunks, raft = (runs[arm] for arm in ("grpo", "rpo", "raft"))
    assert len(grpo) == len(trunks) == len(raft) == 5

    def end(run):
        return run["curve"][-1]

    for seed, run in trunks.items():
        assert end(run)["accuracy"] > end(grpo[seed])["accuracy"]
        assert run["generated_tokens"] < 0.2 * grpo[seed]["generated_tokens"]
        assert reached(run, end(grpo[seed])["accuracy"], "tokens") < 0.15 * grpo[seed]["generated_tokens"]
    seconds = [sum(sum(run["parts_s"].values()) for run in arm.values()) for arm in (trunks, grpo)]
    assert seconds[0] < 0.34 * seconds[1]
    ends = [fmean(end(run)["accuracy"] for run in arm.values()) for arm in (grpo, trunks, raft)]
    assert ends == sorted(ends)
    for arm in (trunks, raft):
        answered = [fmean(run["pass_at_k"]["32"] for run in one.values()) for one in (arm, grpo)]
        assert answered[0] > answered[1] - 0.005
        assert fmean(run["entropy"] for run in arm.values()) < fmean(run["entropy"] for run in grpo.values())


def test_verdicts_of_the_fast_lane_on_other_policies():
    """Those of docs/lab.md: above GRPO where one answer is right, shown on two policies; where many are, not shown."""
    found = blocks.result("lab-reuse")["runs"]

    def ends(policy, arm):
        return {seed: bench.final_accuracy(run) for seed, run in found[policy][arm].items()}

    def above(policy, arm="rpo", other="grpo"):
        own = ends(policy, arm)
        return sum(own[seed] > end for seed, end in ends(policy, other).items())

    assert [above(policy) for policy in ("tiny", "biased", "biased-more", "talkative")] == [5, 5, 3, 1]
    shown = {
        policy: paired(bench.in_points({"runs": runs}, lambda _, run: bench.final_accuracy(run), "rpo")).is_shown
        for policy, runs in found.items()
    }
    assert shown == {"tiny": True, "biased": True, "biased-more": False, "talkative": False}
    gains = [
        100 * (fmean(ends(policy, "rpo-imitate").values()) - fmean(ends(policy, "rpo").values())) for policy in found
    ]
    assert min(gains) > 0.1 and round(max(gains), 1) == 1.4
    assert above("tiny", "rpo-imitate", "rpo") == 5

    def mean(arm, of):
        return fmean(map(of, found["talkative"][arm].values()))

    for arm, distinct in (("grpo", 0.94), ("rpo", 0.80)):
        assert mean(arm, lambda run: run["pass_at_k"]["32"]) == pytest.approx(1.0, abs=0.001)
        assert mean(arm, lambda run: run["distinct_share"]) == pytest.approx(distinct, abs=0.01)
    sweep = {arm: by_seed["11"] for arm, by_seed in blocks.result("lab-lr")["runs"]["talkative"].items()}
    low, grpo = (sweep[arm] for arm in ("rpo-unshaped-lr3e-4", "grpo-lr3e-4"))
    assert round(low["distinct_share"], 2) == round(grpo["distinct_share"], 2) == 0.97
    assert round(100 * (bench.final_accuracy(grpo) - bench.final_accuracy(low))) == 5


def test_verdicts_on_r2po():
    """Those of docs/r2po.md: fewer steps of the policy cost what R²PO costs, and the head does nothing that shows."""
    runs = blocks.result("lab-r2po")["runs"]["biased"]

    def against(arm, other):
        ends = [{seed: bench.final_accuracy(run) for seed, run in runs[name].items()} for name in (arm, other)]
        found = paired([100 * (end - ends[1][seed]) for seed, end in ends[0].items()])
        assert found.pairs == 5
        return round(found.mean, 1), found.is_shown

    assert against("r2po", "grpo") == (-1.7, False)
    assert against("r2po-every5", "grpo") == (-6.4, True)
    assert against("grpo-38steps", "grpo") == (-5.0, True)
    assert against("r2po-every5", "grpo-38steps") == (-1.5, False)
    assert against("grpo-pods", "grpo") == (-6.8, False)
    assert R2POConfig().head_every == 20
    for of_policy in blocks.result("lab-r2po")["runs"].values():
        assert fmean(run["head"]["head_entropy_gain"] for run in of_policy["r2po-every5"].values()) < 0


def test_raft_at_the_tokens_of_rpo_has_them():
    found = blocks.result("lab-reuse")["runs"]["biased"]
    spent = [fmean(run["generated_tokens"] for run in found[arm].values()) for arm in ("rpo", "grpo")]
    assert round(spent[0] / spent[1], 2) == suites.RPO_TOKENS
