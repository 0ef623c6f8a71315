"""The command `rpo-verl`."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from rpo_verl.tools.cli import cache, evaluate, rollouts

app = typer.Typer(no_args_is_help=True, add_completion=False, help="Tools around RPO for veRL.")
app.add_typer(cache.app, name="cache")
app.add_typer(rollouts.app, name="rollouts")
app.command("eval")(evaluate.evaluate)
app.command("eval-compare")(evaluate.compare_evaluations)


@app.command()
def doctor(
    overrides: Annotated[list[str] | None, typer.Argument(help="What you pass to verl.trainer.main_ppo.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
) -> None:
    """Check, without starting Ray, whether a training would run with RPO; exit status 1 if not."""
    from rpo_verl.tools.cli.doctor import examine

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


@app.command()
def report(
    runs: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN…",
            help="Metrics of a run: a JSON-lines file of veRL's file logger, tensorboard event files, or a folder that "
            "holds them; or LABEL=PATH. Runs of one label are seeds of one experiment.",
        ),
    ],
    out: Annotated[Path, typer.Option(help="Page to write; pictures go beside it.")] = Path("report.html"),
) -> None:
    """Compare runs, with and without RPO, on one self-contained HTML page and in PNG files."""
    try:
        from rpo_verl.tools.report.page import write_report
    except ImportError as error:
        raise cache.fail(f"the report needs more packages: pip install 'rpo-verl[report]' ({error})") from error
    from rpo_verl.tools.report.runs import RunError, load_run

    try:
        loaded = [load_run(run) for run in runs]
    except RunError as error:
        raise cache.fail(str(error)) from error
    for path in write_report(loaded, out):
        typer.echo(path)
