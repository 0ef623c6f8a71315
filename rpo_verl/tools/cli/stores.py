"""`rpo-verl cache`: build, import, export, inspect and verify a store of cached answers."""

import math
from collections import Counter
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from tqdm import tqdm

from rpo_verl.rpo import store
from rpo_verl.rpo.cache import CachedAnswer, ExperienceCache
from rpo_verl.rpo.options import TruncationConfig
from rpo_verl.tools.cli import common
from rpo_verl.tools.cli.boundary import split_at_boundary
from rpo_verl.tools.cli.common import check_out
from rpo_verl.tools.cli.screen import errors, screen
from rpo_verl.tools.errors import CommandError
from rpo_verl.tools.offline.data import load_questions, load_tokenizer, parse_template_options, read_rows
from rpo_verl.tools.offline.exchange import (
    LOST_END,
    TOO_LONG,
    RecordReader,
    count_records,
    read_records,
    write_records,
)

app = common.new_app("Experience caches on disk: one answer per question.")

Folder = Annotated[Path, typer.Argument(help="Folder of the store, such as global_step_100/rpo.")]
Model = Annotated[str, typer.Option(help="Model or tokenizer: local path or hub id.")]
StoreTokenizer = Annotated[str, typer.Option(help="Tokenizer. Default: the store's.")]
Out = Annotated[Path, typer.Option(help="Folder of the new store.")]
PromptLength = Annotated[int, typer.Option(min=1, help="veRL's data.max_prompt_length, tokens.")]


@app.command("import")
def import_(
    source: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="JSONL or Parquet file of answers.")],
    out: Out,
    model: Model,
    max_prompt_length: PromptLength = 512,
    chat_template_options: common.TemplateOptions = "{}",
    trust_remote_code: common.TrustRemoteCode = False,
    strict: Annotated[bool, typer.Option(help="Stop at the first malformed record.")] = False,
) -> None:
    """Import answers from a file into a new store.

    Sources are ground truth, a larger model, or an earlier run.
    """
    from rpo_verl.upstream.questions import read_end_ids

    check_out(out, parents=True)
    template_options = parse_template_options(chat_template_options)
    # One token above the limit, to detect longer questions.
    tokenizer, questions = load_questions(model, max_prompt_length + 1, template_options, trust_remote_code)
    end_ids = read_end_ids(model, trust_remote_code, tokenizer)
    cache, counts = ExperienceCache(), Counter()
    reader = RecordReader(tokenizer, questions.ids, max_prompt_length, end_ids)
    for number, record in tqdm(read_records(source), "importing", count_records(source)):
        try:
            answer, remarks = reader.read(record)
        except CommandError as error:
            counts["malformed"] += 1
            errors.line(f"{source}:{number}: {error}", style="yellow")
            if strict:
                raise CommandError("stopped by --strict; nothing was written") from error
            continue
        counts.update(remarks)
        key = questions.key(answer.question)
        counts["repeated"] += cache.get(key) is not None
        cache.put(key, answer)
    if not len(cache):
        raise CommandError(f"{source} has no usable record; nothing was written")
    store.save(cache, out, questions.identity, step=0)
    screen.line(f"{len(cache)} answers written to {out}, {counts['malformed']} malformed records skipped")
    if counts["repeated"]:
        screen.line(
            f"{counts['repeated']} records repeat a question. The last answer of a question is kept, and a correct one "
            "before a wrong one."
        )
    if counts[LOST_END]:
        screen.line(f"{counts[LOST_END]} answers ended with an EOS or padding, which was removed.")
    if counts[TOO_LONG]:
        errors.line(
            f"{counts[TOO_LONG]} questions have more tokens than --max-prompt-length={max_prompt_length}. Texts lost "
            "their head, as in veRL with data.truncation=left. Give the run's data.max_prompt_length.",
            style="yellow",
        )


