"""The head with its optimizer: gradients from any number of micro-batches, then one update, equal on every device."""

from collections.abc import Callable
from typing import Any

import torch

from rpo_verl.r2po.head import RolloutHead
from rpo_verl.r2po.objective import KLPenalty, Tokens, head_losses
from rpo_verl.r2po.options import R2POConfig

#: What is summed over tokens and devices: tokens first.
SUMS = ("tokens", "surrogate", "kl", "clipped", "error", "entropy_gain")


class HeadLearner:
    """Trains a `RolloutHead` by stage 1's objective; loss and metrics are means over all tokens of an update."""

    def __init__(self, options: R2POConfig, hidden: int, vocabulary: int, device: Any) -> None:
        """Build head and optimizer.

        Args:
            options: of R²PO.
            hidden: H, size of the hidden state.
            vocabulary: V, number of logits.
            device: where they live.
        """
        self.options = options
        self.head = RolloutHead(hidden, vocabulary, options.head.rank, options.head.init_std, options.seed).to(device)
        self.optimizer = torch.optim.Adam(self.head.parameters(), lr=options.stage1.lr)
        self.penalty = KLPenalty(options.stage1.kl_weight, options.stage1.kl_bound)
        self.updates = 0
        self.best_reward = 1.0
        """Best reward that the run has seen, at least 1: the trainer keeps it here so that it goes with the head."""

        self._sums = torch.zeros(len(SUMS), device=device)

    @torch.enable_grad()
    def accumulate(self, tokens: Tokens, temperature: float) -> None:
        """Add the gradient of some tokens to the head's.

        Args:
            tokens: N of them.
            temperature: of the sampling.

        Raises:
            ValueError: if the model has another number of logits than the head.
        """
        vocabulary = len(self.head.up)
        if tokens.logits.shape[-1] != vocabulary:
            raise ValueError(
                f"the model has {tokens.logits.shape[-1]} logits and the rollout head {vocabulary}, the vocab_size of "
                "the model's configuration. R²PO works with models where both agree."
            )
        losses = head_losses(self.head, tokens, temperature, self.options.stage1.clip_ratio)
        loss = losses.surrogate + self.penalty.weight * losses.kl
        loss.backward()
        self._sums += torch.stack(
            [loss.new_tensor(len(tokens)), *(getattr(losses, name).detach() for name in SUMS[1:])]
        )

    def update(self, add_up: Callable[[torch.Tensor], None]) -> dict[str, float]:
        """Take an optimizer step on what was accumulated, and adapt the penalty.

        Args:
            add_up: replaces a tensor by its sum over all devices.

        Returns:
            means over tokens (`loss`, `kl`, `clipped_share`, `error`, `entropy_gain`), the `grad_norm` before clipping,
            and the `kl_weight` of the next update.

        Raises:
            FloatingPointError: if the gradient is not finite.
        """
        parameters = list(self.head.parameters())
        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            add_up(parameter.grad)
        add_up(self._sums)
        sums = dict(zip(SUMS, self._sums.tolist(), strict=True))
        tokens = max(1.0, sums.pop("tokens"))
        for parameter in parameters:
            parameter.grad /= tokens
        norm = float(torch.nn.utils.clip_grad_norm_(parameters, self.options.stage1.clip_grad))
        if not norm < float("inf"):
            raise FloatingPointError(f"the gradient of R²PO's rollout head has the norm {norm}")
        means = {name: value / tokens for name, value in sums.items()}
        used = self.penalty.weight
        self.optimizer.step()
        self.optimizer.zero_grad()
        self._sums.zero_()
        self.updates += 1
        self.penalty.adapt(means["kl"])
        return {
            "loss": means.pop("surrogate") + used * means["kl"],
            "clipped_share": means.pop("clipped"),
            "grad_norm": norm,
            "kl_weight": self.penalty.weight,
            **means,
        }
