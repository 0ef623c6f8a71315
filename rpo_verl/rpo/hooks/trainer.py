"""RPO around veRL's trainers: connects cache and rollout, shapes rewards, writes credit, updates the cache."""

import logging
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import ray
from omegaconf import DictConfig
from verl.trainer.ppo.reward import resolve_reward_manager_cls
from verl.trainer.ppo.v1.replay_buffer import ReplayBuffer
from verl.utils.checkpoint.checkpoint_manager import find_latest_ckpt_path
from verl.utils.debug import marked_timer
from verl.utils.fs import copy_to_local

from rpo_verl.correctness import RewardScale
from rpo_verl.rpo import store
from rpo_verl.rpo.credit import teaches
from rpo_verl.rpo.group import Group
from rpo_verl.rpo.hooks.advantage import SHAPING, Shaping
from rpo_verl.rpo.hooks.credit import write_credit
from rpo_verl.rpo.hooks.dump import as_columns, dump_records
from rpo_verl.rpo.hooks.group_filter import watch_groups
from rpo_verl.rpo.hooks.groups import branches_of, fetch_rows, read_groups
from rpo_verl.rpo.hooks.injection import Injection
from rpo_verl.rpo.hooks.metrics import Discarded, batch_metrics, composition_metrics
from rpo_verl.rpo.hooks.reward import failures_in_worker
from rpo_verl.rpo.hooks.settings import WRAPPED, take_over, users_config, weighs_tokens
from rpo_verl.rpo.partial_rollouts import PartialRollouts
from rpo_verl.rpo.watch import CollapseWatch, PrefixWatch
from rpo_verl.upstream import queue
from rpo_verl.upstream.questions import Questions, read_end_ids, read_model_type

# Below veRL's logger, which has a handler of its own: in the TaskRunner the root's level is raised above warnings.
logger = logging.getLogger(f"verl.{__name__}")

#: Folder of the cache in a checkpoint `global_step_N`.
STORE = "rpo"


