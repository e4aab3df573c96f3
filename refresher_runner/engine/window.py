"""The steps since the last report: losses stay on the device until someone asks."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from refresher_runner.engine.distributed import World, whole
from refresher_runner.errors import TrainingError
from refresher_runner.report import Report
from refresher_runner.task import Output


class Window:
    """Collects outputs without a device sync; `report` averages and empties. Part of a checkpoint, so no point of a curve is lost."""

    def __init__(self, world: World, accumulate: int = 1):
        self.world, self.accumulate = world, accumulate
        self._empty()
        self._since: float | None = None

    def add(self, output: Output, samples: int) -> None:
        """One batch of `samples`, over all ranks."""
        self.losses.append(output.loss.detach())
        for name, part in output.parts.items():
            self.parts.setdefault(name, []).append(part.detach())
        self.samples += samples

    def latest(self) -> float:
        """The loss of the last step, if it is of this window."""
        return float(torch.stack(self.losses[-self.accumulate :]).mean())

    def add_norm(self, norm: Tensor) -> None:
        """The gradient's norm before clipping, once a step."""
        self.norms.append(norm)

    def report(self, step: int) -> Report:
        """Means over the window that ends with `step`. Raises TrainingError at the first loss that is not finite."""
        self.check_finite(step)
        self.pause()
        columns = {"train/loss": self.losses, **{f"train/{name}": values for name, values in self.parts.items()}}
        if self.norms:
            columns["optim/grad_norm"] = [whole(norm) for norm in self.norms]
        means = torch.stack([torch.stack(values).float().mean() for values in columns.values()])
        means = self.world.sum(means) / self.world.size
        steps, seconds = len(self.losses) / self.accumulate, max(self.seconds, 1e-9)
        speed = {"speed/samples_per_second": self.samples / seconds, "speed/seconds_per_step": seconds / steps}
        self._empty()
        self.start()
        return {**dict(zip(columns, means.tolist(), strict=True)), **speed}

    def check_finite(self, step: int) -> None:
        """Raises TrainingError, on every rank, naming the first step of the window whose loss is not finite."""
        if not self.losses:
            return
        bad = (~torch.isfinite(torch.stack(self.losses))).nonzero()
        first = int(bad[0]) // self.accumulate if len(bad) else None
        device = self.losses[0].device
        if self.world.largest(int(first is not None), device):
            where = step if first is None else step - (len(self.losses) // self.accumulate - 1 - first)
            raise TrainingError(f"the loss is not finite at step {where}", cure="a smaller optimizer.lr, or trainer.grad_clip=1")

    def start(self) -> None:
        """The clock runs."""
        self._since = time.perf_counter()

    def pause(self) -> None:
        """The clock stands: what follows is not training."""
        self.seconds, self._since = self._clock(), None

    def __len__(self) -> int:
        return len(self.losses)

    def state_dict(self) -> dict[str, Any]:
        stacked = {"losses": self.losses, "norms": [whole(norm) for norm in self.norms], **{f"part {k}": v for k, v in self.parts.items()}}
        return {
            "samples": self.samples,
            "elapsed": self._clock(),
            "values": {name: torch.stack(v).float().cpu() for name, v in stacked.items() if v},
        }

    def load_state_dict(self, state: Mapping[str, Any], device: torch.device) -> None:
        self._empty()
        self.samples, self.seconds, self._since = state["samples"], state["elapsed"], None
        for name, values in state["values"].items():
            items = list(values.to(device).unbind())
            if name in ("losses", "norms"):
                setattr(self, name, items)
            else:
                self.parts[name.removeprefix("part ")] = items

    def _clock(self) -> float:
        return self.seconds + (0.0 if self._since is None else time.perf_counter() - self._since)

    def _empty(self) -> None:
        self.losses: list[Tensor] = []
        self.norms: list[Tensor] = []
        self.parts: dict[str, list[Tensor]] = {}
        self.samples, self.seconds = 0, 0.0
