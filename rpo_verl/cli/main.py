"""The command `rpo-verl`."""

import typer

from rpo_verl.cli import cache

app = typer.Typer(no_args_is_help=True, add_completion=False, help="Tools around RPO for veRL.")
app.add_typer(cache.app, name="cache")


@app.callback()
def _root() -> None:
    """Keeps `cache` a command group, whatever the number of groups."""
