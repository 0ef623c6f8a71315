"""The training loop: one arm, one seed, one core."""

import argparse
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch

from benchmarks.exact import Solved, measure
from benchmarks.lab.advantages import (
    Batch,
    as_batch,
    correct_for_sampling,
    down_sample,
    estimate,
    give_credit,
    imitate,
    truncate_weights,
)
from benchmarks.lab.batches import Collected, collect
from benchmarks.lab.drafts import Drafts
from benchmarks.lab.evaluation import Evaluation
from benchmarks.lab.groups import Finished, observe, plan_starts, roll_out
from benchmarks.lab.head import HeadTraining
from benchmarks.lab.options import METHODS, Method, read_r2po, read_rpo
from benchmarks.lab.policy import Policy
from benchmarks.lab.questions import Question, Visits, overlong_penalty
from benchmarks.lab.sampler import Continuation, Sampler
from benchmarks.lab.tasks import task_of
from benchmarks.lab.update import UpdateOptions, Updater
from rpo_verl.rpo.credit import teaches
from rpo_verl.rpo.group import Group, differ
from rpo_verl.rpo.options import RewardConfig, RPOConfig
from rpo_verl.rpo.partial_rollouts import PartialRollouts

#: Answers to each of some held-out questions at the end of a run: for pass@k, or for what is left to sample where
#: accuracy is exact.
ANSWERS, FEW_ANSWERS = 32, 8
#: Bound of the weights for rollouts of another distribution, veRL's `rollout_is_threshold`.
MOST_WEIGHT = 2.0
#: Of the visits to solved questions these are made, so that what was unlearned is noticed.
LOOKS = 0.1


@dataclass
class Clock:
    """Seconds by part: on the clock, and of the processor, which others that share the core do not lengthen as much."""

    wall: Counter[str] = field(default_factory=Counter)
    cpu: Counter[str] = field(default_factory=Counter)

    @contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        started, computed = time.perf_counter(), time.process_time()
        try:
            yield
        finally:
            self.wall[part] += time.perf_counter() - started
            self.cpu[part] += time.process_time() - computed

    @property
    def training(self) -> dict[str, float]:
        """`seconds` and `cpu_seconds` of everything but evaluations."""
        sums = (sum(part for name, part in parts.items() if name != "evaluation") for parts in (self.wall, self.cpu))
        return dict(zip(("seconds", "cpu_seconds"), sums, strict=True))


