"""Rows of veRL data sets, and their questions as token ids."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from rpo_verl.tools.errors import CommandError


def read_rows(paths: list[Path], prompt_key: str, limit: int | None = None) -> list[tuple[list[dict], dict[str, Any]]]:
    """Read veRL data sets: the chat messages and the whole row of each.

    Raises:
        CommandError: if a file is missing, is not Parquet, or has no column `prompt_key`.
    """
    rows: list[dict[str, Any]] = []
    for path in paths:
        try:
            table = pq.read_table(path)
        except (OSError, ValueError) as error:
            raise CommandError(f"--data={path}: not a readable Parquet file ({error})") from error
        if prompt_key not in table.column_names:
            raise CommandError(f"--prompt-key={prompt_key}: {path} has the columns {', '.join(table.column_names)}")
        rows += table.to_pylist()
    return [(row[prompt_key], row) for row in rows[:limit]]


def parse_template_options(text: str) -> dict[str, Any]:
    """Read `--chat-template-options`.

    Raises:
        CommandError: if the text is not a JSON object.
    """
    try:
        return dict(json.loads(text))
    except (TypeError, ValueError) as error:
        raise CommandError(f"--chat-template-options={text}: not JSON of the form {{name: value}} ({error})") from error


def load_tokenizer(model: str, trust_remote_code: bool) -> Any:
    """Load a Hugging Face tokenizer.

    Raises:
        CommandError: if `model` has none.
    """
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(model, trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as error:
        raise CommandError(f"{model}: no tokenizer there ({error})") from error


def load_questions(
    model: str, max_prompt_length: int, template_options: Mapping[str, Any], trust_remote_code: bool
) -> tuple[Any, Any]:
    """Load a tokenizer, and build questions with it as a training run with these settings does.

    Returns:
        the tokenizer, and the `rpo_verl.upstream.questions.Questions`.

    Raises:
        CommandError: if `model` has no tokenizer.
    """
    from rpo_verl.upstream.questions import Questions, read_model_type

    tokenizer = load_tokenizer(model, trust_remote_code)
    model_type = read_model_type(model, trust_remote_code)
    return tokenizer, Questions(model, model_type, tokenizer, max_prompt_length, template_options)
