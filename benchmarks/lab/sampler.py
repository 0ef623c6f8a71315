"""A batched sampler with a static KV cache for models of the Llama and Qwen kind."""

from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import numpy as np
import torch
from torch.nn.functional import pad, scaled_dot_product_attention
from transformers import PreTrainedModel
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from benchmarks.lab.policy import BrokenDown

#: Model types whose layers `Sampler` knows.
KNOWN = ("llama", "qwen2", "qwen3")


class Continuation(NamedTuple):
    """What the policy wrote behind a context."""

    tokens: np.ndarray
    """(t,) int32 token ids, the end token included if it came."""

    log_probs: np.ndarray
    """(t,) float32 log-probability of each token, at the temperature of sampling."""


class Sampler:
    """Samples from a model as its weights are at the moment.

    Args:
        model: a causal language model; its weights stay its own.
        end_ids: ids at which generation ends.
        precision: context in which the layers compute, such as one of `torch.autocast`.

    Raises:
        ValueError: if the model's layers are not those of Llama or Qwen with full attention.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        end_ids: Collection[int],
        precision: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        kind, layer_types = model.config.model_type, set(getattr(model.config, "layer_types", None) or ())
        if kind not in KNOWN or layer_types - {"full_attention"}:
            raise ValueError(
                f"a model of type {kind!r} with layers {sorted(layer_types)}: "
                f"the sampler knows {', '.join(KNOWN)} with full attention"
            )
        self._model, self._base = model, model.base_model
        self._end = torch.tensor(sorted(end_ids))
        self._precision = precision

    @torch.no_grad()
    def sample(
        self,
        contexts: Sequence[Sequence[int]],
        room: Sequence[int],
        generator: torch.Generator,
        temperature: float = 1.0,
        head: torch.nn.Module | None = None,
    ) -> list[Continuation]:
        """Continue every context until an end token or the end of its room.

        Equal contexts are read once: the members of a group share the keys and values of their common start.

        Args:
            contexts: (B,) token ids of each, question and prefix; at least one token.
            room: (B,) maximum tokens to generate behind each, at least 1.
            generator: source of randomness.
            temperature: divides the logits; 0: the most likely token, with its log-probability at temperature 1.
            head: R²PO's, whose residual is added to the logits; None: the policy alone.

        Raises:
            ValueError: if a context is empty, a room below 1, or the temperature below 0.
            BrokenDown: if the model's probabilities are not numbers.
        """
        if min(map(len, contexts)) < 1 or min(room) < 1 or not temperature >= 0:
            raise ValueError(
                f"shortest context {min(map(len, contexts))}, smallest room {min(room)}, temperature {temperature}: "
                "every context needs a token and room for one, and the temperature must be at least 0"
            )
        with self._precision():
            return self._continue(contexts, room, generator, temperature, head)

    def _continue(
        self,
        contexts: Sequence[Sequence[int]],
        room: Sequence[int],
        generator: torch.Generator,
        temperature: float,
        head: torch.nn.Module | None,
    ) -> list[Continuation]:
        distinct = list(dict.fromkeys(map(tuple, contexts)))
        number = {context: i for i, context in enumerate(distinct)}
        of_row = torch.tensor([number[tuple(context)] for context in contexts])
        width, most = max(map(len, distinct)), max(room)
        cosine, sine = self._rotations(width + most)

        ids, visible = torch.zeros(len(distinct), width, dtype=torch.long), torch.zeros(len(distinct), width).bool()
        for row, context in enumerate(distinct):
            ids[row, width - len(context) :], visible[row, width - len(context) :] = torch.tensor(context), True
        positions = (visible.long().cumsum(1) - 1).clamp(min=0)
        # A token sees itself in any case, so that padding has something to see.
        causal = torch.ones(width, width).bool().tril() & visible[:, None] | torch.eye(width).bool()
        cache = [self._empty(len(distinct), width) for _ in self._base.layers]
        states = self._states(ids, (cosine[positions], sine[positions]), cache, 0, causal[:, None])[of_row]

        rows, rooms = torch.arange(len(contexts)), torch.tensor(room)
        # Every row gets a copy of its context, and columns to write to.
        cache = [tuple(pad(part[of_row], (0, 0, 0, most)) for part in both) for both in cache]
        visible = torch.cat([visible[of_row], torch.zeros(len(rows), most).bool()], 1)
        position = positions[of_row, -1]
        tokens, log_probs = torch.zeros(len(rows), most, dtype=torch.long), torch.zeros(len(rows), most)
        lengths, going = torch.zeros(len(rows), dtype=torch.long), torch.ones(len(rows)).bool()
        for written in range(most):
            logits = self._model.lm_head(states).float()
            if head is not None:
                with torch.autocast("cpu", enabled=False):
                    logits = logits + head(states.float())
            log_p = (logits / (temperature or 1.0)).log_softmax(-1)
            token = _draw(log_p, generator) if temperature else log_p.argmax(-1, keepdim=True)
            tokens[rows, written], log_probs[rows, written] = token[:, 0], log_p.gather(1, token)[:, 0]
            lengths[rows[going]] += 1
            going = going & ~torch.isin(token[:, 0], self._end) & (written + 1 < rooms[rows])
            if not going.any():
                break
            if int(going.sum()) * 4 <= len(rows) * 3:
                # Finished rows cost as much as others, copying what is left costs little.
                rows, token, position, visible = rows[going], token[going], position[going], visible[going]
                cache = [tuple(part[going] for part in both) for both in cache]
                going = going[going]
            at = width + written
            visible[:, at], position = True, position + 1
            turned = cosine[position][:, None], sine[position][:, None]
            states = self._states(token, turned, cache, at, visible[:, None, None, : at + 1])
        return [
            Continuation(tokens[i, :n].numpy().astype(np.int32), log_probs[i, :n].numpy().copy())
            for i, n in enumerate(lengths.tolist())
        ]

    def _rotations(self, positions: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosines and sines of rotary embeddings, (P, D) each."""
        cosine, sine = self._base.rotary_emb(self._model.lm_head.weight[:1], torch.arange(positions)[None])
        return cosine[0], sine[0]

    def _empty(self, rows: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of a layer, (B, heads, width, D) each."""
        config = self._model.config
        shape = (rows, config.num_key_value_heads, width, self._base.layers[0].self_attn.head_dim)
        dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else torch.float32
        return torch.zeros(shape, dtype=dtype), torch.zeros(shape, dtype=dtype)

    def _states(
        self,
        ids: torch.Tensor,
        turned: tuple[torch.Tensor, torch.Tensor],
        cache: Sequence[tuple[torch.Tensor, torch.Tensor]],
        start: int,
        mask: torch.Tensor,
    ) -> torch.Tensor:
        """Read `ids` (B, T) at columns from `start`, write their keys and values, return the last states (B, H)."""
        rows, width = ids.shape
        stop = start + width
        states = self._base.embed_tokens(ids)
        for layer, (keys, values) in zip(self._base.layers, cache, strict=True):
            attention, before = layer.self_attn, layer.input_layernorm(states)
            query, key, value = (
                project(before).view(rows, width, -1, attention.head_dim)
                for project in (attention.q_proj, attention.k_proj, attention.v_proj)
            )
            if hasattr(attention, "q_norm"):
                query, key = attention.q_norm(query), attention.k_norm(key)
            query, key = apply_rotary_pos_emb(query.transpose(1, 2), key.transpose(1, 2), *turned)
            keys[:, :, start:stop], values[:, :, start:stop] = key, value.transpose(1, 2)
            seen = scaled_dot_product_attention(
                query, keys[:, :, :stop], values[:, :, :stop], attn_mask=mask, scale=attention.scaling,
                enable_gqa=keys.shape[1] != query.shape[1],
            )  # fmt: skip
            states = states + attention.o_proj(seen.transpose(1, 2).reshape(rows, width, -1))
            states = states + layer.mlp(layer.post_attention_layernorm(states))
        return self._base.norm(states[:, -1])


def _draw(log_p: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """A token for each row of log-probabilities (B, V), (B, 1) int64.

    One random number a row: `torch.multinomial` draws one for each token of the vocabulary.

    Raises:
        BrokenDown: if they are not numbers.
    """
    reached = log_p.double().exp_().cumsum(-1)
    if not reached[:, -1].isfinite().all():
        raise BrokenDown("the probabilities of the next token are not numbers: the learning rate is too high")
    at = torch.rand(len(log_p), 1, dtype=torch.double, generator=generator) * reached[:, -1:]
    # `right`, so that a token of probability 0 is never drawn.
    return torch.searchsorted(reached, at, right=True).clamp(max=log_p.shape[-1] - 1)
