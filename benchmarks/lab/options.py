"""What one run of the fast lane trains, from the command line."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from benchmarks import policies
from benchmarks.exact import QUESTIONS
from benchmarks.lab.suites import SUITES
from benchmarks.lab.tasks import LANGUAGE, Language, task_of
from benchmarks.stores import PROBLEM_STEPS
from benchmarks.tiny import CHECKPOINT
from rpo_verl.config import ConfigError
from rpo_verl.r2po.options import R2POConfig
from rpo_verl.r2po.options import validate as validate_r2po
from rpo_verl.rpo.options import MOVED, RPOConfig, validate


@dataclass(frozen=True)
class Method:
    """What an arm does differently from GRPO."""

    reuse: bool = False
    """RPO: groups start from cached prefixes, rewards are shaped."""

    filtered: bool = False
    """DAPO's dynamic filter."""

    clip_ratio_high: float = 0.2
    overlong_buffer: int = 0
    """Tokens of DAPO's penalty on long responses; 0: none."""

    imitate: bool = False
    """RAFT: right responses are imitated."""

    first_epoch_only: bool = False
    """Nothing is rolled out after the first epoch; later steps repeat its groups."""

    head: bool = False
    """R²PO: rollouts come from a residual head, which trains in steps of its own."""

    verified: bool = False
    """Responses start from those of the last visit, as far as the policy accepts them; all their tokens are trained."""


METHODS = {
    "grpo": Method(),
    "dapo": Method(filtered=True, clip_ratio_high=0.28, overlong_buffer=16),
    "rpo": Method(reuse=True),
    "dapo-rpo": Method(reuse=True, filtered=True, clip_ratio_high=0.28, overlong_buffer=16),
    "raft": Method(imitate=True),
    "first-epoch": Method(imitate=True, first_epoch_only=True),
    "drafts": Method(verified=True),
    "r2po": Method(head=True),
}

#: Name of a policy → function of policies.py that makes it; None: the checkpoint as it is.
MODELS = {"tiny": None, "talkative": "talkative", "biased": "biased", "biased-more": "biased_more"}


def parser() -> argparse.ArgumentParser:
    """The options of a run; defaults are those of the recipe and of benchmarks/bench.py."""
    made = argparse.ArgumentParser(
        prog="python -m benchmarks.lab", description="Train one arm with one seed.",
        epilog=f"A suite of arms and seeds: --suite {'|'.join(SUITES)}, with options of its own (--suite lr --help).",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )  # fmt: skip
    run = made.add_argument_group("a run")
    run.add_argument("--arm", choices=METHODS, default="grpo")
    run.add_argument(
        "--model",
        default="tiny",
        help=f"{', '.join((*MODELS, *LANGUAGE))}, or a Hugging Face folder of a tiny reasoner",
    )
    run.add_argument("--seed", type=int, default=1, help="of questions, their order, and sampling")
    run.add_argument("--steps", type=int, default=48)
    run.add_argument("--max-tokens", type=int, help="end when so many were generated; the schedule ends there too")
    run.add_argument("--batch", type=int, default=8, help="questions a step")
    run.add_argument("--group-size", type=int, default=8, help="responses a question")
    run.add_argument("--questions", type=int, default=64, help="to train on")
    run.add_argument("--problem-steps", type=int, default=PROBLEM_STEPS, help="operations in a question")
    run.add_argument("--max-response-length", type=int, help="tokens; by default the task's")
    run.add_argument("--lr", type=float, default=3e-4)
    run.add_argument("--schedule", choices=("cosine", "constant"), default="cosine")
    run.add_argument("--ppo-epochs", type=int, default=1, help="optimizer steps on a batch")
    run.add_argument(
        "--prefix-weights", type=float, metavar="C",
        help="weigh reused tokens by min(C, π/π_then); without it their ratio is clipped as PPO does",
    )  # fmt: skip
    run.add_argument("--temperature", type=float, default=1.0, help="of rollouts; weights min(2, π/π_T) correct for it")
    run.add_argument("--rows-per-group", type=int, metavar="M", help="train on the members that vary most (PODS)")
    run.add_argument("--loss", choices=("vanilla", "minpro"), default="vanilla", help="veRL's policy loss, or MinPRO")
    run.add_argument("--answers", type=int, default=1, help="kept of a question; each serves a part of its group")
    run.add_argument("--skip-solved", type=float, metavar="P", help="skip most visits where success is at least P")
    run.add_argument("--lenience", type=float, default=1.0, help="of verified drafts: λ in min(1, λ π_now/π_then)")
    run.add_argument("--bfloat16", action="store_true", help="compute in bfloat16, with weights in float32, as on GPUs")
    run.add_argument("--micro-batch", type=int, default=16, help="rows per forward pass of the update")
    run.add_argument("--eval-every", type=int, default=8, help="steps between evaluations")
    run.add_argument("--eval-questions", type=int, default=QUESTIONS, help="held-out questions")
    run.add_argument("rpo", nargs="*", metavar="rpo.KEY=VALUE", help="options of RPO, or of R²PO (r2po.KEY=VALUE)")
    run.add_argument("--out", type=Path, help="JSON file; by default runs/lab/ARM-seedSEED.json")
    return made


