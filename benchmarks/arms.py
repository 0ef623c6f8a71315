"""Every way to train that the demo, the benches and their tables compare, and the suites of bench.py.

An arm's name means one set of overrides everywhere. Suites differ in questions, steps, seeds and policies. Every arm
has the lean layer, so that no arm waits longer for the trainer's poll, or updates on more rows, than another;
`…-plain` is veRL as it comes.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from benchmarks.lab import suites
from benchmarks.learning_rates import LearningRate, learning_rate
from benchmarks.policies import biased, biased_more, talkative, weakened, weakest
from benchmarks.stores import Cache, initial_answers, trained_answers, true_answers


@dataclass(frozen=True)
class Arm:
    """One way to train."""

    overrides: tuple[str, ...] = ()
    knobs: Mapping[str, str] = field(default_factory=dict)
    """Of the recipe script, such as GROUP_SIZE."""

    cache: Cache | None = None
    model: Callable[[Path], Path] | None = None
    """From the folder of the suite to the checkpoint to begin with, where it is not the tiny reasoner's."""

    max_response_length: int = 128

    family: str = "grpo"
    """For the learning rate."""

    share_of_steps: float = 1.0
    """Of the suite's training steps, for a run at the tokens of another arm."""

    @property
    def policy(self) -> str:
        """Name of the policy to begin with."""
        return "tiny" if self.model is None else self.model.__name__.replace("_", "-")

    @property
    def learning_rate(self) -> LearningRate:
        """That of its family on its policy."""
        return learning_rate(self.policy, self.family)

    @property
    def all_knobs(self) -> dict[str, str]:
        """The knobs with the learning rate."""
        return {"LEARNING_RATE": self.learning_rate.value, **self.knobs}


