"""Groups: what they start from, their rollouts, and what the experience cache learns from them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count

import numpy as np

from benchmarks.lab.questions import Question
from benchmarks.lab.sampler import Continuation
from rpo_verl.correctness import is_correct
from rpo_verl.rpo.cut import dropped_tokens, prefix_length
from rpo_verl.rpo.group import Group
from rpo_verl.rpo.options import RewardConfig, RPOConfig
from rpo_verl.rpo.partial_rollouts import PartialRollouts
from rpo_verl.rpo.shaping import shape_group
from rpo_verl.rpo.start import Start

Sample = Callable[[Sequence[Sequence[int]], Sequence[int]], list[Continuation]]
"""(contexts, room) → what the policy writes behind each context."""

Reward = Callable[[Question, np.ndarray], tuple[float, float]]
"""(question, response) → base reward, accuracy."""

_numbers = count()


@dataclass(frozen=True, eq=False)
class Finished:
    """A group of the package's core with the tokens that the core does not need."""

    question: Question
    group: Group
    responses: list[np.ndarray]
    """(G,) token ids of each whole response, (t,) int32."""

    log_probs: list[np.ndarray]
    """(G,) log-probabilities of each response's tokens when they were sampled, (t,) float32; NaN if not known."""

    cache: int = 0
    """Number of the experience cache that the group starts from, where a question keeps several answers."""


def plan_starts(
    rollouts: PartialRollouts | None, questions: Sequence[Question], step: int, group_size: int, room: int
) -> list[Start]:
    """Decide what the group of every question starts from; without `rollouts` from the question alone."""
    if rollouts is None:
        return [Start(b"", "full", group_size, room) for _ in questions]
    return [rollouts.plan(question.ids, step, group_size) for question in questions]


def roll_out(
    questions: Sequence[Question], starts: Sequence[Start], step: int, sample: Sample, reward: Reward,
    options: RPOConfig, caches: Sequence[int] | None = None,
) -> list[Finished]:  # fmt: skip
    """Generate the members of every group and reward them: first trunks, then everything else, each in one batch.

    A group that branches from trunks becomes one group per trunk, whose first member is the trunk itself. `caches` are
    the numbers of the caches that the starts are from.
    """
    branched = [i for i, start in enumerate(starts) if start.trunks]
    trunks = _trunks([questions[i] for i in branched], [starts[i] for i in branched], step, sample, options)
    branches = dict(zip(branched, trunks, strict=True))
    plans = []
    for i, (question, start) in enumerate(zip(questions, starts, strict=True)):
        cache = 0 if caches is None else caches[i]
        plans += [(question, cache, *branch) for branch in branches.get(i, [(start, None)])]
    contexts, room = [], []
    for question, _, start, trunk in plans:
        members = start.group_size - (trunk is not None)
        contexts += [[*question.ids, *start.prefix.tolist()]] * members
        room += [start.room] * members
    written = iter(sample(contexts, room))
    finished = []
    for question, cache, start, trunk in plans:
        cut = len(start.prefix)
        known = start.prefix_logprobs if len(start.prefix_logprobs) else np.full(cut, np.nan)
        suffixes = [] if trunk is None else [Continuation(trunk.tokens[cut:], trunk.log_probs[cut:])]
        suffixes += [next(written) for _ in range(start.group_size - len(suffixes))]
        responses = [np.concatenate([start.prefix, suffix.tokens]) for suffix in suffixes]
        finished.append(
            Finished(
                question,
                as_group(start, question, responses, step, reward, options.reward, trunk is not None),
                responses,
                [np.concatenate([known, suffix.log_probs]).astype(np.float32) for suffix in suffixes],
                cache,
            )
        )
    return finished


def _trunks(
    questions: Sequence[Question], starts: Sequence[Start], step: int, sample: Sample, options: RPOConfig
) -> list[list[tuple[Start, Continuation]]]:
    """The starts of the branches of every question and the whole answers that they branch from."""
    written = iter(
        sample(
            [question.ids for question, start in zip(questions, starts, strict=True) for _ in range(start.trunks)],
            [start.room for start in starts for _ in range(start.trunks)],
        )
        if starts
        else []
    )
    found = []
    for start in starts:
        found.append([])
        for number in range(start.trunks):
            trunk = next(written)
            dropped = dropped_tokens(len(trunk.tokens) - 1, options.truncation, start.share)
            kept = prefix_length(len(trunk.tokens) - 1, dropped, start.room)
            found[-1].append((start.branch(number, trunk.tokens, trunk.log_probs, kept, step), trunk))
    return found


def as_group(
    start: Start, question: Question, responses: Sequence[np.ndarray], step: int, reward: Reward, shaping: RewardConfig,
    begins_with_trunk: bool = False,
) -> Group:  # fmt: skip
    """Reward the responses of a question, and shape their rewards."""
    rewards, accuracies = np.array([reward(question, response) for response in responses], dtype=np.float64).T
    lengths = np.array([len(response) for response in responses])
    correct = np.array(
        [is_correct(r, accuracy, shaping.correct_above) for r, accuracy in zip(rewards, accuracies, strict=True)]
    )
    number, size = next(_numbers), len(responses)
    return Group(
        start=start,
        keys=tuple(f"{number}_{member}" for member in range(size)),
        prefix_tokens=np.full(size, len(start.prefix)),
        response_tokens=lengths,
        oldest_policy=np.full(size, start.source_step if len(start.prefix) else step),
        rewards=rewards,
        correct=correct,
        shaped=shape_group(rewards, lengths, correct, shaping),
        trunks=np.arange(size) == 0 if begins_with_trunk else None,
    )


def observe(caches: Sequence[PartialRollouts], finished: Sequence[Finished], step: int) -> None:
    """Let every experience cache see the finished groups that started from it, by question as in a veRL run."""
    for number, rollouts in enumerate(caches):
        ordered = sorted((one for one in finished if one.cache == number), key=lambda one: one.group.start.question)
        if not ordered:
            continue
        tokens = {
            key: (np.asarray(one.question.ids, dtype=np.int32), response, log_probs)
            for one in ordered
            for key, response, log_probs in zip(one.group.keys, one.responses, one.log_probs, strict=True)
        }
        rollouts.observe(
            [one.group for one in ordered], step, lambda keys, tokens=tokens: [tokens[key] for key in keys]
        )
