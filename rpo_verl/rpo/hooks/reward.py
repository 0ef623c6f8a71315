"""The registered reward manager: the user's own manager and reward function on the whole response, and a verdict."""

import math
from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig
from verl import DataProto
from verl.experimental.reward_loop.reward_manager.base import RewardManagerBase
from verl.experimental.reward_loop.reward_manager.registry import register
from verl.trainer.ppo.reward import load_reward_manager

from rpo_verl.correctness import is_correct
from rpo_verl.rpo.hooks import NAME
from rpo_verl.rpo.hooks.agent_loop import START
from rpo_verl.rpo.hooks.dump import COLUMNS
from rpo_verl.rpo.hooks.settings import WRAPPED, users_config

#: Keys in veRL's `reward_extra_info` that tell the trainer verdict and reward, so that it need not fetch token scores.
CORRECT, REWARD = "rpo_correct", "rpo_reward"
#: Keys that a reward function must not report, because RPO writes or dumps something else under them.
RESERVED = {CORRECT, REWARD, *COLUMNS}

#: The first failures of this process; the trainer asks for them where nothing is left to train on.
_failures: list[str] = []
KEPT_FAILURES = 3
#: Characters of a value or a text that a message quotes.
QUOTED = 120


def reported_accuracy(reward_extra_info: Mapping[str, Any]) -> float | None:
    """The `acc` that a reward function reported; None where it reported none.

    Raises:
        ValueError: if it is text, a list, NaN or infinite.
    """
    accuracy = reward_extra_info.get("acc")
    return None if accuracy is None else _finite(accuracy, "reported acc=")


def verdict(reward: float, accuracy: float | None, config: Any) -> bool:
    """Whether a response counts as correct, by itself: its data source's scale may still raise the bar.

    Args:
        reward: the base reward.
        accuracy: the reported `acc`, if any.
        config: the section `rpo.reward`.
    """
    return is_correct(reward, accuracy, config.correct_above)


def failures_in_worker(worker: object) -> list[str]:
    """The first failures in the process of a reward worker, for its `__ray_call__`."""
    return list(_failures)


def _finite(value: Any, verb: str) -> float:
    """A reward or an accuracy as a number; the error says what the reward function did, by a verb before the value."""
    try:
        number = math.nan if value is None or isinstance(value, str | bytes) else float(value)
    except (TypeError, ValueError, RuntimeError):
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"the reward function {verb}{_quote(value)}; RPO needs a finite number for every response.")
    return number


def _keep(failure: str) -> None:
    if len(_failures) < KEPT_FAILURES:
        _failures.append(failure)


def _quote(value: Any) -> str:
    text = repr(str(value) if isinstance(value, str) else value)
    return text if len(text) <= QUOTED else f"{text[:QUOTED]}…"


def _row_of(data: DataProto) -> str:
    """Words that lead to a row in the data files."""
    row = {name: values[-1] for name, values in data.non_tensor_batch.items() if len(values)}
    extra, truth, messages = row.get("extra_info"), row.get("reward_model"), list(row.get("raw_prompt") or [])
    facts = {
        "data_source": row.get("data_source"),
        "extra_info.index": extra.get("index") if isinstance(extra, Mapping) else None,
        "reward_model": truth,
        "question": messages[-1].get("content") if messages else None,
    }
    words = ", ".join(f"{name} {_quote(value)}" for name, value in facts.items() if value is not None)
    hint = ""
    if isinstance(truth, str):
        hint = ". Its reward_model is text; veRL's reward managers need a mapping with ground_truth in it"
    return f"row: {words}{hint}"


@register(NAME)
class WholeResponseRewardManager(RewardManagerBase):
    """Wraps the reward manager that the user configured; the reward itself is passed on unchanged."""

    def __init__(self, config: DictConfig, tokenizer: Any, compute_score: Any, **kwargs: Any) -> None:
        super().__init__(config, tokenizer, compute_score)
        self._options = config.rpo.reward
        self._inner = load_reward_manager(users_config(config), tokenizer, **kwargs)

    async def run_single(self, data: DataProto) -> dict[str, Any]:
        """Reward of one response, prefix and suffix together.

        Args:
            data: one row, `responses` holds prefix ‖ suffix. Rows that RPO did not start, as those of a validation, are
                passed on untouched.

        Returns:
            what the user's manager returned; `reward_extra_info` gains the verdict `rpo_correct` and `rpo_reward`.

        Raises:
            ValueError: if the user's reward or accuracy is not a finite number, or a reported key is RPO's own; the
                response then fails as veRL fails it. This error and those of the user's function end with the row.
        """
        starts = data.non_tensor_batch.get(START)
        if starts is None or starts[-1] is None:
            return await self._inner.run_single(data)
        try:
            result = await self._inner.run_single(data)
        except Exception as error:
            row = _row_of(data)
            if hasattr(error, "add_note"):  # Python 3.11
                error.add_note(f"rpo_verl: {row}")
            _keep(f"{type(error).__name__}: {error} ({row})")
            raise
        try:
            result["reward_extra_info"] = self._judge(result["reward_score"], result.get("reward_extra_info", {}))
        except ValueError as error:
            message = f"{error} {self._manager_and(_row_of(data))}"
            _keep(message)
            raise ValueError(message) from error
        return result

    def _manager_and(self, row: str) -> str:
        return f"Reward manager: {self.config[WRAPPED].reward_manager!r}; {row}."

    def _judge(self, reward: Any, info: Mapping[str, Any]) -> dict[str, Any]:
        number = _finite(reward, "returned ")
        taken = sorted(RESERVED & info.keys())
        if taken:
            raise ValueError(
                f"the reward function reported {', '.join(taken)}, which RPO writes itself. Rename it in the reward "
                "function; other names are passed on."
            )
        return {**info, CORRECT: verdict(number, reported_accuracy(info), self._options), REWARD: number}
