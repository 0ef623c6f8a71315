"""Every option of `rpo.*`: its type, its default, its meaning and its valid range. No default is written elsewhere.

Hydra reads these classes through the group `hydra_configs/rpo`, so a misspelt key or a value of the wrong type is
already refused while the configuration is composed; `validate` refuses the values that have the right type only.
"""

from dataclasses import dataclass, field
from math import inf


@dataclass
class TruncationConfig:
    """Where a cached answer of `l` tokens is cut: `m` trailing tokens are dropped, drawn from {min_tokens..L}."""

    max_fraction: float | None = 1.0
    """`L` as a fraction of `l`, rounded up; in (0, 1]. Used where `max_tokens` is null. The smaller, the fewer tokens,
    and the more the end of answers is trained at the expense of their head. Paper: 0.5 (main table); its 300 tokens are
    about 0.1 of its answers."""

    max_tokens: int | None = None
    """`L` in tokens; at least 1. Where set it takes the place of `max_fraction`. Paper: 300, 500, 800."""

    min_tokens: int = 1
    """Smallest `m` in tokens; 0 (paper) also replays whole answers, from which the policy can only add an EOS."""

    distribution: str = "uniform"
    """How `m` is drawn: `uniform` (paper), or `log_uniform`, whose density falls as 1/m: mostly short suffixes, with a
    tail to `L`."""

    draw_per: str = "step"
    """Whose draw `m` is: all questions of a `step` are cut at the same share of their range, or each `question` has its
    own (paper). A step lasts as long as its longest suffix: with its own draw a batch of many questions has nearly
    always one of about `L` tokens, with a shared one it is half of that on average."""

    max_prefix_tokens: int | None = None
    """Prefix budget in tokens: a longer prefix is cut to it. Null: whatever `m` leaves."""

    adaptive: bool = False
    """Find `m` from how often the policy went wrong on the question so far, up to the whole answer. It is drawn from
    {min_tokens..L} only until anything was seen."""

    target_success: float = 0.5
    """With `adaptive`: the share of a group that is to succeed; in (0, 1)."""

    easy_above: float = 0.95
    """With `adaptive`: a group of which a larger share would succeed gets `min_tokens`; at most 1, and above
    `target_success`."""


@dataclass
class RolloutConfig:
    """Which groups get a prefix and how much they may generate."""

    full_rollout_every: float = 4
    """Every n-th training step all groups are full rollouts, which train and refresh the head of the answers; 2.5 means
    two steps of five; 0 switches it off (paper). By step rather than by group, because a step lasts as long as its
    longest sample."""

    full_rollout_prob: float = 0.0
    """Probability, in [0, 1], that a group whose question is cached is a full rollout all the same."""

    suffix_max_tokens: int | None = None
    """Cap on the suffix of a prefixed group in tokens. Null: what `data.max_response_length` leaves."""

    suffix_max_multiple: float | None = None
    """Cap on the suffix as a multiple of `m`, rounded up. The authors' code has 1, which lets answers only shrink."""

    poll_interval_s: float = 0.05
    """Seconds between two looks of the trainer at the replay buffer. veRL's own 2 s would hide what a suffix saves."""


@dataclass
class RewardConfig:
    """Length-aware shaping, `R = r * clip(sigmoid(alpha * (l_ref - l)), lo, hi)` for correct responses only."""

    shaping: bool = True
    """False trains on the base reward `r` as it is."""

    alpha: float = 0.01
    """Steepness of the sigmoid per token; at least 0 (0: no preference for short answers)."""

    lo: float = 0.5
    """Smallest factor on `r`; in [0, hi]. As sigmoid <= 0.5 wherever `l >= l_ref`, 0.5 tells only the shorter answers
    apart."""

    hi: float = 1.0
    """Largest factor on `r`; in [lo, 1]."""

    length_reference: str = "group"
    """`l_ref`: mean response length of the whole `group` (paper) or of its `correct` members."""

    group_filter: str = "shaped"
    """Which rewards `algorithm.filter_groups` (DAPO's dynamic sampling) looks at in groups RPO started: a group goes if
    all its `shaped` rewards are alike, that is if it carries no signal; `base` keeps veRL's rule, on the user's metric,
    which drops nearly every group that starts from a long prefix."""

    filter_at_most: float | None = 0.25
    """How many groups from prefixes one step may leave out and replace for want of a signal, as a multiple of
    `data.train_batch_size`; at least 0. Beyond that, groups without a signal fill the batch, and no more than that (see
    `rpo.loss.skip_no_signal`). Null: no limit, and a step lasts until enough groups have a signal. Full rollouts have
    no limit, and with `group_filter=base` nothing has."""

    correct_above: float = 0.0
    """A response is correct if its `acc` (where the reward function reports one, else its reward) exceeds this."""


