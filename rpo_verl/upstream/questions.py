"""Chat messages → the token ids a rollout is given → key: for the trainer and for stores made ahead of training."""

import json
from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf
from transformers import AutoConfig
from verl.utils.model import get_generation_config
from verl.utils.tokenizer.continuous_token_wiring import create_continuous_token_builder

from rpo_verl.question import TokenizerIdentity, question_key


def read_model_type(model: str, trust_remote_code: bool) -> str | None:
    """`model_type` in a model's configuration; None where there is none, as beside a tokenizer alone."""
    try:
        return AutoConfig.from_pretrained(model, trust_remote_code=trust_remote_code).model_type
    except (OSError, ValueError):
        return None


def read_end_ids(model: str, trust_remote_code: bool, tokenizer: Any) -> set[int]:
    """The ids at which generation ends: the tokenizer's EOS and those of the model's generation config."""
    generation = get_generation_config(model, trust_remote_code)
    listed = generation.eos_token_id if generation is not None else None
    ids = listed if isinstance(listed, list) else [listed]
    return {index for index in (*ids, tokenizer.eos_token_id) if index is not None}


class Questions:
    """Builds questions with veRL's own token builder, so that a key fits whatever made it.

    Args:
        name: where the tokenizer was loaded from; for messages.
        model_type: `model_type` of the model's Hugging Face configuration, by which veRL chooses the builder.
        tokenizer: a Hugging Face tokenizer with a chat template.
        max_prompt_length: veRL's `data.max_prompt_length`, tokens; longer questions lose their head, as in veRL.
        template_options: veRL's `data.apply_chat_template_kwargs`.
        processor: a multimodal model's processor.
    """

    def __init__(
        self,
        name: str,
        model_type: str | None,
        tokenizer: Any,
        max_prompt_length: int,
        template_options: Mapping[str, Any] | None = None,
        processor: Any = None,
    ) -> None:
        if isinstance(template_options, DictConfig):
            template_options = OmegaConf.to_container(template_options, resolve=True)
        options = dict(template_options or {})
        self.max_prompt_length = max_prompt_length
        self._builder = create_continuous_token_builder(
            tokenizer, hf_model_type=model_type, chat_template_kwargs=options, processor=processor
        )
        template = f"{tokenizer.chat_template}{json.dumps(options, sort_keys=True, default=str)}"
        self.identity = TokenizerIdentity.of(name, tokenizer.get_vocab(), template)
        self._fingerprint = self.identity.fingerprint

    def ids(self, messages: list[dict[str, Any]]) -> list[int]:
        """Token ids of a question, chat template applied."""
        return self._builder.build_initial_tokens(messages)[-self.max_prompt_length :]

    def key(self, ids: Any) -> bytes:
        """Key of a question's token ids."""
        return question_key(ids, self._fingerprint)
