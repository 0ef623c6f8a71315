"""Train the tiny reasoner from scratch on noisy solutions, so that sampling errs and greedy decoding does not."""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import random
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import transformers
from char_tokenizer import build_tokenizer, prompt_ids
from evaluate import accuracy, evaluate_levels
from task import LABELS, LEVELS, NOISE, TRAIN_STEPS, draw_problem, noisy_solution
from transformers import GenerationConfig, Qwen2Config, Qwen2ForCausalLM, Qwen2Tokenizer

MAX_POSITIONS = 1024
SAMPLED_RANGE = (0.40, 0.55)
REPORT_SECONDS = 20


def build_model(tokenizer: Qwen2Tokenizer) -> Qwen2ForCausalLM:
    """A Qwen2 decoder of about one million parameters."""
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=5,
        # Head size 32 is among those that vLLM's CPU attention supports.
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=MAX_POSITIONS,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
        dtype="float32",
        attn_implementation="sdpa",
    )
    # The Qwen2 default of 0.02 suits wide models; 128 columns learn faster from 1/sqrt(128).
    config.initializer_range = 0.06
    return Qwen2ForCausalLM(config)


@dataclass(frozen=True)
class Phase:
    """One cosine cycle over noisy solutions."""

    updates: int
    peak: float
    """Highest learning rate."""
    noise: float
    """Probability that a step of a solution is wrong."""
    short: float
    """Share of the updates, at the start, that see problems of at most `steps` steps only."""
    steps: int
    """Steps of half of the problems after that; the other half covers all difficulties."""


# Errors that are spread over 99 numbers leave the model less sure than their rate warrants: after the first phase
# it errs more often than it was taught to. The later phases, with less noise, bring the rate down to where a solution
# of the training difficulty comes out right about half of the time.
PHASES = (
    Phase(updates=2000, peak=3e-3, noise=NOISE, short=0.25, steps=12),
    Phase(updates=500, peak=1.5e-3, noise=0.03, short=0.0, steps=12),
    Phase(updates=400, peak=1.5e-3, noise=0.02, short=0.0, steps=20),
)


def draw_steps(rng: random.Random, most: int, short_only: bool) -> int:
    """Steps of a batch: up to `most`, or `most` half of the time with all difficulties mixed in."""
    if short_only:
        return rng.randint(2, most)
    draw = rng.random()
    if draw < 0.5:
        return most
    if draw < 0.75:
        return rng.choice(tuple(LEVELS.values()))
    return rng.randint(1, len(LABELS))


def draw_batch(
    rng: random.Random, tokenizer: Qwen2Tokenizer, steps: int, tokens: int, noise: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and labels of problems with equal step counts, hence equal lengths; the prompt carries no loss."""
    rows, labels = [], []
    size = 0
    while size < tokens:
        problem = draw_problem(rng, steps)
        prompt = prompt_ids(tokenizer, problem.question)
        solution = tokenizer.encode(noisy_solution(problem, noise, rng), add_special_tokens=False)
        solution.append(tokenizer.eos_token_id)
        rows.append(prompt + solution)
        labels.append([-100] * len(prompt) + solution)
        size += len(rows[-1])
    return torch.tensor(rows), torch.tensor(labels)


def learning_rate(progress: float, peak: float) -> float:
    """Linear warm-up over the first 4%, then cosine to 2% of the peak."""
    if progress < 0.04:
        return peak * (progress + 1e-3) / 0.041
    return peak * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * (progress - 0.04) / 0.96)))


def train(model, tokenizer, phase: Phase, rng: random.Random, args, record) -> None:
    """The optimisation loop of one phase; prints progress with the phase's time left at least every 30 seconds."""
    decayed = [p for p in model.parameters() if p.dim() > 1]
    plain = [p for p in model.parameters() if p.dim() <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.05}, {"params": plain, "weight_decay": 0.0}], betas=(0.9, 0.98)
    )
    start = reported = time.monotonic()
    losses: list[float] = []
    model.train()
    for update in range(phase.updates):
        progress = update / phase.updates
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(progress, phase.peak)
        steps = draw_steps(rng, phase.steps, progress < phase.short)
        ids, labels = draw_batch(rng, tokenizer, steps, args.batch_tokens, phase.noise)
        loss = model(input_ids=ids, labels=labels).loss
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
        if (update + 1) % args.eval_every == 0 and update + 1 < phase.updates:
            record(
                event="progress",
                update=update + 1,
                loss=round(sum(losses[-50:]) / len(losses[-50:]), 4),
                greedy=accuracy(model, tokenizer, TRAIN_STEPS, 128, sample=False),
                sampled=accuracy(model, tokenizer, TRAIN_STEPS, 128, sample=True),
            )
        now = time.monotonic()
        if now - reported > REPORT_SECONDS:
            reported = now
            left = (now - start) / (update + 1) * (phase.updates - update - 1)
            recent = sum(losses[-50:]) / len(losses[-50:])
            print(f"update {update + 1}/{phase.updates} loss {recent:.4f} about {left:.0f} s left", flush=True)


def save(model, tokenizer, out: Path) -> None:
    """Write the weights, the configurations and the tokenizer."""
    model.generation_config = GenerationConfig(eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    # safetensors creates files that only the owner can read.
    (out / "model.safetensors").chmod(0o644)


def write_checksums(out: Path) -> None:
    """SHA256SUMS over every other file of the folder, in the format `sha256sum -c` reads."""
    lines = [
        f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n"
        for path in sorted(out.iterdir())
        if path.is_file() and path.name != "SHA256SUMS"
    ]
    (out / "SHA256SUMS").write_text("".join(lines), encoding="utf-8")


def main() -> None:
    """Command line entry."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "checkpoint")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--batch-tokens", type=int, default=3000)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--eval-every", type=int, default=400, help="updates between two short measurements")
    parser.add_argument("--eval-count", type=int, default=1024, help="problems in the final measurement")
    args = parser.parse_args()

    torch.set_num_threads(args.threads)
    torch.use_deterministic_algorithms(True)
    torch.manual_seed(args.seed)
    tokenizer = build_tokenizer(MAX_POSITIONS)
    model = build_model(tokenizer)
    # Generation during training must already know where a solution ends.
    model.generation_config = GenerationConfig(eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)
    args.out.mkdir(parents=True, exist_ok=True)
    log = args.out / "pretrain_log.jsonl"
    log.write_text("", encoding="utf-8")

    def record(**entry) -> None:
        line = json.dumps(entry)
        with log.open("a", encoding="utf-8") as stream:
            stream.write(line + "\n")
        print(line, flush=True)

    settings = {key: value for key, value in vars(args).items() if key != "out"}
    record(
        event="settings",
        **settings,
        train_steps=TRAIN_STEPS,
        parameters=model.num_parameters(),
        torch=torch.__version__,
        transformers=transformers.__version__,
    )
    for index, phase in enumerate(PHASES):
        record(event="phase", **asdict(phase))
        train(model, tokenizer, phase, random.Random(args.seed + index), args, record)
        # Saved after each phase, so that an interrupted run leaves something usable.
        save(model, tokenizer, args.out)
    levels = evaluate_levels(model, tokenizer, args.eval_count)
    record(event="final", levels=levels)
    write_checksums(args.out)

    low, high = SAMPLED_RANGE
    sampled = next(levels[name]["sampled"] for name, steps in LEVELS.items() if steps == TRAIN_STEPS)
    if not low <= sampled <= high:
        raise SystemExit(f"sampled accuracy {sampled:.3f} is outside {low} to {high}: change PHASES")


if __name__ == "__main__":
    main()
