"""A store with one answer per question, generated with vLLM in batches that survive an interruption."""

import shutil
from collections.abc import Collection
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from rpo_verl.rpo import store
from rpo_verl.rpo.cache import CachedAnswer, ExperienceCache
from rpo_verl.rpo.start import NO_LOGPROBS, storable
from rpo_verl.tools.files import repeat_options
from rpo_verl.tools.offline.engine import Answered, Sampling, start_vllm, stream_answers
from rpo_verl.tools.offline.scoring import Score
from rpo_verl.upstream.questions import Questions, read_end_ids


def build_store(
    out: Path,
    rows: list[tuple[list[dict], dict[str, Any]]],
    questions: Questions,
    tokenizer: Any,
    score: Score,
    model: str,
    sampling: Sampling,
    engine: dict[str, Any],
    batch_size: int,
) -> ExperienceCache:
    """Answer every distinct question of `rows` and save the store to `out`.

    Finished batches wait in the folder `<out>.partial`. Each is a store. The next call continues from them.

    Args:
        out: folder of the store.
        rows: chat messages and data rows.
        questions: builds token ids and keys.
        tokenizer: decodes the answers.
        score: scores them.
        model: folder or hub id.
        sampling: one set of parameters for all answers.
        engine: arguments of `start_vllm`.
        batch_size: questions between two saves.

    Raises:
        CommandError: if the interrupted build had other options.
    """
    temperature = sampling.temperature if sampling.whole else None
    partial = out.with_name(f"{out.name}.partial")
    repeat_options(partial, {"model": model, **asdict(sampling), **engine})
    cache = ExperienceCache()
    for part in sorted(partial.glob("part-*")):
        for key, answer in store.load(part, questions.identity)[0].items():
            cache.put(key, answer)
    missing: dict[bytes, tuple[list[int], dict[str, Any]]] = {}
    for messages, row in rows:
        ids = questions.ids(messages)
        key = questions.key(ids)
        if cache.get(key) is None:
            missing.setdefault(key, (ids, row))
    if missing:
        longest = questions.max_prompt_length + sampling.max_response_length
        # Log-probabilities of the sampling temperature, as a training reports them.
        llm = start_vllm(model, max_model_len=longest, logprobs_mode="processed_logprobs", **engine)
        end_ids = read_end_ids(model, engine["trust_remote_code"], tokenizer)
        todo = list(missing.items())
        with tqdm(desc="answers", total=len(cache) + len(todo), initial=len(cache)) as bar:
            for start in range(0, len(todo), batch_size):
                batch = todo[start : start + batch_size]
                answers: dict[int, Answered] = {}
                prompts = [ids for _, (ids, _) in batch]
                parameters = sampling.parameters(logprobs=sampling.whole)
                for answered in stream_answers(llm, prompts, [parameters] * len(batch)):
                    answers[answered.position] = answered
                    bar.update()
                part = ExperienceCache()
                for position, (key, (ids, row)) in enumerate(batch):
                    tokens, logprobs = _without_end(answers[position], end_ids)
                    verdict = score(tokenizer.decode(tokens, skip_special_tokens=True), row)
                    answer = CachedAnswer(
                        np.array(tokens, dtype=np.int32), verdict.correct, verdict.score, step=0,
                        question=np.array(ids, dtype=np.int32), logprobs=logprobs,
                    )  # fmt: skip
                    part.put(key, answer)
                    cache.put(key, answer)
                store.save(part, partial / f"part-{len(cache):09d}", questions.identity, 0, temperature=temperature)
    store.save(cache, out, questions.identity, 0, temperature=temperature)
    shutil.rmtree(partial)
    return cache


def _without_end(answered: Answered, end_ids: Collection[int]) -> tuple[list[int], np.ndarray]:
    """Token ids without a final end token, and what the store keeps of their log-probabilities."""
    tokens = answered.tokens
    kept = len(tokens) - bool(tokens and tokens[-1] in end_ids)
    return tokens[:kept], NO_LOGPROBS if answered.logprobs is None else storable(answered.logprobs[:kept])
