"""RPO around veRL's trainers: a mixin that connects cache and rollout, shapes rewards and updates the cache."""

import logging
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import transfer_queue as tq
from omegaconf import DictConfig
from transfer_queue import KVBatchMeta
from verl.trainer.ppo.reward import resolve_reward_manager_cls
from verl.trainer.ppo.v1.replay_buffer import ReplayBuffer
from verl.utils.checkpoint.checkpoint_manager import find_latest_ckpt_path
from verl.utils.debug import marked_timer
from verl.utils.fs import copy_to_local
from verl.utils.tensordict_utils import get_tensordict

from rpo_verl.lean.packing import order_by_group
from rpo_verl.lean.signal import leave_out_rows_without_signal, mini_batch_size
from rpo_verl.rpo import store
from rpo_verl.rpo.hooks.advantage import SHAPING, Shaping, extend_to_prefix, final_rows
from rpo_verl.rpo.hooks.dump import as_columns, dump_records
from rpo_verl.rpo.hooks.group_filter import watch_groups
from rpo_verl.rpo.hooks.groups import Groups, Updates, offer_to_cache, read_groups
from rpo_verl.rpo.hooks.metrics import LeftOut, batch_metrics
from rpo_verl.rpo.hooks.reward import users_config
from rpo_verl.rpo.hooks.settings import is_enabled, take_over
from rpo_verl.rpo.partial_rollouts import PartialRollouts
from rpo_verl.upstream import contract
from rpo_verl.upstream.questions import Questions, read_end_ids, read_model_type

# Below veRL's logger, which has a handler of its own: in the TaskRunner the root's level is raised above warnings.
logger = logging.getLogger(f"verl.{__name__}")

#: Folder of the cache in a checkpoint `global_step_N`.
STORE = "rpo"

if TYPE_CHECKING:
    # Importing it here would be circular: its base class lives in the package whose import loads this module.
    from rpo_verl.rpo.hooks.injection import PrefixAgentLoopManager


