"""A grid of 24 runs (2 models x 3 learning rates x 4 seeds) on digits: run after run in one process, and as a sweep of two jobs at a time.

python -m benchmarks.sweeps serial|sweep [STEPS] prints seconds from the start of the process to its end, one thread for each run.
python -m benchmarks.sweeps overhead prints seconds of `refresher train`, process after process, and of each job of a sweep with one slot.
"""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import tempfile
import time

MODELS, RATES, SEEDS = ["cnn", "mlp"], ["3e-2", "1e-2", "1e-3"], ["1", "2", "3", "4"]
PLAIN, REPEATS = ["model=mlp", "trainer=smoke"], 6


def common(steps: int) -> list[str]:
    return [f"trainer.duration={steps} steps", f"trainer.validate_every={steps // 4} steps", "trainer.threads=1"]


def serial(steps: int, outputs: str) -> None:
    """Every point by the command's own function, in this process."""
    from refresher_runner.cli import main

    for model, lr, seed in itertools.product(MODELS, RATES, SEEDS):
        code = main(["train", f"model={model}", f"optimizer.lr={lr}", f"seed={seed}", *common(steps), f"outputs={outputs}"])
        assert code == 0


def seconds(*typed: str) -> float:
    """Of a process, from its start to its end."""
    start = time.perf_counter()
    subprocess.run([sys.executable, "-m", *typed], check=True, stdout=subprocess.DEVNULL, env={**os.environ, "OMP_NUM_THREADS": "1"})
    return time.perf_counter() - start


def main(side: str, steps: int) -> None:
    with tempfile.TemporaryDirectory() as outputs:
        where = f"outputs={outputs}"
        if side == "inside":
            serial(steps, outputs)
        elif side == "serial":
            print(f"serial, in one process: {seconds('benchmarks.sweeps', 'inside', str(steps)):.1f} s")
        elif side == "sweep":
            axes = [f"model={','.join(MODELS)}", f"optimizer.lr={','.join(RATES)}", f"seed={','.join(SEEDS)}"]
            took = seconds("refresher_runner", "train", "-m", *axes, *common(steps), "sweep.jobs=2", where)
            print(f"sweep, two jobs at a time: {took:.1f} s")
        else:
            plain = [seconds("refresher_runner", "train", *PLAIN, f"seed={seed}", where) for seed in range(REPEATS)]
            one = seconds("refresher_runner", "train", "-m", *PLAIN, "seed=0", "sweep.jobs=1", where)
            many = seconds("refresher_runner", "train", "-m", *PLAIN, f"seed=range({REPEATS})", "sweep.jobs=1", where)
            print(f"refresher train: {sorted(plain)[REPEATS // 2]:.2f} s; a job more in a sweep: {(many - one) / (REPEATS - 1):.2f} s")
            print(f"a sweep of {REPEATS}: {many / REPEATS:.2f} s for each job, its start and its look ahead included")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 1000)
