"""TensorBoard's record of a run: one event file, rebuilt from metrics.jsonl when the run is resumed.

TensorBoard orders event files by name and never drops what it has read twice, so a run has one file at a time, named by a
number and not by the clock.
"""

from __future__ import annotations

import copy
import os
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader
from tensorboard.compat.proto.event_pb2 import Event  # type: ignore[attr-defined]
from tensorboard.compat.proto.summary_pb2 import Summary  # type: ignore[attr-defined]
from tensorboard.summary.writer.record_writer import RecordWriter
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter, summary

from refresher_runner.engine.device import randomness_apart
from refresher_runner.engine.figures import Gallery
from refresher_runner.engine.hparams import session_end, session_start
from refresher_runner.engine.logger import Logger
from refresher_runner.engine.metrics_file import Journal, decode, read_metrics
from refresher_runner.engine.projector import write_embedding
from refresher_runner.report import Embedding, Histogram, Loggable, PRCurve, Report, Text
from refresher_runner.task import Task

HISTOGRAM_BINS = 64


class TensorBoard(Logger):
    """Every type of a report where TensorBoard shows it best."""

    def __init__(self, folder: Path, gallery: Gallery, warn: Callable[[str], None]):
        self._folder, self._gallery, self._warn = folder, gallery, warn
        files = _event_files(folder)
        self._events = EventFile(files[-1] if files else _next_file(folder))

    def log(self, report: Report, step: int) -> None:
        self._events.write([value for tag, shown in report.items() for value in _values(tag, shown, self._gallery)], step)
        for tag, shown in report.items():
            if isinstance(shown, Embedding):
                write_embedding(self._folder, tag, shown)

    def begin(self, task: Task, batch: Any, *, config: Mapping[str, Any], graph: bool) -> None:
        self._events.write([session_start(config)], 0)
        if not graph:
            return
        try:
            for event in _graph_events(task, batch):
                self._events.write_event(event)
        except (RuntimeError, TypeError, torch.jit.TracingCheckError) as error:  # type: ignore[attr-defined]
            self._warn(f"this model has no graph that TensorBoard can show: {str(error).strip().splitlines()[0]}")

    def finish(self, tested: Mapping[str, float]) -> None:
        """The HPARAMS tab has the run's row from its beginning, its metrics being the last points of its own curves."""
        self._events.write([session_end()], 0)

    def close(self) -> None:
        self._events.close()


def rebuild(folder: Path, truth: Path, config: Mapping[str, Any]) -> None:
    """Make the event files say what metrics.jsonl says: each tag and step once, whatever was lost or damaged; and `config` in HPARAMS.

    What metrics.jsonl does not keep (pictures, distributions, the graph) comes from the old files. Whenever this is killed, the
    old files or the new one are there, and doing it again gives the same.
    """
    old_files = _event_files(folder)
    pictures: dict[tuple[str, int], Any] = {}
    graphs: dict[str, Event] = {}
    for event in (event for path in old_files for event in _read_events(path)):
        if _is_of_graph(event):
            graphs[str(event.WhichOneof("what"))] = event
        for value in event.summary.value:
            if value.WhichOneof("value") in ("image", "histo"):
                pictures[value.tag, event.step] = value
    aside = folder / "rebuilding"
    aside.unlink(missing_ok=True)
    events, gallery = EventFile(aside), Gallery()
    for event in graphs.values():
        events.write_event(event)
    lines = read_metrics(truth)
    if lines:  # else the run has yet to begin
        events.write([session_start(config)], 0, lines[0]["time"])
    for line in lines:
        step, when = line.pop("step"), line.pop("time")
        values: list[Any] = []
        for tag, kept in line.items():
            if (tag, step) in pictures:
                values.append(pictures[tag, step])
            elif (shown := decode(kept)) is not None:
                values += _values(tag, shown, gallery)
        events.write(values, step, when)
    events.flush()
    events.close()
    os.replace(aside, _next_file(folder))
    for path in old_files:
        path.unlink()


