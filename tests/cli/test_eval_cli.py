"""`rpo-verl eval` without a model: estimators, what is kept and resumed, what is refused, comparisons."""

import json
import math
import random
import shutil
from fractions import Fraction
from itertools import combinations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import TINY
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from rpo_verl.tools.cli.evaluate import DEFAULT_REWARD
from rpo_verl.tools.cli.main import app
from rpo_verl.tools.errors import CommandError
from rpo_verl.tools.evaluation.checkpoint import find_checkpoint
from rpo_verl.tools.evaluation.dataset import digest, distinct_questions, sample_seed
from rpo_verl.tools.evaluation.estimators import Estimate, macro_average, mean_interval, pass_at_k
from rpo_verl.tools.evaluation.results import default_ks
from rpo_verl.tools.evaluation.run import Answer, finish, missing_requests
from rpo_verl.tools.evaluation.samples import Sample, SampleStore
from rpo_verl.tools.offline.scoring import import_reward, load_reward

MODEL = str(TINY / "checkpoint")
REWARD = ("--reward-file", str(TINY / "reward.py"))


def call(*arguments, expect=0):
    result = CliRunner().invoke(app, list(map(str, arguments)))
    assert result.exit_code == expect, result.output
    return " ".join(result.output.split())


# ---- estimators


@pytest.mark.parametrize("samples", range(1, 8))
def test_pass_at_k_is_the_share_of_subsets_with_a_right_answer(samples):
    for correct in range(samples + 1):
        answers = [index < correct for index in range(samples)]
        for k in range(1, samples + 1):
            subsets = list(combinations(answers, k))
            assert pass_at_k(samples, correct, k) == pytest.approx(sum(map(any, subsets)) / len(subsets), abs=1e-12)


@settings(deadline=None)
@given(st.integers(1, 4096).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n), st.integers(1, n))))
def test_pass_at_k_keeps_its_digits_for_many_samples(case):
    samples, correct, k = case
    exact = 1 - Fraction(math.comb(samples - correct, k), math.comb(samples, k))
    assert pass_at_k(samples, correct, k) == pytest.approx(float(exact), rel=1e-9)


@settings(deadline=None)
@given(st.integers(2, 200).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n - 1), st.integers(1, n - 1))))
def test_pass_at_k_grows_with_right_answers_and_with_k(case):
    samples, correct, k = case
    value = pass_at_k(samples, correct, k)
    assert pass_at_k(samples, correct + 1, k) >= value - 1e-12
    assert pass_at_k(samples, correct, k + 1) >= value - 1e-12
    assert pass_at_k(samples, correct, 1) == pytest.approx(correct / samples)


def test_pass_at_k_is_unbiased():
    samples, k, chance = 6, 3, 0.3
    weights = [math.comb(samples, c) * chance**c * (1 - chance) ** (samples - c) for c in range(samples + 1)]
    expected = sum(weight * pass_at_k(samples, c, k) for c, weight in enumerate(weights))
    assert expected == pytest.approx(1 - (1 - chance) ** k)


@pytest.mark.parametrize(("samples", "correct", "k"), [(4, 5, 1), (4, -1, 1), (4, 1, 0), (4, 1, 5)])
def test_pass_at_k_outside_its_range(samples, correct, k):
    with pytest.raises(ValueError, match=r"from [01] to 4"):
        pass_at_k(samples, correct, k)


@settings(deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=40))
def test_an_interval_holds_its_mean_and_stays_in_range(values):
    estimate = mean_interval(values)
    assert estimate.value == pytest.approx(np.mean(values))
    assert -1e-12 <= estimate.low <= estimate.value <= estimate.high <= 1 + 1e-12
    assert estimate == mean_interval(values)


@pytest.mark.parametrize("count", [1, 5, 30, 500])
def test_questions_that_all_agree_are_not_certainty(count):
    bound = 0.025 ** (1 / count)  # Clopper and Pearson's, for no success and for nothing but successes
    assert mean_interval([0.0] * count) == Estimate(0.0, 0.0, pytest.approx(1 - bound))
    assert mean_interval([1.0] * count) == Estimate(1.0, pytest.approx(bound), 1.0)
    assert mean_interval([0.0] * count, -1.0, 1.0).low == pytest.approx(bound - 1)


