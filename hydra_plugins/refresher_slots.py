"""A launcher for Hydra's sweepers, `hydra/launcher=slots`: each batch of their points runs on the slots of this machine, a process each.

Hydra looks for plugins in this folder, whoever asks for a configuration, so nothing heavy is imported here.
"""

from __future__ import annotations

from collections.abc import Sequence

from hydra.core.config_store import ConfigStore
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


class Slots(Launcher):
    """What it launches is what refresher's own sweeps launch; see refresher_runner/sweep/plugins.py."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.work = task_function

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        from refresher_runner.sweep.plugins import Work

        assert isinstance(self.work, Work), "a launcher of the command refresher, and of no other"
        goals = self.work.on_slots([list(overrides) for overrides in job_overrides])
        return [
            JobReturn(overrides=o, status=JobStatus.COMPLETED, _return_value=goal) for o, goal in zip(job_overrides, goals, strict=True)
        ]


ConfigStore.instance().store(group="hydra/launcher", name="slots", node={"_target_": f"{__name__}.{Slots.__name__}"}, provider="refresher")
