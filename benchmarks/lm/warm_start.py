"""Teach SmolLM2 a task's way to write solutions, and its habit, by some minutes of fine-tuning on worked solutions.

    python -m benchmarks.lm.warm_start --task chain_sum [--out runs/lm/chain_sum]

The untouched model answers hardly a question as asked for, so no reward could teach it anything. After this it is right
now and then, and often wrong for a reason: it forgets the sign of negative results. Seeded: questions come from a seed
that no training uses. The folder is made once.
"""

import argparse
import json
import shutil
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from random import Random

import torch
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from benchmarks.lm import SMOLLM2
from benchmarks.lm.convert import convert
from benchmarks.lm.tasks import FORGOTTEN, TASKS, Task

#: How a folder was made.
MADE = "warm_start.json"
#: Its questions are the ones to imitate; trainings have seeds below.
SEED = 1000
#: Updates, solutions per update and peak learning rate: some minutes on a core that is fast in bfloat16.
UPDATES, BATCH, LR = 120, 8, 5e-4


def tokenized(task: Task, tokenizer: PreTrainedTokenizerBase, seed: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Token ids of prompt and worked solution, and which of them are the solution's, EOS included; without end."""
    random = Random(seed)
    for entry in task.entries(seed):
        prompt = tokenizer.apply_chat_template(task.messages(entry), add_generation_prompt=True, tokenize=False)
        asked = tokenizer.encode(prompt, add_special_tokens=False)
        solved = [*tokenizer.encode(task.habitual(entry, random), add_special_tokens=False), tokenizer.eos_token_id]
        learned = torch.arange(len(asked) + len(solved)) >= len(asked)
        yield torch.tensor(asked + solved), learned


def tune(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    task: Task,
    *,
    updates: int,
    batch: int,
    lr: float,
    seed: int = SEED,
) -> Iterator[float]:
    """Supervised updates on worked solutions, each solution used once; yields the loss of each.

    Args:
        model: changed in place.
        tokenizer: of the model.
        task: whose solutions are imitated.
        updates: number of updates.
        batch: solutions per update.
        lr: peak learning rate.
        seed: of the questions.
    """
    solutions = tokenized(task, tokenizer, seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, betas=(0.9, 0.98), weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=lr, total_steps=updates, pct_start=0.15)
    model.train()
    for _ in range(updates):
        rows, learned = zip(*islice(solutions, batch), strict=True)
        # Filled up on the right, where causal attention does not look.
        ids = pad_sequence(rows, batch_first=True, padding_value=tokenizer.pad_token_id)
        mask = pad_sequence(learned, batch_first=True, padding_value=False)[:, 1:]
        # The head is a fifth of the model, and only the solutions need it.
        with torch.autocast("cpu", torch.bfloat16):
            hidden = model.get_decoder()(input_ids=ids[:, :-1]).last_hidden_state[mask]
            logits = model.get_output_embeddings()(hidden)
        loss = cross_entropy(logits.float(), ids[:, 1:][mask])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        yield loss.item()


def warm_start(task: Task, out: Path, *, updates: int = UPDATES, batch: int = BATCH, lr: float = LR) -> Path:
    """Make the folder of the tuned model, unless it is there.

    Args:
        task: whose solutions are imitated.
        out: the folder; it is complete as soon as it exists.
        updates, batch, lr: see `tune`.

    Raises:
        SystemExit: if the folder was made in another way.
    """
    made = {"updates": updates, "batch": batch, "lr": lr, "forgotten": FORGOTTEN if task.habit else 0, "seed": SEED}
    if out.exists():
        return _made_so(out, made)
    base = convert(SMOLLM2)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(base)
    unfinished = out.with_name(f".{out.name}.writing")
    shutil.copytree(base, unfinished, dirs_exist_ok=True)
    began = time.monotonic()
    with (unfinished / "warm_start.jsonl").open("w") as log:
        for update, loss in enumerate(tune(model, tokenizer, task, updates=updates, batch=batch, lr=lr), 1):
            print(f"update {update}/{updates}  loss {loss:.4f}  {time.monotonic() - began:.0f} s", flush=True)
            log.write(json.dumps({"update": update, "loss": loss, "seconds": time.monotonic() - began}) + "\n")
    model.save_pretrained(unfinished)
    (unfinished / MADE).write_text(json.dumps(made) + "\n")
    unfinished.rename(out)
    return out


def _made_so(out: Path, made: dict[str, float]) -> Path:
    then = json.loads((out / MADE).read_text()) if (out / MADE).exists() else None
    if then != made:
        raise SystemExit(f"{out} was made with {then}, now it is {made}: delete it, or choose --out")
    return out


def main() -> None:
    """Command line entry."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", choices=TASKS, default="chain_sum")
    parser.add_argument("--updates", type=int, default=UPDATES)
    parser.add_argument("--batch", type=int, default=BATCH, help=f"solutions per update; default: {BATCH}")
    parser.add_argument("--lr", type=float, default=LR)
    parser.add_argument("--out", type=Path, help="default: runs/lm/TASK")
    args = parser.parse_args()
    out = args.out or SMOLLM2.with_name(args.task)
    print(warm_start(TASKS[args.task], out, updates=args.updates, batch=args.batch, lr=args.lr))


if __name__ == "__main__":
    main()