def read_rpo(overrides: Sequence[str], max_response_length: int, group_size: int) -> RPOConfig:
    """RPO's options with `rpo.KEY=VALUE` overrides.

    Raises:
        ConfigError: if an option is unknown, has the wrong type, or is out of range.
    """
    gone = [f"{key} {MOVED[key]}" for key, _, _ in (o.partition("=") for o in overrides) if key in MOVED]
    if gone:
        raise ConfigError("; ".join(gone))
    options = _read("rpo", RPOConfig, overrides)
    validate(options, max_response_length=max_response_length, group_size=group_size)
    return options


def read_r2po(overrides: Sequence[str]) -> R2POConfig:
    """R²PO's options with `r2po.KEY=VALUE` overrides; raises as `read_rpo` does."""
    options = _read("r2po", R2POConfig, overrides)
    validate_r2po(options)
    return options


def _read(name: str, declared: type, overrides: Sequence[str]) -> Any:
    wrong = [override for override in overrides if not override.startswith(f"{name}.") or "=" not in override]
    if wrong:
        raise ConfigError(f"{', '.join(wrong)}: overrides have the form {name}.KEY=VALUE")
    try:
        typed = OmegaConf.create({name: OmegaConf.structured(declared)})
        return OmegaConf.to_object(OmegaConf.merge(typed, OmegaConf.from_dotlist(list(overrides)))[name])
    except OmegaConfBaseException as error:
        raise ConfigError(f"unknown or mistyped option in {' '.join(overrides)}: {error}") from error


def check(args: argparse.Namespace) -> None:
    """Fill in what depends on the policy, and refuse what cannot run.

    Raises:
        ConfigError: names the option, its value and the fix.
    """
    if args.max_response_length is None:
        args.max_response_length = task_of(args.model, args.problem_steps).max_response_length
    positive = ("steps", "batch", "group_size", "questions", "ppo_epochs", "eval_every", "eval_questions",
                "micro_batch", "max_response_length", "lr", "lenience")  # fmt: skip
    for name in positive:
        if not getattr(args, name) > 0:
            raise ConfigError(f"--{name.replace('_', '-')}={getattr(args, name)}: must be above 0")
    if args.max_tokens is not None and args.max_tokens <= 0:
        raise ConfigError(f"--max-tokens={args.max_tokens}: must be above 0")
    if args.skip_solved is not None and not 0 < args.skip_solved <= 1:
        raise ConfigError(f"--skip-solved={args.skip_solved}: must be above 0 and at most 1")
    if args.answers < 1 or args.group_size % args.answers or args.group_size < 2 * args.answers > 2:
        raise ConfigError(
            f"--answers={args.answers}: must be above 0, divide --group-size={args.group_size}, and leave at least two "
            "members to each"
        )
    if args.temperature <= 0:
        raise ConfigError(f"--temperature={args.temperature}: must be above 0")
    if args.rows_per_group is not None and not 2 <= args.rows_per_group <= args.group_size:
        raise ConfigError(f"--rows-per-group={args.rows_per_group}: must be from 2 to --group-size={args.group_size}")
    method = METHODS[args.arm]
    if method.head:
        read_r2po(args.rpo)
    elif args.rpo and not method.reuse:
        raise ConfigError(
            f"{' '.join(args.rpo)}: --arm={args.arm} does not read RPO's options; use rpo or dapo-rpo. R²PO's are read "
            "by r2po"
        )
    if (method.reuse or method.imitate or method.verified) and (args.temperature != 1 or args.rows_per_group):
        raise ConfigError(f"--arm={args.arm} with --temperature or --rows-per-group: try them with grpo, dapo or r2po")
    if args.answers > 1 and (not method.reuse or method.filtered):
        raise ConfigError(f"--answers={args.answers} with --arm={args.arm}: only --arm=rpo keeps several answers")
    size = max(2, args.group_size // args.answers)
    rpo = read_rpo(args.rpo if method.reuse else [], args.max_response_length, size)
    if rpo.rollout.trunks and method.reuse and method.filtered:
        raise ConfigError(
            f"rpo.rollout.trunks={rpo.rollout.trunks} with --arm={args.arm}: the fast lane's filter would take each "
            "branch for a question. Use rpo.rollout.trunks=0, --arm=rpo, or make bench"
        )
    if args.group_size < 2 and not method.imitate:
        raise ConfigError(f"--group-size={args.group_size}: must be at least 2, or all group-relative advantages are 0")


def model_folder(name: str, made: Path) -> Path:
    """The checkpoint of a named policy, made under `made` if it is not there, or the folder of that name.

    Raises:
        ConfigError: if there is none.
    """
    if name in MODELS:
        function = MODELS[name]
        if function is None:
            return CHECKPOINT
        make = getattr(policies, function, None)
        if make is None:
            raise ConfigError(f"--model={name}: benchmarks/policies.py has no function {function}")
        made.mkdir(parents=True, exist_ok=True)
        return make(made)
    if name in LANGUAGE:
        return Language(name).start()
    if (Path(name) / "config.json").exists():
        return Path(name)
    raise ConfigError(
        f"--model={name}: neither one of {', '.join((*MODELS, *LANGUAGE))} nor a Hugging Face folder of a tiny reasoner"
    )
