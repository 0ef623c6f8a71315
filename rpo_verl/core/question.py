"""The identity of a question is its content: the prompt's token ids under one tokenizer and chat template."""

from collections.abc import Sequence
from hashlib import blake2b

import numpy as np

KEY_BYTES = 16


def question_key(prompt_ids: Sequence[int], fingerprint: bytes) -> bytes:
    """Key of a question, independent of dataloader order, `uid` and `index`.

    Args:
        prompt_ids: token ids of the prompt, chat template applied.
        fingerprint: identifies tokenizer and chat template; at most 64 bytes.

    Returns:
        16 bytes, a keyed BLAKE2b hash.
    """
    return blake2b(np.asarray(prompt_ids, dtype="<i4").tobytes(), digest_size=KEY_BYTES, key=fingerprint).digest()


def tokenizer_fingerprint(vocabulary: dict[str, int], chat_template: str | None) -> bytes:
    """32 bytes that change whenever a token, its id or the chat template does."""
    digest = blake2b(digest_size=32)
    for token, index in sorted(vocabulary.items()):
        digest.update(f"{index}\0{token}\0".encode())
    digest.update((chat_template or "").encode())
    return digest.digest()
