"""Question and prefix once a group: log-probabilities and update of veRL's FSDP engine on packed rows.

Behind a prefix most of what the trainer computes is the same for all members of a group. The engine's micro-batches
are packed here (see `rpo_verl.core.packing`): linear layers see a shared beginning once, attention takes two calls, one
among the beginnings and one from every suffix to its beginning and itself. What comes out is laid out by rows as veRL
expects, so losses and metrics do not know of it; gradients are those of the rows computed apart, up to rounding.
"""

from collections.abc import Sequence
from functools import wraps
from typing import Any

import torch
from tensordict import TensorDict
from torch.distributed.tensor import DTensor
from torch.nn.functional import scaled_dot_product_attention
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from verl.utils import tensordict_utils as tu
from verl.utils.torch_functional import entropy_from_logits, logprobs_from_logits

from rpo_verl.core.packing import Packing, share

#: Key in a batch's `extra_info`: its rows may be packed. Argument of the model's forward: how they are.
FLAG, LAYOUT = "rpo_share_prefix", "rpo_shared_prefix"
#: What transformers' models may ask of an attention function beyond attending to all that comes before.
UNSUPPORTED = ("sliding_window", "softcap", "s_aux", "dropout")


class Layout:
    """What attention needs of a `Packing`, on the device; see there for the fields.

    Not a dataclass, of which FSDP would hand every layer a copy.
    """

    def __init__(self, packing: Packing, device: torch.device) -> None:
        self.prefixes, self.suffixes, self.keys, self.visible, self.unpadded = (
            torch.from_numpy(array).to(device)
            for array in (packing.prefixes, packing.suffixes, packing.keys, packing.visible, packing.unpadded)
        )
        self.attended: set[int] = set()
        """Ids of the modules that attended over these rows."""


class SharedPrefixEngine:
    """Mixin over veRL's FSDP engines for language models; batches without the flag go their usual way."""

    def prepare_model_inputs(self, micro_batch: TensorDict) -> tuple[dict[str, Any], dict[str, Any]]:
        """Packed rows instead of padded ones."""
        if not tu.get_non_tensor_data(data=micro_batch, key=FLAG, default=False):
            return super().prepare_model_inputs(micro_batch)
        ids, positions = micro_batch["input_ids"], micro_batch["position_ids"]
        install_attention(self.module.config._attn_implementation)
        rows = [row.cpu().numpy() for row in ids.unbind()]
        packing = share(rows, micro_batch["prompts"].offsets().diff().tolist())
        device = ids.values().device
        layout = Layout(packing, device)
        source, slots, labels, row_slot = (
            torch.from_numpy(array).to(device)
            for array in (packing.source, packing.slots, packing.labels, packing.row_slot)
        )
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
            ValueError: if a layer of the model mixes tokens otherwise than by transformers' attention functions.
        """
        if LAYOUT not in output_args:
            return super().prepare_model_outputs(output, output_args, micro_batch, logits_processor_func)
        layers, attended = self.module.config.get_text_config().num_hidden_layers, len(output_args[LAYOUT].attended)
        if attended != layers:
            raise ValueError(
                f"rpo.loss.share_prefix with {type(self.module).__name__}: {attended} of its {layers} layers attend "
                "through transformers' attention functions, so rows packed together would run into each other in the "
                "others. Set rpo.loss.share_prefix=false."
            )
        logits = output.logits[0]
        logits = (logits.full_tensor() if isinstance(logits, DTensor) else logits) / micro_batch["temperature"]
        offsets = micro_batch["input_ids"].offsets()

        def by_rows(values: torch.Tensor) -> torch.Tensor:
            return torch.nested.nested_tensor_from_jagged(values[output_args["row_slot"]], offsets)

        # With a leading dimension: veRL's function goes through the first one in a Python loop.
        outputs = {"log_probs": by_rows(logprobs_from_logits(logits[None], output_args["labels"][None])[0])}
        if tu.get_non_tensor_data(data=micro_batch, key="calculate_entropy", default=False):
            outputs["entropy"] = by_rows(entropy_from_logits(logits))
        return outputs


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
    # Tokens first: what is picked by token then lies in one piece.
    query = query[0].transpose(0, 1)
    key, value = (x[0].transpose(0, 1).repeat_interleave(repeats, dim=1) for x in (key, value))

    def pick(x: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        return x[index].transpose(1, 2)  # (rows, H, tokens, D)

    def flat(x: torch.Tensor) -> torch.Tensor:
        return x.transpose(1, 2).flatten(0, 1)  # (rows * tokens, H, D)

    prefixes = layout.prefixes
    parts = [
        flat(
            scaled_dot_product_attention(
                pick(query, prefixes), pick(key, prefixes), pick(value, prefixes), is_causal=True, scale=scaling
            )
        )
    ]
    if len(layout.suffixes):
        parts.append(
            flat(
                scaled_dot_product_attention(
                    pick(query, layout.suffixes),
                    pick(key, layout.keys),
                    pick(value, layout.keys),
                    attn_mask=layout.visible[:, None],
                    scale=scaling,
                )
            )
        )
    return torch.cat(parts)[layout.unpadded][None]


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
        for option in UNSUPPORTED:
            given = kwargs.get(option)
            if given is not None and not (isinstance(given, int | float) and given == 0):
                raise ValueError(
                    f"rpo.loss.share_prefix with {type(module).__name__}, whose attention has {option}={given}: packed "
                    "rows attend to all that comes before them, and nothing else. Set rpo.loss.share_prefix=false."
                )
        layout.attended.add(id(module))
        scaling = kwargs.get("scaling") or query.shape[-1] ** -0.5
        return attend(module, query, key, value, layout, scaling), None

    attention._rpo_wrapped = True
    ALL_ATTENTION_FUNCTIONS[name] = attention


def order_by_group(keys: Sequence[str], ranks: int) -> list[int]:
    """Positions in an order in which the rows of a group are neighbours, as far as they are on one rank.

    Args:
        keys: (B,) of veRL's queue, `question_session_index`; B is a multiple of `ranks`, which get equal runs of them.
        ranks: data parallel size.
    """
    size = len(keys) // ranks
    order = []
    for start in range(0, len(keys), size):
        groups: dict[str, list[int]] = {}
        for i in range(start, start + size):
            groups.setdefault(keys[i].split("_")[0], []).append(i)
        order += [i for group in groups.values() for i in group]
    return order


def wrap_registered_engines(registry: dict[str, dict[str, dict[Any, type]]]) -> None:
    """Put the mixin over every FSDP engine for language models that veRL has registered.

    Args:
        registry: model type → backend → device → engine class; changed in place.
    """
    models = registry.get("language_model", {})
    for backend in ("fsdp", "fsdp2"):
        for device, engine in models.get(backend, {}).items():
            models[backend][device] = type(engine.__name__, (SharedPrefixEngine, engine), {"__doc__": engine.__doc__})
