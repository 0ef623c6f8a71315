"""Files of JSON lines: one value per line, in UTF-8, with or without a byte order mark."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rpo_verl.tools.errors import CommandError

_BOM = b"\xef\xbb\xbf"
_HEAD_BYTES = 1 << 20
_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd", b"PK\3\4": "zip"}
_WIDE = {
    b"\xff\xfe\0\0": "UTF-32", b"\0\0\xfe\xff": "UTF-32", b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16",
}  # fmt: skip


class HalfLine(CommandError):
    """A last line that is not JSON and has no end. Somebody is writing it, or was killed meanwhile."""


def quoted(value: Any) -> str:
    """A value of a file as JSON, for messages; at most 60 characters."""
    text = json.dumps(value, ensure_ascii=False, default=repr)
    return text if len(text) <= 60 else f"{text[:57]}…"


def read_json_lines(path: Path) -> Iterator[tuple[int, Any]]:
    """Yield line numbers, from 1, and values. A line that is not JSON yields a `CommandError`. Blank lines are skipped.

    Raises:
        CommandError: if the file cannot be read, or is something else as a whole: compressed, UTF-16, one JSON array,
            records that span several lines.
    """
    try:
        # A look ahead empties no pipe.
        with path.open("rb", buffering=_HEAD_BYTES) as file:
            _refuse_other_formats(path, file.peek())
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield number, _parse(line)
    except OSError as error:
        raise CommandError(f"{path} cannot be read: {error.strerror or error}") from error


def _parse(line: bytes) -> Any:
    kind = CommandError if line.endswith(b"\n") else HalfLine
    try:
        return json.loads(line.removeprefix(_BOM).decode(), object_pairs_hook=_without_repeats)
    except UnicodeDecodeError as error:
        byte = f"byte 0x{line.removeprefix(_BOM)[error.start]:02x} at {error.start}"
        return kind(f"not UTF-8 ({byte}). If it is Latin-1, convert the file: iconv -f LATIN1 -t UTF-8")
    except CommandError as error:
        return error
    except (ValueError, RecursionError) as error:
        return kind(f"not JSON: {error}")


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise CommandError(f"{quoted(twice)} stands twice in one object. Keep one of them")
    return fields


def _refuse_other_formats(path: Path, head: bytes) -> None:
    for magic, name in _COMPRESSED.items():
        if head.startswith(magic):
            raise CommandError(f"{path} is compressed ({name}). Unpack it, and give the unpacked file")
    if head.startswith(b"PAR1"):
        raise CommandError(f"{path} is a Parquet file, where JSON lines are expected")
    wide = next((name for mark, name in _WIDE.items() if head.startswith(mark)), None)
    if wide is None and b"\0" in head[:4]:
        wide = "UTF-16LE" if head[1:2] == b"\0" else "UTF-16BE"
    if wide is not None:
        raise CommandError(
            f"{path} is {wide} text, where UTF-8 is expected. Convert it: iconv -f {wide} -t UTF-8 {path} > utf8.jsonl"
        )
    text = head.removeprefix(_BOM).decode(errors="replace").lstrip()
    first = text.partition("\n")[0]
    if not text.startswith(("[", "{")):
        return
    try:
        value = json.loads(first)
    except (ValueError, RecursionError):
        value = None
    if text.startswith("[") and (value is None or (value and isinstance(value[0], dict))):
        raise CommandError(
            f"{path} is one JSON array, where one record per line is expected. Convert it: "
            f"jq -c '.[]' {path} > lines.jsonl"
        )
    if value is None and _spans_lines(text, len(first)):
        raise CommandError(
            f"{path}: the first record spans several lines, where one record per line is expected. Convert the file: "
            f"jq -c . {path} > lines.jsonl"
        )


def _spans_lines(text: str, first_line: int) -> bool:
    try:
        _, end = json.JSONDecoder().raw_decode(text)
    except (ValueError, RecursionError):
        return False
    return end > first_line