@dataclass(frozen=True)
class Suite:
    """Arms that are compared with the first of them."""

    arms: Mapping[str, Arm]
    steps: int
    test_freq: int
    """Steps between two points of a curve."""

    seeds: tuple[int, ...]
    exact: bool = False
    """Whether accuracy is computed from exported checkpoints, because every question has one right solution. Otherwise
    it is that of sampled answers."""

    questions: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Question → arms that answer it, for the tables of a suite with many: the baseline first, then cuts in the last
    tenth, then the arms in question."""

    @property
    def baseline(self) -> str:
        """The first arm."""
        return next(iter(self.arms))

    @property
    def donor(self) -> str | None:
        """The first arm, where others begin with its checkpoint."""
        return self.baseline if any(arm.cache is trained_answers for arm in self.arms.values()) else None

    def beginning(self, arm: str) -> str:
        """The first arm that begins with the same policy. Its validation before training counts for all of them."""
        return next(name for name, other in self.arms.items() if other.model is self.arms[arm].model)

    def steps_of(self, arm: str) -> int:
        """Training steps of an arm."""
        return round(self.steps * self.arms[arm].share_of_steps)

    def of_length(self, steps: int) -> "Suite":
        """The same with another number of training steps, validated as often."""
        return replace(self, steps=steps, test_freq=max(1, round(self.test_freq * steps / self.steps)))


#: Prefixes without credit, and first visits without trunks.
NO_CREDIT = ("rpo.credit.rule=none", "rpo.rollout.trunks=0")


def rpo(*overrides: str, cache: Cache | None = None, family: str = "rpo", **knobs: str) -> Arm:
    """GRPO with RPO, its defaults but for `overrides`."""
    return Arm(("+rpo=enabled", *overrides), knobs, cache, family=family)


def cuts(
    fraction: float,
    *overrides: str,
    full_every: int = 10,
    distribution: str = "uniform",
    draw_per: str = "question",
    cache: Cache | None = None,
    **knobs: str,
) -> Arm:
    """GRPO with RPO, fixed cuts and full steps, no credit: so the arm outlives the defaults. `overrides` win."""
    return rpo(
        *NO_CREDIT,
        f"rpo.truncation.max_fraction={fraction}",
        f"rpo.truncation.distribution={distribution}",
        f"rpo.truncation.draw_per={draw_per}",
        f"rpo.rollout.full_rollout_every={full_every}",
        *overrides,
        cache=cache,
        **knobs,
    )


def tenth(*overrides: str, cache: Cache | None = None, **knobs: str) -> Arm:
    """Cuts in the last tenth of an answer and every 10th step full: the arm that ablations change one option of."""
    return cuts(0.1, *overrides, cache=cache, **knobs)


NEVER_FULL = "rpo.rollout.full_rollout_every=0"
GRPO_PLAIN = Arm()
GRPO = Arm(("+lean=enabled",))
DAPO_OVERRIDES = (
    "actor_rollout_ref.actor.clip_ratio_high=0.28",
    "reward.reward_manager.name=dapo",
    "+reward.reward_kwargs.overlong_buffer_cfg={enable: true, len: 16, penalty_factor: 1.0, log: false}",
    "+reward.reward_kwargs.max_resp_len=${data.max_response_length}",
    "algorithm.filter_groups.enable=true",
    "algorithm.filter_groups.metric=acc",
    "algorithm.filter_groups.max_inflight_gen_batches=2",
)


def with_dapo(arm: Arm) -> Arm:
    """The same with DAPO in place of GRPO."""
    family = "dapo" if arm.family == "grpo" else f"dapo-{arm.family}"
    return replace(arm, overrides=(*DAPO_OVERRIDES, *arm.overrides), family=family)


def epochs(number: int) -> Arm:
    """GRPO that uses every batch several times, so its old log-probabilities are those of the rollout in all epochs."""
    return replace(GRPO, overrides=(*GRPO.overrides, f"actor_rollout_ref.actor.ppo_epochs={number}"))


#: Imitation of the right ones among full rollouts; benchmarks/raft.py registers the estimator.
RAFT = Arm((*GRPO.overrides, "algorithm.adv_estimator=raft"), family="raft")

#: RPO with the defaults that it had without credit.
UNCREDITED = rpo(*suites.UNCREDITED, family="rpo-uncredited")
#: GRPO and DAPO with the lean layer, as veRL has them, with RPO's defaults and with RPO without credit.
MAIN = {
    "grpo": GRPO,
    "grpo-plain": GRPO_PLAIN,
    "rpo": rpo(),
    "rpo-uncredited": UNCREDITED,
    "dapo": with_dapo(GRPO),
    "dapo-plain": with_dapo(GRPO_PLAIN),
    "dapo-rpo": with_dapo(rpo()),
    "dapo-rpo-uncredited": with_dapo(UNCREDITED),
}
#: Ways to need fewer tokens, or to learn more from them, that cost nothing to try.
COMPETITORS = {
    "grpo-2epochs": epochs(2),
    "grpo-4epochs": epochs(4),
    "grpo-4epochs-quarter": replace(epochs(4), share_of_steps=0.25),
    "grpo-half": replace(GRPO, knobs={"GROUP_SIZE": "4"}),
    "raft": RAFT,
    "raft-rpo-tokens": replace(RAFT, share_of_steps=suites.RPO_TOKENS),
}
#: The defaults without credit for what is reused, and with right responses imitated as a whole.
REUSE = {
    "rpo-none": rpo("rpo.credit.rule=none", family="rpo-none"),
    "rpo-imitate": rpo("rpo.credit.rule=imitate"),
}
#: The demo's arms by algorithm; the first two are those it trains by default.
DEMO = {
    "grpo": {
        "grpo": GRPO,
        "rpo": MAIN["rpo"],
        "rpo-uncredited": UNCREDITED,
        "grpo-plain": GRPO_PLAIN,
        # The paper's loss covers the prefix, whose old log-probabilities only the trainer can compute.
        "paper": Arm(("+rpo=paper", "algorithm.rollout_correction.bypass_mode=false"), family="rpo"),
    },
    "dapo": {
        "dapo": MAIN["dapo"],
        "dapo-rpo": MAIN["dapo-rpo"],
        "dapo-rpo-uncredited": MAIN["dapo-rpo-uncredited"],
        "dapo-plain": MAIN["dapo-plain"],
    },
}
# The baselines of most comparisons, and the arm that ablations change. The checkpoint of the first one answers for
# `trained_answers`.
BASELINES = {"grpo": GRPO, "grpo-plain": GRPO_PLAIN, "L0.1": tenth()}


def on(policy: Callable[[Path], Path], arms: Mapping[str, Arm]) -> dict[str, Arm]:
    """The same arms, beginning with another policy."""
    return {name: replace(arm, model=policy) for name, arm in arms.items()}


def talking(arm: Arm) -> Arm:
    """The same with a policy whose answers differ in length."""
    return replace(arm, model=talkative, max_response_length=192)


def with_weak_policy(name: str, model: Callable[[Path], Path]) -> dict[str, Arm]:
    """Without RPO, with it, and with answers from elsewhere in its cache."""
    return {
        f"{name}-grpo": replace(GRPO, model=model),
        f"{name}-grpo-plain": replace(GRPO_PLAIN, model=model),
        f"{name}-L0.1": replace(tenth(), model=model),
        f"{name}-truth": replace(tenth(cache=true_answers), model=model),
        f"{name}-strong": replace(tenth(cache=trained_answers), model=model),
    }


#: L in tokens or of the answer.
CUTS_AT = {
    "12": "rpo.truncation.max_tokens=12",
    "0.25": "rpo.truncation.max_fraction=0.25",
    "0.5": "rpo.truncation.max_fraction=0.5",
    "1": "rpo.truncation.max_fraction=1.0",
}
ALPHAS = (0, 0.01, 0.1, 1)

TALKING = {"talk-grpo": talking(GRPO), "talk-grpo-plain": talking(GRPO_PLAIN), "talk-L0.1": talking(tenth())}

# Question → arms that answer it, beside two baselines.
ABLATIONS = {
    "Where answers are cut (L), and the length-aware reward (alpha)": TALKING
    | {
        f"talk-L{label}-alpha{alpha:g}": talking(tenth(cut, f"rpo.reward.alpha={alpha:g}"))
        for label, cut in CUTS_AT.items()
        for alpha in ALPHAS
    },
    "Diversity without the length-aware reward": TALKING
    | {
        "talk-unshaped": talking(tenth("rpo.reward.shaping=false")),
        "talk-unshaped-full4": talking(tenth("rpo.reward.shaping=false", "rpo.rollout.full_rollout_every=4")),
        "talk-unshaped-greedy0": talking(tenth("rpo.reward.shaping=false", "rpo.cache.greedy_prob=0")),
    },
    "A policy that is seldom right": with_weak_policy("weak", weakened),
    "A policy too weak to fill the cache with anything right": with_weak_policy("weakest", weakest),
    "Other ranges": BASELINES
    | {
        "L24": tenth("rpo.truncation.max_tokens=24"),
        "tail": cuts(1.0, distribution="log_uniform"),
    },
    "Which response the cache takes": BASELINES
    | {f"greedy{prob:g}": tenth(f"rpo.cache.greedy_prob={prob:g}") for prob in (0, 0.1, 0.5, 1)},
    "What the cache begins with": BASELINES
    | {
        "cache-built": tenth(cache=initial_answers),
        "cache-truth": tenth(cache=true_answers),
        "cache-strong": tenth(cache=trained_answers),
    },
    "Prefixes in the loss": BASELINES
    | {"prefix-in-loss": tenth("rpo.credit.rule=literal", BYPASS_OLD_LOG_PROB="false")},
    "How many rollouts are full": BASELINES
    | {
        "full-never": tenth(NEVER_FULL),
        "full-steps0.05": tenth("rpo.rollout.full_rollout_every=20"),
        "full-steps0.25": tenth("rpo.rollout.full_rollout_every=4"),
    },
    "Size of groups and batches": BASELINES
    | {
        "G4": tenth(GROUP_SIZE="4"),
        "G16": tenth(GROUP_SIZE="16"),
        "batch4": tenth(QUESTIONS_PER_STEP="4"),
    },
}

# With seeds: where to cut, by fixed ranges and by mixes with full rollouts.
CUTS = {
    **BASELINES,
    "L0.1-full4": cuts(0.1, full_every=4),
    "L0.5": cuts(0.5),
    "L1": cuts(1.0),
    "L1-step": cuts(1.0, draw_per="step"),
    "dapo": MAIN["dapo"],
    "dapo-plain": MAIN["dapo-plain"],
    "dapo-L0.1": with_dapo(cuts(0.1, full_every=5)),
}

# With seeds, on the policy whose answers differ in length: what keeps them whole.
TALKATIVE_CUTS = {
    name: talking(arm)
    for name, arm in {
        "grpo": GRPO,
        "grpo-plain": GRPO_PLAIN,
        "last-token": tenth("rpo.truncation.max_tokens=1"),
        "L0.1": tenth(),
        "L0.1-full4": cuts(0.1, full_every=4),
        "tail": cuts(1.0, distribution="log_uniform"),
        "tail-step": cuts(1.0, distribution="log_uniform", draw_per="step"),
        "tail-step-full4": cuts(1.0, full_every=4, distribution="log_uniform", draw_per="step"),
        "L1-step": cuts(1.0, draw_per="step"),
        "L1-step-full4": cuts(1.0, full_every=4, draw_per="step"),
    }.items()
}

COMPARED = MAIN | COMPETITORS | REUSE
FIVE_SEEDS = (1, 2, 3, 4, 5)

SUITES = {
    # What every claim rests on: the same arms, one policy each.
    "tiny": Suite(COMPARED, steps=48, test_freq=8, seeds=FIVE_SEEDS, exact=True),
    "biased": Suite(on(biased, COMPARED), steps=48, test_freq=8, seeds=FIVE_SEEDS, exact=True),
    "biased-more": Suite(on(biased_more, COMPARED), steps=48, test_freq=8, seeds=FIVE_SEEDS, exact=True),
    "talkative": Suite({name: talking(arm) for name, arm in COMPARED.items()}, steps=48, test_freq=8, seeds=FIVE_SEEDS),
    # What decided the defaults.
    "cuts": Suite(CUTS, steps=32, test_freq=8, seeds=(1, 2, 3)),
    "talkative-cuts": Suite(TALKATIVE_CUTS, steps=32, test_freq=8, seeds=(1, 2, 3)),
    "ablations": Suite(
        # The baselines of most questions first: others begin with the checkpoint of the very first.
        BASELINES | {name: arm for arms in ABLATIONS.values() for name, arm in arms.items()},
        steps=32,
        test_freq=16,
        seeds=(1,),
        questions={question: tuple(arms) for question, arms in ABLATIONS.items()},
    ),
}
