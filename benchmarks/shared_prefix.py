"""Measure shared questions and prefixes in log-probabilities and update, on the CPU with the tiny reasoner.

`make bench-shared-prefix` prints a table and writes runs/bench/shared_prefix.json: seconds of forward and backward pass
of one micro-batch through veRL's FSDP engine (without FSDP's collectives), in turns with padded rows as in veRL, with
padded rows and log-probabilities in one call, and with packed rows. The second arm is there because veRL's function
goes through a padded micro-batch token by token, and packing does not use it.
"""

import json
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
import torch
from tensordict import TensorDict
from transformers import AutoModelForCausalLM
from verl.utils import tensordict_utils as tu
from verl.utils.dataset.dataset_utils import DatasetPadMode
from verl.workers.engine.fsdp import FSDPEngineWithLMHead, transformer_impl

from benchmarks.tables import shared_prefix_rows, show
from benchmarks.tiny import CHECKPOINT
from rpo_verl.lean.engine import SHARE_PREFIX, SharedPrefixEngine
from rpo_verl.upstream.engines import extended

QUESTION, REPEATS = 66, 9
#: Groups in a micro-batch, members, tokens of prefix and suffix.
SHAPES = {
    "behind a prefix (mean of the demo)": (2, 8, 166, 18),
    "full rollouts": (2, 8, 0, 184),
    "long, behind a prefix": (1, 8, 834, 100),
    "long, G = 16": (1, 16, 834, 100),
}


def micro_batch(groups: int, members: int, prefix: int, suffix: int, share: bool) -> TensorDict:
    """Rows as veRL hands them to the engine."""
    rng = np.random.default_rng(0)
    rows = []
    for _ in range(groups):
        head = rng.integers(1, 256, QUESTION + prefix)
        rows += [torch.tensor(np.concatenate([head, rng.integers(1, 256, suffix)])) for _ in range(members)]
    columns = {
        "input_ids": rows,
        "position_ids": [torch.arange(len(row)) for row in rows],
        "prompts": [row[:QUESTION] for row in rows],
    }
    data = TensorDict(
        {name: torch.nested.as_nested_tensor(values, layout=torch.jagged) for name, values in columns.items()},
        batch_size=len(rows),
    )
    tu.assign_non_tensor(
        data, use_remove_padding=False, pad_mode=DatasetPadMode.NO_PADDING, temperature=1.0, **{SHARE_PREFIX: share}
    )
    return data


def step(engine: object, data: TensorDict, log_probs: Callable) -> float:
    """Seconds of one forward and backward pass."""
    usual, transformer_impl.logprobs_from_logits = transformer_impl.logprobs_from_logits, log_probs
    started = time.perf_counter()
    inputs, arguments = engine.prepare_model_inputs(data)
    outputs = engine.prepare_model_outputs(engine.module(**inputs, use_cache=False), arguments, data, None)
    outputs["log_probs"].values().sum().backward()
    seconds = time.perf_counter() - started
    transformer_impl.logprobs_from_logits = usual
    engine.module.zero_grad()
    return seconds


def main() -> None:
    """Command line entry."""
    engine = object.__new__(extended(SharedPrefixEngine, FSDPEngineWithLMHead))
    engine.module = AutoModelForCausalLM.from_pretrained(CHECKPOINT, attn_implementation="sdpa").train()
    engine.module.gradient_checkpointing_enable()
    engine.pad_to_length = False
    usual = transformer_impl.logprobs_from_logits

    def in_one_call(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return usual(logits[None], labels[None])[0]

    arms = {"padded": (False, usual), "padded, one call": (False, in_one_call), "packed": (True, usual)}
    results = {}
    for name, (groups, members, prefix, suffix) in SHAPES.items():
        batches = {share: micro_batch(groups, members, prefix, suffix, share) for share in (False, True)}
        seconds = {arm: [] for arm in arms}
        for _ in range(REPEATS):
            for arm, (share, log_probs) in arms.items():
                seconds[arm].append(step(engine, batches[share], log_probs))
        shared = QUESTION + prefix
        results[name] = {
            "groups": groups, "members": members, "shared_tokens": shared, "own_tokens": suffix,
            "bound": (shared / members + suffix) / (shared + suffix),
            "seconds": {arm: median(values[1:]) for arm, values in seconds.items()},
        }  # fmt: skip
    out = Path("runs/bench/shared_prefix.json")
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(results, indent=2) + "\n")

    title = f"forward and backward pass of a micro-batch, medians of {REPEATS - 1}, {torch.get_num_threads()} threads"
    show(title, shared_prefix_rows(results))
    print(f"written: {out}")


if __name__ == "__main__":
    main()
