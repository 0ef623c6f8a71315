"""The entry point `verl.plugins`: every process that imports veRL imports this module, so it stays light.

It makes the Hydra groups known and asks to be called back when the veRL modules with registries are imported; what is
registered there is inert until a configuration selects it. Under `VERL_PLATFORM=cpu` it also adds the CPU platform.

veRL swallows errors of a plug-in. So that a broken installation cannot train vanilla GRPO in silence, a process whose
command line asks for an algorithm of ours ends here instead.
"""

import importlib
import os
import re
import sys


def _asks_for(names: str, arguments: list[str] | None = None) -> list[str]:
    """The overrides of a command line that select or set anything of these sections, a pattern of names."""
    arguments = sys.argv[1:] if arguments is None else arguments
    return [argument for argument in arguments if re.match(rf"\+{{0,2}}({names})([=.@]|$)", argument)]


def _check_command_line() -> None:
    check_command_line(sys.argv[1:])


def check_command_line(arguments: list[str]) -> None:
    """Refuse what Hydra would accept, or refuse without a way on: options without their group, and moved options.

    Raises:
        SystemExit: with what to write instead.
    """
    from rpo_verl import algorithms
    from rpo_verl.upstream.contract import require_supported_verl
    from rpo_verl.upstream.settings import moved_options

    asked = _asks_for("|".join(entry.name for entry in algorithms.known()), arguments)
    if not asked:
        return
    require_supported_verl()
    keys = [re.sub(r"^[+~]*", "", argument).partition("=")[0] for argument in asked]
    for entry in algorithms.known():
        for old, hint in moved_options(entry).items():
            if any(key == old or key.startswith(f"{old}.") for key in keys):
                raise SystemExit(f"rpo_verl: {old} {hint}")
        stray = [argument for argument in asked if re.match(rf"\++{entry.name}\.", argument)]
        brought = [entry.name, *(other.name for other in algorithms.known() if entry.name in other.needs)]
        if stray and not any(re.match(rf"\+{{0,2}}({'|'.join(brought)})(@[^=]*)?=", argument) for argument in asked):
            raise SystemExit(
                f"rpo_verl: {' '.join(stray)} sets an option of {entry.name}, but nothing selects it. Add "
                f"+{entry.name}=enabled, and write the option without a plus sign."
            )


def _load() -> None:
    from rpo_verl import discovery
    from rpo_verl.upstream import contract, registration

    try:
        _check_command_line()
    except contract.ContractError as error:
        raise SystemExit(str(error)) from error
    discovery.add_groups()
    registration.register_when_imported()
    if os.environ.get("VERL_PLATFORM", "").strip().lower() == "cpu":
        importlib.import_module("rpo_verl.cpu.platform")  # registers itself
        importlib.import_module("rpo_verl.cpu.patches").apply_to_verl()


try:
    _load()
except Exception as error:
    # Without the table of algorithms only those of this package can be told.
    if _asks_for("rpo|r2po|lean"):
        raise SystemExit(
            f"rpo_verl: the plug-in could not be loaded ({type(error).__name__}: {error}), so the run would be veRL's "
            "alone. Repair the installation (pip install --force-reinstall rpo-verl), or train without it by removing "
            "the overrides of rpo, r2po and lean."
        ) from error
    raise
