"""An exponential moving average of the weights, evaluated and kept in their place."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

from refresher_runner.engine.distributed import shard_like
from refresher_runner.task import Task


class EMA:
    """shadow <- decay * shadow + (1 - decay) * weights; the decay grows as (1 + t) / (10 + t) until it reaches `decay`.

    Parameters alone are averaged. Buffers, batch norm's running statistics among them, stay those of the raw weights, as in torch's
    AveragedModel unless told otherwise.
    """

    def __init__(self, task: Task, decay: float):
        self.decay = decay
        self.params = {name: p for name, p in task.named_parameters() if p.requires_grad}
        self.shadow = {name: p.detach().clone() for name, p in self.params.items()}

    def update(self, step: int) -> None:
        """After optimizer step `step` = 0, 1, ..."""
        decay = min(self.decay, (1 + step) / (10 + step))
        get_ema_multi_avg_fn(decay)(list(self.shadow.values()), [p.detach() for p in self.params.values()], 0)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Inside, the task holds the average; outside, its weights are bit for bit what they were."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for name, param in self.params.items():
            weights = param.detach().clone()
            param.copy_(self.shadow[name])
            self.shadow[name].copy_(weights)

    def state_dict(self) -> dict[str, Tensor]:
        return dict(self.shadow)

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        for name, value in self.shadow.items():
            value.copy_(shard_like(state[name], value))