def test_what_was_not_met_widens_intervals_of_few_or_nearly_equal_values():
    unseen = 1 - 0.025 ** (1 / 30)
    nearly = mean_interval([1.0] * 29 + [0.99])
    assert nearly.low == pytest.approx(nearly.value * (1 - unseen))
    few = mean_interval([0.5, 0.5 + 1e-9])
    assert (few.low, few.high) == (pytest.approx(0.5 * 0.025**0.5), pytest.approx(1 - 0.5 * 0.025**0.5))
    many = mean_interval([0.0, 1.0] * 250)
    assert (many.low, many.high) == (pytest.approx(0.456, abs=4e-3), pytest.approx(0.544, abs=4e-3))


def test_the_bootstrap_covers_the_truth_about_as_often_as_it_says():
    generator = np.random.default_rng(5)
    covered = 0
    for _ in range(300):
        values = generator.binomial(8, generator.beta(2, 3, 40)) / 8
        estimate = mean_interval(values)
        covered += estimate.low <= 0.4 <= estimate.high
    assert 0.90 <= covered / 300 <= 0.99


def test_an_average_counts_every_set_the_same():
    average = macro_average([Estimate(0.2, 0.1, 0.4), Estimate(0.6, 0.5, 0.7)])
    assert average.value == pytest.approx(0.4)
    assert average.low == pytest.approx(0.4 - math.sqrt(0.1**2 + 0.1**2) / 2)
    assert average.high == pytest.approx(0.4 + math.sqrt(0.2**2 + 0.1**2) / 2)
    with pytest.raises(ValueError, match="no average"):
        macro_average([])
    with pytest.raises(ValueError, match="no mean"):
        mean_interval([])


def test_ks_are_powers_of_two_and_the_number_of_samples():
    assert [default_ks(n) for n in (1, 2, 6, 16)] == [[1], [1, 2], [1, 2, 4, 6], [1, 2, 4, 8, 16]]


# ---- questions


def make_row(text, truth="1", source="easy"):
    return {
        "data_source": source,
        "prompt": [{"role": "user", "content": text}],
        "reward_model": {"style": "rule", "ground_truth": truth},
        "extra_info": {"index": 0},
    }


def questions_of(*rows, limit=None):
    return distinct_questions([(row["prompt"], row) for row in rows], limit)


def test_repeated_rows_are_one_question():
    rows = [make_row("a"), make_row("b"), make_row("a"), make_row("a", source="hard"), make_row("a", truth="2")]
    questions = questions_of(*rows)
    assert [question.row for question in questions] == [rows[0], rows[1], rows[3], rows[4]]
    assert digest(questions) == digest(questions_of(*reversed(rows)))
    assert digest(questions) != digest(questions[1:])
    assert [q.data_source for q in questions_of(*rows, limit=1)] == ["easy", "hard"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data_source": None}, "row 2 of --data has data_source=None"),
        ({"reward_model": {}}, "row 2 of --data .easy. has no reward_model.ground_truth"),
        ({"prompt": "a"}, "not a list of chat messages"),
    ],
)
def test_rows_that_lack_something(change, message):
    with pytest.raises(CommandError, match=message):
        questions_of(make_row("a"), make_row("b") | change)
    with pytest.raises(CommandError, match="no rows"):
        questions_of()


def test_seeds_depend_on_the_sample_alone():
    seeds = {sample_seed(seed, key, index) for seed in (0, 1) for key in ("a", "b") for index in range(50)}
    assert len(seeds) == 200
    assert all(0 <= seed < 2**63 for seed in seeds)


# ---- what is kept


def make_sample(key, index, correct, **fields):
    values = {"data_source": "easy", "tokens": 7, "truncated": False, "score": float(correct)} | fields
    return Sample(question=key, index=index, correct=correct, **values)


def test_samples_come_back(tmp_path):
    with SampleStore(tmp_path) as store:
        store.append(make_sample("a", 1, True, text="x\n\u2028y"))
        store.append(make_sample("a", 0, False))
    assert json.loads((tmp_path / "samples.jsonl").read_text().splitlines()[0])["text"] == "x\n\u2028y"
    with SampleStore(tmp_path) as store:
        assert len(store) == 2
        assert store.samples("a", 3) == [make_sample("a", 0, False), make_sample("a", 1, True)]
        assert ("a", 1) in store
        assert ("b", 1) not in store


@pytest.mark.parametrize("cut", [1, 20, 60])
def test_a_half_written_last_line_is_generated_again(tmp_path, cut):
    with SampleStore(tmp_path) as store:
        for index in range(3):
            store.append(make_sample("a", index, True))
    path = tmp_path / "samples.jsonl"
    path.write_bytes(path.read_bytes()[:-cut])
    with SampleStore(tmp_path) as store:
        assert len(store) == 2
        store.append(make_sample("a", 2, False))
    with SampleStore(tmp_path) as store:
        assert [sample.correct for sample in store.samples("a", 3)] == [True, True, False]


