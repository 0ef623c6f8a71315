"""The policies that suites begin with: whose errors are systematic, and what is measured of them."""

import json
import random
import shutil

import pytest

from benchmarks import blocks, policies
from benchmarks.exact import measure_folder
from benchmarks.tiny import CHECKPOINT, task

CONTEXTS = [
    (value, operator, operand)
    for value in range(task.MODULUS)
    for operator, operands in task.OPERANDS.items()
    for operand in operands
]


def errors(share):
    return {context: wrong for context in CONTEXTS if (wrong := policies.usual_error(*context, share)) is not None}


def test_usual_errors_are_wrong_and_of_a_share_of_the_contexts():
    few, more = errors(policies.BIASED), errors(policies.BIASED_MORE)
    for share, found in ((policies.BIASED, few), (policies.BIASED_MORE, more)):
        assert len(found) / len(CONTEXTS) == pytest.approx(share, abs=0.02)
        assert all(wrong != task.apply(*context) and 0 <= wrong < task.MODULUS for context, wrong in found.items())
    assert few.items() < more.items(), "the second degree has the errors of the first"
    assert not errors(0.0)


def test_biased_solutions_are_right_as_often_as_they_should():
    rng = random.Random(0)
    biased, elsewhere, wrong = [], [], 0
    for _ in range(400):
        problem = task.draw_problem(rng, steps=12)
        solution = policies.biased_solution(problem, rng, policies.BIASED_MORE, noise=0.01)
        value, operations = task.parse_question(problem.question)
        *parts, end = solution.split(";")
        for part, (label, operator, operand) in zip(parts, operations, strict=True):
            assert part.startswith(f"{label}{value:02d}{operator}{operand}=")
            result, usual = int(part[-2:]), policies.usual_error(value, operator, operand, policies.BIASED_MORE)
            is_right = result == task.apply(value, operator, operand)
            assert is_right or usual is None or result == usual
            (elsewhere if usual is None else biased).append(is_right)
            value = result
        assert end == f"#{value:02d}", "the chain goes on from an error"
        wrong += not solution.endswith(f"#{problem.answer}")
    assert sum(biased) / len(biased) == pytest.approx(policies.RIGHT_IN_BIASED, abs=0.08)
    assert sum(elsewhere) / len(elsewhere) == pytest.approx(0.99, abs=0.005)
    assert 200 < wrong < 380


def test_sampled_measurements_are_near_the_exact_ones():
    exact, sampled = measure_folder(CHECKPOINT, 6, 3), policies.sample_folder(CHECKPOINT, 6, 3, room=48)
    # 192 samples, and a wrong solution may end in the right number.
    assert sampled["accuracy"] == pytest.approx(exact["accuracy"], abs=0.1)
    assert sampled["greedy"] == exact["greedy"] == 1.0
    assert sampled["entropy"] == pytest.approx(exact["entropy"], abs=0.03)
    assert sampled["pass_at_k"]["32"] == 1.0


def test_other_weights_than_the_recorded_ones_are_told(tmp_path, monkeypatch, recwarn):
    folder = tmp_path / "biased"
    shutil.copytree(CHECKPOINT, folder)
    with pytest.warns(UserWarning, match="differ between processors"):
        policies.check_weights(folder)
    recwarn.clear()
    recorded = tmp_path / "policies.json"
    recorded.write_text(json.dumps({"biased": {"sha256": policies.sha256(folder)}}))
    monkeypatch.setattr(policies, "RECORDED", recorded)
    policies.check_weights(folder)
    # Nothing is recorded of another one.
    policies.check_weights(folder.rename(tmp_path / "unknown"))
    assert not recwarn.list


def test_recorded_policies_are_as_the_suites_need_them():
    """Sampling finds what greedy decoding of a biased policy does not; the degrees differ, and room is left above."""
    found = blocks.result("policies")
    assert found.keys() >= {"tiny", "biased", "biased-more"}
    starts = {name: found[name]["accuracy"] for name in ("biased", "biased-more")}
    assert all(0.25 <= start <= 0.45 for start in starts.values())
    assert starts["biased"] > starts["biased-more"] + 0.05
    for name in starts:
        assert found[name]["greedy"] < found[name]["pass_at_k"]["32"] - 0.2
    assert found["tiny"]["greedy"] > 0.95, "whose errors are noise"
    for measured in found.values():
        assert measured.keys() >= {"questions", "accuracy", "greedy", "pass_at_k", "entropy", "sha256"}
