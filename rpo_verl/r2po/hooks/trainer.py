"""R²PO around veRL's trainer: stage 1 or stage 2 by schedule, and the head's switch in the rollout servers."""

import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch
from omegaconf import DictConfig

from rpo_verl import algorithms
from rpo_verl.correctness import RewardScale
from rpo_verl.r2po.hooks import NAME
from rpo_verl.r2po.hooks.engine import ADVANTAGES, BEST_REWARD, METRICS, TRAIN_HEAD, best_rewards, give_heads
from rpo_verl.r2po.hooks.groups import SOURCE, read_groups
from rpo_verl.r2po.options import trains_head
from rpo_verl.r2po.rarity import rarity_advantages
from rpo_verl.upstream import queue
from rpo_verl.upstream.contract import ContractError
from rpo_verl.upstream.settings import read_options


class RolloutHeadTrainer:
    """Mixin over veRL's synchronous trainer."""

    def __init__(self, config: DictConfig) -> None:
        self._r2po, self._r2po_scale = read_options(config, NAME), RewardScale()
        super().__init__(config=config)

    def _load_checkpoint(self) -> None:
        """Give every actor worker its head first, so that a checkpoint finds it, and the first weights have it."""
        self._extend_engines([entry.name for entry in algorithms.selected(self.config)])
        workers = self.actor_rollout_wg.workers
        counts = ray.get([worker.__ray_call__.remote(give_heads, self._r2po) for worker in workers])
        if set(counts) != {1}:
            raise ContractError(
                f"rpo_verl: R²PO's rollout head went to {counts} engines of the actor workers, and each has to have "
                "one. Please report this with your configuration."
            )
        super()._load_checkpoint()
        self._r2po_scale.see(SOURCE, ray.get(workers[0].__ray_call__.remote(best_rewards)))

    def _save_checkpoint(self) -> None:
        super()._save_checkpoint()
        checkpoints = Path(self.config.trainer.default_local_dir).resolve()
        for head in checkpoints.glob(f"global_step_*/{NAME}"):
            # veRL deletes the actor of a checkpoint it no longer keeps.
            if not (head.parent / "actor").exists():
                shutil.rmtree(head)

    def on_train_begin(self) -> None:
        """Training rollouts come from the head."""
        super().on_train_begin()
        self._sample_with_head(True)

    def on_validate_begin(self) -> None:
        """Validation is the policy's own."""
        super().on_validate_begin()
        self._sample_with_head(False)

    def on_validate_end(self) -> None:
        """Training rollouts come from the head again."""
        super().on_validate_end()
        self._sample_with_head(True)

    def _sample_with_head(self, on: bool) -> None:
        servers = [replica.servers[0] for replica in self.llm_server_manager.get_replicas()]
        ray.get([server.collective_rpc.remote("set_rollout_head", args=(on,)) for server in servers])

    def _compute_advantage(self, batch: queue.Batch, metrics: dict[str, Any]) -> queue.Batch:
        """Keep which tokens were generated: another algorithm may put reused ones into the policy's loss."""
        if trains_head(self.global_steps, self._r2po):
            (masks,) = queue.read(batch.keys, batch.partition_id, "response_mask")
            self._generated = dict(zip(batch.keys, masks, strict=True))
        return super()._compute_advantage(batch, metrics=metrics)

    def _update_actor(self, batch: queue.Batch, metrics: dict[str, Any]) -> queue.Batch:
        """Train the head in steps of stage 1, else the policy."""
        stage1 = trains_head(self.global_steps, self._r2po)
        metrics["r2po/stage"] = 1 if stage1 else 2
        if not stage1:
            return super()._update_actor(batch, metrics=metrics)
        started = time.perf_counter()
        metrics.update(self._write_advantages(batch))
        metrics["timing_s/r2po_rarity"] = time.perf_counter() - started
        started = time.perf_counter()
        metrics.update(self._update_head(batch))
        metrics["timing_s/r2po_head"] = time.perf_counter() - started
        return batch

    def _write_advantages(self, batch: queue.Batch) -> dict[str, float]:
        """Compute the advantages of stage 1 and write them to the queue; rows that fill up the batch have zeros."""
        # veRL keeps the mask under two names.
        masks = [self._generated[key] for key in batch.keys]
        queue.write(batch.keys, batch.partition_id, response_mask=masks, loss_mask=masks)
        groups = read_groups(batch, self._r2po.rarity, self._r2po_scale)
        earned: dict[str, float] = {}
        signal, correct, distinct = [], [], []
        for group in groups:
            advantages = rarity_advantages(group.rewards, group.correct, group.responses, self._r2po.rarity)
            earned |= dict(zip(group.keys, advantages.tolist(), strict=True))
            signal.append(bool(advantages.any()))
            correct += group.correct.tolist()
            right = [tokens.tobytes() for tokens, one in zip(group.responses, group.correct, strict=True) if one]
            if right:
                distinct.append(len(set(right)) / len(right))
        finals = [batch.keys[row] for row in queue.final_rows(batch.keys)]
        rows = [torch.full(mask.shape, earned.get(key, 0.0)) for key, mask in zip(finals, masks, strict=True)]
        queue.write(batch.keys, batch.partition_id, **{ADVANTAGES: rows})
        metrics = {
            "r2po/rarity/signal_share": float(np.mean(signal)),
            "r2po/rarity/correct_share": float(np.mean(correct)),
        }
        if distinct:
            metrics["r2po/rarity/distinct_share"] = float(np.mean(distinct))
        return metrics

    def _update_head(self, batch: queue.Batch) -> dict[str, float]:
        rows = len(batch)
        info = {
            TRAIN_HEAD: True,
            BEST_REWARD: self._r2po_scale.best(SOURCE),
            "global_batch_size": rows,
            "mini_batch_size": rows,
            "epochs": self._r2po.stage1.epochs,
            "seed": self._r2po.seed,
            "dataloader_kwargs": {"shuffle": False},
            "temperature": self.config.actor_rollout_ref.rollout.temperature,
        }
        # A batch of its own: what other algorithms ask of the workers is for updates of the policy.
        own = queue.Batch(keys=batch.keys, tags=batch.tags, partition_id=batch.partition_id, extra_info=info)
        found = self.actor_rollout_wg.update_actor(own)["metrics"]
        # Of every update and device, in the order of the updates; devices have the same.
        of = {name.removeprefix(METRICS): np.ravel(values) for name, values in found.items() if METRICS in name}
        first, last = ({name: float(values[place]) for name, values in of.items()} for place in (0, -1))
        return {
            "r2po/head/loss": first["loss"],
            "r2po/head/sampling_error": first["error"],
            "r2po/head/grad_norm": float(of["grad_norm"].mean()),
            **{f"r2po/head/{name}": last[name] for name in ("kl", "kl_weight", "entropy_gain", "clipped_share")},
        }
