"""The one way from a command to the terminal. No text that a command prints can control the terminal.

Answers of a model, data sets, file names and messages of other programs may contain escape sequences that clear the
screen, set the window's title, or hide text. They appear as visible symbols.
"""

import json
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from rpo_verl.tools.visible import visible

Part = str | tuple[str, str]
"""A text, or a text and its style."""


class Screen:
    """Prints text that other people and models wrote.

    Args:
        options: what `rich.console.Console` takes.
    """

    def __init__(self, **options: Any) -> None:
        self._console = Console(**options)

    def line(self, *parts: Part, style: str = "") -> None:
        """Print texts one behind the other, and a line feed. Nothing in them is markup."""
        shown = [visible(part) if isinstance(part, str) else (visible(part[0]), part[1]) for part in parts]
        self._console.print(Text.assemble(*shown), style=style, soft_wrap=True)

    def json(self, value: Any) -> None:
        """Print a value as JSON, in ASCII."""
        self.line(json.dumps(value, indent=2).replace("\x7f", "\\u007f"))

    def table(self, rows: Sequence[Sequence[str]], header: Sequence[str] = (), title: str = "") -> None:
        """Print rows as a table. Columns are aligned right, but for the first and those without a header."""
        view = Table(title=Text(visible(title)) if title else None, show_header=bool(header))
        for number, name in enumerate(header or [""] * len(rows[0])):
            justify = "right" if number and name else "left"
            view.add_column(Text(visible(name)), justify=justify, overflow="fold", no_wrap=bool(header) and not name)
        for row in rows:
            view.add_row(*(Text(visible(cell)) for cell in row))
        self._console.print(view)


screen, errors = Screen(), Screen(stderr=True)
