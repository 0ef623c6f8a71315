"""Measure RPO's part of a step's data path: 1,024 questions, 8 responses each, prefixes of about 4,096 tokens.

`make bench-data-path` prints a table and writes runs/bench/data_path.json. Ray, TransferQueue, veRL's agent loops and
RPO's code around them are real. A server that answers at once stands in for vLLM, because decoding is not measured.
"""

import argparse
import asyncio
import json
import time
from pathlib import Path
from statistics import median

import numpy as np
import ray
import torch
import transfer_queue as tq
from hydra import compose, initialize_config_module
from ray import cloudpickle
from tensordict import NonTensorData, NonTensorStack, TensorDict
from transformers import AutoTokenizer
from verl.experimental.agent_loop.agent_loop import DictConfigWrap
from verl.experimental.agent_loop.single_turn_agent_loop import SingleTurnAgentLoop
from verl.utils.dataset.rl_dataset import RLHFDataset
from verl.utils.tensordict_utils import list_of_dict_to_tensordict
from verl.workers.rollout.replica import TokenOutput

from benchmarks.tables import show
from benchmarks.tiny import CHECKPOINT
from rpo_verl.question import question_key
from rpo_verl.rpo.cache import CachedAnswer, ExperienceCache
from rpo_verl.rpo.hooks.agent_loop import PREFIX_TOKENS, START, PrefixAgentLoop
from rpo_verl.rpo.hooks.groups import fetch_rows, read_groups
from rpo_verl.rpo.hooks.injection import Injection
from rpo_verl.rpo.hooks.reward import CORRECT, REWARD
from rpo_verl.rpo.options import RPOConfig, TruncationConfig
from rpo_verl.rpo.partial_rollouts import PartialRollouts
from rpo_verl.upstream.questions import Questions

QUESTIONS, GROUP, WORKERS, PREFIX, MAX_DROPPED, QUESTION_TOKENS = 1024, 8, 8, 4096, 400, 200
MAX_RESPONSE = PREFIX + MAX_DROPPED + 512
#: Decoding of the same step: tokens per second and device, devices; the largest share of it for injection.
DECODE, DEVICES, LIMIT = 3000, 8, 0.01


class InstantServer:
    """Answers every request at once with as many tokens as were dropped on average."""

    def __init__(self, tokens: int) -> None:
        self.tokens = tokens

    async def generate(self, **request: object) -> TokenOutput:
        ids = [65] * self.tokens
        return TokenOutput(token_ids=ids, log_probs=[-1.0] * self.tokens, extra_fields={"min_global_steps": 1})


def timed(action, repeats: int = 5) -> float:
    """Median seconds."""
    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        action()
        seconds.append(time.perf_counter() - started)
    return median(seconds)


def prompts() -> TensorDict:
    """Rows as veRL's trainer submits them."""
    rng = np.random.default_rng(0)
    texts = ["".join(chr(c) for c in rng.integers(97, 123, QUESTION_TOKENS)) for _ in range(QUESTIONS)]
    batch = {
        "raw_prompt": NonTensorStack(*[[{"role": "user", "content": text}] for text in texts]),
        "uid": NonTensorStack(*[f"{i:032x}" for i in range(QUESTIONS)]),
        "index": NonTensorStack(*range(QUESTIONS)),
        "global_steps": NonTensorData(1),
    }
    return TensorDict(batch, batch_size=QUESTIONS)


def injection(config, rollouts: PartialRollouts, questions: Questions) -> dict[str, float]:
    """Measure seconds in the TaskRunner, and bytes from there to the workers."""
    inject = Injection(rollouts, questions.ids, config.actor_rollout_ref.rollout.agent.default_agent_loop, GROUP)

    def size(batch: TensorDict) -> int:
        return sum(len(cloudpickle.dumps(chunk)) for chunk in batch.chunk(WORKERS))

    plain, *batches = (prompts() for _ in range(6))
    batch, fresh = batches[0], iter(batches)
    seconds = timed(lambda: inject(next(fresh)))
    before, after = timed(lambda: size(plain)), timed(lambda: size(batch))
    return {
        "taskrunner_s": seconds,
        "taskrunner_serialize_s": after - before,
        "bytes_to_workers": size(batch) - size(plain),
        "bytes_of_prefixes": QUESTIONS * 4 * PREFIX,
        "batch": batch,
    }


def worker(config, tokenizer, batch: TensorDict) -> dict[str, float]:
    """Seconds that one of the workers spends on prefixes: receiving its share, and joining prefix and suffix.

    The latter against veRL's own loop over responses of the same length, all of which it generated, and for comparison
    against suffixes that had no prefix.
    """
    sent = cloudpickle.dumps(batch.chunk(WORKERS)[0])
    received = cloudpickle.loads(sent)
    rows = [{key: received[key][i] for key in ("raw_prompt", START)} for i in range(len(received))]
    rows = [{key: getattr(value, "data", value) for key, value in row.items()} for row in rows]

    def loop(cls, tokens):
        return cls(
            trainer_config=DictConfigWrap(config), server_manager=InstantServer(tokens), tokenizer=tokenizer,
            processor=None, dataset_cls=RLHFDataset, data_config=DictConfigWrap(config.data),
        )  # fmt: skip

    async def run(cls, tokens) -> int:
        for row in rows:
            for _ in range(GROUP):
                output = await loop(cls, tokens).run({}, **row)
        return len(output.response_ids)

    suffix = MAX_DROPPED // 2
    arms = {"prefixed": (PrefixAgentLoop, suffix), "whole": (SingleTurnAgentLoop, PREFIX + suffix),
            "suffix": (SingleTurnAgentLoop, suffix)}  # fmt: skip
    assert asyncio.run(run(*arms["prefixed"])) > PREFIX - MAX_DROPPED
    # In turns, so that noise hits all alike.
    seconds = {name: [] for name in arms}
    for _ in range(5):
        for name, arm in arms.items():
            seconds[name].append(timed(lambda arm=arm: asyncio.run(run(*arm)), 1))
    prefixed, whole, short = (median(seconds[name]) for name in ("prefixed", "whole", "suffix"))
    passed_on = sum(len(cloudpickle.dumps(row[START])) for row in rows) * GROUP * WORKERS
    return {
        "worker_s": prefixed - whole,
        "worker_over_suffixes_alone_s": prefixed - short,
        "worker_deserialize_s": timed(lambda: cloudpickle.loads(sent)),
        "bytes_passed_on": passed_on,
    }


