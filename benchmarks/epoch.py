"""Time of one Fashion-MNIST epoch, with random crops and flips: the pipeline, and torchvision's Dataset + DataLoader in a hand loop.

python -m benchmarks.epoch SIDE prints seconds per epoch of 54,000 pictures at batch 128. Both sides train the network, the optimizer
and the augmentation of `experiment=fashion_cnn`; what differs is how data are fed and in which precision and layout they are computed.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path

import refresher_runner.compose as composing
from refresher_runner.settings import check

EPOCHS = 3
CHOICE = ["experiment=fashion_cnn", "data.batch_size=128", f"trainer.duration={EPOCHS} epochs"]


def pipeline() -> float:
    """The command itself, with every logger on; the median epoch after the first, evaluations left out."""
    from refresher_runner.cli import main

    with tempfile.TemporaryDirectory() as folder:
        code = main(["train", *CHOICE, f"trainer.validate_every={EPOCHS} epochs", "trainer.test=false", f"outputs={folder}"])
        assert code == 0
        lines = [json.loads(line) for line in next(Path(folder).rglob("metrics.jsonl")).read_text().splitlines()]
    rows = [(line["progress/epoch"], line["time"]) for line in lines if "train/loss" in line]
    (first, started), (last, ended) = rows[0], rows[-1]
    return (ended - started) / (last - first)


def torchvision() -> float:
    """What a tutorial does: pictures one by one through transforms, fp32."""
    import torch
    import torch.nn.functional as F
    from torch.utils.data import DataLoader, Subset
    from torchvision import datasets
    from torchvision.transforms import v2

    from refresher_runner.registry import DATASETS, MODELS

    settings = check(composing.compose(CHOICE)[0])
    data = DATASETS.builder("fashion_mnist")(**settings.data.options)
    task = MODELS.builder("cnn")(data.spec, **settings.model.options)
    pad = settings.data.options["pad"]
    transform = v2.Compose(
        [
            v2.RandomCrop(28, padding=pad),
            v2.RandomHorizontalFlip(),
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(list(data.spec.mean), list(data.spec.std)),
        ]
    )
    with tempfile.TemporaryDirectory() as folder:
        source = Path(settings.data.options["root"]) / "FashionMNIST"
        (Path(folder) / "FashionMNIST" / "raw").mkdir(parents=True)
        for file in (source / "raw").glob("*.gz"):
            (Path(folder) / "FashionMNIST" / "raw" / file.name).write_bytes(file.read_bytes())
        pictures = datasets.FashionMNIST(folder, train=True, download=True, transform=transform)
    loader = DataLoader(Subset(pictures, range(54000)), batch_size=128, shuffle=True, drop_last=True)
    optimizer = torch.optim.AdamW(task.parameters(), settings.optimizer.options["lr"])
    times = []
    for _ in range(2):
        started = time.perf_counter()
        for x, y in loader:
            optimizer.zero_grad()
            loss = F.cross_entropy(task.network(x), y)
            loss.backward()
            optimizer.step()
            loss.item()
        times.append(time.perf_counter() - started)
    return min(times)


if __name__ == "__main__":
    print({"pipeline": pipeline, "torchvision": torchvision}[sys.argv[1]]())
