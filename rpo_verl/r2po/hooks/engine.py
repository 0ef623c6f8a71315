"""The rollout head in the actor workers: outside the FSDP module, with an optimizer of its own.

So neither state dict, nor optimizer, nor exported model have it. Every rank has the whole head, and gradients are
summed by hand. Stage 1 runs the policy forward without gradients, in veRL's own micro-batches, and trains the head on
the input of the output layer.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from tensordict import TensorDict
from torch.distributed.tensor import DTensor
from verl.utils import tensordict_utils as tu
from verl.utils.device import get_device_id

from rpo_verl.r2po import state
from rpo_verl.r2po.head import PREFIX
from rpo_verl.r2po.hooks import NAME
from rpo_verl.r2po.learner import HeadLearner
from rpo_verl.r2po.objective import Tokens
from rpo_verl.r2po.options import R2POConfig
from rpo_verl.upstream.engines import engines_of

#: Key in the `extra_info` of a batch for the workers: it trains the head.
TRAIN_HEAD = "r2po_train_head"
#: Key beside it: the best reward that the run has seen.
BEST_REWARD = "r2po_best_reward"
#: Tokens whose distributions over the vocabulary are in memory at once.
CHUNK = 512
#: Prefix of a worker's metrics in stage 1; veRL has a `loss` and a `grad_norm` of its own.
METRICS = "r2po_head_"
#: Field of a row: its advantages in stage 1, (response,) float.
ADVANTAGES = "r2po_advantages"


class RolloutHeadEngine:
    """Mixin over veRL's FSDP engines for language models; inert in an engine that has no head."""

    _learner: HeadLearner | None = None
    _trained_head = False
    _entered: torch.Tensor | None = None

    def give_head(self, options: R2POConfig) -> None:
        """Build the head for the model of this engine."""
        text = self.module.config.get_text_config()
        self._learner = HeadLearner(options, text.hidden_size, text.vocab_size, get_device_id())

    def train_batch(self, data: TensorDict, loss_function: Any) -> Any:
        """veRL's update of the policy, or, for a batch with the flag, one update of the head."""
        self._trained_head = bool(tu.get_non_tensor_data(data=data, key=TRAIN_HEAD, default=False))
        if not self._trained_head:
            return super().train_batch(data, loss_function)
        # The policy runs as it does for log-probabilities; veRL has loaded what is offloaded.
        with self.eval_mode(disable_auto_offload=True), self._watch_output_layer(), torch.no_grad():
            outputs = self.forward_backward_batch(data, _no_loss, forward_only=True)
        self._learner.best_reward = float(tu.get_non_tensor_data(data=data, key=BEST_REWARD, default=1.0))
        found = self._learner.update(self._add_up)
        outputs["metrics"] = {f"{METRICS}{name}": [value] for name, value in found.items()}
        return outputs

    def lr_scheduler_step(self) -> float:
        """The policy's learning rate goes on with updates of the policy alone."""
        return self._learner.options.stage1.lr if self._trained_head else super().lr_scheduler_step()

    def prepare_model_outputs(
        self, output: Any, output_args: dict[str, Any], micro_batch: TensorDict, logits_processor_func: Any
    ) -> dict[str, torch.Tensor]:
        """For a batch with the flag, the head's gradient instead of log-probabilities."""
        if not tu.get_non_tensor_data(data=micro_batch, key=TRAIN_HEAD, default=False):
            return super().prepare_model_outputs(output, output_args, micro_batch, logits_processor_func)
        hidden, self._entered = self._entered, None
        logits = output.logits.full_tensor() if isinstance(output.logits, DTensor) else output.logits
        # The head is in float32, whatever the policy's forward pass is in.
        with torch.autocast(logits.device.type, enabled=False):
            for tokens in generated_tokens(hidden, logits, micro_batch):
                self._learner.accumulate(tokens, float(micro_batch["temperature"]))
        return {}

    def get_per_tensor_param(self, *args: Any, **kwargs: Any) -> tuple[Iterator[tuple[str, torch.Tensor]], Any]:
        """The policy's weights for the rollout servers, and the head's behind them."""
        weights, peft_config = super().get_per_tensor_param(*args, **kwargs)
        if self._learner is None:
            return weights, peft_config
        own = ((f"{PREFIX}{name}", value.detach()) for name, value in self._learner.head.named_parameters())
        return chain(weights, own), peft_config

    def save_checkpoint(self, local_path: str, *args: Any, **kwargs: Any) -> None:
        """Save the head beside the folder of the actor."""
        super().save_checkpoint(local_path, *args, **kwargs)
        if self._learner is not None and self.rank == 0:
            folder = Path(local_path).parent
            state.save(self._learner, folder / NAME, int(folder.name.removeprefix("global_step_")))

    def load_checkpoint(self, local_path: str, *args: Any, **kwargs: Any) -> None:
        """Load the head from beside the folder of the actor.

        Raises:
            HeadError: if there is none that fits.
        """
        super().load_checkpoint(local_path, *args, **kwargs)
        if self._learner is not None:
            folder = Path(local_path).parent
            state.load(self._learner, folder / NAME, int(folder.name.removeprefix("global_step_")))

    @contextmanager
    def _watch_output_layer(self) -> Iterator[None]:
        """Keep what enters the output layer."""

        def keep(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            self._entered = inputs[0]

        handle = self.module.get_output_embeddings().register_forward_pre_hook(keep)
        try:
            yield
        finally:
            handle.remove()

    def _add_up(self, tensor: torch.Tensor) -> None:
        torch.distributed.all_reduce(tensor, group=self.get_data_parallel_group())


def _no_loss(model_output: Any, data: TensorDict, dp_group: Any) -> tuple[torch.Tensor, dict[str, Any]]:
    """veRL's loss function of stage 1, where the gradient is there before veRL asks for a loss."""
    return torch.zeros(()), {}


def generated_tokens(hidden: torch.Tensor, logits: torch.Tensor, micro_batch: TensorDict) -> Iterator[Tokens]:
    """The tokens of a micro-batch that the model generated, each where it was predicted, in parts of `CHUNK`.

    Args:
        hidden: (1, T, H) of rows one after another, or (B, L, H) of padded rows; input of the output layer.
        logits: likewise with V.
        micro_batch: B rows with nested `input_ids` (prompt + response), `prompts`, and, of the response's length,
            `response_mask`, `rollout_log_probs` and the advantages of stage 1.
    """
    ids = micro_batch["input_ids"]
    lengths, prompts = ids.offsets().diff().tolist(), micro_batch["prompts"].offsets().diff().tolist()
    masks = micro_batch["response_mask"].unbind()
    padded, stride = hidden.shape[0] > 1, hidden.shape[1]
    places, start = [], 0
    for row, (length, prompt, mask) in enumerate(zip(lengths, prompts, masks, strict=True)):
        first = (row * stride if padded else start) + prompt - 1
        places.append(first + mask.nonzero()[:, 0])
        start += length
    chosen = torch.cat(places)

    def of_response(name: str) -> torch.Tensor:
        rows = zip(micro_batch[name].unbind(), masks, strict=True)
        return torch.cat([values[mask.bool()] for values, mask in rows])

    labels = [row[prompt:][mask.bool()] for row, prompt, mask in zip(ids.unbind(), prompts, masks, strict=True)]
    ids_of, advantages = torch.cat(labels), of_response(ADVANTAGES).float()
    old_log_probs, hidden, logits = of_response("rollout_log_probs").float(), hidden.flatten(0, 1), logits.flatten(0, 1)
    for begin in range(0, len(chosen), CHUNK):
        part = slice(begin, begin + CHUNK)
        yield Tokens(hidden[chosen[part]], logits[chosen[part]], ids_of[part], advantages[part], old_log_probs[part])


def best_rewards(worker: Any) -> list[float]:
    """What the heads of a worker remember as the best reward, for the worker's `__ray_call__`."""
    return [engine._learner.best_reward for engine in engines_of(worker) if engine._learner is not None]


def give_heads(worker: Any, options: R2POConfig) -> int:
    """Give the actor's engine of a worker its head, for the worker's `__ray_call__`; returns to how many engines."""
    count = 0
    for engine in engines_of(worker):
        if not engine.engine_config.forward_only:
            engine.give_head(options)
            count += 1
    return count
