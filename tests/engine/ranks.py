"""Run by torchrun in several processes: fit the toy, and let rank 0 write what came out."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch

from refresher_runner.engine import checkpoint
from refresher_runner.engine.distributed import World
from refresher_runner.engine.launch import end_rank
from tests.engine.toy import Toy, ToyLoader, trainer

if __name__ == "__main__":
    folder, strategy, how = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
    torch.set_num_threads(1)
    world = World.from_environment()
    world.join(torch.device("cpu"))
    share = {"rank": world.rank, "world_size": world.size}
    loaders: dict[str, Any] = {"train": ToyLoader(batch_size=16, **share), "val": ToyLoader(32, **share)}
    length: dict[str, Any] = {"duration": "12 steps"}
    if how == "timed":
        length = {"duration": "60 steps", "validate_every": "0.1 seconds", "save_every": "0.05 seconds"}
    made = trainer(
        folder,
        lambda: Toy(0.0, batch_norm=how == "timed"),
        world=world,
        strategy=strategy,
        ema_decay=0.9,
        grad_clip=0.5,
        accumulate=2,
        **length,
        **loaders,
    )
    if how == "timed":
        made.progress.elapsed = 0.05 * world.rank  # this rank's clock is ahead
    if how == "resume":
        made.load_state_dict(checkpoint.load(folder / "checkpoints" / "last.pt"))
    made.fit()
    if world.is_main:
        torch.save(made.sink.reports, folder / "reports.pt")  # type: ignore[attr-defined]
    agreed = {"progress": vars(made.progress), "lr": made.optimizer.param_groups[0]["lr"], "draw": torch.rand(8)}
    torch.save(agreed, folder / f"rank{world.rank}.pt")
    world.leave()
    end_rank(0)
