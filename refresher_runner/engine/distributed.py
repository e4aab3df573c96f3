"""Several processes as one run: their collectives, DDP, and FSDP2; `engine/launch.py` starts them.

Every rank takes its share of every global batch; rank 0 alone writes. A checkpoint holds whole tensors whatever the strategy, so
it can be resumed on another number of processes.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from refresher_runner.task import Output, Task

Number = TypeVar("Number", int, float)
Value = TypeVar("Value")


@dataclass(frozen=True)
class World:
    """The processes of a run, and which of them this is."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    @classmethod
    def from_environment(cls) -> World:
        """As torchrun says; one process where it says nothing."""
        if "LOCAL_RANK" not in os.environ:
            return cls()
        return cls(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]), int(os.environ["LOCAL_RANK"]))

    def join(self, device: torch.device) -> None:
        """Meet the other ranks."""
        if self.size > 1 and not dist.is_initialized():
            dist.init_process_group("nccl" if device.type == "cuda" else "gloo", device_id=device if device.type == "cuda" else None)

    def leave(self) -> None:
        if dist.is_initialized():
            dist.destroy_process_group()

    def wait(self) -> None:
        """Until every rank is here."""
        if self.size > 1:
            dist.barrier()

    def sum(self, values: Tensor) -> Tensor:
        """Elementwise over the ranks, on every rank."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def largest(self, value: Number, device: torch.device) -> Number:
        """The largest over the ranks, on every rank."""
        if self.size == 1:
            return value
        box = torch.tensor([value], device=device, dtype=torch.float64)
        dist.all_reduce(box, op=dist.ReduceOp.MAX)
        return type(value)(box.item())

    def from_main(self, value: Value) -> Value:
        """Rank 0's value, on every rank."""
        if self.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]


SINGLE = World()


def wrap(task: Task, strategy: str, world: World, device: torch.device) -> nn.Module:
    """The task as this rank trains it: itself, a DDP copy, or a shard of every parameter (in place)."""
    if world.size == 1:
        return task
    if device.type == "cuda":
        task = nn.SyncBatchNorm.convert_sync_batchnorm(task)  # type: ignore[assignment]
    if strategy == "fsdp":
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard
        from torch.utils import _pytree

        if Output not in _pytree.SUPPORTED_NODES:  # FSDP finds the loss, and so its backward hooks, by walking the output
            _pytree.register_dataclass(Output)
        fully_shard(task, mesh=init_device_mesh(device.type, (world.size,)))
        return task
    counts = [name for name, buffer in task.named_buffers() if not buffer.is_floating_point()]  # the same on every rank
    nn.parallel.DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(task, counts)
    ids = [device] if device.type == "cuda" else None
    return nn.parallel.DistributedDataParallel(task, device_ids=ids, gradient_as_bucket_view=True, find_unused_parameters=task.partial)


def whole(state: Any) -> Any:
    """Containers with every sharded tensor gathered; all ranks must call it."""
    if isinstance(state, dict):
        return {key: whole(value) for key, value in state.items()}
    if isinstance(state, (list, tuple)):
        return type(state)(whole(value) for value in state)
    return state.full_tensor() if hasattr(state, "full_tensor") else state


@contextmanager
def gathered(task: Task) -> Iterator[None]:
    """Inside, a sharded task holds whole parameters, so that any of its methods can be called."""
    if not hasattr(task, "unshard"):
        yield
        return
    task.unshard()  # type: ignore[operator]
    try:
        yield
    finally:
        task.reshard()  # type: ignore[operator]


def shard_like(value: Any, like: Tensor) -> Any:
    """A whole tensor cut as `like` is; anything else as it was."""
    if not isinstance(value, Tensor) or not hasattr(like, "device_mesh") or value.shape != like.shape:
        return value
    from torch.distributed.tensor import DTensor, distribute_tensor

    assert isinstance(like, DTensor)
    return distribute_tensor(value.to(like.device), like.device_mesh, like.placements)
