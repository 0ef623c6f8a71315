"""What a policy can do on held-out questions, by sampling."""

from statistics import fmean
from typing import Any

import numpy as np
import torch

from benchmarks.exact import KS
from benchmarks.lab.policy import Policy
from benchmarks.lab.sampler import Continuation, Sampler
from benchmarks.lab.tasks import Task
from rpo_verl.tools.evaluation.estimators import pass_at_k

#: Questions that are answered often.
ANSWERED = 64
#: Rollouts at a time.
AT_ONCE = 128


class Evaluation:
    """Held-out questions of a task and a policy's answers to them, as the policy is at the moment.

    Args:
        policy: the one that answers.
        task: of the questions.
        max_response_length: tokens of an answer.
        questions: held-out questions that an accuracy is measured on.
    """

    def __init__(self, policy: Policy, task: Task, max_response_length: int, questions: int) -> None:
        self._policy, self._task, self._room = policy, task, max_response_length
        self._sampler = Sampler(policy.model, policy.end_ids, policy.precision)
        self._questions = task.draw(policy.tokenizer, task.held_out_seed, questions)

    def accuracy(self) -> dict[str, Any]:
        """Accuracy from one rollout per held-out question, where solutions are many."""
        answers = self._answers(len(self._questions), 1)
        return {"questions": len(answers), "accuracy": fmean(right for ((right, _),) in answers), "sampled": True}

    def figures(self, each: int) -> dict[str, Any]:
        """The figures of the exact accuracy from `each` rollouts to some held-out questions, and how much these differ.

        The entropy is the mean of -log p over sampled tokens, whose expectation it is.
        """
        asked = min(ANSWERED, len(self._questions))
        answers = self._answers(asked, each)
        greedy = self._answers(asked, 1, temperature=0.0)
        right = [sum(right for right, _ in of_one) for of_one in answers]
        written = [answer for of_one in answers for _, answer in of_one]
        return {
            "answers": each,
            "greedy": fmean(right for ((right, _),) in greedy),
            "pass_at_k": {str(k): fmean(pass_at_k(each, rights, k) for rights in right) for k in KS if k <= each},
            "entropy": -float(np.concatenate([answer.log_probs for answer in written]).mean()),
            "distinct_share": fmean(len({a.tokens.tobytes() for _, a in of_one}) / each for of_one in answers),
            "answer_tokens": fmean(len(answer.tokens) for answer in written),
            "format_errors": fmean(
                not self._task.states_answer(self._policy.tokenizer, answer.tokens) for answer in written
            ),
        }

    def _answers(self, count: int, each: int, temperature: float = 1.0) -> list[list[tuple[bool, Continuation]]]:
        """`each` rollouts to every one of the first `count` held-out questions, and whether they are right."""
        tokenizer, task = self._policy.tokenizer, self._task
        at_once, found = max(1, AT_ONCE // each), []
        for first in range(0, count, at_once):
            part = [question for question in self._questions[:count][first : first + at_once] for _ in range(each)]
            room = [self._room] * len(part)
            # A generator of its own, so that evaluations do not change the training.
            generator = torch.Generator().manual_seed(first)
            answers = self._sampler.sample([question.ids for question in part], room, generator, temperature)
            found += [
                (task.reward(tokenizer, question, answer.tokens)[1], answer)
                for question, answer in zip(part, answers, strict=True)
            ]
        return [found[row : row + each] for row in range(0, len(found), each)]
