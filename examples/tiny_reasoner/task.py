"""Chain arithmetic modulo 100: every step is a bijection, so one wrong step makes the final answer wrong."""

from __future__ import annotations

import random
import re
import string
from collections.abc import Iterator
from dataclasses import dataclass

MODULUS = 100
# Labels tie a step of the solution to its place in the question, so a small model can look it up by content.
LABELS = string.ascii_letters[:42]
# Multipliers share no factor with 100, so no operation can hide an earlier error.
OPERANDS = {"+": range(1, 10), "-": range(1, 10), "*": (3, 7)}
ANSWER_MARK = "#"

# Solution lengths, end token included: 67, 112, 184, 274 and 382 tokens.
LEVELS = {"steps7": 7, "steps12": 12, "steps20": 20, "steps30": 30, "steps42": 42}
TRAIN_STEPS = 20
NOISE = 0.06

_STEP = re.compile(r"([a-zA-Z])([-+*])(\d)")


@dataclass(frozen=True)
class Problem:
    """One question with its worked solution, the final answer in it, and the number of steps."""

    question: str
    solution: str
    answer: str
    steps: int


def apply(value: int, operator: str, operand: int) -> int:
    """One operation, modulo 100."""
    if operator == "+":
        return (value + operand) % MODULUS
    if operator == "-":
        return (value - operand) % MODULUS
    return (value * operand) % MODULUS


def parse_question(question: str) -> tuple[int, list[tuple[str, str, int]]]:
    """The start number and the (label, operator, operand) list of a question."""
    steps = [(label, operator, int(operand)) for label, operator, operand in _STEP.findall(question[2:])]
    return int(question[:2]), steps


def write_solution(question: str, noise: float = 0.0, rng: random.Random | None = None) -> str:
    """The worked solution; with probability `noise` a step's result is wrong and the chain goes on from it."""
    value, steps = parse_question(question)
    parts = []
    for label, operator, operand in steps:
        result = apply(value, operator, operand)
        if noise and rng.random() < noise:
            # Uniform over the 99 wrong numbers.
            result = (result + rng.randrange(1, MODULUS)) % MODULUS
        parts.append(f"{label}{value:02d}{operator}{operand}={result:02d};")
        value = result
    return "".join(parts) + f"{ANSWER_MARK}{value:02d}"


def noisy_solution(problem: Problem, noise: float, rng: random.Random) -> str:
    """A solution of `problem` that contains imitated errors at rate `noise` per step."""
    return write_solution(problem.question, noise, rng)


def draw_problem(rng: random.Random, steps: int) -> Problem:
    """One problem with the given number of steps."""
    if not 1 <= steps <= len(LABELS):
        raise ValueError(f"steps must be between 1 and {len(LABELS)}, got {steps}")
    question = f"{rng.randrange(MODULUS):02d}"
    for label in LABELS[:steps]:
        operator = rng.choice(tuple(OPERANDS))
        question += f"{label}{operator}{rng.choice(OPERANDS[operator])}"
    solution = write_solution(question)
    return Problem(question, solution, solution.rpartition(ANSWER_MARK)[2], steps)


def generate(seed: int, steps: int) -> Iterator[Problem]:
    """The endless list of distinct problems that belongs to an integer seed and a number of steps."""
    rng = random.Random(seed)
    seen: set[str] = set()
    while True:
        problem = draw_problem(rng, steps)
        if problem.question not in seen:
            seen.add(problem.question)
            yield problem
