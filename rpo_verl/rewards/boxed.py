"""The last box of a LaTeX text: where models and textbooks put the final answer."""

import re

_BOX = re.compile(r"\\f?box(?:ed)?(?=[\s{])\s*")


def last_boxed(text: str) -> str | None:
    r"""What stands in the last `\boxed{…}` or `\fbox{…}`, or after a `\boxed` without braces up to the next `$`.

    Returns:
        the content, stripped; "" if that box is empty or never closed; None if there is no box.
    """
    start = None
    for match in _BOX.finditer(text):
        start = match.end()
    if start is None:
        return None
    if not text.startswith("{", start):
        return re.split(r"[$\n]", text[start:], maxsplit=1)[0].strip()
    depth = 0
    for brace in re.finditer(r"\\[{}\\]|[{}]", text[start:]):
        depth += {"{": 1, "}": -1}.get(brace.group(), 0)
        if depth == 0:
            return text[start + 1 : start + brace.start()].strip()
    return ""
