"""The last box of a LaTeX text: where models and textbooks put the final answer."""

import re

#: `\boxed{…}`, `\fbox{…}`, `\framebox{…}`; without its backslash only before a brace.
_BOX = re.compile(r"(?:\\(?:boxed|f?box|framebox)(?=[\s{(])|(?<![\\A-Za-z])boxed(?=\{))\s*")

#: What may stand between boxes that together are one answer.
_JOINT = re.compile(r"[\s$]*(?:,|;|,?\s*(?:\\text\{\s*)?(?:and|or)(?:\s*\})?)[\s$]*(?:[A-Za-z]\w?\s*=\s*)?")


def last_boxed(text: str) -> str | None:
    r"""What stands in the last box; in a box without braces (`\boxed 7$ apples`), up to the next `$` or full stop.

    Boxes that only `and`, `or` or a comma joins are one answer: their contents, joined by commas.

    Returns:
        the content, stripped; "" if that box is empty or never closed; None if there is no box.
    """
    boxes = list(_BOX.finditer(text))
    if not boxes:
        return None
    contents, later = [], None
    for box in reversed(boxes[-20:]):
        content, end = _content(text, box.end())
        if later is None:
            contents, later = [content], box.start()
        elif end > later:  # around the boxes read so far
            contents, later = contents if _BOX.match(content) else [content], box.start()
        elif content and _JOINT.fullmatch(text[end:later]):
            contents, later = [content, *contents], box.start()
        else:
            break
    return ", ".join(dict.fromkeys(contents)) if all(contents) else contents[-1]


def _content(text: str, start: int) -> tuple[str, int]:
    """Content of the box whose brace or first character is at `start`, and the index behind it."""
    opening = text[start : start + 1]
    if opening not in ("{", "("):
        rest = re.split(r"[$\n]|\.(?!\d)", text[start : start + 1000], maxsplit=1)[0]
        return rest.strip(), start + len(rest)
    marks = r"\\[{}\\]|[{}]" if opening == "{" else r"[()]"
    depth = 0
    for mark in re.finditer(marks, text[start:]):
        depth += {"{": 1, "}": -1, "(": 1, ")": -1}.get(mark.group(), 0)
        if depth == 0:
            return text[start + 1 : start + mark.start()].strip(), start + mark.end()
    return "", len(text)