@pytest.mark.parametrize("line", ["{", "[1]", '{"question": "a"}'])
def test_any_other_malformed_line_is_named(tmp_path, line):
    with SampleStore(tmp_path) as store:
        store.append(make_sample("a", 0, True))
    with (tmp_path / "samples.jsonl").open("a") as file:
        file.write(f"{line}\n")
    with pytest.raises(CommandError, match=r"samples.jsonl:2: not a sample"):
        SampleStore(tmp_path)


def test_two_processes_do_not_write_to_one_folder(tmp_path):
    with SampleStore(tmp_path), pytest.raises(CommandError, match="another rpo-verl eval writes there"):
        SampleStore(tmp_path)
    with SampleStore(tmp_path):
        pass


def answer(request):
    """What a model would say: nothing but the request's seed decides."""
    text = f"#{random.Random(request.seed).choice('12')}"
    return Answer(text, len(text), truncated=False)


def in_order(requests):
    for request in requests:
        yield request, answer(request)


def score(text, row):
    right = text == f"#{row['reward_model']['ground_truth']}"
    return float(right), right


def test_an_interrupted_evaluation_ends_like_an_uninterrupted_one(tmp_path):
    questions = questions_of(*(make_row(name) for name in "abc"))

    def interrupted(requests):
        # Others finish first on the next day.
        yield from list(in_order(requests[::-1]))[:5]
        raise KeyboardInterrupt

    with SampleStore(tmp_path / "once") as store:
        list(finish(missing_requests(questions, store, 4, 0), store, in_order, score, keep_texts=True))
        expected = [store.samples(question.key, 4) for question in questions]
    with SampleStore(tmp_path / "twice") as store, pytest.raises(KeyboardInterrupt):
        list(finish(missing_requests(questions, store, 4, 0), store, interrupted, score, keep_texts=True))
    with SampleStore(tmp_path / "twice") as store:
        missing = missing_requests(questions, store, 4, 0)
        assert len(missing) == 7
        list(finish(missing, store, in_order, score, keep_texts=True))
        assert [store.samples(question.key, 4) for question in questions] == expected
        more = missing_requests(questions, store, 6, 0)
        assert [request.index for request in more] == [4, 5] * 3
        assert not list(finish([], store, interrupted, score, keep_texts=True))


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (lambda text, row: 1 / 0, r"ended with ZeroDivisionError.* on sample 0 of question .* \(easy\)"),
        (lambda text, row: (math.nan, False), "returned nan for sample 0"),
    ],
)
def test_a_reward_function_that_fails_keeps_what_is_finished(tmp_path, broken, message):
    questions = questions_of(make_row("a"), make_row("b"))
    with SampleStore(tmp_path) as store:
        list(finish(missing_requests(questions, store, 1, 0)[:1], store, in_order, score, keep_texts=False))
        with pytest.raises(CommandError, match=message):
            list(finish(missing_requests(questions, store, 1, 0), store, in_order, broken, keep_texts=False))
    with SampleStore(tmp_path) as store:
        assert len(store) == 1


# ---- the commands


@pytest.fixture
def data(tmp_path):
    """Two sets: 12 easy questions, one of them twice, and 3 hard ones."""
    rows = [make_row(f"{number}a+1", str(number), "easy") for number in range(12)]
    rows += [rows[0], *(make_row(f"{number}a*3", str(number), "hard") for number in range(3))]
    path = tmp_path / "data.parquet"
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


def fill(folder, data, right, samples=4):
    """Finish an evaluation by hand: `right` of `samples` answers are, of easy questions with an even number all."""
    with SampleStore(folder) as store:
        rows = pq.read_table(data).to_pylist()
        for number, question in enumerate(questions_of(*rows)):
            all_right = question.data_source == "easy" and number % 2 == 0
            for index in range(samples):
                sample = make_sample(question.key, index, all_right or index < right, data_source=question.data_source)
                store.append(sample)
    return folder


def evaluate(data, out, *options, model=MODEL, expect=0):
    return call("eval", model, "--data", data, "--out", out, "--n", 4, *REWARD, *options, expect=expect)


