"""R²PO in the fast lane: the package's own head, objective and rarity, on the groups of a step."""

import argparse
from collections.abc import Sequence

import numpy as np
import torch

from benchmarks.lab.groups import Finished
from benchmarks.lab.policy import Policy
from rpo_verl.r2po.learner import HeadLearner
from rpo_verl.r2po.objective import Tokens
from rpo_verl.r2po.options import R2POConfig, trains_head
from rpo_verl.r2po.rarity import rarity_advantages


class HeadTraining:
    """Stage 1.

    Args:
        policy: whose hidden states the head reads; stays as it is.
        options: of R²PO.
        args: of the run.
    """

    def __init__(self, policy: Policy, options: R2POConfig, args: argparse.Namespace) -> None:
        self.options, self._policy, self._args = options, policy, args
        config = policy.model.config
        self.learner = HeadLearner(options, config.hidden_size, config.vocab_size, "cpu")
        self.metrics: dict[str, float] = {}

    def due(self, step: int) -> bool:
        """Whether a step trains the head."""
        return trains_head(step, self.options)

    def train(self, groups: Sequence[Finished]) -> None:
        """Update the head on the groups of a step, as often as `r2po.stage1.epochs` says."""
        advantages = np.concatenate(
            [
                rarity_advantages(one.group.rewards, one.group.correct, one.responses, self.options.rarity)
                for one in groups
            ]
        )
        questions = [one.question.ids for one in groups for _ in one.responses]
        responses = [response for one in groups for response in one.responses]
        sampled = [log_probs for one in groups for log_probs in one.log_probs]
        order = sorted(range(len(responses)), key=lambda row: len(responses[row]))
        updates: list[dict[str, float]] = []
        for _ in range(self.options.stage1.epochs):
            for first in range(0, len(order), self._args.micro_batch):
                rows = order[first : first + self._args.micro_batch]
                tokens = self._tokens(
                    [questions[row] for row in rows], [responses[row] for row in rows],
                    [float(advantages[row]) for row in rows], [sampled[row] for row in rows],
                )  # fmt: skip
                self.learner.accumulate(tokens, self._args.temperature)
            updates.append(self.learner.update(lambda tensor: None))
        self.metrics = {f"head_{name}": updates[-1][name] for name in ("kl", "entropy_gain", "kl_weight")}
        # Before the first update: the difference between sampler and head.
        self.metrics["head_error"] = updates[0]["error"]

    @torch.no_grad()
    def _tokens(
        self, questions: Sequence[Sequence[int]], responses: Sequence[np.ndarray], advantages: Sequence[float],
        sampled: Sequence[np.ndarray],
    ) -> Tokens:  # fmt: skip
        states, labels = self._policy.states(questions, responses)
        lengths = torch.tensor([len(response) for response in responses])
        written = torch.arange(labels.shape[1]) < lengths[:, None]
        with self._policy.precision():
            logits = self._policy.model.get_output_embeddings()(states[written])
        return Tokens(
            hidden=states[written].float(),
            logits=logits.float(),
            labels=labels[written],
            advantages=torch.tensor(advantages).repeat_interleave(lengths),
            old_log_probs=torch.from_numpy(np.concatenate(sampled)),
        )
