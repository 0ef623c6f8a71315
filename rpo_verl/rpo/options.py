"""Every option of `rpo.*`: type, default, range, meaning, and the number or source behind it."""

from dataclasses import dataclass, field

from rpo_verl.config import ANY, SWITCH, Range, at_least, one_of, option, out_of_range, refuse, within
from rpo_verl.rpo.cache import ENTRY_BYTES


@dataclass
class TruncationConfig:
    """Where a cached answer of `l` tokens is cut: drop `m` trailing tokens, drawn from {min_tokens, …, L}."""

    max_fraction: float | None = option(0.1, Range("in (0, 1]", lambda value: 0 < value <= 1))
    """`L` as a fraction of `l`, rounded up; used where `max_tokens` is null. Smaller values generate fewer tokens.
    Paper: 0.5. With `rpo.credit.rule=none` the head of an answer is trained where it is generated alone, and only 1.0
    kept up with GRPO on two policies (docs/benchmarks.md)."""

    max_tokens: int | None = option(None, at_least(1))
    """`L` in tokens; takes precedence over `max_fraction`. Paper: 300, 500, 800."""

    min_tokens: int = option(1, at_least(0))
    """Smallest `m` in tokens. 0 also replays whole answers, to which the policy can only add an EOS. Paper: 0."""

    distribution: str = option("uniform", one_of("uniform", "log_uniform"))
    """How `m` is drawn. `log_uniform` has a density that falls as 1/m: mostly short suffixes, with a tail to `L`.
    Paper: uniform; the tail reached 0.660 with 53 % of GRPO's tokens where GRPO had 0.677 (docs/benchmarks.md)."""

    draw_per: str = option("step", one_of("step", "question"))
    """Draw one share of the range per `step`, or per `question`. A step lasts as long as its longest suffix, so a
    common draw is faster. Paper: question; the common draw takes 93 % of its time for the same accuracy
    (docs/benchmarks.md)."""


@dataclass
class RolloutConfig:
    """Which groups start from a prefix."""

    full_rollout_every: float = option(0, Range("0 or at least 1", lambda value: value == 0 or value >= 1))
    """Make every n-th training step full, which refreshes the heads of answers, and trains them where
    `rpo.credit.rule=none` does not. 2.5 means two steps of five; 0 switches it off. Paper: 0; without credit 4 gained
    5 points over 10 on answers of unequal length (docs/benchmarks.md)."""

    trunks: int = option(4, at_least(0))
    """On a question's first visit, generate so many whole answers, and let the rest of the group branch from their
    heads, in parts that differ by one member at most. A group has at most half as many trunks as members. 0: the whole
    group is generated. Paper: 0; one trunk ends anywhere, because a question whose trunk is wrong teaches little
    (docs/lab.md)."""


@dataclass
class RewardConfig:
    """Length-aware shaping, `R = r * max(lo, sigmoid(alpha * (mean length - length)))`, for correct responses only.
    Partial credit takes the smallest of these factors, so that it never overtakes a correct response."""

    shaping: bool | int = option(True, SWITCH)
    """Whether to shape; false trains on the base reward `r`. Paper: true."""

    alpha: float = option(0.01, at_least(0))
    """Steepness of the sigmoid per token; 0 has no preference for short answers. Paper: 0.01; with 1,
    single runs ended 13 to 23 points lower at an `L` of a quarter and a half (docs/ablations.md)."""

    lo: float = option(0.5, within(0, 1))
    """Smallest factor on `r`. The sigmoid is at most 0.5 for answers longer than the mean, so 0.5 ranks only the
    shorter ones. Paper: 0.5."""

    filter_at_most: float | None = option(0.25, at_least(0))
    """Maximum zero-advantage prefixed groups that DAPO's filter may discard per step, as a multiple of
    `data.train_batch_size`. After that they fill the batch. Null: no limit. Without one, a step behind long prefixes
    may never end (docs/log.md)."""

    correct_above: float | None = option(None, ANY)
    """A response is correct if its `acc` exceeds this, or its reward where the reward function reports no `acc`. Null:
    above 0.5, and above half of the best value that the run has seen in the data source. That fits 0 and 1, −1 and 1,
    and partial credit of up to a half. Set it where right answers earn 0.5 or less, and for reward models."""


@dataclass
class CacheConfig:
    """How the experience cache follows the groups."""

    greedy_prob: float = option(0.9, within(0, 1))
    """Probability of keeping the response with the highest `R`; otherwise another one, uniformly. Paper: 0.1 by its
    formula, 0.9 by its summary; single runs show no order (docs/ablations.md)."""

    keep_correct: bool | int = option(True, SWITCH)
    """Whether a correct answer is never replaced by a wrong response. Paper: false; a wrong prefix fails whole groups
    (docs/cache.md)."""

    max_failures: int | None = option(1, at_least(1))
    """Drop an answer after this many consecutive all-wrong groups, so that the question gets a full rollout next. Null:
    never. Paper: null; 1 ended highest from a contaminated cache (docs/cache.md)."""

    max_entries: int | None = option(None, at_least(1))
    """Maximum number of questions; the least recently updated are evicted. Null: no limit."""

    max_bytes: int | None = option(None, at_least(ENTRY_BYTES))
    """Maximum memory in bytes: 4 per token of question and answer, 300 per entry, and 2 per token of the answer where
    `rpo.credit.rule` needs log-probabilities. Null: no limit. 7,000 answers of 4,096 tokens take about 120 MB, 175 MB
    with log-probabilities (docs/cache.md)."""

    path: str | None = None
    """Folder of a store to start from (`rpo-verl cache build` or `import`, or a checkpoint's `rpo`). A resumed run
    takes the cache of its checkpoint."""


