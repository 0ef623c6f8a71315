"""RPO around veRL's trainers: a mixin that connects cache and rollout, shapes rewards and updates the cache."""

import logging
import shutil
import time
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import transfer_queue as tq
from omegaconf import DictConfig
from transfer_queue import KVBatchMeta
from verl.utils.checkpoint.checkpoint_manager import find_latest_ckpt_path
from verl.utils.fs import copy_to_local
from verl.utils.tensordict_utils import get_tensordict

from rpo_verl.core import store
from rpo_verl.core.cache import CachedAnswer
from rpo_verl.core.replay import PartialRollouts
from rpo_verl.core.shaping import shape_group
from rpo_verl.integration import contract
from rpo_verl.integration.advantage import SHAPING, Shaping, extend_to_prefix
from rpo_verl.integration.metrics import Row, batch_metrics
from rpo_verl.integration.questions import Questions, read_end_ids, read_model_type
from rpo_verl.integration.reward import CORRECT, verdict
from rpo_verl.integration.settings import is_enabled, take_over
from rpo_verl.integration.update import leave_out_rows_without_signal, mini_batch_size

# Below veRL's logger, which has a handler of its own: in the TaskRunner the root's level is raised above warnings.
logger = logging.getLogger(f"verl.{__name__}")

#: Folder of the cache in a checkpoint `global_step_N`.
STORE = "rpo"

if TYPE_CHECKING:
    # Importing it here would be circular: its base class lives in the package whose import loads this module.
    from rpo_verl.integration.injection import PrefixAgentLoopManager


