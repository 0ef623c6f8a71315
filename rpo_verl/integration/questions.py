"""Chat messages → the token ids a rollout is given → key: for the trainer and for stores made ahead of training."""

import json
from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf
from verl.utils.tokenizer.continuous_token_wiring import create_continuous_token_builder

from rpo_verl.core.question import TokenizerIdentity, question_key


class Questions:
    """Builds questions with veRL's own token builder, so that a key fits whatever made it.

    Args:
        name: where the tokenizer was loaded from; for messages.
        tokenizer: a Hugging Face tokenizer with a chat template.
        max_prompt_length: veRL's `data.max_prompt_length`, tokens; longer questions lose their head, as in veRL.
        template_options: veRL's `data.apply_chat_template_kwargs`.
        processor: a multimodal model's processor.
    """

    def __init__(
        self,
        name: str,
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
            tokenizer, hf_model_type=None, chat_template_kwargs=options, processor=processor
        )
        template = f"{tokenizer.chat_template}{json.dumps(options, sort_keys=True, default=str)}"
        self.tokenizer = TokenizerIdentity.of(name, tokenizer.get_vocab(), template)
        self._fingerprint = self.tokenizer.fingerprint

    def ids(self, messages: list[dict[str, Any]]) -> list[int]:
        """Token ids of a question, chat template applied."""
        return self._builder.build_initial_tokens(messages)[-self.max_prompt_length :]

    def key(self, ids: Any) -> bytes:
        """Key of a question's token ids."""
        return question_key(ids, self._fingerprint)
