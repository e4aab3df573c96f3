"""A grid of 24 runs (2 models x 3 learning rates x 4 seeds) on digits: run after run in one process, and as a sweep of two jobs at a time.

python -m benchmarks.sweeps serial|sweep [STEPS] prints seconds from the start of the process to its end, one thread for each run.
python -m benchmarks.sweeps overhead prints seconds of `refresher train`, process after process, and of each job of a sweep with one slot.
"""

from __future__ import annotations

import itertools
import os
import resource
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


def seconds(*typed: str) -> tuple[float, float]:
    """Of a process, from its start to its end; and of the processors, for it and all that it started."""
    start, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-m", *typed], check=True, stdout=subprocess.DEVNULL, env={**os.environ, "OMP_NUM_THREADS": "1"})
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.perf_counter() - start, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main(side: str, steps: int) -> None:
    with tempfile.TemporaryDirectory() as outputs:
        where = f"outputs={outputs}"
        if side == "inside":
            serial(steps, outputs)
        elif side == "serial":
            took, busy = seconds("benchmarks.sweeps", "inside", str(steps))
            print(f"serial, in one process: {took:.1f} s, of the processor {busy:.1f} s")
        elif side == "sweep":
            axes = [f"model={','.join(MODELS)}", f"optimizer.lr={','.join(RATES)}", f"seed={','.join(SEEDS)}"]
            took, busy = seconds("refresher_runner", "train", "-m", *axes, *common(steps), "sweep.jobs=2", where)
            print(f"sweep, two jobs at a time: {took:.1f} s, of the processors {busy:.1f} s")
        else:
            plain = sorted(seconds("refresher_runner", "train", *PLAIN, f"seed={seed}", where) for seed in range(REPEATS))[REPEATS // 2]
            one = seconds("refresher_runner", "train", "-m", *PLAIN, "seed=0", "sweep.jobs=1", where)
            many = seconds("refresher_runner", "train", "-m", *PLAIN, f"seed=range({REPEATS})", "sweep.jobs=1", where)
            for what, number in (("by the clock", 0), ("of the processor", 1)):
                more = (many[number] - one[number]) / (REPEATS - 1)
                print(
                    f"{what}: refresher train {plain[number]:.2f} s; a job more in a sweep {more:.2f} s; a sweep of one {one[number]:.2f} s"
                )


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 1000)
