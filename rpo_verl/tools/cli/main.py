"""The command `rpo-verl`."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from rpo_verl.tools.cli import evaluate, rollouts, stores
from rpo_verl.tools.cli.common import new_app
from rpo_verl.tools.cli.screen import errors, screen
from rpo_verl.tools.errors import CommandError

app = new_app("Tools for RPO for veRL.")
app.add_typer(stores.app, name="cache")
app.add_typer(rollouts.app, name="rollouts")
app.command("eval")(evaluate.evaluate)
app.command("eval-compare")(evaluate.compare_evaluations)


@app.command()
def doctor(
    overrides: Annotated[list[str] | None, typer.Argument(help="The arguments of verl.trainer.main_ppo.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Check whether a training run would use RPO.

    Ray is not started. The exit status is 1 if a check fails.
    """
    from rpo_verl.tools.cli.doctor import examine

    findings = examine(overrides or [])
    if as_json:
        screen.json([asdict(finding) for finding in findings])
    else:
        for finding in findings:
            mark = ("✓ ", "green") if finding.ok else ("✗ ", "bold red")
            if finding.ok and finding.warning:
                mark = ("! ", "bold yellow")
            details = (finding.details, "default" if finding.ok else "red")
            screen.line(mark, f"{finding.check}: ", details)
    if not all(finding.ok for finding in findings):
        raise typer.Exit(1)


@app.command()
def report(
    runs: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN",
            help="Metrics of a run, as PATH or LABEL=PATH: a JSON-lines file of veRL's file logger, tensorboard event "
            "files, or a folder with one of them. Runs with the same label are seeds of one experiment.",
        ),
    ],
    out: Annotated[Path, typer.Option(help="HTML file to write. PNG files go beside it.")] = Path("report.html"),
) -> None:
    """Compare runs on one HTML page and in PNG files."""
    from rpo_verl.tools.report.runs import load_run

    try:
        from rpo_verl.tools.report.page import cautions, write_report
    except ImportError as error:
        raise CommandError(f"the report needs more packages: pip install 'rpo-verl[report]' ({error})") from error
    loaded = [load_run(run) for run in runs]
    for path in write_report(loaded, out):
        screen.line(str(path))
    for caution in cautions(loaded):
        errors.line(caution, style="yellow")
