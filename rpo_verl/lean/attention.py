"""Attention over packed rows: one call within a group's beginning, one from the rows' own tokens to all before."""

from functools import wraps
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import PretrainedConfig
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from rpo_verl.lean.packing import PackedGroup, Packing

#: Argument of the model's forward: how its rows are packed.
LAYOUT = "lean_layout"
#: What transformers' models may ask of an attention function beyond attending to all preceding tokens.
UNSUPPORTED = ("sliding_window", "softcap", "s_aux", "dropout")
FIX = "Set lean.share_prefix=false."


class Layout:
    """What attention needs of a `Packing`, on the device.

    It is no dataclass, because FSDP would hand every layer a copy of one.
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
            f"lean.share_prefix with a model of type {config.model_type}, whose attention has "
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
            f"lean.share_prefix with the attention {name!r}: it is none of transformers' registered functions "
            f"({', '.join(ALL_ATTENTION_FUNCTIONS.valid_keys())}). Use sdpa, or set lean.share_prefix=false."
        )
    original = ALL_ATTENTION_FUNCTIONS[name]
    if hasattr(original, "_takes_packed_rows"):
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
                    f"lean.share_prefix with {type(module).__name__}, whose attention has {option}={given}: packed "
                    f"rows attend to all that comes before them, and nothing else. {FIX}"
                )
        layout.attended.add(id(module))
        scaling = kwargs.get("scaling") or query.shape[-1] ** -0.5
        return attend(module, query, key, value, layout, scaling), None

    attention._takes_packed_rows = True
    ALL_ATTENTION_FUNCTIONS[name] = attention
