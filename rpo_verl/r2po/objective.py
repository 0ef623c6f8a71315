"""Stage 1 in formulas: PPO for the head on fixed hidden states, with a penalty on its distance to the policy."""

from dataclasses import dataclass

import torch

#: Where the weight of the penalty stays.
SMALLEST_WEIGHT, LARGEST_WEIGHT = 1e-3, 1e3
FACTOR = 1.1


@dataclass(frozen=True)
class Tokens:
    """N generated tokens, and what is known of them."""

    hidden: torch.Tensor
    """(N, H) float, input of the output layer where the token was predicted."""

    logits: torch.Tensor
    """(N, V) float, of the policy, before the temperature."""

    labels: torch.Tensor
    """(N,) int64, the tokens."""

    advantages: torch.Tensor
    """(N,) float32."""

    old_log_probs: torch.Tensor
    """(N,) float32, of the distribution that sampled them."""

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Losses:
    """Sums over tokens."""

    surrogate: torch.Tensor
    """PPO's clipped objective, negated; with a gradient on the head alone."""

    kl: torch.Tensor
    """KL(π_head‖π) in nats, over the whole vocabulary; with a gradient on the head alone."""

    clipped: torch.Tensor
    """Tokens whose gradient is clipped away."""

    error: torch.Tensor
    """|log π_head − log-probability when sampled|: 0 before the first update, up to the difference of the engines."""

    entropy_gain: torch.Tensor
    """Entropy of π_head less that of the policy, in nats."""


def head_losses(head: torch.nn.Module, tokens: Tokens, temperature: float, clip_ratio: float) -> Losses:
    """PPO's objective (arXiv 1707.06347, equation 7) for the head, and its exact distance to the policy.

    Hidden states and the policy's logits are constants, so the policy gets no gradient.

    Args:
        head: a `RolloutHead`.
        tokens: N of them.
        temperature: of the sampling.
        clip_ratio: of the ratio π_head / π_head when sampled.
    """
    base = tokens.logits.detach().float()
    log_policy = torch.log_softmax(base / temperature, dim=-1)
    log_head = torch.log_softmax((base + head(tokens.hidden.detach())) / temperature, dim=-1)
    chosen = log_head.gather(-1, tokens.labels[:, None])[:, 0]
    ratio = torch.exp(chosen - tokens.old_log_probs)
    gain, limited = (r * tokens.advantages for r in (ratio, ratio.clamp(1 - clip_ratio, 1 + clip_ratio)))
    # A token without any probability has −∞ on both sides, whose difference would be NaN.
    possible = ~log_policy.isneginf()
    log_policy, log_head = (torch.where(possible, logs, 0.0) for logs in (log_policy, log_head))
    policy, ours = (torch.where(possible, logs.exp(), 0.0) for logs in (log_policy, log_head))
    kl = (ours * (log_head - log_policy)).sum()
    with torch.no_grad():
        entropy_gain = (policy * log_policy).sum() - (ours * log_head).sum()
        error, clipped = (chosen - tokens.old_log_probs).abs().sum(), (limited < gain).sum().float()
    return Losses(-torch.minimum(gain, limited).sum(), kl, clipped, error, entropy_gain)


class KLPenalty:
    """Weight of the penalty that holds the KL below a bound, after the adaptive rule of PPO (arXiv 1707.06347, section
    4). The thresholds are 1 and ½ of the bound, so that it is a bound and no target. The factor is 1.1 and not 2, with
    which the KL swings between a tenth and twice of it.
    """

    def __init__(self, weight: float, bound: float | None) -> None:
        self.weight, self.bound = weight, bound

    def adapt(self, kl: float) -> None:
        """Raise the weight above the bound, lower it below half of it; once an update.

        Args:
            kl: measured, nats per token.
        """
        if self.bound is None:
            return
        if kl > self.bound:
            self.weight = min(max(self.weight, SMALLEST_WEIGHT) * FACTOR, LARGEST_WEIGHT)
        elif kl < self.bound / 2:
            self.weight = max(self.weight / FACTOR, SMALLEST_WEIGHT)
