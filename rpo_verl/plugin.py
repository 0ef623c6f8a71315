"""The entry point `verl.plugins`: every process that imports veRL imports this module, so it stays light.

It puts `hydra_configs/` on Hydra's search path and asks to be called back when the veRL modules with registries are
imported; what is registered there is inert until a configuration selects it. Under `VERL_PLATFORM=cpu` it also adds
the CPU platform.

veRL swallows errors of a plug-in. So that a broken installation cannot train vanilla GRPO in silence, a process whose
command line asks for RPO ends here instead.
"""

import importlib
import os
import re
import sys


def _rpo_requested() -> bool:
    """Whether this process's command line selects or sets anything of `rpo`."""
    return any(re.match(r"\+{0,2}rpo([=.@]|$)", argument) for argument in sys.argv[1:])


def _options_without_the_group() -> list[str]:
    """Overrides that would make up an `rpo` section of their own, because nothing selects the group."""
    if any(re.match(r"\+{0,2}rpo(@[^=]*)?=", argument) for argument in sys.argv[1:]):
        return []
    return [argument for argument in sys.argv[1:] if re.match(r"\++rpo\.", argument)]


def _load() -> None:
    from rpo_verl import discovery
    from rpo_verl.upstream import contract

    if _rpo_requested():
        try:
            contract.require_supported_verl()
        except contract.ContractError as error:
            raise SystemExit(str(error)) from error
        stray = _options_without_the_group()
        if stray:
            raise SystemExit(
                f"rpo_verl: {' '.join(stray)} sets an option of RPO, but nothing selects RPO. Add +rpo=enabled, and "
                "write the option without a plus sign."
            )
    discovery.add_search_path()
    discovery.register_when_imported()
    if os.environ.get("VERL_PLATFORM", "").strip().lower() == "cpu":
        importlib.import_module("rpo_verl.cpu.platform")  # registers itself
        importlib.import_module("rpo_verl.cpu.patches").apply_to_verl()


try:
    _load()
except Exception as error:
    if _rpo_requested():
        raise SystemExit(
            f"rpo_verl: the plug-in could not be loaded ({type(error).__name__}: {error}), so RPO cannot run. "
            "Repair the installation (pip install --force-reinstall rpo-verl), or train without RPO by leaving out "
            "every rpo override."
        ) from error
    raise
