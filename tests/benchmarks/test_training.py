"""What the benches do when veRL goes on without an end."""

import time

import psutil
import pytest

from benchmarks import training


def test_a_run_whose_workers_ray_killed_is_ended(tmp_path, monkeypatch, capfd):
    """veRL waits for a killed vLLM for ever."""
    recipe = tmp_path / "recipe.sh"
    killed = "2 Workers (tasks / actors) killed due to memory pressure (OOM)"
    recipe.write_text(f"echo $$ > \"$RUN_DIR/pid\"\necho '{killed}'\nsleep 600\n")
    monkeypatch.setattr(training, "RECIPE", recipe)
    monkeypatch.setattr(training, "SILENCE_S", 1)
    began = time.monotonic()
    with pytest.raises(SystemExit, match=r"^\[grpo\] memory ran out, and Ray killed workers; see .*verl.log"):
        training.train("grpo", tmp_path / "run", [], steps=2, seed=1, test_freq=1)
    assert time.monotonic() - began < 60
    assert not psutil.pid_exists(int((tmp_path / "run" / "pid").read_text()))
    assert not [one for one in psutil.Process().children(recursive=True) if one.name() == "sleep"]
