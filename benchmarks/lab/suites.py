"""Suites of the fast lane: name of an arm → its options."""

from collections.abc import Mapping
from dataclasses import dataclass

from benchmarks.learning_rates import learning_rate

Suite = Mapping[str, tuple[str, ...]]

#: What a sweep tries; where the best one is the first or the last, the sweep goes on beyond it.
LEARNING_RATES = ("1.5e-4", "3e-4", "4.5e-4", "6e-4", "1.2e-3")
#: Tokens of RPO with its defaults, as a share of GRPO's.
RPO_TOKENS = 0.18
#: Tokens of GRPO in 48 steps of 64 responses.
GRPO_TOKENS = 344_000


@dataclass(frozen=True)
class Named:
    """A suite and the seeds that it runs with."""

    arms: Suite
    seeds: tuple[int, ...]


#: Cuts in the last tenth and no full steps, spelt out so that arms outlive the defaults.
_SHORT = ("--arm", "rpo", "rpo.truncation.max_fraction=0.1", "rpo.rollout.full_rollout_every=0")
_PAID, _TRUNKS = "rpo.credit.rule=paid", "rpo.rollout.trunks=4"
_SHAPED, _UNSHAPED = (f"rpo.reward.shaping={switch}" for switch in ("true", "false"))
#: The defaults.
_RPO = (*_SHORT, _SHAPED, _TRUNKS, _PAID)
#: The defaults that RPO had without credit: the least loss of accuracy that shared prefixes allow then.
UNCREDITED = (
    "rpo.truncation.max_fraction=1", "rpo.rollout.full_rollout_every=4", "rpo.credit.rule=none",
    "rpo.rollout.trunks=0",
)  # fmt: skip
#: Family → an arm of it.
FAMILIES = {
    "grpo": ("--arm", "grpo"),
    "dapo": ("--arm", "dapo"),
    "raft": ("--arm", "raft"),
    "rpo": _RPO,
    "rpo-unshaped": (*_SHORT, _UNSHAPED, _TRUNKS, _PAID),
    "rpo-none": (*_SHORT, _UNSHAPED, _TRUNKS, "rpo.credit.rule=none"),
    "rpo-uncredited": ("--arm", "rpo", *UNCREDITED),
}
#: The policies that runs begin with.
POLICIES = ("biased", "tiny", "biased-more", "talkative")

#: The best learning rate of every family on every policy; seeds of its own, so that nothing is chosen on those that
#: claims rest on.
LR = {
    f"{model}-{family}-lr{lr}": ("--model", model, "--lr", lr, *options)
    for model in POLICIES
    for family, options in FAMILIES.items()
    for lr in LEARNING_RATES
}


def _on_policies(arms: Suite) -> Suite:
    """Arms, as family and options, on every policy with the family's learning rate there."""
    return {
        f"{model}-{name}": ("--model", model, "--lr", learning_rate(model, family).value, *options)
        for model in POLICIES
        for name, (family, *options) in arms.items()
    }


#: What RPO has to be held against: ways to need fewer tokens that cost nothing to try.
COMPETITORS = _on_policies(
    {
        "grpo": ("grpo", "--arm", "grpo"),
        "grpo-2epochs": ("grpo", "--arm", "grpo", "--ppo-epochs", "2"),
        "grpo-4epochs": ("grpo", "--arm", "grpo", "--ppo-epochs", "4"),
        "grpo-4epochs-quarter": ("grpo", "--arm", "grpo", "--ppo-epochs", "4", "--steps", "12"),
        "grpo-half": ("grpo", "--arm", "grpo", "--group-size", "4"),
        "raft": ("raft", "--arm", "raft"),
        "raft-rpo-tokens": ("raft", "--arm", "raft", "--max-tokens", str(round(RPO_TOKENS * GRPO_TOKENS))),
        "first-epoch": ("raft", "--arm", "first-epoch"),
        "rpo": ("rpo", *FAMILIES["rpo"]),
        "dapo": ("dapo", "--arm", "dapo"),
    }
)

