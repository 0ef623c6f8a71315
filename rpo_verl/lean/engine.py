"""Question and prefix once a group: log-probabilities and update of veRL's FSDP engine on packed rows.

Behind a prefix most of what the trainer computes is the same for all members of a group. The engine's micro-batches
are packed here (see `rpo_verl.lean.packing`): linear layers see a shared beginning once, and attention runs as
`rpo_verl.lean.attention` says. Outputs are laid out by rows as veRL expects, so losses and metrics do not know of it.
Gradients are those of the rows computed one by one, up to rounding.
"""

import math
from functools import partial
from operator import itemgetter
from typing import Any

import numpy as np
import torch
from tensordict import NonTensorData, TensorDict
from torch.distributed.tensor import DTensor
from torch.utils.checkpoint import checkpoint
from verl.utils import tensordict_utils as tu
from verl.utils.device import get_device_id
from verl.utils.torch_functional import logprobs_from_logits

from rpo_verl.lean.attention import FIX, LAYOUT, Layout, install_attention, require_causal_attention
from rpo_verl.lean.packing import packed_tokens, share

#: Key in the `extra_info` of a batch for the workers: its rows may share what they begin with.
SHARE_PREFIX = "lean_share_prefix"
#: Metric of a worker's update: tokens computed, as a share of those in the rows. veRL puts `actor/` before it.
COMPUTED_SHARE = "lean_computed_share"
#: More tokens than there are, of a size of micro-batch that will not do.
NEVER = 1 << 48