@app.command()
def export(
    folder: Folder,
    out: Annotated[Path, typer.Argument(help="File to write: Parquet if the suffix is .parquet, else JSONL.")],
    text: Annotated[bool, typer.Option("--text", help="Write text instead of token ids.")] = False,
    data: Annotated[list[Path] | None, typer.Option(help="With --text: data sets with the questions.")] = None,
    prompt_key: common.PromptKey = "prompt",
    max_prompt_length: PromptLength = 512,
    chat_template_options: common.TemplateOptions = "{}",
    model: StoreTokenizer = "",
    trust_remote_code: common.TrustRemoteCode = False,
) -> None:
    """Export the answers of a store to a file.

    Token ids, the default, can be imported for the same tokenizer. Text is for reading. Text with --data has the chat
    messages of the questions and can be imported for another tokenizer.
    """
    check_out(out, parents=False)
    cache, manifest = store.load(folder)
    messages: dict[bytes, Any] = {}
    if text:
        template_options = parse_template_options(chat_template_options)
        tokenizer, questions = load_questions(
            model or manifest.tokenizer.name, max_prompt_length, template_options, trust_remote_code
        )
        messages = {questions.key(questions.ids(prompt)): prompt for prompt, _ in read_rows(data or [], prompt_key)}

    def record(key: bytes, answer: CachedAnswer) -> dict[str, Any]:
        if not text:
            fields = {"prompt_ids": answer.question.tolist(), "answer_ids": answer.tokens.tolist()}
        else:
            asked = {"prompt": messages[key]} if data else {"prompt_text": tokenizer.decode(answer.question)}
            fields = {**asked, "answer": tokenizer.decode(answer.tokens)}
        reward = None if math.isnan(answer.reward) else answer.reward
        return {"key": key.hex(), **fields, "reward": reward, "correct": answer.correct, "step": answer.step}

    chosen = [item for item in cache.items() if not data or item[0] in messages]
    if data and not chosen:
        raise CommandError(
            f"none of the {len(cache)} questions of {folder} is in --data with --max-prompt-length={max_prompt_length} "
            f"and --chat-template-options={chat_template_options}. Use the values that the store was made with."
        )
    count = write_records(out, (record(*item) for item in tqdm(chosen, "exporting")))
    missing = f", {len(cache) - count} skipped because --data lacks their questions" if count < len(cache) else ""
    screen.line(f"{count} answers written to {out}{missing}")