def update(rollouts: PartialRollouts, questions: Questions, batch: TensorDict) -> dict[str, float]:
    """Seconds in the TaskRunner at the end of a step: read the groups, shape, update the cache."""
    keys, tags, fields = [], [], []
    for i in range(QUESTIONS):
        start = batch[START][i]
        # As it is at the worker: it goes on without the prefix.
        start, prefix = cloudpickle.loads(cloudpickle.dumps(getattr(start, "data", start))), len(start.prefix)
        question = torch.tensor(questions.ids(batch["raw_prompt"][i]))
        for session in range(GROUP):
            length = prefix + MAX_DROPPED // 2
            reward = float(session % 2)
            info = {"acc": reward, CORRECT: bool(reward), REWARD: reward}
            keys.append(f"{i:032x}_{session}_0")
            tags.append({"response_len": length - session, "min_global_steps": 0})
            fields.append(
                {
                    "prompts": question,
                    "responses": torch.full((length,), 65),
                    START: start,
                    "extra_fields": {PREFIX_TOKENS: prefix, "reward_extra_info": info},
                }
            )
    for at in range(0, len(keys), 1024):
        part = slice(at, at + 1024)
        tq.kv_batch_put(
            keys=keys[part], partition_id="train", fields=list_of_dict_to_tensordict(fields[part]), tags=tags[part]
        )
    options = RPOConfig().reward
    groups = read_groups(keys, tags, "train", options)
    return {
        "taskrunner_read_s": timed(lambda: read_groups(keys, tags, "train", options), 3),
        "taskrunner_update_s": timed(lambda: rollouts.observe(groups, 2, fetch_rows("train", False)), 3),
    }


def main() -> None:
    """Command line entry; exit status 1 if injection costs more than 1 % of decoding the suffixes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/bench/data_path.json"))
    args = parser.parse_args()
    with initialize_config_module("verl.trainer.config", version_base=None):
        overrides = ["+rpo=enabled", f"data.train_batch_size={QUESTIONS}", f"data.max_response_length={MAX_RESPONSE}"]
        overrides += ["actor_rollout_ref.rollout.name=vllm", f"data.max_prompt_length={2 * QUESTION_TOKENS}"]
        overrides += ["transfer_queue.backend.SimpleStorage.num_data_storage_units=1"]
        config = compose("ppo_trainer", overrides)
    tokenizer = AutoTokenizer.from_pretrained(CHECKPOINT)
    questions = Questions(str(CHECKPOINT), None, tokenizer, 2 * QUESTION_TOKENS)
    cache, options = ExperienceCache(), RPOConfig(truncation=TruncationConfig(max_tokens=MAX_DROPPED))
    rollouts = PartialRollouts(options, MAX_RESPONSE, questions.identity, {-1}, cache)
    for row in prompts()["raw_prompt"]:
        ids = np.array(questions.ids(getattr(row, "data", row)), dtype=np.int32)
        answer = np.full(PREFIX + MAX_DROPPED // 2, 65, dtype=np.int32)
        cache.put(question_key(ids, questions.identity.fingerprint), CachedAnswer(answer, True, 1.0, 0, ids))

    ray.init(num_cpus=8, include_dashboard=False)
    tq.init(config.transfer_queue)
    figures = injection(config, rollouts, questions)
    batch = figures.pop("batch")
    figures |= worker(config, tokenizer, batch)
    figures |= update(rollouts, questions, batch)
    ray.shutdown()

    decode = QUESTIONS * GROUP * MAX_DROPPED / 2 / (DECODE * DEVICES)
    added = figures["taskrunner_s"] + figures["taskrunner_serialize_s"] + figures["worker_deserialize_s"]
    short = (added + figures["worker_over_suffixes_alone_s"]) / decode
    added += max(0.0, figures["worker_s"])
    figures |= {"decode_suffixes_s": decode, "injection_share": added / decode}
    figures |= {"injection_share_over_suffixes_alone": short}
    rows = [
        [name.replace("_", " "), f"{value:,.0f}" if name.startswith("bytes") else f"{value:.4f}"]
        for name, value in figures.items()
    ]
    show(f"{QUESTIONS:,} questions × {GROUP} × prefixes of about {PREFIX:,} tokens", [["", ""], *rows])
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(figures, indent=2) + "\n")
    if figures["injection_share"] > LIMIT:
        raise SystemExit(f"injection takes {figures['injection_share']:.2%} of decoding, more than {LIMIT:.0%}")


if __name__ == "__main__":
    main()
