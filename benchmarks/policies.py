"""Policies that some arms begin with, made out of the tiny reasoner's checkpoint.

    python -m benchmarks.policies [--out runs/policies] [--results docs/results/policies.json]

makes them, measures them on held-out questions and prints a table.
"""

import argparse
import hashlib
import json
import random
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils.logging import disable_progress_bar

from benchmarks.exact import HELD_OUT_SEED, KS, measure_folder
from benchmarks.tiny import CHECKPOINT, ROOT, prompt_ids, task
from rpo_verl.tools.evaluation.estimators import pass_at_k
from rpo_verl.tools.evaluation.results import markdown

#: What the talkative policy says after a step, and the share of the steps after which it does.
REMARK, REMARK_SHARE = "well;", 0.5
#: Share of the contexts (value before an operation, and the operation) in which a biased policy's most likely result is
#: wrong, in two degrees.
BIASED, BIASED_MORE = 0.08, 0.12
#: What draws these contexts and their wrong results.
BIAS_SEED = 1
#: Probability of the right result there, in the solutions that biased policies learn.
RIGHT_IN_BIASED = 0.35

#: What was measured of the policies that the recorded results began with, and the sha256 of their weights.
RECORDED = ROOT / "docs" / "results" / "policies.json"


def weakened(out: Path) -> Path:
    """The tiny reasoner with logits divided by 1.4, so that about a group in two has a right answer."""
    return _with_divided_logits(out / "weakened", 1.4)


def weakest(out: Path) -> Path:
    """The tiny reasoner with logits divided by 2, so that hardly a group has a right answer."""
    return _with_divided_logits(out / "weakest", 2.0)


def talkative(out: Path) -> Path:
    """The tiny reasoner after some minutes of solutions with a remark between steps now and then.

    Right answers of the tiny reasoner itself are all equally long. Those of this one are not, and there are many for a
    question, so that a reward that looks at the length, and what becomes of diversity, have something to show.
    """
    return _tuned(out / "talkative", CHECKPOINT, [Phase(talkative_solution, updates=500, peak=1e-3, seed=1)])


def biased(out: Path) -> Path:
    """The tiny reasoner with systematic errors in a share of the contexts, which greedy decoding makes too."""
    first = Phase(partial(biased_solution, share=BIASED, noise=0.01), updates=700, peak=3e-3, seed=1)
    # Without other errors, of which the first phase leaves more than it shows.
    then = Phase(partial(biased_solution, share=BIASED, noise=0.0), updates=400, peak=3e-3, seed=2)
    return _tuned(out / "biased", CHECKPOINT, [first, then])


def biased_more(out: Path) -> Path:
    """The biased policy with more of such contexts."""
    more = Phase(partial(biased_solution, share=BIASED_MORE, noise=0.0), updates=300, peak=3e-3, seed=3)
    return _tuned(out / "biased-more", biased(out), [more])


def talkative_solution(problem: task.Problem, rng: random.Random) -> str:
    """A solution with remarks, at the error rate of pretraining's last phase."""
    return with_remarks(task.noisy_solution(problem, 0.02, rng), REMARK_SHARE, rng)


def usual_error(value: int, operator: str, operand: int, share: float) -> int | None:
    """The wrong result that a biased policy prefers in a context; None in the contexts where it prefers the right one.

    Args:
        value: before the operation, 0 to 99.
        operator: one of `task.OPERANDS`.
        operand: of the operation.
        share: of the contexts with a wrong result. A larger share includes the contexts of a smaller one.

    Returns:
        0 to 99, the same in every process.
    """
    digest = hashlib.sha256(f"{BIAS_SEED}: {value:02d}{operator}{operand}".encode()).digest()
    if int.from_bytes(digest[:8], "big") >= share * 2**64:
        return None
    off_by = 1 + int.from_bytes(digest[8:16], "big") % (task.MODULUS - 1)
    return (task.apply(value, operator, operand) + off_by) % task.MODULUS


