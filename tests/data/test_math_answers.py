"""The math reward on a table of answers: what people report about verifiers, and siblings of each kind of fault.

Each row of `math_answers.jsonl` has a ground truth, a response, the verdict, and whether it is firm: nobody argues.
"""

import json
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from conftest import ROOT

from rpo_verl.rewards.math import compute_score
from rpo_verl.rewards.normalization import RULES, SIGNS, normalize
from rpo_verl.rewards.quantities import quantity

ROWS = [json.loads(line) for line in (ROOT / "tests" / "data" / "math_answers.jsonl").read_text().split("\n") if line]
KINDS = defaultdict(list)
for row in ROWS:
    KINDS[row["kind"]].append(row)

#: Where this reward says otherwise than the table, and why.
ARGUABLE = {
    ("100,200", "So the result is \\boxed{100200}."): "a truth with commas between thousands is one number",
    ("2^{10}", "So the result is \\boxed{2^10}."): "models write 2^10 and mean the power, whatever LaTeX sets",
    ("42", "<think>\\boxed{42}"): "an unfinished thought is no answer; an option reads it",
}


def score(response, truth, **settings):
    return compute_score("table", response, truth, {"index": 7}, timeout=30.0, **settings)


@pytest.mark.parametrize("kind", KINDS)
def test_table(kind):
    with ThreadPoolExecutor(2) as threads:
        results = list(threads.map(lambda row: score(row["response"], row["ground_truth"]), KINDS[kind]))
    assert not [result for result in results if result["timed_out"] or result["crashed"]]
    wrong = {
        (row["ground_truth"], row["response"])
        for row, result in zip(KINDS[kind], results, strict=True)
        if bool(result["score"]) != row["right"]
    }
    assert wrong <= ARGUABLE.keys()


def test_few_are_arguable():
    firm = {(row["ground_truth"], row["response"]) for row in ROWS if row["firm"]}
    assert len(firm & ARGUABLE.keys()) <= 1 < len(firm) / 100


def test_an_option_reads_unfinished_thinking():
    response = "<think>So it is \\boxed{42}."
    assert score(response, "42")["no_answer"] == 1.0
    assert score(response, "42", read_unfinished_thinking=True)["score"] == 1.0
    assert score("<think>\\boxed{41}</think>\\boxed{42}", "42", read_unfinished_thinking=True)["score"] == 1.0


@pytest.mark.parametrize(
    ("truth", "answer"),
    [
        (["5", "6"], "5, 6"),
        (np.array(["5", "6"], dtype=object), "6, 5"),
        (True, "\\text{True}"),
        (np.float64(2.5), "2.5"),
        ("-2./7", "-\\frac{2}{7}"),
        ("\\250", "250"),
        ("#### 5", "5"),
        ("]0,1[", "(0,1)"),
        ("O+", "\\text{O+}"),
    ],
)
def test_ground_truths_as_data_sets_have_them(truth, answer):
    assert score(f"\\boxed{{{answer}}}", truth)["score"] == 1.0
    assert score("\\boxed{31}", truth)["score"] == 0.0


@pytest.mark.parametrize(
    ("truth", "reason"),
    [
        (None, "neither a number nor a word"),
        ([], "neither a number nor a word"),
        (float("nan"), "neither a number nor a word"),
        ({}, "neither a number nor a word"),
        (b"5", "neither a number nor a word"),
        ("-", "neither a number nor a word"),
        ("$$", "neither a number nor a word"),
        ("\\boxed{}", "neither a number nor a word"),
        ("?", "neither a number nor a word"),
        ("null", "a value that is missing"),
        ("x =", "it breaks off"),
        ("(3,4", "a bracket in it is never closed"),
        ("[1,2", "a bracket in it is never closed"),
        ("\\frac{1", "a bracket in it is never closed"),
    ],
)
def test_a_ground_truth_that_nothing_can_match_is_an_error_with_value_and_row(truth, reason):
    with pytest.raises(ValueError, match=reason) as caught:
        score("\\boxed{5}", truth)
    assert str(caught.value).startswith(f"table, row 7: the ground truth {truth!r} cannot be read: ")


def test_every_rule_has_a_name_of_its_own_and_does_something():
    assert len({rule.name for rule in RULES}) == len(RULES)
    texts = [row["ground_truth"] for row in ROWS]
    texts += [row["response"].partition("\\boxed{")[2].rpartition("}")[0] or row["response"][:200] for row in ROWS]
    used = set()
    for text in texts:
        text = text.translate(str.maketrans(SIGNS))
        for rule in RULES:
            changed = rule.pattern.sub(rule.replacement, text)
            used |= {rule.name} if changed != text else set()
            text = changed
    assert [rule.name for rule in RULES if rule.name not in used] == []


@pytest.mark.parametrize("row", ROWS[::25], ids=lambda row: row["ground_truth"][:20])
def test_normalizing_twice_changes_nothing(row):
    plain = normalize(row["ground_truth"])
    assert normalize(plain) == plain


@pytest.mark.parametrize(
    ("answer", "value", "kind", "labels"),
    [
        ("15 \\text{cm}^2", "15", {("length", 2)}, set()),
        ("3ab", "3ab", set(), set()),
        ("12 apples", "12", set(), {"apple"}),
        ("5\\text{ million}", "(5)\\cdot 1000000", set(), set()),
        ("12\\text{ or more}", "12\\text{ or more}", set(), set()),
        ("\\$3", "3", {("dollar", 1)}, set()),
        ("3\\pmod 7", "3", {("modulo 7", 1)}, set()),
        ("3 \\text{cm}, 4 \\text{cm}", "3, 4", {("length", 1)}, set()),
    ],
)
def test_quantities(answer, value, kind, labels):
    found = quantity(answer)
    assert (found.value, found.unit.kind, found.unit.labels) == (value, kind, labels)
