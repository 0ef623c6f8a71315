"""The `platform=cpu` settings and `VERL_PLATFORM=cpu` belong together: one without the other is an error."""

import os
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig


class CheckPlatform(Callback):
    """Hydra callback of the `platform=cpu` group: ends the run before Ray starts if the platform was not chosen."""

    def on_job_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Raises SystemExit, which Hydra, unlike other exceptions of a callback, does not turn into a warning."""
        platform = os.environ.get("VERL_PLATFORM", "")
        if platform.strip().lower() != "cpu":
            raise SystemExit(
                f"rpo_verl: the settings +platform=cpu need VERL_PLATFORM=cpu in the environment; it is {platform!r}. "
                "Start the same command with VERL_PLATFORM=cpu in front of it, or leave out +platform=cpu."
            )