def biased_solution(problem: task.Problem, rng: random.Random, share: float, noise: float) -> str:
    """A solution with the usual errors of a biased policy; the chain goes on from each of them.

    Args:
        problem: to be solved.
        rng: that draws the errors.
        share: of the contexts with a usual error.
        noise: probability of any wrong result in the other contexts.
    """
    value, steps = task.parse_question(problem.question)
    parts = []
    for label, operator, operand in steps:
        right, wrong = task.apply(value, operator, operand), usual_error(value, operator, operand, share)
        if wrong is not None:
            result = right if rng.random() < RIGHT_IN_BIASED else wrong
        elif rng.random() < noise:
            result = (right + rng.randrange(1, task.MODULUS)) % task.MODULUS
        else:
            result = right
        parts.append(f"{label}{value:02d}{operator}{operand}={result:02d};")
        value = result
    return "".join(parts) + f"{task.ANSWER_MARK}{value:02d}"


@dataclass(frozen=True)
class Phase:
    """One cycle of supervised updates on solutions of problems of 12 steps."""

    write: Callable[[task.Problem, random.Random], str]
    """From a problem to a solution, right or not."""

    updates: int
    peak: float
    """Highest learning rate."""

    seed: int


def tune(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, phase: Phase) -> None:
    """Make the supervised updates of a phase."""
    rng, peak = random.Random(phase.seed), phase.peak
    optimizer = torch.optim.AdamW(model.parameters(), lr=peak, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=peak, total_steps=phase.updates, pct_start=0.1)
    model.train()
    for _ in range(phase.updates):
        rows, labels = [], []
        for _ in range(16):
            problem = task.draw_problem(rng, steps=12)
            prompt = prompt_ids(tokenizer, problem.question)
            ids = [*tokenizer.encode(phase.write(problem, rng), add_special_tokens=False), tokenizer.eos_token_id]
            rows.append(torch.tensor(prompt + ids))
            labels.append(torch.tensor([-100] * len(prompt) + ids))
        # Filled up on the right, where causal attention does not look.
        batch = pad_sequence(rows, batch_first=True, padding_value=tokenizer.pad_token_id)
        loss = model(input_ids=batch, labels=pad_sequence(labels, batch_first=True, padding_value=-100)).loss
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()


def with_remarks(solution: str, share: float, rng: random.Random) -> str:
    """The solution with a remark, by chance, after each step."""
    *steps, end = solution.split(";")
    if not end.startswith(task.ANSWER_MARK):
        raise ValueError(f"a solution ends with {task.ANSWER_MARK} and its answer, got {solution!r}")
    return "".join(f"{step};{REMARK if rng.random() < share else ''}" for step in steps) + end


@torch.inference_mode()
def sample_folder(folder: Path, count: int, steps: int, samples: int = 32, room: int = 192) -> dict[str, Any]:
    """Measure a policy with many right solutions per question by sampling; the result has the form of the exact one.

    Args:
        folder: Hugging Face folder.
        count: questions, the first ones of those for exact accuracy.
        steps: operations in a question.
        samples: answers to each at temperature 1.
        room: tokens of the longest answer.
    """
    model, tokenizer = _load(folder)
    torch.manual_seed(HELD_OUT_SEED)
    right_of, greedy, entropies, tokens = [], 0, 0.0, 0
    for problem in islice(task.generate(HELD_OUT_SEED, steps), count):
        prompt = torch.tensor([prompt_ids(tokenizer, problem.question)])
        options = {"max_new_tokens": room, "attention_mask": torch.ones_like(prompt)}
        one = model.generate(prompt, **options, do_sample=False)
        found = model.generate(
            prompt, **options, do_sample=True, temperature=1.0, top_k=0, top_p=1.0, num_return_sequences=samples,
            output_logits=True, return_dict_in_generate=True,
        )  # fmt: skip
        answers, greedy_answer = (
            tokenizer.batch_decode(ids[:, prompt.shape[1] :], skip_special_tokens=True)
            for ids in (found.sequences, one)
        )
        marked = f"{task.ANSWER_MARK}{problem.answer}"
        right_of.append(sum(answer.endswith(marked) for answer in answers))
        greedy += greedy_answer[0].endswith(marked)
        written = found.sequences[:, prompt.shape[1] :] != tokenizer.pad_token_id
        log_p = torch.stack(found.logits, 1).log_softmax(-1)
        entropies -= float(((log_p.exp() * log_p).sum(-1) * written).sum())
        tokens += int(written.sum())
    return {
        "questions": count,
        "samples": samples,
        "accuracy": fmean(right / samples for right in right_of),
        "greedy": greedy / count,
        "pass_at_k": {str(k): fmean(pass_at_k(samples, right, k) for right in right_of) for k in KS},
        "entropy": entropies / tokens,
    }


