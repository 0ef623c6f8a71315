"""What bench.py compares: suites of arms, each a set of overrides of the same command."""

import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from contamination import write_store
from demo import ARMS, HERE
from policies import talkative, weakened

Cache = Callable[[Path, Path, int], Path]
"""From the folder of a run, its data and its seed to a store to begin with."""


@dataclass(frozen=True)
class Arm:
    """One way to train."""

    overrides: tuple[str, ...] = ()
    knobs: Mapping[str, str] = field(default_factory=dict)
    """Of the recipe script, such as GROUP_SIZE."""

    cache: Cache | None = None
    model: Callable[[Path], Path] | None = None
    """From the folder of the suite to the checkpoint to begin with, where it is not the tiny reasoner's."""

    problem_steps: int = 20
    questions: int = 192
    max_response_length: int = 208


@dataclass(frozen=True)
class Suite:
    """Arms that are compared with the first of them."""

    arms: Mapping[str, Arm]
    steps: int
    test_freq: int
    val_questions: int
    seeds: tuple[int, ...]
    questions: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """What is asked → arms that answer it, for the tables of a suite with many: without RPO first, then with its
    defaults, then what is asked about."""

    @property
    def donor(self) -> str | None:
        """The arm, the first one, with whose checkpoint others begin, if any do."""
        return next(iter(self.arms)) if any(arm.cache is trained_answers for arm in self.arms.values()) else None

    def of_length(self, steps: int) -> "Suite":
        """The same with another number of training steps, validated as often."""
        return replace(self, steps=steps, test_freq=max(1, round(self.test_freq * steps / self.steps)))


def small(*overrides: str, cache: Cache | None = None, **knobs: str) -> Arm:
    """RPO on shorter problems and fewer questions, so that many arms fit into an hour."""
    return Arm(("+rpo=enabled", *overrides), knobs, cache, problem_steps=12, questions=64, max_response_length=128)


def initial_answers(folder: Path, data: Path, seed: int) -> Path:
    """One answer per question from the policy that training starts from."""
    return _build(HERE / "checkpoint", folder, data, seed)


def trained_answers(folder: Path, data: Path, seed: int) -> Path:
    """One answer per question from what GRPO made of the policy, in a run of the same suite."""
    found = list((folder.parent / f"grpo-seed{seed}" / "checkpoints").glob("global_step_*"))
    if len(found) != 1:
        raise SystemExit(f"{folder.name} begins with the answers of grpo-seed{seed}: run that arm first")
    checkpoint = found[0]
    return _build(checkpoint / "actor" / "huggingface", folder, data, seed)


def true_answers(folder: Path, data: Path, seed: int) -> Path:
    """The worked solution of every question."""
    return write_store(folder / "cache", wrong_share=0.0, questions=64, seed=seed)


def _build(model: Path, folder: Path, data: Path, seed: int) -> Path:
    out = folder / "cache"
    command = [str(Path(sys.executable).parent / "rpo-verl"), "cache", "build", "--out", str(out), "--seed", str(seed)]
    command += ["--data", str(data / "train.parquet"), "--model", str(model), "--temperature", "1.0"]
    command += ["--max-prompt-length", "72", "--max-response-length", "128", "--dtype", "float32"]
    command += ["--reward-file", str(HERE / "reward.py")]
    subprocess.run(command, check=True)
    return out


MAIN = {
    "grpo": Arm(),
    "rpo": Arm(("+rpo=enabled",)),
    "rpo-shared": Arm(("+rpo=enabled", "rpo.loss.share_prefix=true")),
    "dapo": Arm(tuple(ARMS["dapo"]["dapo"])),
    "dapo-rpo": Arm(tuple(ARMS["dapo"]["rpo"])),
}
NEVER_FULL = "rpo.rollout.full_rollout_every=0"

GRPO_SMALL = Arm(problem_steps=12, questions=64, max_response_length=128)
# Without RPO, what all others are held against, and whose checkpoint answers for `trained_answers`; and RPO's defaults.
BASELINES = {"grpo": GRPO_SMALL, "rpo": small()}


def talking(arm: Arm) -> Arm:
    """The same with a policy whose answers differ in length."""
    return replace(arm, model=talkative, max_response_length=192)


def weak(arm: Arm) -> Arm:
    """The same with a policy too weak to fill the cache with anything right."""
    return replace(arm, model=weakened)


#: L in tokens or of the answer.
CUTS_AT = {
    "12": "rpo.truncation.max_tokens=12",
    "0.25": "rpo.truncation.max_fraction=0.25",
    "0.5": "rpo.truncation.max_fraction=0.5",
    "1": "rpo.truncation.max_fraction=1.0",
}
ALPHAS = (0, 0.01, 0.1, 1)

