"""The learning rate of every family of arms on every policy, and how it was found."""

from dataclasses import dataclass

NO_SWEEP = "the recipe's; no sweep yet"


@dataclass(frozen=True)
class LearningRate:
    """A learning rate and where it comes from. The schedule is the same for all: cosine, from the first step on."""

    value: str
    sweep: str


RECIPE = LearningRate("3e-4", NO_SWEEP)
LR_SUITE = "docs/results/lab-lr.json"
#: Family → the one whose sweep decides for it: shaping changes which answer is kept, little else where lengths agree.
SWEPT_AS = {"rpo": "rpo-unshaped"}
#: (policy, family) → the best of a sweep; others train with the recipe's.
SWEPT = {
    ("biased", "grpo"): LearningRate("3e-4", LR_SUITE),
    ("biased", "dapo"): LearningRate("6e-4", LR_SUITE),
    ("biased", "raft"): LearningRate("6e-4", LR_SUITE),
    ("biased", "rpo"): LearningRate("6e-4", LR_SUITE),
    ("biased", "rpo-none"): LearningRate("3e-4", LR_SUITE),
    ("biased", "rpo-uncredited"): LearningRate("3e-4", LR_SUITE),
    ("biased-more", "grpo"): LearningRate("6e-4", LR_SUITE),
    ("biased-more", "raft"): LearningRate("6e-4", LR_SUITE),
    ("biased-more", "rpo"): LearningRate("6e-4", LR_SUITE),
    ("tiny", "grpo"): LearningRate("3e-4", LR_SUITE),
    ("tiny", "raft"): LearningRate("3e-4", LR_SUITE),
    ("tiny", "rpo"): LearningRate("3e-4", LR_SUITE),
    ("talkative", "grpo"): LearningRate("3e-4", LR_SUITE),
    ("talkative", "raft"): LearningRate("6e-4", LR_SUITE),
    ("talkative", "rpo"): LearningRate("6e-4", LR_SUITE),
}


def learning_rate(policy: str, family: str) -> LearningRate:
    """The learning rate of a family of arms on a policy."""
    return SWEPT.get((policy, family), RECIPE)
