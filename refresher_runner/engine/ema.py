"""An exponential moving average of the weights, and of what batch norm has seen of them, evaluated and kept in their place."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _NormBase
from torch.optim.swa_utils import get_ema_multi_avg_fn

from refresher_runner.engine.distributed import shard_like
from refresher_runner.task import Task


class EMA:
    """shadow <- decay * shadow + (1 - decay) * weights; the decay grows as (1 + t) / (10 + t) until it reaches `decay`.

    Batch norm's running statistics are averaged too: those of the raw weights are of features that the averaged weights do not give. Other
    buffers are what they are.
    """

    def __init__(self, task: Task, decay: float):
        self.decay = decay
        learnt = {name: p for name, p in task.named_parameters() if p.requires_grad}  # tied weights have one name here
        kept, norms = task.state_dict(), [f"{name}." for name, module in task.named_modules() if isinstance(module, _NormBase)]
        buffers = {name: buffer for name, buffer in task.named_buffers() if name in kept and buffer.is_floating_point()}
        seen = {name: buffer for name, buffer in buffers.items() if name.startswith(tuple(norms))}
        self.values: dict[str, Tensor] = {**learnt, **seen}
        self.together = [list(names) for names in (learnt, seen) if names]  # fsdp shards the first, and torch mixes no shards with others
        self.shadow = {name: value.detach().clone() for name, value in self.values.items()}

    def update(self, step: int) -> None:
        """After optimizer step `step` = 0, 1, ..."""
        decay = min(self.decay, (1 + step) / (10 + step))
        for names in self.together:
            get_ema_multi_avg_fn(decay)([self.shadow[name] for name in names], [self.values[name].detach() for name in names], 0)

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
        for name, value in self.values.items():
            raw = value.detach().clone()
            value.copy_(self.shadow[name])
            self.shadow[name].copy_(raw)

    def state_dict(self) -> dict[str, Tensor]:
        return dict(self.shadow)

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        for name, value in self.shadow.items():
            value.copy_(shard_like(state[name], value))
