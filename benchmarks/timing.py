"""How everything here is timed: each side in a fresh process, the sides in turn, the median of the repetitions, the ratio."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence

THREADS = os.environ.get("BENCH_THREADS", "1")
REPEATS = int(os.environ.get("BENCH_REPEATS", "5"))


def side_by_side(sides: Mapping[str, Sequence[str]], unit: str, baseline: str, repeats: int = REPEATS) -> dict[str, float]:
    """Run every command `repeats` times, A B C A B C ...; each prints its figure last. Prints and returns the medians."""
    figures: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(repeats):
        for name, command in sides.items():
            figures[name].append(figure(command))
    medians = {name: statistics.median(values) for name, values in figures.items()}
    for name, values in figures.items():
        ratio = medians[name] / medians[baseline]
        spread = f"min {min(values):.4g}, max {max(values):.4g}, n {len(values)}"
        print(f"  {name:<28} {medians[name]:>10.4g} {unit:<12} x {ratio:.2f} of {baseline}   ({spread})", flush=True)
    return medians


def figure(command: Sequence[str]) -> float:
    """The last word that a command prints, as a number."""
    environment = {**os.environ, "OMP_NUM_THREADS": THREADS, "MKL_NUM_THREADS": THREADS}
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, check=False, env=environment)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    return float(done.stdout.split()[-1])
