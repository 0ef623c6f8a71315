"""The command `rpo-verl`."""

import json
from dataclasses import asdict
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from rpo_verl.cli import cache, rollouts

app = typer.Typer(no_args_is_help=True, add_completion=False, help="Tools around RPO for veRL.")
app.add_typer(cache.app, name="cache")
app.add_typer(rollouts.app, name="rollouts")


@app.command()
def doctor(
    overrides: Annotated[list[str] | None, typer.Argument(help="What you pass to verl.trainer.main_ppo.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
) -> None:
    """Check, without starting Ray, whether a training would run with RPO; exit status 1 if not."""
    from rpo_verl.cli.doctor import examine

    findings = examine(overrides or [])
    if as_json:
        typer.echo(json.dumps([asdict(finding) for finding in findings], indent=2))
    else:
        console = Console()
        for finding in findings:
            mark = ("✓ ", "green") if finding.ok else ("✗ ", "bold red")
            details = (finding.details, "default" if finding.ok else "red")
            console.print(Text.assemble(mark, f"{finding.check}: ", details), soft_wrap=True)
    if not all(finding.ok for finding in findings):
        raise typer.Exit(1)
