"""A model of one layer that goes wrong at its fourth step, in the way it is asked to; or when it is built."""

from __future__ import annotations

import os
import resource
import signal
import time
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from torch import nn

from refresher_runner.registry import MODELS
from refresher_runner.spec import ImageBatch, ImageSpec
from refresher_runner.task import Output, Task


def raises() -> None:
    raise RuntimeError("a loss that nobody foresaw")


def segfaults() -> None:
    os.kill(os.getpid(), signal.SIGSEGV)


def killed() -> None:
    """As the kernel does where memory runs out."""
    os.kill(os.getpid(), signal.SIGKILL)


def starves() -> None:
    """Memory runs out in this process alone."""
    now = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + 2**26, now + 2**26))
    torch.ones(2**28)


def hangs() -> None:
    while True:
        time.sleep(1)


def finishes() -> None:
    """It says that all is well, and has done nothing."""
    os._exit(0)


TROUBLES = {f.__name__: f for f in (raises, segfaults, killed, starves, hangs, finishes)}


class Troubled(Task):
    def __init__(self, net: nn.Module, trouble: str):
        super().__init__()
        self.net, self.trouble, self.steps = net, trouble, 0

    def step(self, batch: ImageBatch) -> Output:
        self.steps += self.training
        if self.steps == 4 and self.trouble in TROUBLES:
            TROUBLES[self.trouble]()
        logits = self.net(batch.images)
        return Output(F.cross_entropy(logits, batch.labels), preds=logits, targets=batch.labels)


@MODELS.register("troubled")
def build_troubled(
    spec: ImageSpec, *, trouble: Literal["none", "raises", "segfaults", "killed", "starves", "hangs", "finishes", "unbuilt"]
) -> Troubled:
    """A model that goes wrong."""
    if trouble == "unbuilt":
        raise ValueError("no such width")
    return Troubled(nn.Sequential(nn.Flatten(), nn.Linear(spec.channels * spec.size**2, spec.num_classes)), trouble)
