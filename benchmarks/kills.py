"""How many SIGKILLs it takes to lose a run: each run is killed again and again, resumed until it ends, and compared with one left alone.

    python -m benchmarks.kills [KILLS [cnn | yolo | ddpm]]     200 kills of the CNN take some minutes on one core

Prints one line of result: kills, runs that did not end, runs with other bits, points that are not logged exactly once, seconds.
What went wrong in a run is told as it happens.
"""

from __future__ import annotations

import random
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from tests.processes import DENOISE, DETECT, TRAIN, Command, differences, killed_and_resumed, left, logged_wrongly, only_run

COMMANDS = {"cnn": TRAIN, "yolo": DETECT, "ddpm": DENOISE}
IN_A_ROW = 10  # kills of one run, at most


def main(kills: int = 200, model: str = "cnn") -> int:
    started, draw = time.perf_counter(), random.Random(0)
    done = runs = lost = other = wrong = fell_back = 0
    with tempfile.TemporaryDirectory() as folder:
        alone, sitting = left_alone(COMMANDS[model], Path(folder))
        while done < kills:
            here = Path(folder, str(runs))
            here.mkdir()
            runs += 1
            happened, problems = killed_and_resumed(COMMANDS[model], here, min(IN_A_ROW, kills - done), draw, sitting)
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


def left_alone(typed: Sequence[str], folder: Path) -> tuple[dict[str, str], float]:
    """What the run leaves when nobody kills it, and how many seconds that takes."""
    seconds = 0.0
    for name in ("warm", "alone"):  # the server of processes starts with the first
        here = folder / name
        here.mkdir()
        started = time.perf_counter()
        assert Command(*typed, folder=here).wait() == 0
        seconds = time.perf_counter() - started
    run = only_run(folder / "alone")
    assert run is not None
    return left(run), seconds


if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:2]), *sys.argv[2:]))
