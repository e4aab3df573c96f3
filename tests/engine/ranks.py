"""Run by torchrun in several processes: fit the toy, and let rank 0 write what came out."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from refresher_runner.engine import checkpoint
from refresher_runner.engine.distributed import World
from tests.engine.toy import Toy, ToyLoader, trainer

if __name__ == "__main__":
    folder, strategy, resume = Path(sys.argv[1]), sys.argv[2], sys.argv[3] == "resume"
    torch.set_num_threads(1)
    world = World.from_environment()
    world.join(torch.device("cpu"))
    share = {"rank": world.rank, "world_size": world.size}
    loaders = {"train": ToyLoader(batch_size=16, **share), "val": ToyLoader(32, **share)}
    made = trainer(
        folder, lambda: Toy(0.0), world=world, strategy=strategy, ema_decay=0.9, grad_clip=0.5, accumulate=2, duration="12 steps", **loaders
    )
    if resume:
        made.load_state_dict(checkpoint.load(folder / "checkpoints" / "last.pt"))
    made.fit()
    if world.is_main:
        torch.save(made.sink.reports, folder / "reports.pt")  # type: ignore[attr-defined]
    world.leave()