@dataclass
class CacheConfig:
    """How the experience cache follows the groups."""

    greedy_prob: float = 0.9
    """Probability, in [0, 1], of keeping the response with the highest `R`; else another of the group, uniformly."""

    keep_correct: bool = True
    """A correct cached answer is never replaced by a wrong response."""

    max_failures: int | None = 1
    """An answer from whose prefixes so many groups in a row failed altogether is dropped, so that the question gets a
    full rollout next time; at least 1. Null: it is kept for ever."""

    max_age: int | None = None
    """A question whose answer has a head older than so many training steps gets a full rollout. Null: no limit."""

    max_entries: int | None = None
    """Most questions the cache holds; beyond that the least recently used go. Null: no limit."""

    max_bytes: int | None = None
    """Most memory the cache takes: 4 bytes a token of questions and answers, 300 an entry. Null: no limit."""

    path: str | None = None
    """Folder of a store (`rpo-verl cache build` or `import`, or a checkpoint's `rpo`) to begin with. A run that resumes
    from a checkpoint takes the cache of that."""


@dataclass
class LossConfig:
    """What the policy loss covers."""

    prefix_in_loss: bool = False
    """True puts the shared prefix into the loss (the paper's literal formula); False trains on the suffix alone."""

    mean_over: str = "response"
    """What a mean over tokens divides by where the prefix is not in the loss: the tokens of the whole `response` (the
    `|o|` of the paper's objective), or of the `suffix` alone. The latter weighs a token of a short suffix many times
    heavier than one of a full rollout."""

    skip_no_signal: bool = True
    """Leave rows whose advantages are all zero out of the actor's update, where no other term of the loss (KL, entropy,
    distillation) has a gradient on them: the same update in less time. veRL's `actor/*` metrics then cover the rest."""

    share_prefix: bool = False
    """Compute question and prefix once for all members of a group that share a micro-batch, in log-probabilities and
    update: the same up to rounding. For FSDP and models with plain causal attention (`sdpa`, `flash_attention_2`); it
    takes that attention's place, and refuses other models."""


@dataclass
class Upstream:
    """The user's own components, which RPO wraps. Filled in when the trainer starts; not for the command line."""

    adv_estimator: str | None = None
    reward_manager: str | None = None
    reward_manager_source: str | None = None