@app.command()
def stats(folder: Folder, as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """Print counts, lengths and rewards of a store."""
    cache, manifest = store.load(folder)
    answers = [answer for _, answer in cache.items()]
    lengths = np.array([len(answer.tokens) for answer in answers] or [0])
    rewards = np.array([answer.reward for answer in answers] or [math.nan])
    known = rewards[np.isfinite(rewards)]
    figures = {
        "entries": len(cache),
        "saved after step": manifest.step,
        "saved by": manifest.run or "build, import or an older version",
        "answer tokens": manifest.tokens,
        "answer tokens, mean": round(float(lengths.mean()), 1),
        "answer tokens, 5th / 50th / 95th percentile": [int(np.percentile(lengths, p)) for p in (5, 50, 95)],
        "correct": sum(answer.correct for answer in answers),
        "mean reward": round(float(known.mean()), 4) if len(known) else None,
        "oldest policy, step": min((answer.step for answer in answers), default=0),
        "newest policy, step": max((answer.step for answer in answers), default=0),
        "answers with failures": sum(answer.failures > 0 for answer in answers),
        "bytes on disk": sum(path.stat().st_size for path in folder.iterdir()),
        "bytes in memory, at most": cache.bytes,
        "tokenizer": str(manifest.tokenizer),
    }
    if as_json:
        screen.json(figures)
        return
    rows = [[name, " / ".join(map(str, v)) if isinstance(v, list) else str(v)] for name, v in figures.items()]
    screen.table(rows, title=str(folder))


@app.command()
def show(
    folder: Folder,
    count: Annotated[int, typer.Option(min=1, help="Number of entries.")] = 5,
    key: Annotated[str, typer.Option(help="Only entries whose key begins with these hex digits.")] = "",
    max_fraction: Annotated[float, typer.Option(min=0.0, max=1.0, help="L as a fraction of the answer.")] = (
        TruncationConfig().max_fraction
    ),
    max_tokens: Annotated[int | None, typer.Option(min=1, help="L in tokens, instead of a fraction.")] = None,
    model: StoreTokenizer = "",
    trust_remote_code: common.TrustRemoteCode = False,
) -> None:
    """Print questions and answers.

    A cut falls into the last L tokens, which are bright. The tokens before them are dim.
    """
    cache, manifest = store.load(folder)
    tokenizer = load_tokenizer(model or manifest.tokenizer.name, trust_remote_code)
    shown = 0
    for found, answer in cache.items():
        if shown == count:
            break
        if not found.hex().startswith(key.lower()):
            continue
        shown += 1
        length = len(answer.tokens)
        cut = max(0, length - (max_tokens if max_tokens is not None else math.ceil(max_fraction * length)))
        verdict = ("correct", "green") if answer.correct else ("not correct", "red")
        head = f"{found.hex()}  reward {answer.reward:g}, step {answer.step}, {length} tokens, L = {length - cut}  "
        screen.line((head, "bold"), verdict)
        screen.line((tokenizer.decode(answer.question), "cyan"))
        prefix, rest = split_at_boundary(tokenizer.decode(answer.tokens[:cut]), tokenizer.decode(answer.tokens))
        screen.line((prefix, "dim"), ("│", "bold yellow"), (rest, "bold"))
        screen.line()
    if not shown:
        raise CommandError(f"{folder} has no entry" + (f" whose key begins with {key}" if key else ""))


@app.command()
def verify(folder: Folder) -> None:
    """Check checksums, schema and every entry of a store.

    The exit status is 1 if a check fails.
    """
    cache, manifest = store.load(folder)
    screen.line(f"{folder}: sound, {len(cache)} entries of {manifest.origin}, {manifest.tokenizer}")


@app.command()
def build(
    data: common.Data,
    out: Out,
    model: Model,
    prompt_key: common.PromptKey = "prompt",
    max_prompt_length: PromptLength = 512,
    max_response_length: Annotated[int, typer.Option(min=1, help="veRL's data.max_response_length, tokens.")] = 4096,
    chat_template_options: common.TemplateOptions = "{}",
    temperature: common.Temperature = 1.0,
    top_p: common.TopP = 1.0,
    top_k: common.TopK = -1,
    seed: Annotated[int, typer.Option(help="Seed of vLLM's sampling.")] = 0,
    gpus: common.Gpus = 1,
    dtype: common.Dtype = "auto",
    gpu_memory_utilization: common.MemoryUtilization = 0.9,
    batch_size: Annotated[int, typer.Option(min=1, help="Questions between two saves.")] = 512,
    limit: Annotated[int | None, typer.Option(min=1, help="Use only the first questions.")] = None,
    reward_file: Annotated[str | None, typer.Option(help="veRL's custom_reward_function.path.")] = None,
    reward_name: common.RewardName = "compute_score",
    trust_remote_code: common.TrustRemoteCode = False,
) -> None:
    """Generate one answer per question with vLLM.

    The same command continues an interrupted build.
    """
    from rpo_verl.tools.offline.build import build_store
    from rpo_verl.tools.offline.engine import Sampling
    from rpo_verl.tools.offline.scoring import import_reward, load_reward

    check_out(out, parents=True)
    template_options = parse_template_options(chat_template_options)
    tokenizer, questions = load_questions(model, max_prompt_length, template_options, trust_remote_code)
    engine = dict(
        dtype=dtype, gpus=gpus, gpu_memory_utilization=gpu_memory_utilization, trust_remote_code=trust_remote_code,
        seed=seed,
    )  # fmt: skip
    cache = build_store(
        out,
        read_rows(data, prompt_key, limit),
        questions,
        tokenizer,
        load_reward(import_reward(reward_file) if reward_file else None, reward_name),
        model,
        Sampling(temperature, top_p, top_k, max_response_length),
        engine,
        batch_size,
    )
    correct = sum(answer.correct for _, answer in cache.items())
    verdict = f", {correct} of them correct" if reward_file else "; without --reward-file none counts as correct"
    screen.line(f"{len(cache)} answers written to {out}{verdict}")
