"""Where the prefix of a decoded response ends."""

from itertools import takewhile

import regex

#: What tokenizers decode half a character to.
HALF = "\N{REPLACEMENT CHARACTER}"


def split_at_boundary(prefix: str, response: str) -> tuple[str, str]:
    """Split a response where its prefix ends, without cutting a character in two.

    A token boundary may lie inside a character: between its bytes, or between the code points of an emoji or a letter
    with accents. Such a character stands whole behind the boundary.

    Args:
        prefix: the decoded tokens of the prefix.
        response: the decoded tokens of the whole response.
    """
    end = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(prefix, response, strict=False)))
    if end < len(response):
        end = max((match.start() for match in regex.finditer(r"\X", response) if match.start() <= end), default=0)
    return response[:end], response[end:]


def opens(prefix: str, response: str) -> bool:
    """Whether a response begins as its decoded prefix does, up to half a character at the end."""
    return response.startswith(prefix.rstrip(HALF))
