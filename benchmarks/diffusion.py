"""Training and drawing of a U-Net of 3.94 M parameters on digits of 32 x 32 pixels, batch 64: ours, and diffusers' UNet2DModel.

python -m benchmarks.diffusion pipeline
python -m benchmarks.diffusion diffusers [bf16]   where diffusers is installed

Ours is the command itself, averages, clipping and loggers on; theirs a hand-written loop without any of these, the network as its
documentation has it: the same widths, depth and attention. Drawing is DDIM with 50 steps, eight pictures, no guidance. Prints pictures a
second in training, the median of its steps, and seconds a picture drawn.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path

DRAWN, STEPS = 8, 50


def pipeline() -> tuple[float, float]:
    import torch

    from refresher_runner.cli import main
    from refresher_runner.engine.evaluate import autocast
    from refresher_runner.models.ddpm import DDPM
    from tests.models.build import build

    size = ["model.multipliers=[1,2,4]", "model.attention=[4]", "data=digits_upsampled", "data.size=32"]
    short = ["trainer.duration=20 steps", "trainer.validate_every=20 steps", "trainer.log_every=2", "trainer.test=false"]
    few = ["judge=null", "model.samples=1", "model.steps=1"]
    with tempfile.TemporaryDirectory() as folder:
        assert main(["train", "model=ddpm", *size, *short, *few, f"outputs={folder}"]) == 0
        [run] = Path(folder).rglob("metrics.jsonl")
        lines = [json.loads(line) for line in run.read_text().splitlines()]
        spec = torch.load(run.parent / "checkpoints" / "best.pt", weights_only=True)["spec"]
    from refresher_runner.spec import Spec

    speed = statistics.median(line["speed/samples_per_second"] for line in lines[2:] if "train/loss" in line)
    options = {"multipliers": [1, 2, 4], "attention": [4], "sampler": "ddim", "steps": STEPS, "guidance": 1.0}
    task = build("ddpm", Spec.from_dict(spec), **options)  # type: ignore[arg-type]
    assert isinstance(task, DDPM)
    task.eval().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    with autocast(torch.device("cpu"), "bf16"):
        return speed, _drawing(lambda: task.sample(torch.arange(DRAWN), DRAWN))


def unet_of_diffusers(size: int):
    """3.94 M parameters, for pictures of size x size of one channel."""
    from diffusers import UNet2DModel  # pyright: ignore[reportMissingImports]

    return UNet2DModel(
        sample_size=size,
        in_channels=1,
        out_channels=1,
        layers_per_block=2,
        block_out_channels=(32, 64, 128),
        down_block_types=("DownBlock2D", "DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
        norm_num_groups=8,
    )


def diffusers(precision: str = "fp32") -> tuple[float, float]:
    import torch
    import torch.nn.functional as F
    from diffusers import DDIMScheduler, DDPMScheduler  # pyright: ignore[reportMissingImports]

    net = unet_of_diffusers(32)
    noise, way, x = DDPMScheduler(1000), DDIMScheduler(1000), 2 * torch.rand(64, 1, 32, 32) - 1
    way.set_timesteps(STEPS)
    optimizer = torch.optim.AdamW(net.parameters(), 1e-4)
    context = (lambda: torch.autocast("cpu", torch.bfloat16)) if precision == "bf16" else nullcontext

    def step() -> float:
        begin = time.perf_counter()
        eps, t = torch.randn_like(x), torch.randint(0, 1000, (64,))
        with context():
            loss = F.mse_loss(net(noise.add_noise(x, eps, t), t).sample.float(), eps)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return time.perf_counter() - begin

    def draw() -> None:
        z = torch.randn(DRAWN, 1, 32, 32)
        with torch.no_grad(), context():
            for t in way.timesteps:
                z = way.step(net(z, t).sample.float(), t, z).prev_sample

    seconds = [step() for _ in range(12)][2:]
    net.eval()
    return 64 / statistics.median(seconds), _drawing(draw)


def _drawing(draw) -> float:
    """Seconds a picture, the median of three after one to warm up."""
    seconds = []
    for _ in range(4):
        begin = time.perf_counter()
        draw()
        seconds.append((time.perf_counter() - begin) / DRAWN)
    return statistics.median(seconds[1:])


if __name__ == "__main__":
    side, *rest = sys.argv[1:]
    speed, seconds = globals()[side](*rest)
    print(f"{' '.join([side, *rest])}: {speed:.1f} pictures/s in training, {seconds:.4f} s a picture drawn")
