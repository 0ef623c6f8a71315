"""What the plug-in says of a command line, before veRL starts."""

import subprocess
import sys

import pytest
import verl  # noqa: F401 - loads the plug-in

from rpo_verl import plugin
from rpo_verl.rpo.options import MOVED
from rpo_verl.upstream import contract


@pytest.fixture
def command_line(monkeypatch):
    def check(*arguments):
        monkeypatch.setattr(sys, "argv", ["main_ppo", *arguments])
        plugin._check_command_line()

    return check


@pytest.mark.parametrize("plus", ["", "+", "++"])
@pytest.mark.parametrize("key", MOVED)
def test_a_moved_option_ends_with_what_to_do(command_line, key, plus):
    with pytest.raises(SystemExit) as error:
        command_line("+rpo=enabled", "trainer.total_epochs=1", f"{plus}{key}=1")
    assert str(error.value) == f"rpo_verl: {key} {MOVED[key]}"


def test_every_new_place_is_named():
    """Where a moved option has a new key, it is one that exists."""
    from rpo_verl.lean.options import LeanConfig
    from rpo_verl.rpo.options import RPOConfig

    for hint in MOVED.values():
        for word in hint.replace(":", " ").replace(",", " ").split():
            if word.startswith(("rpo.", "lean.")) and word not in MOVED:
                first, *path = word.split(".")
                found = {"rpo": RPOConfig, "lean": LeanConfig}[first]()
                for name in path:
                    found = getattr(found, name)


def test_a_section_within_a_moved_option_is_moved_too(command_line):
    with pytest.raises(SystemExit, match=r"rpo\.upstream is no option"):
        command_line("+rpo=enabled", "rpo.upstream.adv_estimator=grpo")
    command_line("+rpo=enabled", "rpo.cache.max_age_of_mine=1")  # which is for Hydra to refuse


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["+rpo.truncation.max_tokens=5"], "+rpo.truncation.max_tokens=5 sets an option of rpo"),
        (["++rpo.seed=5"], "++rpo.seed=5 sets an option of rpo"),
        (["+lean.share_prefix=true"], "+lean.share_prefix=true sets an option of lean"),
        (["+r2po.head.rank=8"], "+r2po.head.rank=8 sets an option of r2po"),
        (["+rpo=enabled", "+r2po.seed=5"], r"Add +r2po=enabled, and write the option without a plus sign"),
        (["+lean=enabled", "+rpo.seed=5"], r"Add +rpo=enabled, and write the option without a plus sign"),
    ],
)
def test_an_option_without_its_group_is_refused(command_line, arguments, named):
    with pytest.raises(SystemExit) as error:
        command_line("trainer.total_epochs=1", *arguments)
    assert named in str(error.value)
    assert "nothing selects it" in str(error.value)


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["trainer.total_epochs=1", "data.train_files=rpo.parquet", "+reward.rpo=1", "rpoison=1", "+leaning.x=1"],
        ["+rpo=enabled", "lean.share_prefix=true"],
        ["+rpo=enabled", "+lean.share_prefix=true"],
        ["+rpo=paper", "rpo.truncation.max_tokens=5"],
        ["+rpo@_global_=enabled", "++rpo.seed=1"],
        ["+lean=enabled", "lean.poll_interval_s=1"],
    ],
)
def test_what_is_fine(command_line, arguments):
    command_line(*arguments)


def test_verls_version_matters_only_to_who_asks_for_an_algorithm(command_line, monkeypatch):
    def refuse():
        raise contract.ContractError("another veRL")

    monkeypatch.setattr(contract, "require_supported_verl", refuse)
    command_line("trainer.total_epochs=1")
    for argument in ("+rpo=enabled", "rpo.seed=1", "+lean=enabled", "+lean.share_prefix=true"):
        with pytest.raises(contract.ContractError):
            command_line(argument)


def test_a_broken_installation_ends_a_run_that_asks_for_us_and_no_other():
    """veRL swallows errors of plug-ins, and would train without RPO."""
    code = (
        "import sys, importlib.metadata\n"
        "def broken(**kwargs): raise RuntimeError('broken')\n"
        "importlib.metadata.entry_points = broken\n"
        "import rpo_verl.plugin\n"
    )
    for arguments, expected in (
        (["+rpo=enabled"], True),
        (["lean.share_prefix=true"], True),
        (["+r2po=paper"], True),
        (["x=1"], False),
    ):
        done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)
        assert done.returncode == 1
        assert ("the plug-in could not be loaded (RuntimeError: broken)" in done.stderr) is expected
        assert ("Traceback" in done.stderr) is not expected
