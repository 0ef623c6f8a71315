"""The identity of a question is its content: the prompt's token ids under one tokenizer and chat template."""

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np

KEY_BYTES = 16


@dataclass(frozen=True)
class TokenizerIdentity:
    """Which tokenizer and chat template token ids speak of."""

    name: str
    """Where it was loaded from; for messages, not part of the identity."""

    vocabulary: str
    """Hex digest of tokens and ids."""

    chat_template: str
    """Hex digest of the chat template and its options."""

    @classmethod
    def of(cls, name: str, vocabulary: dict[str, int], chat_template: str | None) -> "TokenizerIdentity":
        """The identity of a tokenizer.

        Args:
            name: where it was loaded from.
            vocabulary: token → id.
            chat_template: the template followed by whatever options change what it renders.
        """
        tokens = blake2b(digest_size=32)
        for token, index in sorted(vocabulary.items()):
            tokens.update(f"{index}\0{token}\0".encode())
        template = blake2b((chat_template or "").encode(), digest_size=32)
        return cls(name, tokens.hexdigest(), template.hexdigest())

    @property
    def fingerprint(self) -> bytes:
        """32 bytes that change whenever a token, its id or the chat template does."""
        return blake2b(f"{self.vocabulary}\0{self.chat_template}".encode(), digest_size=32).digest()

    def __str__(self) -> str:
        return f"{self.name} (vocabulary {self.vocabulary[:12]}, chat template {self.chat_template[:12]})"


def question_key(prompt_ids: Sequence[int], fingerprint: bytes) -> bytes:
    """Key of a question, independent of dataloader order, `uid` and `index`.

    Args:
        prompt_ids: token ids of the prompt, chat template applied.
        fingerprint: identifies tokenizer and chat template; at most 64 bytes.

    Returns:
        16 bytes, a keyed BLAKE2b hash.
    """
    return blake2b(np.asarray(prompt_ids, dtype="<i4").tobytes(), digest_size=KEY_BYTES, key=fingerprint).digest()
