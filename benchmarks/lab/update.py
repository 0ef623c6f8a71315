"""One update of the policy on a batch: veRL's policy loss, AdamW, gradient clipping, one or several epochs."""

import math
from dataclasses import dataclass

import torch
from verl.trainer.ppo.core_algos import get_policy_loss_fn
from verl.workers.config import ActorConfig

from benchmarks.lab.advantages import LOSS_AGG_MODE, Batch
from benchmarks.lab.policy import Policy
from rpo_verl.lean import losses  # noqa: F401 - registers MinPRO


@dataclass(frozen=True)
class UpdateOptions:
    """The settings that the recipe gives veRL, and veRL's defaults for the others."""

    lr: float = 3e-4
    schedule: str = "cosine"
    """`cosine`, from `lr` to 0 over the run, or `constant`."""

    clip_ratio_high: float = 0.2
    ppo_epochs: int = 1
    loss: str = "vanilla"
    """Name of the policy loss in veRL's registry."""

    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.01
    clip_grad: float = 1.0
    micro_batch: int = 16
    """Rows per forward pass; changes the time alone."""


class Updater:
    """Owns the optimizer.

    Args:
        policy: the one to train.
        options: of the update.
    """

    def __init__(self, policy: Policy, options: UpdateOptions) -> None:
        self._policy, self._options = policy, options
        self._optimizer = torch.optim.AdamW(
            policy.model.parameters(), lr=options.lr, betas=options.betas, weight_decay=options.weight_decay
        )
        # veRL asks for the settings of a cluster as well; the loss reads the clip ratios only.
        self._config = ActorConfig(
            strategy="fsdp", rollout_n=1, ppo_micro_batch_size_per_gpu=1, clip_ratio_high=options.clip_ratio_high
        )
        self._loss = get_policy_loss_fn(options.loss)

    def fill_log_probs(self, batch: Batch) -> None:
        """Compute old log-probabilities where the loss covers a reused prefix, with the policy before the update."""
        missing = (batch.old_log_probs.isnan() & batch.mask & (batch.advantages != 0)).any(1).nonzero()[:, 0].tolist()
        with torch.no_grad():
            for first in range(0, len(missing), self._options.micro_batch):
                rows = missing[first : first + self._options.micro_batch]
                found = self._log_probs(batch, rows)
                batch.old_log_probs[rows, : found.shape[1]] = found

    def update(self, batch: Batch, progress: float) -> int:
        """Make one optimizer step per PPO epoch.

        Rows without an advantage are skipped. The mean is over the tokens of all rows, as with `+lean=enabled`. If no
        row has one, the optimizer still makes its step, as in veRL: its momentum moves the policy.

        Args:
            batch: responses with advantages.
            progress: share of the run that lies behind, for the schedule of the learning rate.

        Returns:
            rows that were trained on.
        """
        options = self._options
        trained = batch.advantages.any(1).nonzero()[:, 0].tolist()
        # Rows of similar length together: less padding.
        rows = sorted(trained, key=lambda row: len(batch.responses[row]) + len(batch.questions[row])) or [0]
        for group in self._optimizer.param_groups:
            group["lr"] = options.lr * learning_rate_factor(options.schedule, progress)
        self._config.global_batch_info.update(dp_size=1, batch_num_tokens=int(batch.mask.sum()))
        for _ in range(options.ppo_epochs):
            self._optimizer.zero_grad(set_to_none=True)
            for first in range(0, len(rows), options.micro_batch):
                self._step_loss(batch, rows[first : first + options.micro_batch]).backward()
            torch.nn.utils.clip_grad_norm_(self._policy.model.parameters(), options.clip_grad)
            self._optimizer.step()
        return len(trained)

    def _step_loss(self, batch: Batch, rows: list[int]) -> torch.Tensor:
        log_probs = self._log_probs(batch, rows)
        width = log_probs.shape[1]
        old, mask = batch.old_log_probs[rows, :width], batch.mask[rows, :width]
        loss, _ = self._loss(
            # Where no older policy is known, or nothing is trained, the ratio is 1.
            old_log_prob=torch.where(old.isnan() | ~mask, log_probs.detach(), old),
            log_prob=log_probs,
            advantages=batch.advantages[rows, :width],
            response_mask=mask,
            loss_agg_mode=LOSS_AGG_MODE,
            config=self._config,
            rollout_is_weights=None if batch.weights is None else batch.weights[rows, :width],
        )
        return loss

    def _log_probs(self, batch: Batch, rows: list[int]) -> torch.Tensor:
        return self._policy.log_probs([batch.questions[row] for row in rows], [batch.responses[row] for row in rows])


def learning_rate_factor(schedule: str, progress: float) -> float:
    """What veRL's scheduler multiplies the learning rate by, without warm-up.

    Raises:
        ValueError: for an unknown schedule.
    """
    if schedule == "constant":
        return 1.0
    if schedule == "cosine":
        return max(0.0, 0.5 * (1 + math.cos(math.pi * min(1.0, progress))))
    raise ValueError(f"schedule={schedule!r}: must be cosine or constant")
