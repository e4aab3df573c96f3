"""A model of characters on Tiny Shakespeare: ours, and nanoGPT, at the two settings of its README, on the CPU.

python -m benchmarks.language pipeline SETTING [OVERRIDE...]  where `REFRESHER_DATA` holds Tiny Shakespeare
python -m benchmarks.language nanogpt SETTING FOLDER          a checkout of karpathy/nanoGPT whose data/shakespeare_char is prepared
    cpu    4 layers, 4 heads, 128 numbers, 64 characters, 12 windows, 2,000 steps of cosine; then the loss on validation, ours of the
           whole of it, nanoGPT's of 200 random batches
    baby   6 layers, 6 heads, 384 numbers, 256 characters, 64 windows, dropout 0.2: 12 steps, for the speed alone

Both sides choose their own threads and precision. Prints characters a second, the median over steps without evaluations; the loss, for
`cpu`; and seconds from start to end.
"""

from __future__ import annotations

import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

BLOCK, BATCH = {"cpu": 64, "baby": 256}, {"cpu": 12, "baby": 64}
ADAMW = ["optimizer=adamw", "optimizer.lr=1e-3", "optimizer.betas=[0.9,0.99]", "optimizer.weight_decay=0.1"]
ADAMW += ["optimizer.warmup_steps=100", "optimizer.final_lr=0.1"]  # as nanoGPT has them
OURS = {
    "cpu": ["trainer.duration=2000 steps", "trainer.validate_every=2000 steps", "trainer.log_every=20"],
    "baby": [
        *["model.depth=6", "model.heads=6", "model.dim=384", "model.dropout=0.2"],
        *["trainer.duration=12 steps", "trainer.validate_every=12 steps", "trainer.log_every=1", "trainer.limit_batches=12"],
    ],
}
THEIRS = {
    "cpu": "--n_layer=4 --n_head=4 --n_embd=128 --dropout=0.0 --max_iters=2000 --lr_decay_iters=2000 --eval_iters=200 --eval_interval=2000",
    "baby": "--max_iters=12 --lr_decay_iters=5000 --eval_iters=1 --eval_interval=1000000",
}


def pipeline(setting: str, *overrides: str) -> tuple[float, float]:
    """The command itself, every logger on."""
    from refresher_runner.cli import main

    with tempfile.TemporaryDirectory() as folder:
        window = [*ADAMW, f"data.block_size={BLOCK[setting]}", f"data.batch_size={BATCH[setting]}", "model.positions=learned"]
        chosen = ["model=gpt", "data=tiny_shakespeare", *window, *OURS[setting], "trainer.test=false", *overrides]
        assert main(["train", *chosen, f"outputs={folder}"]) == 0
        lines = [json.loads(line) for line in next(Path(folder).rglob("metrics.jsonl")).read_text().splitlines()]
    windows = [line["speed/samples_per_second"] for line in lines if "train/loss" in line][2:]
    return statistics.median(windows) * BLOCK[setting], [line["val/loss"] for line in lines if "val/loss" in line][-1]


def nanogpt(setting: str, checkout: str) -> tuple[float, float]:
    """Its own train.py, as its README calls it."""
    window = f"--block_size={BLOCK[setting]} --batch_size={BATCH[setting]}"
    with tempfile.TemporaryDirectory() as folder:
        options = f"--device=cpu --compile=False --log_interval=1 --out_dir={folder} {window} {THEIRS[setting]}".split()
        typed = [sys.executable, "train.py", "config/train_shakespeare_char.py", *options]
        told = subprocess.run(typed, cwd=checkout, capture_output=True, text=True, check=True).stdout
    milliseconds = statistics.median([float(found) for found in re.findall(r"time ([\d.]+)ms", told)][3:])
    return BLOCK[setting] * BATCH[setting] / milliseconds * 1000, float(re.findall(r"val loss ([\d.]+)", told)[-1])


if __name__ == "__main__":
    side, setting, *rest = sys.argv[1:]
    started = time.perf_counter()
    speed, loss = globals()[side](setting, *rest)
    told = f", validation {loss:.4f}" if setting == "cpu" else ""
    print(f"{side} {setting}: {speed:.0f} characters/s{told}, {time.perf_counter() - started:.0f} s")
