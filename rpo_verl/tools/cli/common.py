"""Shared by the commands: output, errors, options."""

import importlib.metadata
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.text import Text
from typer.core import TyperGroup

from rpo_verl.rpo.store import StoreError
from rpo_verl.tools.errors import CommandError

console, errors = Console(), Console(stderr=True)

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
        try:
            return super().invoke(ctx)
        except (CommandError, StoreError) as error:
            errors.print(Text(f"rpo-verl: {error}", style="red"), soft_wrap=True)
            raise typer.Exit(1) from error


def new_app(help: str) -> typer.Typer:
    """Make a group of commands. Its help is plain text: Rich's tables cut option names off at 80 columns."""
    return typer.Typer(cls=Commands, no_args_is_help=True, add_completion=False, rich_markup_mode=None, help=help)


def refuse_to_overwrite(out: Path) -> None:
    """Raises CommandError if `out` exists."""
    if out.exists():
        raise CommandError(f"{out} exists. Choose another folder, or delete it first.")


def installed_version(*distributions: str) -> str | None:
    """The version of the first of these distributions that is installed; None if none is."""
    for name in distributions:
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return None
