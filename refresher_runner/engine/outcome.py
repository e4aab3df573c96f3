"""A run in our hands alone, and what status.json says of how that ended. Free of torch until it is held."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from typing import TYPE_CHECKING

from refresher_runner.engine.rundir import RunDir
from refresher_runner.errors import CheckpointError, Interrupted, RefresherError, TrainingError

if TYPE_CHECKING:
    from refresher_runner.engine.distributed import World


@contextmanager
def held(run: RunDir, world: World) -> Iterator[None]:
    """Inside, nobody else works on the run; how that ends is on disk. Raises RunError where somebody does."""
    with run.locked() if world.is_main else nullcontext(), _outcome(run, world):
        yield


@contextmanager
def _outcome(run: RunDir, world: World) -> Iterator[None]:
    """How a run ends is on disk before anyone is told: finished is written by who finished, all else here.

    A finished run that could not even be gone on with stays finished, unless its checkpoints are at fault.
    """
    import torch

    def is_finished() -> bool:
        return run.read_status().get("state") == "finished"

    try:
        yield
    except Interrupted as stop:
        if world.is_main and not is_finished():
            run.write_status("interrupted", exit_code=stop.exit_code, error=None)
        raise
    except Exception as error:
        told = error if isinstance(error, RefresherError) else _as_training_error(error, run, torch.OutOfMemoryError)
        if world.is_main and (isinstance(told, CheckpointError) or not is_finished()):
            with suppress(OSError):  # a full disk, perhaps the very reason: whoever waits for the exit is told all the same
                run.write_status("failed", exit_code=told.exit_code, error=str(told))
        raise told from error


def _as_training_error(error: Exception, run: RunDir, out_of_memory: type[Exception]) -> TrainingError:
    """One line for the user; the traceback goes to the run's log."""
    with suppress(OSError), open(run.log, "a", encoding="utf-8") as log:
        log.write("".join(traceback.format_exception(error)))
    if isinstance(error, (out_of_memory, MemoryError)) or "DefaultCPUAllocator" in str(error):  # torch's of the CPU has no type of its own
        return TrainingError("out of memory", cure=f"a smaller data.batch_size with trainer.accumulate; {run} can be resumed")
    first = (str(error).strip().splitlines() or [""])[0]
    return TrainingError(f"{type(error).__name__}: {first}", cure=f"the traceback is in {run.log}")
