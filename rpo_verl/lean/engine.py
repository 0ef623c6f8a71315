"""Question and prefix once a group: log-probabilities and update of veRL's FSDP engine on packed rows.

Behind a prefix most of what the trainer computes is the same for all members of a group. The engine's micro-batches
are packed here (see `rpo_verl.lean.packing`): linear layers see a shared beginning once, attention takes two calls a
group, one within the beginning and one from what every row has of its own to the beginning and itself. What comes out
is laid out by rows as veRL expects, so losses and metrics do not know of it; gradients are those of the rows computed
apart, up to rounding.
"""

import math
from functools import partial, wraps
from operator import itemgetter
from typing import Any

import numpy as np
import torch
from tensordict import NonTensorData, TensorDict
from torch.distributed.tensor import DTensor
from torch.nn.functional import scaled_dot_product_attention
from torch.utils.checkpoint import checkpoint
from transformers import PretrainedConfig
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from verl.utils import tensordict_utils as tu
from verl.utils.device import get_device_id
from verl.utils.torch_functional import logprobs_from_logits

from rpo_verl.lean.packing import PackedGroup, Packing, packed_tokens, share
from rpo_verl.upstream.contract import COMPUTED_SHARE, SHARE_PREFIX

#: Argument of the model's forward: how its rows are packed.
LAYOUT = "rpo_shared_prefix"
#: What transformers' models may ask of an attention function beyond attending to all that comes before.
UNSUPPORTED = ("sliding_window", "softcap", "s_aux", "dropout")
#: More tokens than there are, of a size of micro-batch that will not do.
NEVER = 1 << 48
FIX = "Set rpo.loss.share_prefix=false."


class Layout:
    """What attention needs of a `Packing`, on the device.

    Not a dataclass, of which FSDP would hand every layer a copy.
    """

    def __init__(self, packing: Packing, device: torch.device) -> None:
        self.groups = packing.groups
        self.own = [_own(group, device) if len(group.own) else None for group in packing.groups]
        """Per group: (R, S) int64 places, (R, S) bool which are not filled up, (S, P + S) bool what they see."""

        self.attended: set[int] = set()
        """Ids of the modules that attended over these rows."""


def _own(group: PackedGroup, device: torch.device) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    places, is_own = (torch.from_numpy(array).to(device) for array in (group.places, group.is_own))
    return places, is_own, visible(group.shared, places.shape[1], device)


def visible(shared: int, own: int, device: torch.device) -> torch.Tensor:
    """(S, P + S) bool: a row's own tokens see the whole beginning, and of their own those before them."""
    return torch.ones(own, shared + own, dtype=torch.bool, device=device).tril(diagonal=shared)


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
                f"rpo.loss.share_prefix with {type(self.module).__name__}: {attended} of its {layers} layers attend "
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


def require_causal_attention(config: PretrainedConfig) -> None:
    """Refuse models that restrict attention by a mask of their own, which packed rows never get to see.

    Raises:
        ValueError: naming the setting of the model.
    """
    found = {name: getattr(config, name, None) for name in ("sliding_window", "attention_chunk_size", "index_topk")}
    kinds = set(getattr(config, "layer_types", None) or ()) - {"full_attention"}
    restricted = [f"{name}={value}" for name, value in found.items() if value] + sorted(kinds)
    if restricted:
        raise ValueError(
            f"rpo.loss.share_prefix with a model of type {config.model_type}, whose attention has "
            f"{', '.join(restricted)}: packed rows attend to all that comes before them, and nothing else. {FIX}"
        )


def attend(
    module: torch.nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, layout: Layout, scaling: float
) -> torch.Tensor:
    """Attention over packed rows.

    Args:
        module: of transformers; says how many queries share a key.
        query: (1, H, N, D) float.
        key: (1, H_kv, N, D) float.
        value: likewise.
        layout: of the N tokens.
        scaling: of the scores.

    Returns:
        (1, N, H, D) float.
    """
    repeats = getattr(module, "num_key_value_groups", 1)

    def of_all_heads(x: torch.Tensor) -> torch.Tensor:
        return x if repeats == 1 else x.repeat_interleave(repeats, dim=1)

    parts = []
    for group, own in zip(layout.groups, layout.own, strict=True):
        shared = [x[:, :, group.start : group.start + group.shared] for x in (query, key, value)]
        parts.append(
            scaled_dot_product_attention(
                shared[0], of_all_heads(shared[1]), of_all_heads(shared[2]), is_causal=True, scale=scaling
            )[0].transpose(0, 1)
        )
        if own is not None:
            places, is_own, sees = own
            q, k, v = (x[0][:, places].transpose(0, 1) for x in (query, key, value))  # (R, H, S, D)
            k, v = (
                of_all_heads(torch.cat([first.expand(len(places), -1, -1, -1), rest], dim=2))
                for first, rest in ((shared[1], k), (shared[2], v))
            )
            found = scaled_dot_product_attention(q, k, v, attn_mask=sees, scale=scaling)
            parts.append(found.transpose(1, 2)[is_own])
    return torch.cat(parts)[None]


def install_attention(name: str) -> None:
    """Let the attention function of that name serve packed rows too, once a process; for all others it stays as it is.

    It stays installed, because checkpointed layers call it again in the backward pass.

    Raises:
        ValueError: if transformers has no such function to wrap, as for `eager`.
    """
    if name not in ALL_ATTENTION_FUNCTIONS:
        raise ValueError(
            f"rpo.loss.share_prefix with the attention {name!r}: it is none of transformers' registered functions "
            f"({', '.join(ALL_ATTENTION_FUNCTIONS.valid_keys())}). Use sdpa, or set rpo.loss.share_prefix=false."
        )
    original = ALL_ATTENTION_FUNCTIONS[name]
    if hasattr(original, "_rpo_wrapped"):
        return

    @wraps(original)
    def attention(
        module: torch.nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, Any]:
        layout = kwargs.pop(LAYOUT, None)
        if layout is None:
            return original(module, query, key, value, mask, **kwargs)
        asked = {option: kwargs.get(option) for option in UNSUPPORTED}
        asked["mask"] = None if mask is None or mask.shape == (1, 1, 1, 1) else tuple(mask.shape)
        for option, given in asked.items():
            if given is not None and not (isinstance(given, int | float) and given == 0):
                raise ValueError(
                    f"rpo.loss.share_prefix with {type(module).__name__}, whose attention has {option}={given}: packed "
                    f"rows attend to all that comes before them, and nothing else. {FIX}"
                )
        layout.attended.add(id(module))
        scaling = kwargs.get("scaling") or query.shape[-1] ** -0.5
        return attend(module, query, key, value, layout, scaling), None

    attention._rpo_wrapped = True
    ALL_ATTENTION_FUNCTIONS[name] = attention


def wrap_registered_engines(registry: dict[str, dict[str, dict[Any, type]]]) -> None:
    """Put the mixin over every FSDP engine for language models that veRL has registered.

    Args:
        registry: model type → backend → device → engine class; changed in place.
    """
    models = registry.get("language_model", {})
    for backend in ("fsdp", "fsdp2"):
        for device, engine in models.get(backend, {}).items():
            models[backend][device] = type(engine.__name__, (SharedPrefixEngine, engine), {"__doc__": engine.__doc__})