class Training:
    """One run.

    Args:
        policy: to train; changed.
        args: checked options of `options.parser`.
        validation: questions for the exact accuracy; None: those of the task, the same for every seed.
    """

    def __init__(self, policy: Policy, args: argparse.Namespace, validation: Sequence[Solved] | None = None) -> None:
        self.args, self.policy, self.method = args, policy, METHODS[args.arm]
        self.clock, self.tokens, self.step = Clock(), 0, 0
        self.steps: list[dict[str, Any]] = []
        self.curve: list[dict[str, Any]] = []
        # Draws of its own for every seed; an override wins.
        options = [f"rpo.seed={args.seed}", *(args.rpo if self.method.reuse else [])]
        self._rpo = read_rpo(options, args.max_response_length, max(2, args.group_size // args.answers))
        self._caches = [
            cache_of(policy, replace(self._rpo, seed=self._rpo.seed + number * 1_000), args.max_response_length)
            for number in range(args.answers if self.method.reuse else 0)
        ]
        # Without RPO nothing is shaped.
        self._rollout_options = self._rpo if self.method.reuse else RPOConfig(reward=RewardConfig(shaping=False))
        self._credit: list[float] = []
        self._task = task_of(args.model, args.problem_steps)
        self._visits = Visits(self._task.draw(policy.tokenizer, args.seed, args.questions), args.seed)
        self._generator = torch.Generator().manual_seed(args.seed)
        self._sampler = Sampler(policy.model, policy.end_ids, policy.precision)
        self._head = HeadTraining(policy, read_r2po(args.rpo), args) if self.method.head else None
        self._updater = Updater(
            policy,
            UpdateOptions(
                lr=args.lr, schedule=args.schedule, clip_ratio_high=self.method.clip_ratio_high,
                ppo_epochs=args.ppo_epochs, micro_batch=args.micro_batch, loss=args.loss,
            ),
        )  # fmt: skip
        self._seen: dict[Question, Finished] = {}
        self._drafts = Drafts(args.lenience, args.seed)
        self._success: dict[Question, float] = {}
        self._looks = torch.Generator().manual_seed(args.seed)
        if validation is None:
            validation = self._task.solved(policy.tokenizer, args.eval_questions)
        self._validation = validation
        self._evaluation = Evaluation(policy, self._task, args.max_response_length, args.eval_questions)

    @property
    def progress(self) -> float:
        """Share of the run that lies behind: of its steps, or of its tokens where they run out first."""
        of_tokens = self.tokens / self.args.max_tokens if self.args.max_tokens else 0.0
        return max(self.step / self.args.steps, of_tokens)

    def run(self, report: Callable[[str], None] = print) -> dict[str, Any]:
        """Train to the end, evaluating at the start, every `--eval-every` steps and at the end; return the record."""
        self._evaluate(report)
        while self.progress < 1:
            self.train_step()
            if self.step % self.args.eval_every == 0 or self.progress >= 1:
                self._evaluate(report)
        return self.record()

    def train_step(self) -> None:
        """Roll out, compute advantages, update the policy, update the cache."""
        progress, self.step = self.progress, self.step + 1
        with self.clock("generation"):
            collected = self._collect()
        with self.clock("cache"):
            observe(self._caches, collected.discarded, self.step)
        with self.clock("advantages"):
            batch = self._batch(collected.batch)
        with self.clock("cache"):
            observe(self._caches, collected.batch, self.step)
            for rollouts in self._caches:
                rollouts.end_step(self.step)
        rows = self._update(collected.batch, batch, progress)
        self._remember([*collected.discarded, *collected.batch])
        self._note(collected, rows)

    def _update(self, groups: Sequence[Finished], batch: Batch, progress: float) -> int:
        """Train the policy, or R²PO's head in a step that is the head's; returns the rows of the policy's update."""
        if self._head is not None and self._head.due(self.step):
            with self.clock("update"):
                self._head.train(groups)
            return 0
        with self.clock("log-probs"):
            self._updater.fill_log_probs(batch)
            if self.args.prefix_weights is not None:
                truncate_weights(groups, batch, self.args.prefix_weights)
            if self._sampled_elsewhere and (self._head is None or self._head.options.correction == "importance"):
                correct_for_sampling(batch, MOST_WEIGHT)
        with self.clock("update"):
            return self._updater.update(batch, progress)

    @property
    def _sampled_elsewhere(self) -> bool:
        """Whether rollouts come from another distribution than the policy's own."""
        return self._head is not None or self.args.temperature != 1

    @property
    def _sample(self) -> Callable[..., list[Continuation]]:
        """What rollouts are drawn with."""
        head = None if self._head is None else self._head.learner.head
        return partial(self._sampler.sample, generator=self._generator, temperature=self.args.temperature, head=head)

    def _collect(self) -> Collected:
        limit = self._rpo.reward.filter_at_most if self.method.reuse else None
        return collect(
            self._new_groups,
            self.args.batch,
            signal_of(self.method, self._teaches),
            None if limit is None else round(limit * self.args.batch),
        )

    def _teaches(self, group: Group) -> bool:
        return teaches(group, self._rpo.credit)

    def _new_groups(self, count: int) -> list[Finished]:
        questions = self._visits.take(count, self._is_solved)
        if self.method.verified:
            return self._from_drafts(questions)
        kept = [self._seen[question] for question in questions if question in self._seen]
        new = [question for question in questions if question not in self._seen]
        fresh = self._fresh(new) if new else []
        self.tokens += sum(int(one.group.generated.sum()) for one in fresh)
        if self.method.first_epoch_only:
            self._seen |= {one.question: one for one in fresh}
        return [*fresh, *kept]

    def _fresh(self, questions: Sequence[Question]) -> list[Finished]:
        """Roll out a group for every question, or a part of it for every answer that is kept of one."""
        size, room = self.args.group_size // self.args.answers, self.args.max_response_length
        asked, starts, numbers = [], [], []
        for number, rollouts in enumerate(self._caches or [None]):
            asked += questions
            starts += plan_starts(rollouts, questions, self.step, size, room)
            numbers += [number] * len(questions)
        return roll_out(asked, starts, self.step, self._sample, self._reward, self._rollout_options, numbers)

    def _is_solved(self, question: Question) -> bool:
        """Whether to skip a visit: where the last one succeeded, and chance does not want another look."""
        if self.args.skip_solved is None or self._success.get(question, 0.0) < self.args.skip_solved:
            return False
        return float(torch.rand(1, generator=self._looks)) >= LOOKS

    def _remember(self, visited: Sequence[Finished]) -> None:
        """Note the share of correct ones among the whole responses to every question that was visited.

        Behind a prefix success is another one, so such groups say nothing, and of a branch the trunk alone counts.
        """
        correct: dict[Question, list[float]] = {}
        for one in visited:
            group = one.group
            whole = group.generated == group.response_tokens
            if whole.any():
                correct.setdefault(one.question, []).extend(group.correct[whole].astype(float))
        self._success |= {question: fmean(of_one) for question, of_one in correct.items()}

    def _from_drafts(self, questions: Sequence[Question]) -> list[Finished]:
        size, room = self.args.group_size, self.args.max_response_length
        found = self._drafts.roll_out(questions, self.step, size, room, self._sample, self._log_probs, self._reward)
        self.tokens += sum(int(one.group.generated.sum()) for one in found)
        return found

    def _log_probs(self, questions: Sequence[Sequence[int]], responses: Sequence[np.ndarray]) -> np.ndarray:
        with torch.no_grad():
            return self.policy.log_probs(questions, responses).numpy()

    def _reward(self, question: Question, response: np.ndarray) -> tuple[float, float]:
        found, right = self._task.reward(self.policy.tokenizer, question, response)
        penalty = overlong_penalty(len(response), self.args.max_response_length, self.method.overlong_buffer)
        return found + penalty, float(right)

    def _batch(self, groups: Sequence[Finished]) -> Batch:
        batch = as_batch(groups)
        if self.method.verified:
            batch.mask = torch.arange(batch.mask.shape[1]) < torch.tensor([[len(row)] for row in batch.responses])
        if self.method.imitate:
            imitate(groups, batch)
            return batch
        estimate(groups, batch, "grpo")
        if self.args.rows_per_group is not None:
            down_sample(groups, batch, self.args.rows_per_group)
        if self._sampled_elsewhere:
            # So that the policy before the update is asked: PPO clips the ratio to it.
            batch.old_log_probs = torch.full_like(batch.old_log_probs, torch.nan)
        if self.method.reuse:
            self._credit = give_credit(groups, batch, self._rpo.credit)
            if self.args.prefix_weights is not None:
                # So that the policy before the update is asked.
                prefix = np.concatenate([one.group.prefix_tokens for one in groups])
                batch.old_log_probs[np.arange(batch.mask.shape[1]) < prefix[:, None]] = torch.nan
        return batch

    def _note(self, collected: Collected, rows: int) -> None:
        groups = [one.group for one in collected.batch]
        self.steps.append(
            {
                "step": self.step,
                "tokens": self.tokens,
                **self.clock.training,
                "correct": fmean(float(group.correct.mean()) for group in groups),
                "response_tokens": fmean(float(group.response_tokens.mean()) for group in groups),
                "generated_tokens": sum(int(group.generated.sum()) for group in groups) / sum(map(len, groups)),
                "prefixed_groups": sum(group.prefixed for group in groups),
                "discarded_groups": len(collected.discarded),
                "skipped_visits": self._visits.skipped,
                **({} if self._head is None else self._head.metrics),
                "trained_rows": rows,
                "credit": fmean(self._credit) if self._credit else 0.0,
            }
        )

    def _evaluate(self, report: Callable[[str], None]) -> None:
        with self.clock("evaluation"):
            solved = self._validation
            found = self._evaluation.figures(ANSWERS if solved is None else FEW_ANSWERS) if self.progress >= 1 else {}
            # What is exact stands in place of what is sampled.
            with self.policy.precision():
                found |= self._evaluation.accuracy() if solved is None else measure(self.policy.model, solved)
        point = {"step": self.step, "tokens": self.tokens, **self.clock.training, **found}
        self.curve.append(point)
        report(
            f"[{self.args.arm} seed {self.args.seed}] step {self.step:>3}/{self.args.steps}  accuracy "
            f"{point['accuracy']:.4f}  {self.tokens:>7} tokens  {point['seconds']:5.0f} s"
        )

    def record(self) -> dict[str, Any]:
        """What the run's JSON file holds, beside the machine and the options."""
        return {
            "curve": self.curve,
            "steps": self.steps,
            "seconds": {part: round(seconds, 3) for part, seconds in sorted(self.clock.wall.items())},
            "cpu_seconds": {part: round(seconds, 3) for part, seconds in sorted(self.clock.cpu.items())},
            "generated_tokens": self.tokens,
        }


def cache_of(policy: Policy, options: RPOConfig, max_response_length: int) -> PartialRollouts:
    """RPO around an empty cache, or one with the store of `rpo.cache.path`."""
    rollouts = PartialRollouts(options, max_response_length, policy.identity, policy.end_ids)
    if options.cache.path is not None:
        rollouts.load(Path(options.cache.path))
    return rollouts


def signal_of(method: Method, teaches: Callable[[Group], bool]) -> Callable[[Group], bool] | None:
    """What the filter asks of a group; None: no filter. DAPO looks at accuracies, RPO at what a group teaches."""
    if not method.filtered:
        return None
    if method.reuse:
        return teaches
    return lambda group: differ(group.correct.astype(float))
