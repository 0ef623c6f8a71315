"""The lean layer around veRL's trainers: short poll, fewer rows in the update, groups kept together."""

from typing import Any

from omegaconf import DictConfig

from rpo_verl.lean.engine import COMPUTED_SHARE, SHARE_PREFIX
from rpo_verl.lean.packing import order_by_group
from rpo_verl.lean.signal import mini_batch_size, skip_zero_advantage_rows
from rpo_verl.lean.subset import train_on_subset
from rpo_verl.upstream import queue
from rpo_verl.upstream.settings import read_options


class LeanTrainer:
    """Mixin over a registered veRL trainer; but for `lean.rows_per_group` it changes no gradient beyond rounding."""

    def __init__(self, config: DictConfig) -> None:
        self._lean = read_options(config, "lean")
        super().__init__(config=config)

    def _build_replay_buffer(self) -> Any:
        buffer, v1 = super()._build_replay_buffer(), self.config.trainer.v1
        # veRL's switching of idle devices measures idleness by the poll interval.
        if not (v1.trainer_mode == "separate_async" and v1.separate_async.hybrid_rollout.enable_switch):
            buffer.poll_interval = self._lean.poll_interval_s
        return buffer

    def _balance_batch(self, batch: queue.Batch, metrics: dict[str, Any], **kwargs: Any) -> queue.Batch:
        """Where prefixes are shared, keep the members of a group together; veRL would deal them out to all ranks."""
        batch = super()._balance_batch(batch, metrics, **kwargs)
        if self._lean.share_prefix:
            prompts, tokens = map(queue.prompt_of, batch.keys), map(queue.row_tokens, batch.tags)
            batch.reorder(order_by_group(list(prompts), list(tokens), self._ranks()))
        return batch

    def _compute_advantage(self, batch: queue.Batch, metrics: dict[str, Any]) -> queue.Batch:
        batch = super()._compute_advantage(batch, metrics=metrics)
        if self._lean.rows_per_group is not None:
            metrics.update(train_on_subset(batch, self.config, self._lean.rows_per_group))
        return batch

    def _compute_old_log_prob(self, batch: queue.Batch, metrics: dict[str, Any]) -> queue.Batch:
        return super()._compute_old_log_prob(self._let_share(batch), metrics=metrics)

    def _compute_ref_log_prob(self, batch: queue.Batch, metrics: dict[str, Any]) -> queue.Batch:
        return super()._compute_ref_log_prob(self._let_share(batch), metrics=metrics)

    def _update_actor(self, batch: queue.Batch, metrics: dict[str, Any]) -> queue.Batch:
        """Update on the rows that have an advantage; returns the whole batch, for veRL's metrics."""
        actor = self.config.actor_rollout_ref.actor
        smaller, questions = batch, actor.ppo_mini_batch_size
        if self._lean.skip_zero_advantage:
            smaller, questions = skip_zero_advantage_rows(
                batch, self.config, self._ranks(), self._lean.share_prefix, metrics
            )
            metrics["lean/update/rows_share"] = len(smaller) / len(batch)
        with mini_batch_size(actor, questions):
            super()._update_actor(self._let_share(smaller), metrics=metrics)
        computed = metrics.pop(f"actor/{COMPUTED_SHARE}", None)
        if computed is not None:
            metrics["lean/update/computed_share"] = computed
        return batch

    def _ranks(self) -> int:
        return max(self.actor_rollout_wg._dispatch_info["actor"]) + 1

    def _let_share(self, batch: queue.Batch) -> queue.Batch:
        """Every call to the workers needs the flag anew: a batch that comes back from the queue has lost it."""
        if self._lean.share_prefix:
            batch.extra_info[SHARE_PREFIX] = True
        return batch
