"""Differences over paired seeds: intervals, what overturns them, areas under curves."""

import pytest

from benchmarks import results, statistics
from benchmarks.statistics import area, kept_between, overturned, paired, reached, t_quantile


def curve(*accuracies, seconds=10.0, tokens=100):
    return {
        "curve": [
            {"step": 8 * i, "seconds": seconds * i, "tokens": tokens * i, "accuracy": a}
            for i, a in enumerate(accuracies)
        ]
    }


def test_quantiles_are_those_of_the_tables():
    known = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 9: 2.262, 30: 2.042}
    assert {n: round(t_quantile(n), 3) for n in known} == known
    assert t_quantile(4, 0.99) == pytest.approx(4.604, abs=1e-3)


def test_paired_differences_have_a_t_interval():
    found = paired([2.0, 3.0, 1.0, 2.0])
    # Deviation sqrt(2/3), so a standard error of 0.408 and 3.182 of them.
    assert (found.pairs, found.mean) == (4, 2.0)
    assert (found.low, found.high) == (pytest.approx(0.701, abs=1e-3), pytest.approx(3.299, abs=1e-3))
    assert found.is_shown and not paired([2.0, -1.0]).is_shown
    assert paired([5.0]) == statistics.Difference(1, 5.0, None, None) and not paired([5.0]).is_shown
    with pytest.raises(ValueError, match="share no seed"):
        paired([])


@pytest.mark.parametrize(
    "differences", [[2.0, 3.0, 1.5, 2.4, 2.9], [-2.0, -3.0, -1.5], [1.0, 1.2, 0.5], [0.5, 1.5, 1.2, 0.1]]
)
def test_a_further_seed_undoes_a_result_exactly_beyond_the_ends(differences):
    low, high = kept_between(differences)
    for end, inwards in ((low, 1), (high, -1)):
        assert paired([*differences, end + 1e-6 * inwards]).is_shown
        assert not paired([*differences, end - 1e-6 * inwards]).is_shown


def test_no_further_seed_may_do():
    scattered = [1.0, -1.0, 0.5]
    assert kept_between(scattered) is None
    assert not any(paired([*scattered, x / 10]).is_shown for x in range(-1000, 1000))


def test_every_result_says_what_overturns_it():
    better = overturned([2.0, 3.0, 1.5, 2.4, 2.9])
    assert better.startswith(
        "A difference is shown ([+1.6, +3.1] points); it holds unless that of a further seed is below"
    )
    assert "below -1.4 points, or above +11.2" in better
    assert "above +1.4 points, or below -11.2" in overturned([-2.0, -3.0, -1.5, -2.4, -2.9])
    assert overturned([1.0, -1.0, 0.5]).endswith("no single further seed could show one.")
    low, high = kept_between([0.5, 1.5, 1.2, 0.0])
    assert f"one further seed between {low:+.1f} and {high:+.1f} points would show one" in overturned(
        [0.5, 1.5, 1.2, 0.0]
    )
    assert overturned([1.0]) == "One seed shows no difference; there is no interval."


def test_where_an_accuracy_is_reached_by_tokens():
    assert reached(curve(0.5, 0.7, 0.8), 0.75, "tokens") == pytest.approx(150)
    assert reached(curve(0.5, 0.7), 0.8, "tokens") is None


def test_area_is_the_mean_accuracy_while_a_budget_is_spent():
    assert area(curve(0.5, 0.7), "tokens", 100) == pytest.approx(0.6)
    assert area(curve(0.5, 0.7, 0.8), "tokens", 100) == pytest.approx(0.6), "cut at the budget"
    assert area(curve(0.5, 0.7, 0.8), "seconds", 15) == pytest.approx((6 + 5 * 0.725) / 15), "cut between points"
    assert area(curve(0.5, 0.7), "seconds", 40) == pytest.approx((6 + 30 * 0.7) / 40), "keeps its last accuracy"
    late = curve(0.5, 0.7)
    late["curve"] = late["curve"][1:]
    with pytest.raises(ValueError, match="begin at 0"):
        area(late, "tokens", 100)
    with pytest.raises(ValueError, match="to 0 tokens"):
        area(curve(0.5, 0.7), "tokens", 0)


RUNS = {
    "grpo": {"1": curve(0.5, 0.7, 0.8), "2": curve(0.5, 0.7, 0.9), "3": curve(0.5, 0.7, 0.7)},
    "rpo": {"1": curve(0.5, 0.8, 0.83, tokens=50), "2": curve(0.5, 0.9, 0.92, tokens=50)},
}


def test_table_of_differences():
    head, grpo, rpo = results.difference_rows({"runs": RUNS})
    assert head[3] == "against grpo, points" and head[-2:] == ["tokens to grpo's end", "time to grpo's end"]
    assert grpo == ["grpo", "3", "0.800", "", "", "", "83% [50%, 100%]", "83% [50%, 100%]"]
    # Seeds 1 and 2: 3 and 2 points, 12.706 · 0.5 around their mean.
    assert rpo[:4] == ["rpo", "2", "0.875", "+2.5 [-3.9, +8.9]"]
    assert rpo[-2:] == ["25% [25%, 25%]", "50% [50%, 50%]"]
    by_tokens = [area(RUNS["rpo"][s], "tokens", 200) - area(RUNS["grpo"][s], "tokens", 200) for s in "12"]
    assert rpo[4].startswith(f"{50 * sum(by_tokens):+.1f} [")


def test_seconds_of_different_processors_are_not_compared():
    elsewhere = {seed: run | {"processor": "another"} for seed, run in RUNS["rpo"].items()}
    rpo = results.difference_rows({"runs": RUNS | {"rpo": elsewhere}})[2]
    same = results.difference_rows({"runs": RUNS})[2]
    assert (rpo[5], rpo[-1]) == ("–", "–") and rpo[:5] == same[:5] and rpo[6] == same[6]


def test_a_seed_without_its_start_is_not_compared_by_areas():
    beheaded = {"curve": RUNS["rpo"]["1"]["curve"][1:]}
    rows = results.difference_rows({"runs": RUNS | {"rpo": {"1": beheaded, "2": RUNS["rpo"]["2"]}}})
    assert rows[2][:4] == ["rpo", "1", "0.920", "+2.0"]


def test_sentences_of_a_suite():
    assert results.overturning({"runs": RUNS}) == [
        f"`rpo` against `grpo`: {overturned([100 * (0.83 - 0.8), 100 * (0.92 - 0.9)])}"
    ]
