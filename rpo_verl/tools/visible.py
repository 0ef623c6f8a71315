"""Control characters as visible symbols."""

_PICTURES = {code: 0x2400 + code for code in range(0x20) if chr(code) not in "\n\t"} | {0x7F: 0x2421}
_NAMED = (
    *range(0x80, 0xA0),  # C1: 0x9b is another way to write ESC [
    0x061C, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A),  # change the order of what follows
    0x200B, *range(0x2060, 0x2066), 0xFEFF, *range(0xE0000, 0xE0080),  # invisible
    0x2028, 0x2029,  # break lines
    *range(0xD800, 0xE000),  # half a character, which no terminal can be given
)  # fmt: skip
_VISIBLE = _PICTURES | {code: f"<U+{code:04X}>" for code in _NAMED}


def visible(text: str) -> str:
    """Replace control characters by visible symbols: ESC by `␛`, others by `<U+202E>` and the like.

    Line feeds and tabs stay.
    """
    return text.translate(_VISIBLE)