class PartialRolloutTrainer:
    """Mixin over a registered veRL trainer."""

    def __init__(self, config: DictConfig) -> None:
        self._options = take_over(config)
        self._records: dict[str, dict[str, Any]] = {}
        self._discarded, self._scale = Discarded(), RewardScale()
        self._told_of_partial_credit = self._cache_loaded = False
        super().__init__(config=config)

    def _init_tokenizer(self) -> None:
        super()._init_tokenizer()
        model, data = self.config.actor_rollout_ref.model, self.config.data
        trust_remote_code = model.get("trust_remote_code", False)
        self._questions = Questions(
            model.path,
            read_model_type(copy_to_local(model.get("hf_config_path") or model.path), trust_remote_code),
            self.tokenizer,
            data.max_prompt_length,
            data.get("apply_chat_template_kwargs", {}),
            self.processor,
        )
        end_ids = read_end_ids(copy_to_local(model.path), trust_remote_code, self.tokenizer)
        self._rollouts = PartialRollouts(
            self._options, data.max_response_length, self._questions.identity, end_ids,
            temperature=self.config.actor_rollout_ref.rollout.temperature,
        )  # fmt: skip

    def _build_replay_buffer(self) -> Any:
        buffer, reward_model = super()._build_replay_buffer(), self.config.reward.reward_model
        # A colocated reward model scores a batch after it was sampled: a discarded group has no reward.
        scored_late = reward_model.enable and not reward_model.enable_resource_pool
        if isinstance(buffer, ReplayBuffer) and not scored_late:
            watch_groups(
                buffer, self._options.reward, self.config.data.train_batch_size, self._learn_from_discarded,
                self._tell_of_failed, self._scale, self._teaches,
            )  # fmt: skip
        return buffer

    def fit(self, agent_loop_manager: Any) -> None:
        """Let veRL lay out scores as the user's reward manager does, then train."""
        # veRL asks the class of the manager how to lay out the scores of a colocated reward model.
        self.reward_loop_manager.reward_manager_cls = resolve_reward_manager_cls(users_config(self.config))
        data = self.config.data
        cold_steps = 0 if self._cache_loaded else self.steps_per_epoch
        self._watch = PrefixWatch(self._options, data.max_response_length, cold_steps)
        self._collapse = CollapseWatch(self._options, self.config.actor_rollout_ref.actor.optim.lr)
        super().fit(agent_loop_manager)

    def _prepare_rollouts(self, agent_loop_manager: Any) -> None:
        super()._prepare_rollouts(agent_loop_manager)
        rollout = self.config.actor_rollout_ref.rollout
        default_agent = rollout.agent.default_agent_loop
        self._injection = Injection(self._rollouts, self._questions.ids, default_agent, rollout.n)
        agent_loop_manager.prepare_with(self._injection)

    def _save_checkpoint(self) -> None:
        """Save the cache first: once veRL's tracker file names a checkpoint, its cache is there."""
        checkpoints = Path(self.config.trainer.default_local_dir).resolve()
        folder = checkpoints / f"global_step_{self.global_steps}" / STORE
        with marked_timer("rpo_cache_save", self.timing_raw):
            self._rollouts.save(folder, self.global_steps, self._run, self._scale.beyond_full)
        super()._save_checkpoint()
        for old in checkpoints.glob(f"global_step_*/{STORE}"):
            # veRL deletes the actor of a checkpoint it no longer keeps.
            if old != folder and not (old.parent / "actor").exists():
                shutil.rmtree(old)

    @property
    def _run(self) -> str:
        """Name of the run in the manifests of its stores."""
        return f"{self.config.trainer.project_name}/{self.config.trainer.experiment_name}"

    def _load_checkpoint(self) -> None:
        """Resume with the checkpoint's cache; a run from the start begins with `rpo.cache.path`, if any.

        Raises:
            StoreError: if the store is damaged or belongs to another tokenizer.
        """
        super()._load_checkpoint()
        trainer, path = self.config.trainer, self._options.cache.path
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
            manifest, cache = self._rollouts.load(Path(path), self.global_steps), self._options.cache
            bounds = f"rpo.cache.max_entries={cache.max_entries}, rpo.cache.max_bytes={cache.max_bytes}"
            logger.warning("RPO: %s", store.describe(Path(path), manifest, self._rollouts.cached, bounds))
            self._cache_loaded, too_long = self._rollouts.cached > 0, self._rollouts.too_long()
            if too_long:
                logger.warning(
                    "RPO: %d of them are longer than data.max_response_length=%d. Their questions get full rollouts "
                    "until a shorter response replaces them. Raise the limit to use them.",
                    too_long,
                    self.config.data.max_response_length,
                )
            if self._rollouts.keeps_logprobs and (unknown := self._rollouts.without_logprobs()):
                logger.warning(
                    "RPO: %d cached answers have no log-probabilities of actor_rollout_ref.rollout.temperature=%g. "
                    "Their prefixes earn no credit until a response that this run wrote as a whole replaces them. Such "
                    "responses come in full steps: rpo.rollout.full_rollout_every=%g (0: never; try 4).",
                    unknown,
                    self.config.actor_rollout_ref.rollout.temperature,
                    self._options.rollout.full_rollout_every,
                )
            if self.global_steps > 0:
                for source, best in manifest.best_rewards.items():
                    self._scale.see(source, [best])
                for doubt in store.doubts(manifest, self.global_steps, self._run):
                    logger.warning("RPO: %s", doubt)

    def _compute_advantage(self, batch: queue.Batch, metrics: dict[str, Any]) -> queue.Batch:
        """Shape the rewards of every group, let veRL compute advantages, write credit, then update the cache."""
        started = time.perf_counter()
        groups = read_groups(batch.keys, batch.tags, batch.partition_id, self._options.reward, self._scale)
        self._tell_of_partial_credit()
        bonus = {key: b for group in groups for key, b in zip(group.keys, group.shaped - group.rewards, strict=True)}
        shaping = Shaping(
            bonus=np.array([bonus.get(key, 0.0) for key in batch.keys]),
            last_token=np.array([queue.response_tokens(tag) - 1 for tag in batch.tags]),
            estimator=self.config[WRAPPED].adv_estimator,
            branches=branches_of(batch.keys, groups),
            final_row=queue.final_rows(batch.keys),
        )
        metrics["timing_s/rpo_shaping"] = time.perf_counter() - started
        token = SHAPING.set(shaping)
        try:
            batch = super()._compute_advantage(batch, metrics=metrics)
        finally:
            SHAPING.reset(token)

        started = time.perf_counter()
        loss_agg_mode = self.config.actor_rollout_ref.actor.loss_agg_mode
        credited = write_credit(
            batch.keys, batch.partition_id, groups, self._options.credit, loss_agg_mode, weighs_tokens(self.config)
        )
        metrics.update(credited.metrics)
        metrics["timing_s/rpo_credit"] = time.perf_counter() - started

        started = time.perf_counter()
        rows = [key for key, tag in zip(batch.keys, batch.tags, strict=True) if not queue.is_padding(tag)]
        wanted = self.config.data.train_batch_size // self.parameter_sync_step
        metrics.update(composition_metrics(groups, rows, wanted, self.config.actor_rollout_ref.rollout.n))
        metrics.update(batch_metrics(groups, self._observe(groups, batch.partition_id)))
        metrics.update(self._discarded.pop())
        plans, cache = self._rollouts.pop_plans(), self._rollouts.end_step(self.global_steps)
        metrics.update(cache)
        metrics["rpo/cache/too_long_total"] = plans["too_long"]
        said = (
            self._watch.end_step(plans, cache),
            self._collapse.end_step(self.global_steps, metrics.get("rpo/reward/correct_share")),
        )
        for message in filter(None, said):
            logger.warning(message)
        metrics.update(self._injection.pop_metrics())
        metrics["timing_s/rpo_cache_update"] = time.perf_counter() - started
        if self.config.trainer.get("rollout_data_dir"):
            self._records |= dump_records(groups, batch.partition_id, self.global_steps, self.tokenizer, credited)
        return batch

    def _dump_generations(
        self, *, reward_extra_infos_dict: dict[str, list[Any]], dump_path: str, **kwargs: Any
    ) -> None:
        """Dump the rollouts of a step with what RPO knows of them; those of a validation as they are."""
        if dump_path == self.config.trainer.get("rollout_data_dir"):
            reward_extra_infos_dict |= as_columns(reward_extra_infos_dict["uid"], self._records)
            self._records = {}
        super()._dump_generations(reward_extra_infos_dict=reward_extra_infos_dict, dump_path=dump_path, **kwargs)

    def _compute_metrics(
        self, batch: queue.Batch, metrics: dict[str, Any], timing_raw: dict[str, float], **kwargs: Any
    ) -> None:
        """Next to veRL's throughput, which counts reused tokens, one that counts generated ones."""
        super()._compute_metrics(batch, metrics, timing_raw, **kwargs)
        responses = sum(queue.response_tokens(tag) for tag in batch.tags if not queue.is_padding(tag))
        generated = responses - metrics.get("rpo/tokens/reused_total", 0) + metrics["rpo/left_out/generated_total"]
        seconds = timing_raw["step"] * self._get_n_gpus_for_throughput()
        metrics["rpo/perf/generated_throughput"] = generated / seconds

    def _observe(self, groups: list[Group], partition_id: str) -> Any:
        fetch = fetch_rows(partition_id, self._rollouts.keeps_logprobs)
        return self._rollouts.observe(groups, self.global_steps, fetch)

    def _teaches(self, group: Group) -> bool:
        return teaches(group, self._options.credit)

    def _learn_from_discarded(self, groups: list[Group], partition_id: str) -> None:
        """Groups that were generated and are not trained on count for the cache all the same."""
        self._discarded.add(groups, self._observe(groups, partition_id))

    def _tell_of_failed(self, groups: int, in_a_row: int | None) -> None:
        """Count failed groups, and say where all of them fail.

        Args:
            groups: how many failed.
            in_a_row: how many have failed since the last success, of groups that veRL replaces; None: they are all
                that a step has, and nothing replaces them.

        Raises:
            RuntimeError: where nothing is left to train on.
        """
        if in_a_row is None:
            raise RuntimeError(
                f"rpo_verl: all {groups} groups of step {self.global_steps} failed. {self._first_failure()}"
            )
        self._discarded.add_failed(groups)
        batch = self.config.data.train_batch_size
        # Once a batch of them: veRL goes on replacing them for ever.
        if in_a_row // batch > (in_a_row - groups) // batch:
            logger.error("RPO: %d groups in a row failed, and not one succeeded. %s", in_a_row, self._first_failure())

    def _first_failure(self) -> str:
        workers = self.reward_loop_manager.reward_loop_worker_handles or []
        asked = ray.get([worker.__ray_call__.remote(failures_in_worker) for worker in workers])
        failures = [text for found in asked for text in found]
        if failures:
            return f"No response has a reward. The first failure in a reward worker: {failures[0]}"
        return "The reward workers report no failure, so rollouts fail: look for `Error in _run_prompt` above."

    def _tell_of_partial_credit(self) -> None:
        partial = self._scale.partial
        if partial is None or self._told_of_partial_credit or self._options.reward.correct_above is not None:
            return
        self._told_of_partial_credit = True
        logger.warning(
            "RPO: there are rewards between 0 and 1, such as %g, and rpo.reward.correct_above is not set. A response "
            "counts as correct above 0.5, and above half of the best reward seen in its data source. Set the "
            "threshold, or let the reward function report acc.",
            partial,
        )
