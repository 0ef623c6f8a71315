"""Verified drafts: every member starts from its own response of the last visit, as far as the policy still agrees.

The rule is that of SPEC-RL (arXiv 2509.23232): a token of the draft is accepted with probability
min(1, λ π_now/π_then), and the policy writes on from the first rejection. What results is not π_now. Of one token that
was drawn from p, under a policy q, it is a + (1 - Σ a) q with a = min(p, λ q). It would be q for λ = 1 if a rejected
token were drawn again from q - a. That takes the whole earlier distribution p at that place, and a draft keeps the
probability of its tokens alone. With λ above 1 it leans towards the draft, up to p itself.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from benchmarks.lab.groups import Finished, Reward, Sample, as_group
from benchmarks.lab.questions import Question
from rpo_verl.rpo.options import RewardConfig
from rpo_verl.rpo.start import Start


@dataclass(frozen=True, eq=False)
class Draft:
    """A response of an earlier visit."""

    tokens: np.ndarray
    """(t,) int32 token ids, the end token included if it came."""

    log_probs: np.ndarray
    """(t,) float32, of the policy that it was sampled from or verified by."""


@dataclass(frozen=True, eq=False)
class Verified:
    """The part of a draft that the policy accepts."""

    tokens: np.ndarray
    """(a,) int32."""

    log_probs: np.ndarray
    """(a,) float32, of the policy now."""

    complete: bool
    """Whether the whole draft was accepted: nothing is to be generated."""


LogProbs = Callable[[Sequence[Sequence[int]], Sequence[np.ndarray]], np.ndarray]
"""(questions, responses) → (B, T) log-probabilities of the policy now."""


def accepted(now: np.ndarray, then: np.ndarray, uniforms: np.ndarray, lenience: float) -> int:
    """Tokens before the first rejection.

    Args:
        now: (t,) log-probabilities of a draft's tokens under the policy.
        then: (t,) those under the policy that wrote it.
        uniforms: (t,) draws from [0, 1).
        lenience: λ; 1 accepts as speculative decoding does, more accepts more.
    """
    rejected = np.log(np.maximum(uniforms, np.finfo(float).tiny)) >= np.log(lenience) + now - then
    return int(np.argmax(rejected)) if rejected.any() else len(rejected)


class Drafts:
    """The responses of every question's last visit.

    Args:
        lenience: λ, above 0.
        seed: of the draws.
    """

    def __init__(self, lenience: float, seed: int) -> None:
        self._lenience, self._generator = lenience, np.random.default_rng(seed)
        self._kept: dict[Question, list[Draft]] = {}

    def roll_out(
        self, questions: Sequence[Question], step: int, group_size: int, room: int, sample: Sample,
        log_probs: LogProbs, reward: Reward,
    ) -> list[Finished]:  # fmt: skip
        """Verify the drafts of every question, let the policy write on, and keep the responses as drafts.

        Args:
            questions: those of the step.
            step: the training step.
            group_size: responses a question.
            room: tokens that a response may have.
            sample: what the policy writes behind a context.
            log_probs: of the policy now.
            reward: of a response.
        """
        starts = [start for question in questions for start in self._verify(question, group_size, log_probs)]
        asked = [question for question in questions for _ in range(group_size)]
        open_rows = [row for row, start in enumerate(starts) if not start.complete]
        contexts = [[*asked[row].ids, *starts[row].tokens.tolist()] for row in open_rows]
        rooms = [room - len(starts[row].tokens) for row in open_rows]
        written = dict(zip(open_rows, sample(contexts, rooms) if open_rows else [], strict=True))
        responses, sampled = [], []
        for row, start in enumerate(starts):
            tokens, found = written[row] if row in written else (start.tokens[:0], start.log_probs[:0])
            responses.append(np.concatenate([start.tokens, tokens]).astype(np.int32))
            sampled.append(np.concatenate([start.log_probs, found]).astype(np.float32))
        finished = []
        for number, question in enumerate(questions):
            rows = slice(number * group_size, (number + 1) * group_size)
            start = Start(b"", "full", group_size, room)
            group = as_group(start, question, responses[rows], step, reward, RewardConfig(shaping=False))
            group = replace(group, prefix_tokens=np.array([len(one.tokens) for one in starts[rows]]))
            finished.append(Finished(question, group, responses[rows], sampled[rows]))
            self._kept[question] = [Draft(*both) for both in zip(responses[rows], sampled[rows], strict=True)]
        return finished

    def _verify(self, question: Question, group_size: int, log_probs: LogProbs) -> list[Verified]:
        if question not in self._kept:
            return [Verified(np.zeros(0, np.int32), np.zeros(0, np.float32), complete=False)] * group_size
        drafts = self._kept[question]
        now = log_probs([question.ids] * len(drafts), [draft.tokens for draft in drafts])
        found = []
        for draft, row in zip(drafts, now, strict=True):
            size = len(draft.tokens)
            kept = accepted(row[:size], draft.log_probs, self._generator.random(size), self._lenience)
            found.append(Verified(draft.tokens[:kept], row[:kept].astype(np.float32), complete=kept == size))
        return found
