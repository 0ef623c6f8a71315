"""Exact accuracy against probabilities computed one by one, and against samples."""

import json
import sys
from itertools import islice

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from benchmarks import exact
from benchmarks.lab.sampler import Sampler
from benchmarks.lab.tasks import Operations
from benchmarks.tiny import CHECKPOINT, task


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def tiny():
    model = AutoModelForCausalLM.from_pretrained(CHECKPOINT, dtype=torch.float32).eval()
    return model, AutoTokenizer.from_pretrained(CHECKPOINT)


def test_figures_are_those_of_one_question_after_the_other():
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=5, hidden_size=16, intermediate_size=16, num_hidden_layers=1,
                         num_attention_heads=2, initializer_range=0.5)  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    questions = [exact.Solved([2, 3], [4, 1]), exact.Solved([2], [3]), exact.Solved([4, 4, 2], [2, 2, 1])]
    p, greedy, entropies = [], [], []
    for question, solution in questions:
        with torch.no_grad():
            log_p = model(torch.tensor([question + solution])).logits[0, len(question) - 1 : -1].log_softmax(-1)
        p.append(float(log_p.gather(1, torch.tensor(solution)[:, None]).sum().exp()))
        greedy.append(log_p.argmax(-1).tolist() == solution)
        entropies += (-(log_p.exp() * log_p).sum(-1)).tolist()
    for batch in (1, 2, 3):
        found = exact.measure(model, questions, batch)
        assert found["accuracy"] == pytest.approx(np.mean(p), rel=1e-5)
        assert found["pass_at_k"]["4"] == pytest.approx(np.mean([1 - (1 - one) ** 4 for one in p]), rel=1e-5)
        assert found["greedy"] == np.mean(greedy)
        assert found["entropy"] == pytest.approx(np.mean(entropies), rel=1e-5)
    assert list(found["pass_at_k"]) == ["1", "2", "4", "8", "16", "32"]
    with pytest.raises(ValueError, match="questions is empty"):
        exact.measure(model, [])


def test_greedy_counts_questions_whose_every_token_is_the_most_likely(tiny):
    model, tokenizer = tiny
    right = exact.held_out(tokenizer, 2, steps=3)
    wrong = exact.Solved(right[0].question, [right[0].solution[0] + 1, *right[0].solution[1:]])
    assert exact.measure(model, right)["greedy"] == 1
    assert exact.measure(model, [*right, wrong])["greedy"] == pytest.approx(2 / 3)
    assert exact.measure(model, [*right, wrong])["accuracy"] < exact.measure(model, right)["accuracy"]


def test_held_out_questions_are_solved_and_no_training_questions(tiny):
    _, tokenizer = tiny
    held_out = exact.held_out(tokenizer, 50)
    assert len({tuple(one.question) for one in held_out}) == 50
    for one, problem in zip(held_out, task.generate(exact.HELD_OUT_SEED, 12), strict=False):
        assert one.solution[-1] == tokenizer.eos_token_id
        assert tokenizer.decode(one.solution[:-1]) == task.write_solution(problem.question)
    trained = {question.ids for seed in range(1, 6) for question in Operations(12).draw(tokenizer, seed, 64)}
    assert not trained & {tuple(one.question) for one in held_out}


def test_exact_accuracy_is_what_samples_show(tiny):
    """A longer one, with 20,000 samples, stands in benchmarks/README.md."""
    model, tokenizer = tiny
    count, each, steps = 12, 12, 7
    of = Operations(steps)
    questions, held_out = of.draw(tokenizer, of.held_out_seed, count), of.solved(tokenizer, count)
    assert [question.ids for question in questions] == [tuple(one.question) for one in held_out]
    p = np.array([exact.measure(model, [one])["accuracy"] for one in held_out])
    contexts = [question.ids for question in questions for _ in range(each)]
    generator = torch.Generator().manual_seed(0)
    found = Sampler(model, {tokenizer.eos_token_id}).sample(contexts, [128] * len(contexts), generator)
    on_path = np.array([answer.tokens.tolist() == held_out[i // each].solution for i, answer in enumerate(found)])
    correct = np.array([of.reward(tokenizer, questions[i // each], answer.tokens)[1] for i, answer in enumerate(found)])
    assert (correct >= on_path).all(), "the right solution is always rewarded"
    bound = 4 * np.sqrt((p * (1 - p)).sum() * each) / len(found)
    assert bound < 0.15
    assert abs(on_path.mean() - p.mean()) < bound
    assert exact.measure(model, held_out)["accuracy"] == pytest.approx(p.mean(), rel=1e-5)


def test_a_folder_on_the_command_line(tmp_path, monkeypatch, capsys):
    out = tmp_path / "exact.json"
    arguments = ["exact", str(CHECKPOINT), "--questions", "4", "--problem-steps", "3", "--out", str(out)]
    monkeypatch.setattr(sys, "argv", arguments)
    threads = torch.get_num_threads()
    exact.main()
    torch.set_num_threads(threads)
    found = json.loads(out.read_text())[str(CHECKPOINT)]
    assert found["questions"] == 4 and 0.5 < found["accuracy"] < 1 and found["seconds"] > 0
    assert found["pass_at_k"]["1"] == found["accuracy"]


def test_the_stream_of_problems_is_that_of_the_data(tiny):
    _, tokenizer = tiny
    problems = list(islice(task.generate(7, 5), 3))
    assert [exact.solved(tokenizer, one) for one in problems] == exact.held_out(tokenizer, 3, 5, seed=7)
