"""What giving up on hopeless trials saves, and what it costs: a search of a CNN's learning rate and dropout on digits, by either rule
and without.

python -m benchmarks.search FOLDER REPEAT...: each repeat is a search of its own draws, three times; its best configuration is trained
again with two other seeds. A FOLDER that has a repeat is read, not run again. Steps are those that were really taken.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
from pathlib import Path

from refresher_runner.runs import Summary, find, summarise
from refresher_runner.sweep.folder import SweepDir

SPACE = ["optimizer.lr=interval(1e-5,1)", "model.dropout=interval(0,0.7)"]
RUN = ["model=cnn", "trainer.duration=200 steps", "trainer.validate_every=20 steps", "trainer.threads=1", "trainer.loggers=[]"]
SEARCH = ["sweep=tpe", "sweep.trials=15", "sweep.startup=5", "sweep.jobs=1"]
PRUNE = "null", "halving", "median"
AGAIN = "seed=101,102"


def sweep(outputs: Path, *typed: str) -> SweepDir:
    """The sweep in a folder, run if there is none."""
    if not SweepDir.all(outputs):
        command = [sys.executable, "-m", "refresher_runner", "train", "-m", *RUN, f"outputs={outputs}", *typed]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    [found] = SweepDir.all(outputs)
    return found


def measure(folder: Path, repeat: int, prune: str) -> dict[str, float]:
    """Steps of a search, the best it found, and what that reaches with other seeds."""
    searched = sweep(folder / f"{repeat}_{prune}", *SPACE, *SEARCH, f"sweep.prune={prune}", f"sweep.seed={1000 * repeat}")
    runs = [summarise(job.run) for job in searched.jobs()]
    finished = [run for run in runs if run.state == "finished"]
    best = max(finished, key=lambda run: run.best or 0.0)
    chosen = [f"{key}={best.config[key]}" for key in ("optimizer.lr", "model.dropout")]
    again: list[Summary] = find(sweep(folder / f"{repeat}_{prune}_again", *chosen, AGAIN, "sweep.jobs=1").path)
    return {
        "steps": sum(run.status["step"] for run in runs),
        "finished": len(finished),
        "best": best.best or 0.0,
        "again": statistics.fmean(run.best or 0.0 for run in again),
        "test": statistics.fmean(run.tested or 0.0 for run in again),
        "lr": best.config["optimizer.lr"],
        "dropout": best.config["model.dropout"],
    }


def main() -> None:
    folder, repeats = Path(sys.argv[1]), [int(word) for word in sys.argv[2:]]
    columns = ("steps", "finished", "best", "again", "test", "lr", "dropout")
    print("repeat prune    " + " ".join(f"{column:>9}" for column in columns))
    found: dict[str, list[dict[str, float]]] = {prune: [] for prune in PRUNE}
    for repeat in repeats:
        for prune, rows in found.items():
            rows.append(measure(folder, repeat, prune))
            print(f"{repeat:6} {prune:<8} " + " ".join(f"{rows[-1][column]:9.4g}" for column in columns), flush=True)
    without = found.pop("null")
    for prune, rows in found.items():
        share = sum(row["steps"] for row in rows) / sum(row["steps"] for row in without)
        print(f"{prune}: {share:.3f} of the steps")
        for column in ("best", "again", "test"):
            gaps = [row[column] - plain[column] for row, plain in zip(rows, without, strict=True)]
            print(f"  {column}: {statistics.fmean(gaps):+.4f}", end="")
            print(f" ± {statistics.stdev(gaps):.4f} of {len(gaps)} pairs" if len(gaps) > 1 else "")


if __name__ == "__main__":
    main()
