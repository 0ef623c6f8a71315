"""Every option of `r2po.*`: type, default, range, meaning, and the source of the default."""

from dataclasses import dataclass, field

from rpo_verl.config import ANY, above, at_least, one_of, option, out_of_range, refuse


@dataclass
class HeadConfig:
    """The rollout head, `residual = W_up relu(W_down h)`, on the hidden state `h` before the output layer. Rollouts of
    a training come from `softmax((logits + residual) / temperature)`, those of a validation from the policy alone."""

    rank: int | None = option(64, at_least(1))
    """Width of the head. Null: as wide as `h`, which takes hidden size × (hidden size + vocabulary) parameters on every
    device, and four times that while it trains. Authors' code: null (315 M parameters on a 3B model); 64 not measured
    against other ranks."""

    init_std: float | None = option(None, above(0))
    """Standard deviation of both matrices at the start. Null: `W_up` is zero, so that rollouts begin as the policy's
    own, and `W_down` has variance 1 / hidden size. Authors' code: 1e-6 where it resets the head."""


@dataclass
class RarityConfig:
    """What stage 1 pays the head for. The advantage is the z-score of the rarity within the group."""

    by: str = option("ngrams", one_of("ngrams", "reward"))
    """`ngrams`: wrong responses earn 0, and a correct one the mean of `1 / n` over its distinct token n-grams, where
    `n` correct responses of the group contain the n-gram. `reward`: every response earns `1 / n`, where `n` responses
    of the group have its reward; rare failures earn as much as rare successes. Authors' code: reward."""

    ngram: int = option(4, at_least(1))
    """Tokens of an n-gram. Rarity by 4 and 8 told right responses apart in all groups of an example, by 1 and 2 in
    6 % (docs/r2po.md)."""

    correct_above: float | None = option(None, ANY)
    """A response is correct if its `acc` exceeds this, or its reward where the reward function reports no `acc`. Null:
    above 0.5, and above half of the best value that the run has seen."""


@dataclass
class Stage1Config:
    """The update of the head. The policy does not change in it."""

    lr: float = option(3e-3, above(0))
    """Learning rate of the head's own Adam. Authors' code: 1e-6, with which ten updates move a log-probability by some
    thousandths. With 3e-3, four updates went on one batch as far as PPO's clip let them (docs/r2po.md); not measured in
    trainings."""

    epochs: int = option(4, at_least(1))
    """Updates per step, each on the whole batch. Authors' code: 1, ten times a round, each with new questions."""

    clip_ratio: float = option(0.2, above(0))
    """PPO's clip of the ratio of the head's distribution to the one that sampled. Authors' code: 0.2."""

    clip_grad: float = option(1.0, above(0))
    """Largest norm of the head's gradient."""

    kl_bound: float | None = option(0.02, above(0))
    """Bound on KL(π_head‖π) in nats per token, held by a penalty. Its weight grows by a tenth per update above the
    bound, and shrinks by a tenth below half of it. Null: no bound, the weight stays. Authors' code: null."""

    kl_weight: float = option(1.0, at_least(0))
    """Weight of the KL penalty at the start. Authors' code: 0.04, for another KL: to the initial model, by the
    estimator k3."""


@dataclass
class R2POConfig:
    """The `r2po` section of veRL's configuration."""

    head: HeadConfig = field(default_factory=HeadConfig)
    rarity: RarityConfig = field(default_factory=RarityConfig)
    stage1: Stage1Config = field(default_factory=Stage1Config)

    head_every: int = option(20, at_least(1))
    """Steps of a cycle. The first `r2po.head_steps` of them are stage 1 and train the head, the others are stage 2 and
    train the policy. Authors' scripts: 30, later 20. A step of stage 1 is one less of the policy: with 5 the fast
    lane's `biased` lost 6 points to GRPO, with 20 2 (docs/r2po.md)."""

    head_steps: int = option(1, at_least(0))
    """Steps of stage 1 per cycle, fewer than `r2po.head_every`. 0: the head stays as it is. Authors' scripts:
    10."""

    correction: str = option("importance", one_of("importance", "none"))
    """Whether stage 2 weighs tokens for having been sampled by the head: `importance` by veRL's own weights,
    `algorithm.rollout_correction.rollout_is`; `none` not at all. The two settings have to agree. Authors'
    code: none."""

    seed: int = 0
    """Seed of the head's initial weights."""


def validate(r2po: R2POConfig) -> None:
    """Refuse values that have the right type but make no sense.

    Raises:
        ConfigError: one message with every offending key, its value and what is allowed.
    """
    problems = list(out_of_range(r2po, "r2po"))
    if r2po.head_steps >= r2po.head_every >= 1:
        problems.append(
            f"r2po.head_steps={r2po.head_steps}: must be below r2po.head_every = {r2po.head_every}, or the policy is "
            "never trained"
        )
    refuse(problems)


def trains_head(step: int, r2po: R2POConfig) -> bool:
    """Whether a step is one of stage 1.

    Args:
        step: training step, from 1.
        r2po: the options.
    """
    return (step - 1) % r2po.head_every < r2po.head_steps
