"""What U-Nets draw after equal time: ours, diffusers' UNet2DModel and lucidrains' Unet, of about 4 M parameters, on Fashion-MNIST.

REFRESHER_DATA=... python -m benchmarks.drawing SECONDS [cpu|cuda [bf16|fp32 [lr [seed]]]]

Where diffusers and denoising-diffusion-pytorch are installed. One loop trains them, so that only the network differs: no classes, the
cosine schedule, v as the target, batches of 128, fused AdamW, averaged weights. Each has so many seconds after ten steps to warm up, draws
5,000 pictures by 20 steps of DPM-Solver++, and is judged beside 5,000 of the test part by the Fréchet distance in the features of the
small CNN that judges every run. Ours first and last.
"""

from __future__ import annotations

import copy
import os
import sys
import time

import torch
from torch import Tensor, nn

from benchmarks.diffusion import unet_of_diffusers
from refresher_runner.compose import checked, compose
from refresher_runner.judges import judge_for
from refresher_runner.metrics.generation import frechet_distance, precision_recall
from refresher_runner.models.ddpm import DDPM
from refresher_runner.nn.unet import UNet
from refresher_runner.registry import DATASETS, MODELS
from refresher_runner.spec import DataModule, Placement

DRAWN, CHUNK, EMA = 5000, 500, 0.999


class Unconditional(nn.Module):
    """Another's network under the name and with the call that the task knows."""

    label = None

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, x: Tensor, t: Tensor, labels: None = None) -> Tensor:
        said = self.network(x, t)
        return said if isinstance(said, Tensor) else said.sample


def ours() -> nn.Module:
    return UNet(1, width=32, multipliers=(1, 2, 4), depth=2, attention=(4,), heads=4, dropout=0.0, num_classes=None)


def diffusers() -> nn.Module:
    return Unconditional(unet_of_diffusers(28))


def lucidrains() -> nn.Module:
    from denoising_diffusion_pytorch import Unet  # pyright: ignore[reportMissingImports]

    return Unconditional(Unet(40, dim_mults=(1, 2, 4), channels=1, flash_attn=False))


def trained(network: nn.Module, data: DataModule, seconds: float, device: torch.device, precision: str, lr: float) -> tuple[DDPM, int]:
    """A task around the averaged network, and how many steps there were time for."""
    settings = checked(*compose(["model=ddpm", "data=fashion_mnist", "model.conditional=false", "model.multipliers=[1,2,4]"]))
    task = MODELS.builder("ddpm")(data.spec, **settings.model.options)
    assert isinstance(task, DDPM)
    task.network = network  # type: ignore[assignment]
    task.to(device, memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    average = copy.deepcopy(network)
    optimizer = torch.optim.AdamW(network.parameters(), lr, betas=(0.9, 0.99), fused=True)
    batches = (batch for epoch in range(10**6) for batch in data.train_loader(Placement(str(device))).batches(epoch))
    steps, begin = -10, 0.0
    for batch in batches:
        if steps == 0:
            _settle(device)
            begin = time.perf_counter()
        if steps > 0 and steps % 10 == 0:
            _settle(device)
            if time.perf_counter() - begin > seconds:
                break
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
            loss = task.step(batch).loss
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        with torch.no_grad():
            decay = min(EMA, (10 + max(steps, 0)) / (20 + max(steps, 0)))
            torch._foreach_lerp_(list(average.parameters()), list(network.parameters()), 1 - decay)
        steps += 1
    task.network = average  # type: ignore[assignment]
    return task.eval(), steps


def _settle(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def main(seconds: float, device: str = "cpu", precision: str = "bf16", lr: float = 2e-3, seed: int = 0) -> None:
    where = torch.device(device)
    outputs = os.environ.get("OUTPUTS", "outputs")
    root = os.environ.get("REFRESHER_DATA", "data")
    settings = checked(*compose(["model=ddpm", "data=fashion_mnist", f"data.root={root}", "data.batch_size=128", f"outputs={outputs}"]))
    data = DATASETS.builder("fashion_mnist")(**settings.data.options)
    data.prepare()
    judge = judge_for(settings, data, where)
    assert judge is not None
    real = torch.cat([batch.images for batch in data.test_loader(Placement(device)).batches(0)])[:DRAWN]
    seen = judge(real)[0]
    half = torch.cat([batch.images for batch in data.train_loader(Placement(device)).batches(0)])[:DRAWN]
    print(f"{judge.name}; Fréchet distance of as many real ones: {frechet_distance(seen, judge(half)[0]):.3f}", flush=True)
    for side in (ours, diffusers, lucidrains, ours):
        torch.manual_seed(seed)
        network = side()
        size = sum(p.numel() for p in network.parameters())
        task, steps = trained(network, data, seconds, where, precision, lr)
        begin = time.perf_counter()
        with torch.no_grad(), torch.autocast(where.type, torch.bfloat16, enabled=precision == "bf16"):
            drawn = torch.cat([task.sample(None, CHUNK) for _ in range(DRAWN // CHUNK)])
        _settle(where)
        took = time.perf_counter() - begin
        features = judge(data.spec.normalise(drawn.float()))[0]
        precise, recalled = precision_recall(seen, features)
        print(
            f"{side.__name__}: {size / 1e6:.2f} M parameters, {steps} steps in {seconds:.0f} s ({128 * steps / seconds:,.0f} pictures/s), "
            f"Fréchet distance {frechet_distance(seen, features):.3f}, precision {precise:.3f}, recall {recalled:.3f}, "
            f"{took / DRAWN * 1e3:.2f} ms a picture drawn",
            flush=True,
        )


if __name__ == "__main__":
    typed = sys.argv[1:]
    main(float(typed[0]), *typed[1:3], *map(float, typed[3:4]), *map(int, typed[4:5]))  # type: ignore[arg-type]