TALKING = {"talk-grpo": talking(GRPO_SMALL), "talk-rpo": talking(small())}
WEAK = {"weak-grpo": weak(GRPO_SMALL), "weak-rpo": weak(small())}

# What is asked → arms that answer it, beside two baselines.
ABLATIONS = {
    "Where answers are cut (L), and the length-aware reward (alpha)": TALKING
    | {
        f"talk-L{label}-alpha{alpha:g}": talking(small(cut, f"rpo.reward.alpha={alpha:g}"))
        for label, cut in CUTS_AT.items()
        for alpha in ALPHAS
    },
    "Diversity without the length-aware reward": TALKING
    | {
        "talk-unshaped": talking(small("rpo.reward.shaping=false")),
        "talk-unshaped-full4": talking(small("rpo.reward.shaping=false", "rpo.rollout.full_rollout_every=4")),
        "talk-unshaped-greedy0": talking(small("rpo.reward.shaping=false", "rpo.cache.greedy_prob=0")),
    },
    "A policy too weak to fill the cache with anything right": WEAK
    | {
        "weak-truth": weak(small(cache=true_answers)),
        "weak-strong": weak(small(cache=trained_answers)),
    },
    "Other ranges": BASELINES
    | {
        **{f"L{tokens}": small(f"rpo.truncation.max_tokens={tokens}") for tokens in (6, 24)},
        "tail": small("rpo.truncation.max_fraction=1.0", "rpo.truncation.distribution=log_uniform"),
    },
    "Which response the cache takes": BASELINES
    | {f"greedy{prob:g}": small(f"rpo.cache.greedy_prob={prob:g}") for prob in (0, 0.1, 0.5, 1)},
    "What the cache begins with": BASELINES
    | {
        "cache-built": small(cache=initial_answers),
        "cache-truth": small(cache=true_answers),
        "cache-strong": small(cache=trained_answers),
    },
    "What the loss covers": BASELINES
    | {
        "prefix-in-loss": small("rpo.loss.prefix_in_loss=true", BYPASS_OLD_LOG_PROB="false"),
        "mean-over-suffix": small("rpo.loss.mean_over=suffix"),
    },
    "How many rollouts are full, by step and by group": BASELINES
    | {
        "full-never": small(NEVER_FULL),
        "full-steps0.05": small("rpo.rollout.full_rollout_every=20"),
        "full-steps0.25": small("rpo.rollout.full_rollout_every=4"),
        **{
            f"full-groups{share:g}": small(NEVER_FULL, f"rpo.rollout.full_rollout_prob={share:g}")
            for share in (0.05, 0.1, 0.25)
        },
    },
    "Size of groups and batches": BASELINES
    | {
        "G4": small(GROUP_SIZE="4"),
        "G16": small(GROUP_SIZE="16"),
        "batch4": small(QUESTIONS_PER_STEP="4"),
    },
    "Looking at the replay buffer as seldom as veRL": BASELINES | {"poll-2s": small("rpo.rollout.poll_interval_s=2")},
}

ADAPTIVE = "rpo.truncation.adaptive=true"

# Where to cut, with seeds: fixed ranges and mixes of them with full rollouts, and cuts that follow the policy.
CUTS = {
    **BASELINES,
    "L0.1-full4": small("rpo.rollout.full_rollout_every=4"),
    "L0.5": small("rpo.truncation.max_fraction=0.5"),
    "L1": small("rpo.truncation.max_fraction=1.0"),
    "L0.5-full4": small("rpo.truncation.max_fraction=0.5", "rpo.rollout.full_rollout_every=4"),
    "adaptive": small(ADAPTIVE),
    "adaptive-never-full": small(ADAPTIVE, NEVER_FULL),
    "adaptive0.8": small(ADAPTIVE, "rpo.truncation.target_success=0.8"),
}

SUITES = {
    "main": Suite(MAIN, steps=40, test_freq=10, val_questions=64, seeds=(1, 2, 3)),
    "ablations": Suite(
        # The baselines of most questions first: others begin with the checkpoint of the very first.
        BASELINES | {name: arm for arms in ABLATIONS.values() for name, arm in arms.items()},
        steps=40,
        test_freq=40,
        val_questions=96,
        seeds=(1,),
        questions={question: tuple(arms) for question, arms in ABLATIONS.items()},
    ),
    "cuts": Suite(CUTS, steps=40, test_freq=10, val_questions=96, seeds=(1, 2, 3)),
}