@dataclass
class CreditConfig:
    """Which tokens of a response are trained, and with which advantage."""

    rule: str = option("paid", one_of("none", "literal", "paid", "imitate"))
    """`none` trains the suffix alone. `literal` gives the prefix the advantage of its suffix, as the paper's formula
    does. `paid` gives a shared prefix the share of correct responses behind it. `imitate` does the same, and pays the
    rest of a correct response 1 and of a wrong one nothing, in place of the estimator. Paper: literal; it took 1.6
    times as long and ended 2 points lower in single runs (docs/ablations.md)."""

    @property
    def needs_logprobs(self) -> bool:
        """Whether the rule needs the log-probabilities under the policy that wrote the prefix."""
        return self.rule in ("paid", "imitate")


@dataclass
class RPOConfig:
    """The `rpo` section of veRL's configuration."""

    truncation: TruncationConfig = field(default_factory=TruncationConfig)
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    reward: RewardConfig = field(default_factory=RewardConfig)
    cache: CacheConfig = field(default_factory=CacheConfig)
    credit: CreditConfig = field(default_factory=CreditConfig)

    seed: int = 0
    """Seed of the truncation and cache draws. Each draw is a function of (seed, step, question) alone."""


#: Options of earlier versions → what to say of them.
MOVED = {
    "rpo.rollout.poll_interval_s": "is lean.poll_interval_s now",
    "rpo.loss.skip_no_signal": "is lean.skip_zero_advantage now",
    "rpo.loss.share_prefix": "is lean.share_prefix now",
    "rpo.loss.prefix_in_loss": "is rpo.credit.rule now: literal for true, none for false",
    "rpo.loss.mean_over": "is gone: the mean of the loss is over the whole response",
    "rpo.truncation.adaptive": "is gone: adaptive cuts generated as many tokens as GRPO",
    "rpo.truncation.target_success": "is gone with rpo.truncation.adaptive",
    "rpo.truncation.easy_above": "is gone with rpo.truncation.adaptive",
    "rpo.truncation.max_prefix_tokens": "is gone: nothing that we measured asked for it",
    "rpo.rollout.full_rollout_prob": "is gone: use rpo.rollout.full_rollout_every",
    "rpo.rollout.suffix_max_tokens": "is gone: data.max_response_length bounds prefix and suffix together",
    "rpo.rollout.suffix_max_multiple": "is gone: data.max_response_length bounds prefix and suffix together",
    "rpo.reward.hi": "is gone: the factor never exceeds 1",
    "rpo.reward.length_reference": "is gone: the reference is the mean length of the group",
    "rpo.reward.group_filter": "is gone: DAPO's filter looks at shaped rewards",
    "rpo.cache.max_age": "is gone: rpo.rollout.full_rollout_every refreshes answers",
    "rpo.credit.min_deviation": "is gone with a baseline for rpo.credit.rule, which ended below GRPO",
    "rpo.upstream": "is no option: RPO fills it in itself",
}


def validate(rpo: RPOConfig, *, max_response_length: int, group_size: int) -> None:
    """Refuse values that have the right type but make no sense.

    Args:
        rpo: the options.
        max_response_length: `data.max_response_length`, tokens.
        group_size: `actor_rollout_ref.rollout.n`, responses per question.

    Raises:
        ConfigError: one message with every offending key, its value and what is allowed.
    """
    truncation = rpo.truncation
    problems = list(out_of_range(rpo, "rpo"))
    if truncation.max_tokens is None and truncation.max_fraction is None:
        problems.append("rpo.truncation.max_tokens=null and rpo.truncation.max_fraction=null: set one of them")
    if truncation.max_tokens is not None and truncation.max_tokens > max_response_length:
        problems.append(
            f"rpo.truncation.max_tokens={truncation.max_tokens}: must be at most data.max_response_length = "
            f"{max_response_length}"
        )
    if truncation.max_tokens is not None and 1 <= truncation.max_tokens < truncation.min_tokens:
        problems.append(
            f"rpo.truncation.min_tokens={truncation.min_tokens}: must be at most rpo.truncation.max_tokens = "
            f"{truncation.max_tokens}"
        )
    if truncation.min_tokens >= max_response_length:
        problems.append(
            f"rpo.truncation.min_tokens={truncation.min_tokens}: must be below data.max_response_length = "
            f"{max_response_length}, or no group ever starts from a prefix"
        )
    if group_size < 2:
        problems.append(
            f"actor_rollout_ref.rollout.n={group_size}: must be at least 2, because the group-relative advantage of a "
            "single response is 0"
        )
    refuse(problems)