def rows(found: Mapping[str, Mapping[str, Any]]) -> list[list[str]]:
    """Table of measured policies, one per row, head first."""
    table = [["policy", "greedy", "T = 1", "pass@32", "entropy, nats a token", "by"]]
    for name, measured in found.items():
        by = f"{measured['questions']:,} questions"
        by += f" × {measured['samples']} answers" if "samples" in measured else ", exact"
        shown = [f"{measured[key]:.3f}" for key in ("greedy", "accuracy")]
        table.append([name, *shown, f"{measured['pass_at_k']['32']:.3f}", f"{measured['entropy']:.4f}", by])
    return table


def main() -> None:
    """Command line entry."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/policies"), help="folder for the policies")
    parser.add_argument("--results", type=Path, help="JSON file to write; default: policies.json in that folder")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    found = {}
    for make in (None, talkative, biased, biased_more):
        folder = make(args.out) if make else CHECKPOINT
        name = folder.name if make else "tiny"
        # A talkative solution is one of many right ones.
        found[name] = sample_folder(folder, 64, 12) if make is talkative else measure_folder(folder, 1024, 12)
        found[name]["sha256"] = sha256(folder)
        print(f"{name}: {found[name]}", flush=True)
    (args.results or args.out / "policies.json").write_text(json.dumps(found, indent=2) + "\n")
    print(markdown(rows(found)))


def sha256(folder: Path) -> str:
    """Checksum of a checkpoint's weights, hexadecimal."""
    return hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()


def check_weights(folder: Path) -> None:
    """Warn if the repository has a checksum of the policy of that name, and the weights are others."""
    recorded = json.loads(RECORDED.read_text()).get(folder.name, {}).get("sha256")
    found = sha256(folder)
    if recorded and found != recorded:
        warnings.warn(
            f"{folder}: the weights have the sha256 {found[:12]}…, recorded is {recorded[:12]}…. Floating-point sums "
            "differ between processors and versions of torch, so this is another policy of the same kind. Measure it "
            "with `python -m benchmarks.policies`, and compare runs that begin with the same weights only.",
            stacklevel=2,
        )


def _load(folder: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    return model, AutoTokenizer.from_pretrained(folder)


def _tuned(folder: Path, start: Path, phases: Sequence[Phase]) -> Path:
    """The policy of `start` after these phases."""
    disable_progress_bar()

    def make(made: Path) -> None:
        model = AutoModelForCausalLM.from_pretrained(start, dtype=torch.float32)
        with _one_thread():
            for phase in phases:
                tune(model, AutoTokenizer.from_pretrained(start), phase)
        model.save_pretrained(made)

    made = _made_once(folder, make)
    check_weights(made)
    return made


@contextmanager
def _one_thread() -> Iterator[None]:
    """Sums in one order, so that the weights do not depend on the number of cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _with_divided_logits(folder: Path, divisor: float) -> Path:
    """The tiny reasoner with logits divided by `divisor`."""

    def write(made: Path) -> None:
        weights = load_file(CHECKPOINT / "model.safetensors")
        weights["model.norm.weight"] = weights["model.norm.weight"] / divisor
        save_file(weights, made / "model.safetensors", metadata={"format": "pt"})

    return _made_once(folder, write)


def _made_once(folder: Path, write: Callable[[Path], None]) -> Path:
    """`folder` with the checkpoint's files and what `write` puts over them."""
    if not folder.exists():
        unfinished = folder.with_name(f".{folder.name}.writing")
        of_these_weights = shutil.ignore_patterns("model.safetensors", "SHA256SUMS", "pretrain_log.jsonl")
        shutil.copytree(CHECKPOINT, unfinished, dirs_exist_ok=True, ignore=of_these_weights)
        write(unfinished)
        unfinished.rename(folder)
    return folder


if __name__ == "__main__":
    main()