class PartialRolloutTrainer:
    """Mixin over a registered veRL trainer, whose mode name it leaves alone: other names count as asynchronous."""

    def __init__(self, config: DictConfig) -> None:
        contract.require_supported_verl()
        contract.require_upstream_names()
        self.rpo_options = take_over(config)
        self.rpo = PartialRollouts(self.rpo_options, config.data.max_response_length)
        super().__init__(config=config)

    def _init_tokenizer(self) -> None:
        super()._init_tokenizer()
        model, data = self.config.actor_rollout_ref.model, self.config.data
        trust_remote_code = model.get("trust_remote_code", False)
        self._end_ids = read_end_ids(copy_to_local(model.path), trust_remote_code, self.tokenizer)
        self._questions = Questions(
            model.path,
            read_model_type(copy_to_local(model.get("hf_config_path") or model.path), trust_remote_code),
            self.tokenizer,
            data.max_prompt_length,
            data.get("apply_chat_template_kwargs", {}),
            self.processor,
        )

    def _build_replay_buffer(self) -> Any:
        buffer = super()._build_replay_buffer()
        buffer.poll_interval = self.rpo_options.rollout.poll_interval_s
        return buffer

    def fit(self, agent_loop_manager: "PrefixAgentLoopManager") -> None:
        """Connect the rollout side to the cache, then train."""
        missing = contract.unregistered_components()
        if missing:
            raise contract.plugin_not_loaded("the TaskRunner", f"not registered there: {', '.join(missing)}")
        agent_loop_manager.connect(self.rpo, lambda messages: self._questions.key(self._questions.ids(messages)))
        super().fit(agent_loop_manager)

    def _save_checkpoint(self) -> None:
        """Save the cache first: once veRL's tracker file names a checkpoint, its cache is there."""
        checkpoints = Path(self.config.trainer.default_local_dir).resolve()
        folder = checkpoints / f"global_step_{self.global_steps}" / STORE
        store.save(self.rpo.cache, folder, self._questions.identity, self.global_steps)
        super()._save_checkpoint()
        for old in checkpoints.glob(f"global_step_*/{STORE}"):
            # veRL deletes the actor of a checkpoint it no longer keeps.
            if old != folder and not (old.parent / "actor").exists():
                shutil.rmtree(old)

    def _load_checkpoint(self) -> None:
        """Resume with the checkpoint's cache; a run from the start begins with `rpo.cache.path`, if any.

        Raises:
            StoreError: if the store is damaged or belongs to another tokenizer.
        """
        super()._load_checkpoint()
        trainer, path = self.config.trainer, self.rpo_options.cache.path
        if self.global_steps > 0:
            if trainer.resume_mode == "auto":
                checkpoint = find_latest_ckpt_path(str(Path(trainer.default_local_dir).resolve()))
            else:
                checkpoint = trainer.resume_from_path
            path = Path(checkpoint).resolve() / STORE
            if not path.exists():
                logger.warning(
                    "RPO: NO EXPERIENCE CACHE in %s. Training goes on with an empty one: every question gets a full "
                    "rollout at its next visit. To avoid that, put the store of this checkpoint there and start again.",
                    path,
                )
                return
        if path is not None:
            self.rpo.cache, manifest = store.load(Path(path), self._questions.identity, **self.rpo.bounds)
            logger.warning("RPO: %d answers of step %d loaded from %s", manifest.entries, manifest.step, path)

    def _compute_advantage(self, batch: KVBatchMeta, metrics: dict[str, Any]) -> KVBatchMeta:
        """Shape the rewards of every group, let veRL compute advantages from them, then update the cache."""
        rows = self._rows(batch)
        groups = defaultdict(list)
        # By question and number of the response rather than by who finished first: a repeated run has the same cache.
        own = [i for i, row in enumerate(rows) if row is not None]
        for i in sorted(own, key=lambda i: (rows[i].key, batch.keys[i])):
            groups[rows[i].group].append(i)
        shaped = np.array([0.0 if row is None else row.reward for row in rows])
        base = shaped.copy()
        for members in groups.values():
            shaped[members] = shape_group(
                base[members],
                np.array([rows[i].response_tokens for i in members]),
                np.array([rows[i].correct for i in members]),
                self.rpo_options.reward,
            )
        last_token = np.array([tag["response_len"] - 1 for tag in batch.tags])
        loss = self.rpo_options.loss
        left_out = loss.mean_over == "response" and not loss.prefix_in_loss
        token = SHAPING.set(
            Shaping(
                bonus=shaped - base,
                last_token=last_token,
                upstream=self.config.rpo.upstream.adv_estimator,
                prefix_tokens=np.array([row.prefix_tokens if row is not None and left_out else 0 for row in rows]),
                loss_agg_mode=self.config.actor_rollout_ref.actor.loss_agg_mode,
            )
        )
        try:
            batch = super()._compute_advantage(batch, metrics=metrics)
        finally:
            SHAPING.reset(token)

        started = time.perf_counter()
        outcomes = self._update_cache(batch, rows, groups, shaped)
        metrics.update(batch_metrics(rows, groups, shaped, outcomes))
        self.rpo.cache.evict()
        metrics.update(self.rpo.cache.metrics(self.global_steps))
        metrics.update(self.agent_loop_manager.pop_metrics())
        metrics["timing_s/rpo_cache_update"] = time.perf_counter() - started
        if self.rpo_options.loss.prefix_in_loss:
            self._extend_loss_to_prefix(batch)
        return batch

    def _update_actor(self, batch: KVBatchMeta, metrics: dict[str, Any]) -> KVBatchMeta:
        """Update on the rows that have an advantage; returns the whole batch, for veRL's metrics."""
        loss = self.rpo_options.loss
        if not loss.skip_no_signal or loss.prefix_in_loss:
            return super()._update_actor(batch, metrics=metrics)
        ranks = max(self.actor_rollout_wg._dispatch_info["actor"]) + 1
        smaller, questions = leave_out_rows_without_signal(batch, self.config, ranks)
        metrics["rpo/update/rows_share"] = len(smaller) / len(batch)
        with mini_batch_size(self.config.actor_rollout_ref.actor, questions):
            if smaller is not batch and ranks > 1:
                smaller = self._balance_batch(smaller, metrics, logging_prefix="rpo/update_seqlen")
            super()._update_actor(smaller, metrics=metrics)
        return batch

    def _rows(self, batch: KVBatchMeta) -> list[Row | None]:
        """What RPO knows of every row of the batch; None for rows it did not start (or that only pad the batch)."""
        data = tq.kv_batch_get(
            keys=batch.keys, partition_id=batch.partition_id, select_fields=["uid", "rm_scores", "extra_fields"]
        )
        rewards = data["rm_scores"].to_padded_tensor(0.0).sum(dim=-1).tolist()
        rows = []
        # list() because the queue returns non-tensor fields in containers that differ with their content.
        uids, extra_fields = list(data["uid"]), list(data["extra_fields"])
        for i, (tag, extra) in enumerate(zip(batch.tags, extra_fields, strict=True)):
            start = extra.get("rpo")
            if start is None or tag.get("is_padding", False):
                rows.append(None)
                continue
            info = extra.get("reward_extra_info") or {}
            correct = info[CORRECT] if CORRECT in info else verdict(rewards[i], info, self.rpo_options.reward)
            rows.append(
                Row(
                    group=uids[i],
                    key=start["key"],
                    kind=start["kind"],
                    prefix_tokens=start["prefix_tokens"],
                    dropped=start["dropped"],
                    capped=start["capped"],
                    response_tokens=tag["response_len"],
                    oldest_policy=tag["min_global_steps"],
                    reward=rewards[i],
                    correct=bool(correct),
                )
            )
        return rows

    def _update_cache(
        self, batch: KVBatchMeta, rows: list[Row | None], groups: dict[str, list[int]], shaped: np.ndarray
    ) -> list[Any]:
        """Offer every group to the cache, in the order of the batch's groups."""
        indices = [i for members in groups.values() for i in members]
        if not indices:
            return []
        data = tq.kv_batch_get(
            keys=[batch.keys[i] for i in indices],
            partition_id=batch.partition_id,
            select_fields=["prompts", "responses"],
        )
        questions, responses = (
            dict(zip(indices, data[name].unbind(), strict=True)) for name in ("prompts", "responses")
        )
        outcomes = []
        for members in groups.values():
            first = rows[members[0]]
            question = questions[members[0]].numpy().astype(np.int32)
            if self._questions.key(question) != first.key:
                raise contract.ContractError(
                    f"veRL rolled out {len(question)} question tokens that are not those its question was looked up "
                    "by. Please report this with your data.apply_chat_template_kwargs and model."
                )
            answers = []
            for i in members:
                tokens = responses[i].numpy().astype(np.int32)
                tokens = tokens[:-1] if len(tokens) and int(tokens[-1]) in self._end_ids else tokens
                row = rows[i]
                answers.append(CachedAnswer(tokens, row.correct, row.reward, row.oldest_policy, question))
            outcomes.append(
                self.rpo.observe(first.key, self.global_steps, shaped[members], answers, first.kind == "prefixed")
            )
        return outcomes

    def _extend_loss_to_prefix(self, batch: KVBatchMeta) -> None:
        """Put prefixes into the loss, for the batch that the actor is about to be updated with."""
        fields = ["response_mask", "advantages", "returns"]
        data = tq.kv_batch_get(keys=batch.keys, partition_id=batch.partition_id, select_fields=fields)
        rows = [
            (mask, advantages, returns) if tag.get("is_padding", False) else extend_to_prefix(mask, advantages, returns)
            for mask, advantages, returns, tag in zip(*(data[f].unbind() for f in fields), batch.tags, strict=True)
        ]
        columns = dict(zip(fields, zip(*rows, strict=True), strict=True))
        columns["loss_mask"] = columns["response_mask"]
        nested = {
            name: torch.nested.as_nested_tensor(list(values), layout=torch.jagged) for name, values in columns.items()
        }
        tq.kv_batch_put(keys=batch.keys, partition_id=batch.partition_id, fields=get_tensordict(nested))


def wrap_registered_trainers(registry: dict[str, type]) -> None:
    """Let every registered trainer become an RPO trainer where the configuration has an `rpo` section.

    Without one, exactly the registered class is instantiated.
    """
    for name, trainer_cls in list(registry.items()):
        registry[name] = _choose_by_config(trainer_cls)


def _choose_by_config(trainer_cls: type) -> Any:
    rpo_cls = type(f"RPO{trainer_cls.__name__}", (PartialRolloutTrainer, trainer_cls), {"__doc__": trainer_cls.__doc__})

    class ByConfig(trainer_cls):
        """Stands in the registry: the registered trainer, or RPO around it, as the configuration says."""

        def __new__(cls, config: DictConfig) -> Any:
            chosen = rpo_cls if is_enabled(config) else trainer_cls
            return chosen(config=config)

    ByConfig.__name__ = ByConfig.__qualname__ = trainer_cls.__name__
    return ByConfig