class PartialRolloutTrainer:
    """Mixin over a registered veRL trainer, whose mode name it leaves alone: other names count as asynchronous."""

    def __init__(self, config: DictConfig) -> None:
        contract.require_supported_verl()
        contract.require_upstream_names()
        self.rpo_options = take_over(config)
        self.rpo = PartialRollouts(self.rpo_options, config.data.max_response_length)
        self._records: dict[str, dict[str, Any]] = {}
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
        v1, reward_model = self.config.trainer.v1, self.config.reward.reward_model
        # veRL's switching of idle devices measures idleness by the poll interval.
        if not (v1.trainer_mode == "separate_async" and v1.separate_async.hybrid_rollout.enable_switch):
            buffer.poll_interval = self.rpo_options.rollout.poll_interval_s
        self._left_out = LeftOut()
        # A colocated reward model scores a batch after it was sampled: what is left out has no reward.
        scored_late = reward_model.enable and not reward_model.enable_resource_pool
        if isinstance(buffer, ReplayBuffer) and not scored_late:
            batch_size = self.config.data.train_batch_size
            watch_groups(buffer, self.rpo_options.reward, batch_size, self._learn_from_left_out)
        return buffer

    def fit(self, agent_loop_manager: "PrefixAgentLoopManager") -> None:
        """Connect the rollout side to the cache, then train."""
        missing = contract.unregistered_components()
        if missing:
            raise contract.plugin_not_loaded("the TaskRunner", f"not registered there: {', '.join(missing)}")
        # veRL asks the class of the manager how to lay out the scores of a colocated reward model.
        self.reward_loop_manager.reward_manager_cls = resolve_reward_manager_cls(users_config(self.config))
        agent_loop_manager.connect(self.rpo, lambda messages: self._questions.key(self._questions.ids(messages)))
        super().fit(agent_loop_manager)

    def _save_checkpoint(self) -> None:
        """Save the cache first: once veRL's tracker file names a checkpoint, its cache is there."""
        checkpoints = Path(self.config.trainer.default_local_dir).resolve()
        folder = checkpoints / f"global_step_{self.global_steps}" / STORE
        with marked_timer("rpo_cache_save", self.timing_raw):
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

    def _balance_batch(self, batch: KVBatchMeta, metrics: dict[str, Any], **kwargs: Any) -> KVBatchMeta:
        """Where prefixes are shared, keep the members of a group together; veRL would deal them out to all ranks."""
        batch = super()._balance_batch(batch, metrics, **kwargs)
        if self.rpo_options.loss.share_prefix:
            uids = [key.split("_")[0] for key in batch.keys]
            batch.reorder(order_by_group(uids, [tag["seq_len"] for tag in batch.tags], self._ranks()))
        return batch

    def _compute_old_log_prob(self, batch: KVBatchMeta, metrics: dict[str, Any]) -> KVBatchMeta:
        return super()._compute_old_log_prob(self._let_share(batch), metrics=metrics)

    def _compute_ref_log_prob(self, batch: KVBatchMeta, metrics: dict[str, Any]) -> KVBatchMeta:
        return super()._compute_ref_log_prob(self._let_share(batch), metrics=metrics)

    def _compute_advantage(self, batch: KVBatchMeta, metrics: dict[str, Any]) -> KVBatchMeta:
        """Shape the rewards of every group, let veRL compute advantages from them, then update the cache."""
        started = time.perf_counter()
        groups = read_groups(batch.keys, batch.tags, batch.partition_id, self.rpo_options.reward)
        last_token = np.array([tag["response_len"] - 1 for tag in batch.tags])
        loss = self.rpo_options.loss
        mean_over_prefix = loss.mean_over == "response" and not loss.prefix_in_loss
        prefix_tokens = [row.prefix_tokens if row is not None and mean_over_prefix else 0 for row in groups.rows]
        shaping = Shaping(
            bonus=groups.shaped - groups.base,
            last_token=last_token,
            upstream=self.config.rpo.upstream.adv_estimator,
            prefix_tokens=np.array(prefix_tokens),
            loss_agg_mode=self.config.actor_rollout_ref.actor.loss_agg_mode,
            final_row=final_rows(batch.keys),
        )
        metrics["timing_s/rpo_shaping"] = time.perf_counter() - started
        token = SHAPING.set(shaping)
        try:
            batch = super()._compute_advantage(batch, metrics=metrics)
        finally:
            SHAPING.reset(token)

        started = time.perf_counter()
        metrics.update(batch_metrics(groups, self._offer_to_cache(groups)))
        metrics.update(self._left_out.pop())
        self.rpo.cache.evict()
        metrics.update(self.rpo.cache.metrics(self.global_steps))
        metrics.update(self.agent_loop_manager.pop_metrics())
        metrics["timing_s/rpo_cache_update"] = time.perf_counter() - started
        if self.config.trainer.get("rollout_data_dir"):
            self._records |= dump_records(groups, self.global_steps, self.tokenizer, shaping.weights)
        if self.rpo_options.loss.prefix_in_loss:
            self._extend_loss_to_prefix(groups)
        return batch

    def _dump_generations(
        self, *, reward_extra_infos_dict: dict[str, list[Any]], dump_path: str, **kwargs: Any
    ) -> None:
        """Dump the rollouts of a step with what RPO knows of them; those of a validation as they are."""
        if dump_path == self.config.trainer.get("rollout_data_dir"):
            reward_extra_infos_dict |= as_columns(reward_extra_infos_dict["uid"], self._records)
            self._records = {}
        super()._dump_generations(reward_extra_infos_dict=reward_extra_infos_dict, dump_path=dump_path, **kwargs)

    def _update_actor(self, batch: KVBatchMeta, metrics: dict[str, Any]) -> KVBatchMeta:
        """Update on the rows that have an advantage; returns the whole batch, for veRL's metrics."""
        loss, ranks = self.rpo_options.loss, self._ranks()
        smaller, questions = batch, self.config.actor_rollout_ref.actor.ppo_mini_batch_size
        if loss.skip_no_signal and not loss.prefix_in_loss:
            smaller, questions = leave_out_rows_without_signal(batch, self.config, ranks)
            metrics["rpo/update/rows_share"] = len(smaller) / len(batch)
        with mini_batch_size(self.config.actor_rollout_ref.actor, questions):
            if smaller is not batch and ranks > 1:
                smaller = self._balance_batch(smaller, metrics, logging_prefix="rpo/update_seqlen")
            super()._update_actor(self._let_share(smaller), metrics=metrics)
        computed = metrics.pop(f"actor/{contract.COMPUTED_SHARE}", None)
        if computed is not None:
            metrics["rpo/update/computed_share"] = computed
        return batch

    def _ranks(self) -> int:
        return max(self.actor_rollout_wg._dispatch_info["actor"]) + 1

    def _let_share(self, batch: KVBatchMeta) -> KVBatchMeta:
        """Every call to the workers needs the flag anew: what comes back from the queue has lost it."""
        if self.rpo_options.loss.share_prefix:
            batch.extra_info[contract.SHARE_PREFIX] = True
        return batch

    def _compute_metrics(
        self, batch: KVBatchMeta, metrics: dict[str, Any], timing_raw: dict[str, float], **kwargs: Any
    ) -> None:
        """Next to veRL's throughput, which counts reused tokens, one that counts generated ones."""
        super()._compute_metrics(batch, metrics, timing_raw, **kwargs)
        responses = sum(tag["response_len"] for tag in batch.tags if not tag.get("is_padding", False))
        generated = responses - metrics.get("rpo/tokens/reused_total", 0) + metrics["rpo/left_out/generated_total"]
        seconds = timing_raw["step"] * self._get_n_gpus_for_throughput()
        metrics["rpo/perf/generated_throughput"] = generated / seconds

    def _offer_to_cache(self, groups: Groups) -> Updates:
        return offer_to_cache(groups, self.rpo, self.global_steps, self._questions.key, self._end_ids)

    def _learn_from_left_out(self, groups: Groups) -> None:
        """Groups that were generated and are not trained on: their answers count for the cache all the same."""
        self._left_out.add(groups, self._offer_to_cache(groups))

    def _extend_loss_to_prefix(self, groups: Groups) -> None:
        """Put the prefixes of a batch into the loss that it is about to be updated with."""
        own = {key: row.prefix_tokens for key, row in zip(groups.keys, groups.rows, strict=True) if row is not None}
        prefixes = {key: tokens for key, tokens in own.items() if tokens}
        if not prefixes:
            return
        fields = ["response_mask", "advantages", "returns"]
        data = tq.kv_batch_get(keys=list(prefixes), partition_id=groups.partition_id, select_fields=fields)
        rows = [
            extend_to_prefix(*row, tokens)
            for *row, tokens in zip(*(data[field].unbind() for field in fields), prefixes.values(), strict=True)
        ]
        columns = dict(zip(fields, zip(*rows, strict=True), strict=True))
        columns["loss_mask"] = columns["response_mask"]
        nested = {
            name: torch.nested.as_nested_tensor(list(values), layout=torch.jagged) for name, values in columns.items()
        }
        tq.kv_batch_put(keys=list(prefixes), partition_id=groups.partition_id, fields=get_tensordict(nested))


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
