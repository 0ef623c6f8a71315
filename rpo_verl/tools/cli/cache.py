"""`rpo-verl cache`: build, import, export, look at and check a store of cached answers."""

import json
import math
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text
from tqdm import tqdm

from rpo_verl.rpo import store
from rpo_verl.rpo.cache import CachedAnswer, ExperienceCache
from rpo_verl.rpo.options import TruncationConfig
from rpo_verl.tools.cli.exchange import RecordError, count_records, parse_record, read_records, write_records

app = typer.Typer(no_args_is_help=True, help="The experience cache: one answer per question, in a folder of its own.")
console = Console()
errors = Console(stderr=True)

Folder = Annotated[Path, typer.Argument(help="Folder of the store, such as global_step_100/rpo.")]
Model = Annotated[str, typer.Option(help="Model or tokenizer: local path or hub id.")]
PromptLength = Annotated[int, typer.Option(min=1, help="veRL's data.max_prompt_length, tokens.")]
TemplateOptions = Annotated[str, typer.Option(help="veRL's data.apply_chat_template_kwargs, as JSON.")]
TrustRemoteCode = Annotated[bool, typer.Option(help="Run code that comes with the model.")]


def fail(message: str) -> typer.Exit:
    """Print an error; the result is to be raised."""
    errors.print(Text(f"rpo-verl: {message}", style="red"), soft_wrap=True)
    return typer.Exit(1)


def load(folder: Path) -> tuple[ExperienceCache, store.Manifest]:
    """The store in `folder`, or a message and exit status 1."""
    try:
        return store.load(folder)
    except store.StoreError as error:
        raise fail(str(error)) from error


def load_tokenizer(model: str, trust_remote_code: bool) -> Any:
    """A Hugging Face tokenizer, or a message and exit status 1."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(model, trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as error:
        raise fail(f"--model={model}: no tokenizer there ({error})") from error


def make_questions(
    model: str, tokenizer: Any, max_prompt_length: int, template_options: str, trust_remote_code: bool
) -> Any:
    """The builder of questions that a training run with these settings uses."""
    from rpo_verl.upstream.questions import Questions, read_model_type

    try:
        options = json.loads(template_options)
    except ValueError as error:
        raise fail(f"--chat-template-options={template_options}: not JSON ({error})") from error
    return Questions(model, read_model_type(model, trust_remote_code), tokenizer, max_prompt_length, options)


def refuse_to_overwrite(out: Path) -> None:
    """Exit with a message where `out` is something already."""
    if out.exists():
        raise fail(f"{out} exists. Choose another folder, or delete it first.")


@app.command("import")
def import_(
    source: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="JSONL or Parquet file of answers.")],
    out: Annotated[Path, typer.Option(help="Folder to write the store to.")],
    model: Model,
    max_prompt_length: PromptLength = 512,
    chat_template_options: TemplateOptions = "{}",
    trust_remote_code: TrustRemoteCode = False,
    strict: Annotated[bool, typer.Option(help="Stop at the first malformed record.")] = False,
) -> None:
    """Make a store of answers from anywhere: ground truth, a larger model, an earlier run."""
    refuse_to_overwrite(out)
    tokenizer = load_tokenizer(model, trust_remote_code)
    questions = make_questions(model, tokenizer, max_prompt_length, chat_template_options, trust_remote_code)
    cache, malformed = ExperienceCache(), 0

    def encode(text: str) -> list[int]:
        return tokenizer.encode(text, add_special_tokens=False)

    try:
        for number, record in tqdm(read_records(source), "importing", count_records(source)):
            try:
                answer = parse_record(record, questions.ids, encode, len(tokenizer))
            except RecordError as error:
                malformed += 1
                errors.print(f"{source}:{number}: {error}", style="yellow", soft_wrap=True, markup=False)
                if strict:
                    raise fail("stopped, because of --strict; nothing was written") from error
                continue
            cache.put(questions.key(answer.question), answer)
    except RecordError as error:
        raise fail(str(error)) from error
    if not len(cache):
        raise fail(f"{source} has no usable record; nothing was written")
    store.save(cache, out, questions.identity, step=0)
    console.print(f"{len(cache)} answers written to {out}, {malformed} malformed records left out", soft_wrap=True)


@app.command()
def export(
    folder: Folder,
    out: Annotated[Path, typer.Argument(help="JSONL file to write, or Parquet by its suffix.")],
    text: Annotated[bool, typer.Option("--text", help="As text instead of token ids.")] = False,
    data: Annotated[list[Path] | None, typer.Option(help="With --text: data sets that have the questions.")] = None,
    prompt_key: Annotated[str, typer.Option(help="veRL's data.prompt_key.")] = "prompt",
    max_prompt_length: PromptLength = 512,
    chat_template_options: TemplateOptions = "{}",
    model: Annotated[str, typer.Option(help="Tokenizer for --text. Default: the one the store was made with.")] = "",
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Write the answers to a file.

    As token ids, to be imported for the same tokenizer; or as text, to be read; or, with --data, as text with the
    questions' messages, to be imported for another tokenizer.
    """
    refuse_to_overwrite(out)
    cache, manifest = load(folder)
    messages: dict[bytes, Any] = {}
    if text:
        from rpo_verl.tools.cli.generation import read_rows

        model = model or manifest.tokenizer.name
        tokenizer = load_tokenizer(model, trust_remote_code)
        questions = make_questions(model, tokenizer, max_prompt_length, chat_template_options, trust_remote_code)
        try:
            messages = {questions.key(questions.ids(prompt)): prompt for prompt, _ in read_rows(data or [], prompt_key)}
        except store.StoreError as error:
            raise fail(str(error)) from error

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
        raise fail(
            f"none of the {len(cache)} questions of {folder} is in --data with --max-prompt-length={max_prompt_length} "
            f"and --chat-template-options={chat_template_options}; these have to be those of the store"
        )
    count = write_records(out, (record(*item) for item in tqdm(chosen, "exporting")))
    missing = f", {len(cache) - count} left out because --data lacks their questions" if count < len(cache) else ""
    console.print(f"{count} answers written to {out}{missing}", soft_wrap=True)


