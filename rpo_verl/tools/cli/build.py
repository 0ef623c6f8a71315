"""One answer per question from a model, with vLLM offline, in batches that survive an interruption."""

import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from rpo_verl.rpo import store
from rpo_verl.rpo.cache import CachedAnswer, ExperienceCache
from rpo_verl.tools.cli.generation import import_reward, load_reward, repeat_options, start_vllm
from rpo_verl.upstream.questions import read_end_ids


@dataclass(frozen=True)
class Sampling:
    """What answers depend on; a build can only go on with what it began with."""

    model: str
    temperature: float
    top_p: float
    top_k: int
    seed: int
    max_response_length: int
    dtype: str
    gpus: int
    gpu_memory_utilization: float
    trust_remote_code: bool


def generate_answers(
    rows: list[tuple[list[dict], dict[str, Any]]],
    questions: Any,
    tokenizer: Any,
    sampling: Sampling,
    out: Path,
    batch_size: int,
    reward_file: str | None,
    reward_name: str,
) -> ExperienceCache:
    """Answer every distinct question of `rows` and save the store to `out`.

    Finished batches wait in the folder `<out>.partial`, each a store of its own.

    Raises:
        StoreError: if an interrupted build had other options, or the reward function cannot be loaded.
    """
    score = load_reward(import_reward(reward_file) if reward_file else None, reward_name)
    partial = out.with_name(f"{out.name}.partial")
    repeat_options(partial, asdict(sampling))
    cache = ExperienceCache()
    for part in sorted(partial.glob("part-*")):
        finished, _ = store.load(part, questions.identity)
        for key, answer in finished.items():
            cache.put(key, answer)
    todo = {}
    for messages, row in rows:
        ids = questions.ids(messages)
        key = questions.key(ids)
        if cache.get(key) is None:
            todo.setdefault(key, (ids, row))
    todo = list(todo.items())
    if todo:
        generate = _start_generator(sampling, questions.max_prompt_length)
        end_ids = read_end_ids(sampling.model, sampling.trust_remote_code, tokenizer)
        with tqdm(desc="answers", total=len(cache) + len(todo), initial=len(cache)) as bar:
            for start in range(0, len(todo), batch_size):
                batch = todo[start : start + batch_size]
                part = ExperienceCache()
                for (key, (ids, row)), tokens in zip(batch, generate([ids for _, (ids, _) in batch]), strict=True):
                    tokens = tokens[:-1] if tokens and tokens[-1] in end_ids else tokens
                    verdict = score(tokenizer.decode(tokens, skip_special_tokens=True), row)
                    question, answer_ids = np.array(ids, dtype=np.int32), np.array(tokens, dtype=np.int32)
                    answer = CachedAnswer(answer_ids, verdict.correct, verdict.score, 0, question)
                    part.put(key, answer)
                    cache.put(key, answer)
                store.save(part, partial / f"part-{len(cache):09d}", questions.identity, step=0)
                bar.update(len(batch))
    store.save(cache, out, questions.identity, step=0)
    shutil.rmtree(partial)
    return cache


def _start_generator(sampling: Sampling, max_prompt_length: int) -> Callable[[list[list[int]]], list[list[int]]]:
    from vllm import SamplingParams

    engine = start_vllm(
        sampling.model,
        max_model_len=max_prompt_length + sampling.max_response_length,
        dtype=sampling.dtype,
        gpus=sampling.gpus,
        gpu_memory_utilization=sampling.gpu_memory_utilization,
        trust_remote_code=sampling.trust_remote_code,
        seed=sampling.seed,
    )
    parameters = SamplingParams(
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        top_k=sampling.top_k,
        max_tokens=sampling.max_response_length,
    )

    def generate(prompts: list[list[int]]) -> list[list[int]]:
        outputs = engine.generate(
            [{"prompt_token_ids": ids} for ids in prompts], parameters, use_tqdm=partial(tqdm, leave=False)
        )
        return [list(output.outputs[0].token_ids) for output in outputs]

    return generate