def test_results(tmp_path, data):
    out = fill(tmp_path / "out", data, right=1)
    output = evaluate(data, out)
    results = json.loads((out / "results.json").read_text())
    easy, hard, average = results["sets"]["easy"], results["sets"]["hard"], results["average"]
    assert (easy["questions"], easy["samples"], hard["questions"], average["samples"]) == (12, 48, 3, 60)
    assert easy["pass_at_k"]["1"]["value"] == pytest.approx((6 * 1 + 6 * 0.25) / 12)
    assert hard["pass_at_k"]["2"]["value"] == pytest.approx(0.5)
    assert hard["pass_at_k"]["4"]["value"] == 1.0
    assert hard["pass_at_k"]["4"]["low"] < 1.0
    assert average["pass_at_k"]["1"]["value"] == pytest.approx((0.625 + 0.25) / 2)
    assert easy["response_tokens"] == 7
    assert results["options"]["temperature"] == 0.6  # the paper's
    assert results["options"]["top_p"] == 0.95
    assert results["options"]["max_response_length"] == 32768
    assert "mean of 2 sets" in output
    table = (out / "results.md").read_text()
    assert "|  | easy | hard | mean of 2 sets |" in table
    assert "| pass@1, % | 62.5 [" in table
    assert "| questions | 12 | 3 | 15 |" in table


def test_results_of_fewer_samples_and_chosen_ks(tmp_path, data):
    out = fill(tmp_path / "out", data, right=1)
    evaluate(data, out, "--n", 2, "--k", "2,1", "--limit", 3)
    results = json.loads((out / "results.json").read_text())
    assert list(results["average"]["pass_at_k"]) == ["1", "2"]
    assert results["sets"]["hard"]["pass_at_k"]["1"]["value"] == 0.5
    assert results["average"]["questions"] == 6


def test_one_folder_is_one_evaluation(tmp_path, data):
    out = fill(tmp_path / "out", data, right=1)
    evaluate(data, out)
    before = (out / "results.json").read_bytes()
    assert "temperature: 0.6 then, 0.5 now" in evaluate(data, out, "--temperature", 0.5, expect=1)
    assert "questions: " in evaluate(data, out, "--limit", 2, expect=1)
    assert "seed: 0 then, 1 now" in evaluate(data, out, "--seed", 1, expect=1)
    reward = tmp_path / "reward.py"
    reward.write_text((TINY / "reward.py").read_text() + "\n# another\n")
    assert "reward: " in evaluate(data, out, "--reward-file", reward, expect=1)
    other = tmp_path / "other"
    shutil.copytree(MODEL, other)
    evaluate(data, out, model=other)  # the same model elsewhere
    weights = other / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\0")
    assert "model: 'files " in evaluate(data, out, model=other, expect=1)
    assert json.loads(before)["sets"] == json.loads((out / "results.json").read_text())["sets"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--k", "1,8"), "pass@k from --n=4 samples exists for k from 1 to 4"),
        (("--k", "one"), "--k=one: expected whole numbers"),
        (("--temperature", "0"), "gives the same answer every time"),
        (("--top-p", "0"), "--top-p=0 leaves no token"),
        (("--chat-template-options", "{"), "not JSON"),
        (("--chat-template-options", "3"), "not JSON of the form {name: value}"),
        (("--reward-name", "nothing"), "has no such function"),
        (("--reward-file", "nothing.py"), "not a Python file"),
        (("--reward-file", "pkg://rpo_verl.nothing"), "No module named"),
        (("--prompt-key", "question"), "has the columns"),
        (("--data", "nothing.parquet"), "not a readable Parquet file"),
    ],
)
def test_mistakes_are_named_before_anything_is_written(tmp_path, data, options, message):
    assert message in evaluate(data, tmp_path / "out", *options, expect=1)
    assert not (tmp_path / "out").exists()


def test_a_reward_file_that_cannot_be_imported(tmp_path, data):
    reward = tmp_path / "reward.py"
    reward.write_text("import no_such_module\n")
    assert "ModuleNotFoundError" in evaluate(data, tmp_path / "out", "--reward-file", reward, expect=1)


def test_what_a_checkpoint_is(tmp_path):
    step = tmp_path / "global_step_5"
    actor = step / "actor"
    shutil.copytree(MODEL, actor / "huggingface")
    assert find_checkpoint(str(step)) == find_checkpoint(str(actor)) == find_checkpoint(str(actor / "huggingface"))
    assert find_checkpoint(str(step)).fingerprint == find_checkpoint(MODEL).fingerprint
    assert find_checkpoint("some/model") == find_checkpoint("some/model")
    (actor / "huggingface" / "model.safetensors").unlink()
    with pytest.raises(CommandError, match="neither a Hugging Face model"):
        find_checkpoint(str(step))
    (actor / "model_world_size_1_rank_0.pt").write_bytes(b"weights")
    (actor / "fsdp_config.json").write_text("{}")
    sharded = find_checkpoint(str(step))
    assert (sharded.sharded, sharded.name) == (True, str(actor))
    (actor / "model_world_size_1_rank_0.pt").write_bytes(b"weight5")
    assert find_checkpoint(str(step)).fingerprint != sharded.fingerprint
    (actor / "lora_train_meta.json").write_text("{}")
    with pytest.raises(CommandError, match="is a LoRA checkpoint"):
        find_checkpoint(str(step))