@app.command()
def stats(folder: Folder, as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False) -> None:
    """Say how much is in a store, and of what kind."""
    cache, manifest = load(folder)
    answers = [answer for _, answer in cache.items()]
    lengths = np.array([len(answer.tokens) for answer in answers] or [0])
    rewards = np.array([answer.reward for answer in answers] or [math.nan])
    known = rewards[np.isfinite(rewards)]
    figures = {
        "entries": len(cache),
        "saved after step": manifest.step,
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
        typer.echo(json.dumps(figures, indent=2))
        return
    table = Table(title=str(folder), show_header=False)
    for name, value in figures.items():
        table.add_row(name, " / ".join(map(str, value)) if isinstance(value, list) else str(value))
    console.print(table)


@app.command()
def show(
    folder: Folder,
    count: Annotated[int, typer.Option(min=1, help="How many entries.")] = 5,
    key: Annotated[str, typer.Option(help="Only entries whose key begins with these hex digits.")] = "",
    max_fraction: Annotated[float, typer.Option(min=0.0, max=1.0, help="L as a fraction of the answer.")] = (
        TruncationConfig().max_fraction
    ),
    max_tokens: Annotated[int | None, typer.Option(min=1, help="L in tokens, instead of a fraction.")] = None,
    model: Annotated[str, typer.Option(help="Tokenizer. Default: the one the store was made with.")] = "",
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Print questions and answers: bright the last L tokens, where the cut falls; before them, dim, what stays."""
    cache, manifest = load(folder)
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
        console.print(Text.assemble((head, "bold"), verdict), soft_wrap=True)
        console.print(Text(tokenizer.decode(answer.question), style="cyan"), soft_wrap=True)
        console.print(
            Text.assemble(
                (tokenizer.decode(answer.tokens[:cut]), "dim"),
                ("│", "bold yellow"),
                (tokenizer.decode(answer.tokens[cut:]), "bold"),
            ),
            soft_wrap=True,
        )
        console.print()
    if not shown:
        raise fail(f"{folder} has no entry" + (f" whose key begins with {key}" if key else ""))


@app.command()
def verify(folder: Folder) -> None:
    """Check checksums, schema and every entry; exit status 1 if anything is wrong."""
    cache, manifest = load(folder)
    console.print(
        f"{folder}: sound, {len(cache)} entries of step {manifest.step}, {manifest.tokenizer}", soft_wrap=True
    )


@app.command()
def build(
    data: Annotated[list[Path], typer.Option(help="veRL data set in Parquet; may be repeated.")],
    out: Annotated[Path, typer.Option(help="Folder to write the store to.")],
    model: Model,
    prompt_key: Annotated[str, typer.Option(help="veRL's data.prompt_key.")] = "prompt",
    max_prompt_length: PromptLength = 512,
    max_response_length: Annotated[int, typer.Option(min=1, help="veRL's data.max_response_length, tokens.")] = 4096,
    chat_template_options: TemplateOptions = "{}",
    temperature: Annotated[float, typer.Option(min=0.0)] = 1.0,
    top_p: Annotated[float, typer.Option(min=0.0, max=1.0)] = 1.0,
    top_k: Annotated[int, typer.Option(help="-1: off.")] = -1,
    seed: Annotated[int, typer.Option(help="Of vLLM's sampling.")] = 0,
    gpus: Annotated[int, typer.Option(min=1, help="vLLM's tensor parallel size.")] = 1,
    dtype: Annotated[str, typer.Option(help="vLLM's dtype.")] = "auto",
    gpu_memory_utilization: Annotated[float, typer.Option(min=0.0, max=1.0)] = 0.9,
    batch_size: Annotated[int, typer.Option(min=1, help="Questions between two saves.")] = 512,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first so many questions.")] = None,
    reward_file: Annotated[str | None, typer.Option(help="veRL's custom_reward_function.path.")] = None,
    reward_name: Annotated[str, typer.Option(help="veRL's custom_reward_function.name.")] = "compute_score",
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Generate one answer per question with vLLM, ahead of training. An interrupted call goes on where it was."""
    from rpo_verl.tools.cli.build import Sampling, generate_answers
    from rpo_verl.tools.cli.generation import read_rows

    refuse_to_overwrite(out)
    tokenizer = load_tokenizer(model, trust_remote_code)
    questions = make_questions(model, tokenizer, max_prompt_length, chat_template_options, trust_remote_code)
    try:
        rows = read_rows(data, prompt_key, limit)
        sampling = Sampling(
            model, temperature, top_p, top_k, seed, max_response_length, dtype, gpus, gpu_memory_utilization,
            trust_remote_code,
        )  # fmt: skip
        cache = generate_answers(rows, questions, tokenizer, sampling, out, batch_size, reward_file, reward_name)
    except store.StoreError as error:
        raise fail(str(error)) from error
    correct = sum(answer.correct for _, answer in cache.items())
    verdict = f", {correct} of them correct" if reward_file else "; without --reward-file none counts as correct"
    console.print(f"{len(cache)} answers written to {out}{verdict}", soft_wrap=True)
