"""One token per byte plus five special tokens; a turn is role token, text, end token, newline."""

from __future__ import annotations

from tokenizers import pre_tokenizers
from transformers import Qwen2Tokenizer

# AutoTokenizer loads every checkpoint of model type qwen2 with this class, whatever its files say. It splits
# text into bytes and then merges them; with an empty merge list it is a character tokenizer.
PAD = "<|endoftext|>"
# veRL's token builder for qwen2 looks up this end token by name and expects "\n" to be one token.
END = "<|im_end|>"
SYSTEM, USER, ASSISTANT = "<|system|>", "<|user|>", "<|assistant|>"
SPECIAL = (PAD, END, SYSTEM, USER, ASSISTANT)

CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{{- '<|' + message['role'] + '|>' + message['content'] + '<|im_end|>\\n' -}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|assistant|>' -}}{%- endif -%}"
)


def build_tokenizer(max_length: int, vocab_size: int = 0) -> Qwen2Tokenizer:
    """The tokenizer of the tiny reasoner.

    Args:
        max_length: longest text in tokens.
        vocab_size: fill the vocabulary up to so many tokens with some that no text has.
    """
    tokens = [*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokens += [f"<{index}>" for index in range(len(tokens), vocab_size)]
    return Qwen2Tokenizer(
        vocab={token: index for index, token in enumerate(tokens)},
        merges=[],
        pad_token=PAD,
        unk_token=PAD,
        eos_token=END,
        additional_special_tokens=[SYSTEM, USER, ASSISTANT],
        chat_template=CHAT_TEMPLATE,
        model_max_length=max_length,
        padding_side="left",
    )


def prompt_ids(tokenizer: Qwen2Tokenizer, question: str) -> list[int]:
    """The token ids after which the model writes its solution."""
    messages = [{"role": "user", "content": question}]
    return tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=True, return_dict=False)