class EventFile:
    """Records in TensorBoard's format, each visible to others once written. A file that is there already is gone on with."""

    def __init__(self, path: Path):
        is_new = not path.is_file() or path.stat().st_size == 0
        self._journal = Journal(path)
        self._records = RecordWriter(self._journal)
        if is_new:
            self.write_event(Event(wall_time=time.time(), file_version="brain.Event:2"))

    def write(self, values: Sequence[Any], step: int, when: float | None = None) -> None:
        if values:
            self.write_event(Event(wall_time=time.time() if when is None else when, step=step, summary=Summary(value=values)))

    def write_event(self, event: Event) -> None:
        self._records.write(event.SerializeToString())

    def flush(self) -> None:
        self._journal.flush()

    def close(self) -> None:
        self._journal.close()


def _values(tag: str, shown: Loggable, gallery: Gallery) -> Sequence[Any]:
    """What TensorBoard is told of one tag; an embedding is told by files."""
    if isinstance(shown, (int, float)):
        return [Summary.Value(tag=tag, simple_value=shown)]
    if isinstance(shown, Text):
        return summary.text(tag, shown.markdown).value
    if isinstance(shown, PRCurve):
        return [value for number, name in enumerate(shown.classes) for value in _pr_curve(f"{tag}/{name}", shown, number)]
    if isinstance(shown, Histogram):
        finite = shown.values.detach().float().flatten().cpu()
        finite = finite[finite.isfinite()]
        return summary.histogram(tag, finite.numpy(), HISTOGRAM_BINS).value if len(finite) else []
    png = gallery.png(tag, shown)
    return [Summary.Value(tag=tag, image=Summary.Image(encoded_image_string=png))] if png is not None else []


def _pr_curve(tag: str, curve: PRCurve, number: int) -> Sequence[Any]:
    counts = (curve.true_positives, curve.false_positives, curve.true_negatives, curve.false_negatives)
    rows = [values[number].double().cpu().numpy() for values in (*counts, curve.precision, curve.recall)]
    return summary.pr_curve_raw(tag, *rows, num_thresholds=len(curve.thresholds)).value


class _LossOf(nn.Module):
    """A task as the tracer wants it: tensors in, a tensor out."""

    def __init__(self, task: Task, kind: Callable[..., Any]):
        super().__init__()
        self.task, self.kind = task, kind

    def forward(self, *fields: Tensor) -> Tensor:
        return self.task(self.kind(*fields)).loss


def _graph_events(task: Task, batch: Any) -> list[Event]:
    """The graph of a copy of the task. Raises what torch.jit.trace does where Python decides the way."""
    device = next(task.parameters()).device
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings(), randomness_apart(0, device):
        warnings.simplefilter("ignore")  # of the tracer: a picture need not be right for every input
        with SummaryWriter(folder) as writer:
            writer.add_graph(_LossOf(copy.deepcopy(task).eval(), type(batch)), tuple(batch))
        return [event for path in _event_files(Path(folder)) for event in _read_events(path) if _is_of_graph(event)]


def _is_of_graph(event: Event) -> bool:
    return event.WhichOneof("what") in ("graph_def", "tagged_run_metadata")


def _event_files(folder: Path) -> list[Path]:
    """In the order in which TensorBoard reads them."""
    return sorted(folder.glob("*tfevents*"))


def _next_file(folder: Path) -> Path:
    """A name that comes after all there are, so that a TensorBoard that is looking goes on to it."""
    numbers = [int(path.name.split(".")[3]) for path in _event_files(folder)]
    return folder / f"events.out.tfevents.{max(numbers, default=0) + 1:010d}.refresher"


def _read_events(path: Path) -> Iterator[Event]:
    """Events up to the first that is cut off or damaged."""
    for record in RawEventFileLoader(str(path)).Load():
        event = Event()
        event.ParseFromString(record)
        yield event
