"""A step of diffusion in the latents of a picture, and in its pixels, by the same U-Net told by the same words.

python -m benchmarks.latents [SIDE] [PICTURES]

Pictures are 3 x SIDE x SIDE, 32 by default, and sizes those of conf/model/latent_diffusion.yaml; in pixels the U-Net is of equal width,
depth and attention, for 3 channels instead of 4. A step of training is forward, backward and AdamW in the precision that `auto` chooses,
that in latents with the encoding of its pictures; a step of drawing is one look of the network. Prints milliseconds, the median of
interleaved turns, and ratios: with attention at all levels as configured, and at the smallest maps alone, where pixels can afford it.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable

TURNS = 5


def latents_and_pixels(side: int, pictures: int, attention: list[int]) -> dict[str, tuple[float, float]]:
    """Milliseconds in latents and in pixels, of a step of training and one of drawing."""
    import torch
    from torch import Tensor

    from refresher_runner.engine.device import choose_device, choose_precision, keep_freed_memory
    from refresher_runner.engine.evaluate import autocast
    from refresher_runner.models.latent_diffusion.task import LatentDiffusion
    from refresher_runner.nn.unet import UNet
    from refresher_runner.spec import CaptionSpec
    from refresher_runner.vocabulary import SPECIAL, Vocabulary
    from tests.models.build import build, options

    keep_freed_memory()
    device = choose_device("auto")
    precision = choose_precision("auto", device)
    spec = CaptionSpec(3, side, ("any",), (0.5,) * 3, (0.5,) * 3, Vocabulary((*SPECIAL, *map(str, range(341)))), 16)
    told = options("latent_diffusion")
    told["attention"] = attention
    task = build("latent_diffusion", spec, autoencoder_steps=0, attention=attention)
    assert isinstance(task, LatentDiffusion)
    sizes = {name: told[name] for name in ("width", "multipliers", "depth", "attention", "heads", "dropout")}
    of_pixels = UNet(3, context_dim=told["dim"], **sizes).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    task.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    x, y = torch.rand(pictures, 3, side, side, device=device), torch.randint(4, 345, (pictures, 16), device=device)
    x, of_latents = x.to(memory_format=torch.channels_last), task.network
    z = task.latents(x)

    def training(network: UNet, encode: Callable[[], Tensor]) -> Callable[[], None]:
        learnt = [*network.parameters(), *task.text.parameters()]
        optimizer = torch.optim.AdamW(learnt, 1e-3, fused=True)

        def step() -> None:
            task.network = network
            optimizer.zero_grad()
            with autocast(device, precision):
                loss = task.denoise(encode(), y)[0].mean()
            loss.backward()
            optimizer.step()

        return step

    def drawing(network: UNet, noise: Tensor) -> Callable[[], None]:
        def look() -> None:
            with torch.no_grad(), autocast(device, precision):
                network(noise, torch.full((pictures,), 500.0, device=device), None, *task.context(y))

        return look

    ways = {
        "training": (training(of_latents, lambda: task.latents(x)), training(of_pixels, lambda: 2 * x - 1)),
        "drawing": (drawing(of_latents, z), drawing(of_pixels, 2 * x - 1)),
    }
    return {name: _interleaved(*both, device.type == "cuda") for name, both in ways.items()}


def _interleaved(one: Callable[[], None], other: Callable[[], None], gpu: bool) -> tuple[float, float]:
    import torch

    seconds: tuple[list[float], list[float]] = [], []
    for turn in range(TURNS + 2):
        for way, found in zip((one, other), seconds, strict=True):
            begin = time.perf_counter()
            way()
            if gpu:
                torch.cuda.synchronize()
            if turn >= 2:  # the first ones are to warm up
                found.append(time.perf_counter() - begin)
    return statistics.median(seconds[0]) * 1000, statistics.median(seconds[1]) * 1000


if __name__ == "__main__":
    side, pictures = map(int, (sys.argv[1:] + ["32", "64"][len(sys.argv) - 1 :])[:2])
    for where, attention in (("attention at all levels", [1, 2]), ("attention in the middle alone", [])):
        for name, (latent, pixel) in latents_and_pixels(side, pictures, attention).items():
            print(f"{where}, {name}: latents {latent:.1f} ms, pixels {pixel:.1f} ms, ratio {pixel / latent:.2f}", flush=True)
