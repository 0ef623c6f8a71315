"""Suites of the fast lane: name of an arm → its options."""

from collections.abc import Mapping
from dataclasses import dataclass

Suite = Mapping[str, tuple[str, ...]]

LEARNING_RATES = ("1.5e-4", "3e-4", "6e-4", "1.2e-3")
#: Tokens of RPO with its defaults in 48 steps of 64 responses: 82.7 per response (docs/results/bench-main.json).
RPO_TOKENS = round(48 * 64 * 82.7)


@dataclass(frozen=True)
class Named:
    """A suite and the seeds that it runs with."""

    arms: Suite
    seeds: tuple[int, ...]


#: The best learning rate of every family on two policies.
LR = {
    f"{model}-{arm}-lr{lr}": ("--arm", arm, "--model", model, "--lr", lr)
    for model in ("tiny", "biased")
    for arm in ("grpo", "dapo", "rpo")
    for lr in LEARNING_RATES
}

#: What RPO has to be held against: ways to need fewer tokens that cost nothing to try.
COMPETITORS = {
    f"{model}-{name}": ("--model", model, *options)
    for model in ("tiny", "biased")
    for name, options in {
        "grpo": ("--arm", "grpo"),
        "grpo-epochs2": ("--arm", "grpo", "--ppo-epochs", "2"),
        "grpo-epochs4": ("--arm", "grpo", "--ppo-epochs", "4"),
        "raft": ("--arm", "raft"),
        "raft-rpo-tokens": ("--arm", "raft", "--max-tokens", str(RPO_TOKENS)),
        "first-epoch": ("--arm", "first-epoch"),
        "group4": ("--arm", "grpo", "--group-size", "4"),
        "rpo": ("--arm", "rpo"),
    }.items()
}

#: RPO without shaping and full steps, cut in the last tenth: what the arms of `REUSE` have in common.
_SHORT = (
    "--arm", "rpo", "rpo.truncation.max_fraction=0.1", "rpo.rollout.full_rollout_every=0", "rpo.reward.shaping=false",
)  # fmt: skip
_PAID, _TRUNKS = "rpo.credit.rule=paid", "rpo.rollout.trunks=4"
#: What credit for reused prefixes and trunks are worth, against GRPO at its better learning rate and RAFT.
REUSE = {
    f"{model}-{name}": ("--model", model, *options)
    for model in ("biased", "tiny")
    for name, options in {
        "grpo-lr6e-4": ("--arm", "grpo", "--lr", "6e-4"),
        "trunks4-paid": (*_SHORT, _TRUNKS, _PAID, "--prefix-weights", "1"),
        "trunks4-paid-clipped": (*_SHORT, _TRUNKS, _PAID),
        "raft": ("--arm", "raft"),
        "trunks4-value": (*_SHORT, _TRUNKS, "rpo.credit.rule=value", "--prefix-weights", "1"),
        "full-paid": (*_SHORT, _PAID, "--prefix-weights", "1"),
        "trunks4-none": (*_SHORT, _TRUNKS),
        "rpo": ("--arm", "rpo"),
        "trunks1-paid": (*_SHORT, "rpo.rollout.trunks=1", _PAID, "--prefix-weights", "1"),
    }.items()
}

SUITES = {
    "lr": Named(LR, (1, 2, 3)),
    "competitors": Named(COMPETITORS, (1, 2, 3, 4, 5)),
    "reuse": Named(REUSE, (1, 2, 3, 4, 5)),
}