# ---- comparison


@pytest.fixture
def evaluations(tmp_path, data):
    """`few` has one right answer of four to a hard question, `many` three."""
    arguments = []
    for label, right in (("few", 1), ("many", 3)):
        evaluate(data, fill(tmp_path / label, data, right))
        arguments.append(f"{label}={tmp_path / label}")
    return arguments


def test_comparison(tmp_path, evaluations):
    out = tmp_path / "compared"
    output = call("eval-compare", *evaluations, "--out", out)
    document = json.loads((out / "compare.json").read_text())
    found = document["differences"]["many"]
    assert document["baseline"] == "few"
    assert found["hard"]["1"]["value"] == pytest.approx(0.5)
    assert found["easy"]["1"]["value"] == pytest.approx(0.25)
    unseen = 1 - 0.025 ** (1 / 12)
    assert found["easy"]["1"]["low"] == pytest.approx(0.25 - unseen * 1.25)
    assert found["easy"]["1"]["high"] == pytest.approx(0.25 + unseen * 0.75)
    assert found["easy"]["4"]["value"] == 0.0
    assert found["easy"]["4"]["low"] < 0 < found["easy"]["4"]["high"]
    assert found["mean of 2 sets"]["1"]["value"] == pytest.approx(0.375)
    assert list(document["evaluations"]) == ["few", "many"]
    page = (out / "compare.md").read_text()
    assert "| data set |  | few | many | many − few |" in page
    assert "| easy | samples | 48 | 48 |  |" in page
    assert "| +25.0 [" in page
    assert "many − few" in output
    assert (out / "pass_at_k.png").read_bytes().startswith(b"\x89PNG")
    call("eval-compare", *evaluations, "--out", out, "--baseline", "many")
    assert json.loads((out / "compare.json").read_text())["differences"]["few"]["hard"]["1"]["value"] == -0.5


def test_one_evaluation_alone_has_a_curve(tmp_path, evaluations):
    call("eval-compare", evaluations[0], "--out", tmp_path / "alone")
    assert json.loads((tmp_path / "alone" / "compare.json").read_text())["differences"] == {}


def test_evaluations_that_cannot_be_compared(tmp_path, data, evaluations):
    warm = fill(tmp_path / "warm", data, 1)
    evaluate(data, warm, "--temperature", 1.0)
    output = call("eval-compare", evaluations[0], f"warm={warm}", "--out", tmp_path / "c", expect=1)
    assert "few and warm cannot be compared (temperature: 0.6 in few, 1.0 in warm)" in output
    only_four = fill(tmp_path / "four", data, 1)
    evaluate(data, only_four, "--k", "4")
    only_one = fill(tmp_path / "one", data, 1)
    evaluate(data, only_one, "--k", "1")
    output = call("eval-compare", f"a={only_four}", f"b={only_one}", "--out", tmp_path / "c", expect=1)
    assert "no k in common" in output
    unknown = call("eval-compare", *evaluations, "--out", tmp_path / "c", "--baseline", "x", expect=1)
    assert "the labels are few, many" in unknown
    assert "expected LABEL=FOLDER" in call("eval-compare", tmp_path, "--out", tmp_path / "c", expect=1)
    assert "twice" in call("eval-compare", evaluations[0], evaluations[0], "--out", tmp_path / "c", expect=1)
    assert "has finished in" in call("eval-compare", f"x={tmp_path}", "--out", tmp_path / "c", expect=1)
    (tmp_path / "few" / "results.json").write_text("{}")
    assert "schema version None" in call("eval-compare", *evaluations, "--out", tmp_path / "c", expect=1)
    assert not (tmp_path / "c").exists()


@pytest.mark.parametrize(("text", "correct"), [("so \\boxed{4}", True), ("so \\boxed{5}", False), ("no answer", False)])
def test_the_default_reward_reads_boxes(text, correct):
    score = load_reward(import_reward(DEFAULT_REWARD), "compute_score")
    row = {"data_source": "AIME24", "reward_model": {"ground_truth": "4"}, "extra_info": {}}
    assert score(text, row).correct == correct