class SharedPrefixEngine:
    """Mixin over veRL's FSDP engines for language models; batches without the flag go their usual way."""

    _computed_share: float | None = None

    def forward_backward_batch(self, data: TensorDict, loss_function: Any, forward_only: bool = False) -> Any:
        """veRL's, with micro-batches that keep groups together where they are to hold a number of tokens.

        veRL would put rows into them by length, whatever their group, and count tokens that are not computed.
        """
        ask = partial(tu.get_non_tensor_data, data)
        if ask(key=SHARE_PREFIX, default=False) and ask(key="use_dynamic_bsz", default=True):
            size = self._rows_that_fit(data)
            if size is not None:
                tu.assign_non_tensor(data, use_dynamic_bsz=False, micro_batch_size_per_gpu=size)
        return super().forward_backward_batch(data, loss_function, forward_only=forward_only)

    def _rows_that_fit(self, data: TensorDict) -> int | None:
        """Rows of a micro-batch with which the fewest tokens are computed, on all data parallel ranks together.

        None where that takes more micro-batches than rows that share nothing would, as it does if rows differ much in
        length, and where some rank cannot pack its rows or has one too long for a micro-batch.
        """
        most, tokens = data["max_token_len_per_gpu"], data["input_ids"].offsets().diff().sum().item()
        sizes = [size for size in range(len(data), 0, -1) if len(data) % size == 0]
        totals = [NEVER] * len(sizes)
        if _is_plain(data):
            counts = packed_tokens(*_rows(data), sizes)
            totals = [int(count.sum()) if count.max() <= most else NEVER for count in counts]
        group = self.get_data_parallel_group()
        of_all, unshared = (torch.tensor(n).to(get_device_id()) for n in (totals, math.ceil(tokens / most)))
        torch.distributed.all_reduce(of_all, group=group)
        torch.distributed.all_reduce(unshared, op=torch.distributed.ReduceOp.MAX, group=group)
        few_enough = [
            (total, size)
            for total, size in zip(of_all.tolist(), sizes, strict=True)
            if total < NEVER and len(data) // size <= unshared.item()
        ]
        # Of sizes with the same total the largest, which comes first.
        return min(few_enough, key=itemgetter(0))[1] if few_enough else None

    def forward_step(self, micro_batch: TensorDict, loss_function: Any, forward_only: bool) -> tuple[Any, dict]:
        """veRL's, with the share of the tokens that were computed among the metrics of an update."""
        self._computed_share = None
        loss, output = super().forward_step(micro_batch, loss_function, forward_only)
        if loss_function is not None and self._computed_share is not None:
            output["metrics"][COMPUTED_SHARE] = self._computed_share
        return loss, output

    def prepare_model_inputs(self, micro_batch: TensorDict) -> tuple[dict[str, Any], dict[str, Any]]:
        """Packed rows instead of padded ones; micro-batches with images, or a temperature for every row, as they are.

        Raises:
            ValueError: if the model's attention is more than causal.
        """
        if not tu.get_non_tensor_data(data=micro_batch, key=SHARE_PREFIX, default=False) or not _is_plain(micro_batch):
            return super().prepare_model_inputs(micro_batch)
        config = self.module.config
        require_causal_attention(config.get_text_config())
        install_attention(config._attn_implementation)
        ids, positions = micro_batch["input_ids"], micro_batch["position_ids"]
        packing = share(*_rows(micro_batch))
        device = ids.values().device
        layout = Layout(packing, device)
        source, slots, labels, row_slot = (
            torch.from_numpy(array).to(device)
            for array in (packing.source, packing.slots, packing.labels, packing.row_slot)
        )
        self._computed_share = len(source) / len(row_slot)
        inputs = {
            "input_ids": ids.values()[source][None],
            "position_ids": positions.values()[source][None],
            # Any mask with four dimensions reaches the attention as it is, and keeps transformers from making one up.
            "attention_mask": torch.ones(1, 1, 1, 1, dtype=torch.bool, device=device),
            "logits_to_keep": slots,
            LAYOUT: layout,
        }
        return inputs, {"labels": ids.values()[labels], "row_slot": row_slot, LAYOUT: layout}

    def prepare_model_outputs(
        self, output: Any, output_args: dict[str, Any], micro_batch: TensorDict, logits_processor_func: Any
    ) -> dict[str, torch.Tensor]:
        """Log-probabilities, and entropies if asked for, laid out by rows: nested (B, prompt + response).

        Raises:
            ValueError: if a layer of the model mixes tokens otherwise than by transformers' attention functions, or
                the model gives logits of all tokens whatever it is asked for.
        """
        if LAYOUT not in output_args:
            return super().prepare_model_outputs(output, output_args, micro_batch, logits_processor_func)
        logits, labels = output.logits[0], output_args["labels"]
        layers, attended = self.module.config.get_text_config().num_hidden_layers, len(output_args[LAYOUT].attended)
        if attended != layers or len(logits) != len(labels):
            raise ValueError(
                f"lean.share_prefix with {type(self.module).__name__}: {attended} of its {layers} layers attend "
                f"through transformers' attention functions, and it gives {len(logits)} logits for {len(labels)} asked "
                f"for, so it cannot compute packed rows. {FIX}"
            )
        logits = logits.full_tensor() if isinstance(logits, DTensor) else logits
        if micro_batch["temperature"] != 1:
            logits = logits / micro_batch["temperature"]
        offsets = micro_batch["input_ids"].offsets()

        def by_rows(values: torch.Tensor) -> torch.Tensor:
            return torch.nested.nested_tensor_from_jagged(values[output_args["row_slot"]], offsets)

        with_entropy = tu.get_non_tensor_data(data=micro_batch, key="calculate_entropy", default=False)
        outputs = {"entropy": by_rows(self._entropy(logits))} if with_entropy else {}
        # With a leading dimension: veRL's function goes through the first one in a Python loop.
        log_probs = logprobs_from_logits(logits[None], labels[None], inplace_backward=not with_entropy)[0]
        return {"log_probs": by_rows(log_probs)} | outputs

    def _entropy(self, logits: torch.Tensor) -> torch.Tensor:
        """By the engine's own function, and as sparing of memory as it is asked to be."""
        config = self.engine_config
        if config.entropy_checkpointing:
            return checkpoint(self.compute_entropy_from_logits, logits, use_reentrant=False)
        if config.entropy_from_logits_with_chunking:
            return self.compute_entropy_from_logits(logits, chunk_size=config.entropy_from_logits_chunk_size)
        return self.compute_entropy_from_logits(logits)


def _rows(batch: TensorDict) -> tuple[list[np.ndarray], list[int]]:
    """(B,) token ids of prompt and response, int64 of their lengths, and (B,) tokens of the prompts."""
    return [row.cpu().numpy() for row in batch["input_ids"].unbind()], batch["prompts"].offsets().diff().tolist()


def _is_plain(micro_batch: TensorDict) -> bool:
    with_images = any(map(_has_images, micro_batch.get("multi_modal_inputs", [])))
    temperature_of_rows = isinstance(micro_batch["temperature"], torch.Tensor)
    return not with_images and not temperature_of_rows and micro_batch["position_ids"].dim() == 2


def _has_images(inputs: Any) -> bool:
    inputs = inputs.data if isinstance(inputs, NonTensorData) else inputs
    return any(value is not None for value in (inputs or {}).values())
