"""How many SIGKILLs it takes to lose a run: each run is killed again and again, resumed until it ends, and compared with one left alone.

    python -m benchmarks.kills [KILLS]     200 kills take some minutes on one core

Kills come at instants drawn evenly over a sitting, and at the instant a file comes into being or is replaced. One line of result:
kills, runs that did not end, runs with other bits, points logged twice or never, saves lost beyond the promised interval, seconds.
"""

from __future__ import annotations

import random
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from tests.processes import SAVE_EVERY, TRAIN, Command, appears, differences, left, logged_step, logged_wrongly, newest_step, only_run

IN_A_ROW = 10  # kills of one run, at most
EVENTS = {  # what is looked for below the run directory, and how often it happens in a sitting
    "config.yaml": 1,
    "run.json": 1,
    "status.json": 12,
    "status.json.tmp": 8,
    "metrics.jsonl": 1,
    "checkpoints/last.pt.tmp": 8,
    "checkpoints/last.pt": 8,
    "checkpoints/previous.pt": 8,
    "checkpoints/best.pt.tmp": 4,
    "checkpoints/best.pt": 4,
    "tensorboard/events": 1,
    "tensorboard/rebuilding": 1,
    "figures/val": 3,
    "figures/test": 1,
}


def main(kills: int, seed: int = 0) -> int:
    started, draw = time.perf_counter(), random.Random(seed)
    with tempfile.TemporaryDirectory() as folder:
        alone, sitting = _left_alone(Path(folder))
        done = lost = other = logged = beyond = runs = 0
        while done < kills:
            here = Path(tempfile.mkdtemp(dir=folder))
            runs += 1
            happened, problems = killed_and_resumed(here, min(IN_A_ROW, kills - done), draw, sitting)
            done += happened
            beyond += sum("save interval" in problem for problem in problems)
            run = only_run(here)
            if run is None or run.read_status().get("state") != "finished":
                lost += 1
                problems.append("lost")
            else:
                different, wrong = differences(alone, left(run)), logged_wrongly(run)
                other += bool(different)
                logged += len(wrong)
                problems += [*different[:5], *wrong[:5]]
            if problems:
                print(f"  {here.name}: {'; '.join(problems)}", file=sys.stderr, flush=True)
            if not problems:
                shutil.rmtree(here)
            elif "--keep" in sys.argv:
                shutil.copytree(here, Path(tempfile.gettempdir()) / f"kills-{here.name}")
    seconds = time.perf_counter() - started
    print(
        f"{done} kills of {runs} runs: {lost} lost, {other} with other bits, {logged} points not logged once, "
        f"{beyond} saves lost, {seconds:.0f} s"
    )
    return int(lost + other + logged + beyond > 0)


def _left_alone(folder: Path) -> tuple[dict[str, str], float]:
    """What the run leaves when nobody kills it, and how many seconds that takes."""
    for name in ("first", "alone"):  # the server of processes starts with the first
        here = folder / name
        here.mkdir()
        started = time.perf_counter()
        assert Command(*TRAIN, folder=here).wait() == 0
    run = only_run(here)
    assert run is not None
    return left(run), time.perf_counter() - started


def killed_and_resumed(folder: Path, kills: int, draw: random.Random, sitting: float) -> tuple[int, list[str]]:
    """Start a run in `folder`, kill it so many times, and let the last sitting end; the kills that came in time, and what is wrong."""
    happened, problems = 0, []
    while True:
        run = only_run(folder)
        if run is not None and not run.config.is_file():  # killed before there was anything to lose
            shutil.rmtree(run.path)
            run = None
        command = Command(*(TRAIN if run is None else ["resume", str(run.path.relative_to(folder))]), folder=folder)
        if happened == kills:
            if command.wait() != 0:
                problems.append(command.said[-300:])
            return happened, problems
        latest = draw.uniform(0, sitting * (1 - newest_step(run) / 90 if run else 1))
        if not (command.killed_when(instant(folder, draw), latest) if draw.random() < 0.6 else command.killed_after(latest)):
            if command.wait() != 0:
                problems.append(command.said[-300:])
            return happened, problems
        happened += 1
        run = only_run(folder)
        if run is not None and logged_step(run) - newest_step(run) > SAVE_EVERY:
            problems.append(f"step {logged_step(run)} fell back to {newest_step(run)}, more than the save interval")


def instant(folder: Path, draw: random.Random) -> Callable[[], bool]:
    name = draw.choice(list(EVENTS))
    return appears(folder, name, draw.randint(1, EVENTS[name]))


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 200))
