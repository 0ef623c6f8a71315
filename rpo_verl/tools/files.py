"""Files that survive an interruption."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rpo_verl.tools.errors import CommandError


def write_text(path: Path, text: str) -> None:
    """Write a file in one move. A reader sees the old file or the new one, never a part."""
    temporary = path.with_name(f".{path.name}.writing")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def repeat_options(folder: Path, options: Mapping[str, Any]) -> None:
    """Write `options.json` to `folder`, or check that the interrupted command had the same options.

    Raises:
        CommandError: if it had others. The message names each difference.
    """
    path, given = folder / "options.json", json.loads(json.dumps(options))
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps(given, indent=2))
        return
    begun = json.loads(path.read_text())
    differing = [
        f"{name}: {begun.get(name)!r} then, {value!r} now" for name, value in given.items() if begun.get(name) != value
    ]
    if differing:
        raise CommandError(
            f"{folder} was begun with other options ({'; '.join(differing)}). Call again with those, or delete it."
        )