@dataclass
class RPOConfig:
    """The `rpo` section of veRL's configuration."""

    truncation: TruncationConfig = field(default_factory=TruncationConfig)
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    reward: RewardConfig = field(default_factory=RewardConfig)
    cache: CacheConfig = field(default_factory=CacheConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    upstream: Upstream = field(default_factory=Upstream)

    seed: int = 0
    """Seed of the truncation, full-rollout and cache draws, each a function of (seed, step, question) alone."""


class ConfigError(ValueError):
    """A configuration that RPO cannot run; the message names the offending key and value, and the fix."""


def validate(rpo: RPOConfig, *, max_response_length: int, group_size: int) -> None:
    """Refuse values that have the right type but make no sense.

    Args:
        rpo: the options.
        max_response_length: `data.max_response_length`, tokens.
        group_size: `actor_rollout_ref.rollout.n`, responses per question.

    Raises:
        ConfigError: one message with every offending key, its value and what is allowed.
    """
    truncation, rollout, reward = rpo.truncation, rpo.rollout, rpo.reward
    longest = max_response_length
    checks = [
        ("truncation.max_tokens", truncation.max_tokens, lambda v: v is None or 1 <= v <= longest,
         f"null or 1 to data.max_response_length = {longest}"),
        ("truncation.max_fraction", truncation.max_fraction, lambda v: v is None or 0 < v <= 1, "in (0, 1], or null"),
        ("truncation.min_tokens", truncation.min_tokens, lambda v: v >= 0, "at least 0"),
        ("truncation.max_prefix_tokens", truncation.max_prefix_tokens, lambda v: v is None or 1 <= v < longest,
         f"null or at least 1 and below data.max_response_length = {longest}, so that a suffix fits"),
        ("truncation.distribution", truncation.distribution, ("uniform", "log_uniform").__contains__,
         "uniform or log_uniform"),
        ("truncation.draw_per", truncation.draw_per, ("question", "step").__contains__, "question or step"),
        ("truncation.target_success", truncation.target_success, lambda v: 0 < v < 1, "between 0 and 1"),
        ("truncation.easy_above", truncation.easy_above, lambda v: truncation.target_success < v <= 1,
         f"above truncation.target_success = {truncation.target_success} and at most 1"),
        ("rollout.full_rollout_every", rollout.full_rollout_every, lambda v: v == 0 or v >= 1,
         "at least 1, or 0 (never)"),
        ("rollout.full_rollout_prob", rollout.full_rollout_prob, lambda v: 0 <= v <= 1, "in [0, 1]"),
        ("rollout.suffix_max_tokens", rollout.suffix_max_tokens, lambda v: v is None or 1 <= v <= longest,
         f"null or 1 to data.max_response_length = {longest}"),
        ("rollout.suffix_max_multiple", rollout.suffix_max_multiple, lambda v: v is None or v > 0, "above 0, or null"),
        ("rollout.poll_interval_s", rollout.poll_interval_s, lambda v: v > 0, "above 0"),
        ("reward.alpha", reward.alpha, lambda v: v >= 0, "at least 0"),
        ("reward.lo", reward.lo, lambda v: 0 <= v <= reward.hi, f"at least 0 and at most reward.hi = {reward.hi}"),
        ("reward.hi", reward.hi, lambda v: v <= 1, "at most 1"),
        ("reward.length_reference", reward.length_reference, ("group", "correct").__contains__, "group or correct"),
        ("reward.filter_at_most", reward.filter_at_most, lambda v: v is None or 0 <= v < inf, "null or at least 0"),
        ("reward.group_filter", reward.group_filter, ("shaped", "base").__contains__, "shaped or base"),
        ("cache.max_failures", rpo.cache.max_failures, lambda v: v is None or v >= 1, "null or at least 1"),
        ("cache.max_age", rpo.cache.max_age, lambda v: v is None or v >= 0, "null or at least 0"),
        ("cache.max_entries", rpo.cache.max_entries, lambda v: v is None or v >= 1, "null or at least 1"),
        ("cache.max_bytes", rpo.cache.max_bytes, lambda v: v is None or v >= 1, "null or at least 1"),
        ("loss.mean_over", rpo.loss.mean_over, ("response", "suffix").__contains__, "response or suffix"),
        ("cache.greedy_prob", rpo.cache.greedy_prob, lambda v: 0 <= v <= 1, "in [0, 1]"),
    ]  # fmt: skip
    problems = [f"rpo.{key}={value}: must be {allowed}" for key, value, ok, allowed in checks if not ok(value)]
    if truncation.max_tokens is None and truncation.max_fraction is None:
        problems.append("rpo.truncation.max_tokens=null and rpo.truncation.max_fraction=null: set one of them")
    if truncation.max_tokens is not None and 1 <= truncation.max_tokens < truncation.min_tokens:
        problems.append(
            f"rpo.truncation.min_tokens={truncation.min_tokens}: must be at most "
            f"rpo.truncation.max_tokens = {truncation.max_tokens}"
        )
    if group_size < 2:
        problems.append(
            f"actor_rollout_ref.rollout.n={group_size}: must be at least 2, "
            "the group-relative advantage of a single response is 0"
        )
    if problems:
        raise ConfigError("RPO cannot run with these settings:\n  " + "\n  ".join(problems))
