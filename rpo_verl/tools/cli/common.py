"""Shared by the commands: errors, options."""

import errno
import importlib.metadata
import io
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from rpo_verl.rpo.store import StoreError
from rpo_verl.tools.cli.screen import errors
from rpo_verl.tools.errors import CommandError
from rpo_verl.tools.visible import visible

Data = Annotated[list[Path], typer.Option(help="veRL data set in Parquet. Repeat the option for several.")]
Dtype = Annotated[str, typer.Option(help="vLLM's dtype.")]
Gpus = Annotated[int, typer.Option(min=1, help="vLLM's tensor parallel size.")]
MemoryUtilization = Annotated[float, typer.Option(min=0.0, max=1.0, help="vLLM's fraction of a device's memory.")]
PromptKey = Annotated[str, typer.Option(help="veRL's data.prompt_key.")]
RewardName = Annotated[str, typer.Option(help="veRL's custom_reward_function.name.")]
TemplateOptions = Annotated[str, typer.Option(help="veRL's data.apply_chat_template_kwargs, as JSON.")]
Temperature = Annotated[float, typer.Option(min=0.0, help="Sampling temperature.")]
TopK = Annotated[int, typer.Option(help="Sample from the k most likely tokens. -1: off.")]
TopP = Annotated[float, typer.Option(min=0.0, max=1.0, help="Probability mass of nucleus sampling. 1: off.")]
TrustRemoteCode = Annotated[bool, typer.Option(help="Run code that comes with the model.")]


class Commands(TyperGroup):
    """Commands whose expected errors are one message and exit status 1."""

    def invoke(self, ctx: Any) -> Any:
        """Run a command."""
        for stream in (sys.stdout, sys.stderr):
            # A terminal in Latin-1 gets an escape for what it cannot show.
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="backslashreplace")
        try:
            return super().invoke(ctx)
        except (CommandError, StoreError) as error:
            errors.line(f"rpo-verl: {error}", style="red")
            raise typer.Exit(1) from error
        except typer.BadParameter as error:
            error.message = visible(error.message)
            raise
        except OSError as error:
            if error.errno == errno.EPIPE:
                raise  # `rpo-verl … | head`
            errors.line(f"rpo-verl: {error}", style="red")
            raise typer.Exit(1) from error


def new_app(help: str) -> typer.Typer:
    """Make a group of commands. Its help is plain text: Rich's tables cut option names off at 80 columns."""
    return typer.Typer(cls=Commands, no_args_is_help=True, add_completion=False, rich_markup_mode=None, help=help)


def check_out(out: Path, parents: bool) -> None:
    """Check a place before the work that ends with writing there.

    Args:
        out: file or folder to write.
        parents: missing folders above it will be made.

    Raises:
        CommandError: if it exists, the folder above it is missing, or this user may not write there.
    """
    if out.exists():
        raise CommandError(f"{out} exists. Choose another name, or delete it first.")
    above = out.absolute().parent
    if not parents and not above.exists():
        raise CommandError(f"{out}: there is no folder {above}. Make it (mkdir -p), or choose another one.")
    while not above.exists():
        above = above.parent
    if not above.is_dir():
        raise CommandError(f"{out}: {above} is not a folder. Choose another place.")
    if not os.access(above, os.W_OK | os.X_OK):
        raise CommandError(f"{out}: no permission to write in {above}. Choose another place.")


def installed_version(*distributions: str) -> str | None:
    """The version of the first of these distributions that is installed; None if none is."""
    for name in distributions:
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return None
