"""How many SIGKILLs it takes to lose a run: each run is killed again and again, resumed until it ends, and compared with one left alone.

    python -m benchmarks.kills [KILLS]     200 kills take some minutes on one core

Prints one line of result: kills, runs that did not end, runs with other bits, points that are not logged exactly once, seconds.
What went wrong in a run is told as it happens.
"""

from __future__ import annotations

import random
import sys
import tempfile
import time
from pathlib import Path

from tests.processes import TRAIN, Command, differences, killed_and_resumed, left, logged_wrongly, only_run

IN_A_ROW = 10  # kills of one run, at most


def main(kills: int) -> int:
    started, draw = time.perf_counter(), random.Random(0)
    done = runs = lost = other = wrong = fell_back = 0
    with tempfile.TemporaryDirectory() as folder:
        alone, sitting = left_alone(Path(folder))
        while done < kills:
            here = Path(folder, str(runs))
            here.mkdir()
            runs += 1
            happened, problems = killed_and_resumed(here, min(IN_A_ROW, kills - done), draw, sitting)
            done += happened
            fell_back += len(problems)
            run = only_run(here)
            if run is None or run.read_status().get("state") != "finished":
                lost += 1
            else:
                different, points = differences(alone, left(run)), logged_wrongly(run)
                other += bool(different)
                wrong += len(points)
                problems += [*different[:5], *points[:5]]
            for problem in problems:
                print(f"  run {runs}: {problem}", flush=True)
    seconds = time.perf_counter() - started
    print(
        f"{done} kills of {runs} runs: {lost} lost, {other} with other bits, {wrong} points not logged once, "
        f"{fell_back} other faults, {seconds:.0f} s"
    )
    return int(lost + other + wrong + fell_back > 0)


def left_alone(folder: Path) -> tuple[dict[str, str], float]:
    """What the run leaves when nobody kills it, and how many seconds that takes."""
    seconds = 0.0
    for name in ("warm", "alone"):  # the server of processes starts with the first
        here = folder / name
        here.mkdir()
        started = time.perf_counter()
        assert Command(*TRAIN, folder=here).wait() == 0
        seconds = time.perf_counter() - started
    run = only_run(folder / "alone")
    assert run is not None
    return left(run), seconds


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 200))
