"""Seconds from the start of a command to its end (`help`, `bad`), or to its first optimizer step (`step`).

python -m benchmarks.startup SIDE prints seconds.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

RUN = [sys.executable, "-m", "refresher_runner"]


def seconds(*arguments: str, code: int) -> float:
    started = time.perf_counter()
    done = subprocess.run([*RUN, *arguments], capture_output=True, check=False)
    assert done.returncode == code, done.stderr
    return time.perf_counter() - started


def first_step() -> float:
    with tempfile.TemporaryDirectory() as folder:
        started = time.time()
        subprocess.run([*RUN, "train", "model=cnn", "trainer=smoke", f"outputs={folder}"], capture_output=True, check=True)
        lines = [json.loads(line) for line in next(Path(folder).rglob("metrics.jsonl")).read_text().splitlines()]
    return next(line["time"] for line in lines if "train/loss" in line) - started


SIDES = {
    "help": lambda: seconds("--help", code=0),
    "bad": lambda: seconds("train", "model=cnn", "optimizer.lrr=1", code=2),
    "wrong_type": lambda: seconds("train", "model=cnn", "optimizer.lr=abc", code=2),
    "step": first_step,
}

if __name__ == "__main__":
    print(SIDES[sys.argv[1]]())