_WEIGHTS = ("--prefix-weights", "1")
#: What credit for reused prefixes and trunks are worth, against GRPO and RAFT.
REUSE = _on_policies(
    {
        "grpo": ("grpo", "--arm", "grpo"),
        "rpo": ("rpo", *FAMILIES["rpo"]),
        "raft": ("raft", "--arm", "raft"),
        "rpo-uncredited": ("rpo-uncredited", *FAMILIES["rpo-uncredited"]),
        "rpo-none": ("rpo-none", *FAMILIES["rpo-none"]),
        "rpo-imitate": ("rpo", *_SHORT, _SHAPED, _TRUNKS, "rpo.credit.rule=imitate"),
        "rpo-unshaped": ("rpo", *FAMILIES["rpo-unshaped"]),
        "rpo-trunks0": ("rpo", *_SHORT, _UNSHAPED, "rpo.rollout.trunks=0", _PAID),
        "rpo-trunks1": ("rpo", *_SHORT, _UNSHAPED, "rpo.rollout.trunks=1", _PAID),
        "rpo-weights1": ("rpo", *_RPO, *_WEIGHTS),
        "rpo-uniform": ("rpo", *_RPO, "rpo.cache.greedy_prob=0"),
        "rpo-L0.25": ("rpo", *_RPO, "rpo.truncation.max_fraction=0.25"),
        "rpo-answers4": ("rpo", *_SHORT, _SHAPED, "rpo.rollout.trunks=1", _PAID, "--answers", "4"),
        "grpo-skip": ("grpo", "--arm", "grpo", "--skip-solved", "0.9"),
        "rpo-skip": ("rpo", *_RPO, "--skip-solved", "0.9"),
        "drafts": ("grpo", "--arm", "drafts"),
        "drafts-lenient": ("grpo", "--arm", "drafts", "--lenience", "1.65"),
    }
)

#: Does a rollout head do anything, against what a user would try first? PODS and MinPRO beside it.
R2PO = _on_policies(
    {
        "grpo": ("grpo", "--arm", "grpo"),
        "r2po": ("grpo", "--arm", "r2po", "r2po.head_every=20"),
        "r2po-every5": ("grpo", "--arm", "r2po", "r2po.head_every=5"),
        # As many steps of the policy as r2po-every5 has.
        "grpo-38steps": ("grpo", "--arm", "grpo", "--steps", "38"),
        "grpo-T1.2": ("grpo", "--arm", "grpo", "--temperature", "1.2"),
        "r2po-paper": (
            "grpo", "--arm", "r2po", "r2po.head_every=30", "r2po.head_steps=10", "r2po.correction=none",
            "r2po.head.rank=null", "r2po.head.init_std=1e-6", "r2po.rarity.by=reward", "r2po.stage1.lr=1e-6",
            "r2po.stage1.epochs=1", "r2po.stage1.kl_bound=null", "r2po.stage1.kl_weight=0.04",
        ),
        "grpo-pods": ("grpo", "--arm", "grpo", "--rows-per-group", "4"),
        "grpo-4epochs": ("grpo", "--arm", "grpo", "--ppo-epochs", "4"),
        "grpo-4epochs-minpro": ("grpo", "--arm", "grpo", "--ppo-epochs", "4", "--loss", "minpro"),
    }
)  # fmt: skip

#: Does a policy collapse in a long training? Four times the steps, with the learning rates of the short ones.
LONG = {
    name: (*options, "--steps", "200") for name, options in REUSE.items() if name.rpartition("-")[2] in ("grpo", "rpo")
}

#: The language model: what benchmarks/lm/bench.py trains through veRL.
_LANGUAGE = ("--model", "chain_sum", "--bfloat16", "--questions", "128", "--eval-questions", "128")
#: A sweep of its learning rates; the model is larger, so they are smaller.
LM = {
    f"chain_sum-{family}-lr{lr}": (*_LANGUAGE, "--lr", lr, *FAMILIES[family])
    for family in ("grpo", "rpo")
    for lr in ("1e-5", "2e-5", "4e-5", "8e-5")
}

SUITES = {
    "lr": Named(LR, (11, 12)),
    "competitors": Named(COMPETITORS, (1, 2, 3, 4, 5)),
    "reuse": Named(REUSE, (1, 2, 3, 4, 5)),
    "long": Named(LONG, (1,)),
    "lm": Named(LM, (11,)),
    "r2po": Named(R2PO, (1, 2, 3, 4, 5)),
}
