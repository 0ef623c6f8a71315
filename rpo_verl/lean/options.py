"""Every option of `lean.*`."""

from dataclasses import dataclass

from rpo_verl.config import SWITCH, above, at_least, option


@dataclass
class LeanConfig:
    """The `lean` section, for any training: the same gradients in less time, and fewer rows where you ask for it."""

    poll_interval_s: float = option(0.05, above(0))
    """Seconds between two looks of the trainer at the replay buffer. veRL waits 2 s, which hides what a shorter rollout
    saves (docs/benchmarks.md)."""

    skip_zero_advantage: bool | int = option(True, SWITCH)
    """Leave rows with zero advantages out of the actor's update. It applies where no other term of the loss (KL,
    entropy, distillation) has a gradient on them, so the update stays the same. veRL's `actor/*` metrics then cover the
    other rows."""

    rows_per_group: int | None = option(None, at_least(2))
    """Members of a group that train (PODS): those whose rewards vary most, with advantages among themselves. It needs
    `algorithm.adv_estimator=grpo`. Other terms of the loss (KL, entropy) still cover all rows. Null: all."""

    share_prefix: bool | int = option(False, SWITCH)
    """Compute what the rows of a group share, the question and any common prefix, once per micro-batch, in
    log-probabilities and update. Results are the same up to rounding. It needs FSDP and plain causal attention (`sdpa`,
    `flash_attention_2`). Behind a prefix an update takes about a fifth of the time on a CPU (docs/benchmarks.md); it
    has not run on a GPU."""
