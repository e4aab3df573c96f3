"""The one loop. It knows steps, batches and losses; it knows no paper, no name and no file format.

    for each step:      lr -> accumulate x (forward, backward) -> clip -> optimizer -> EMA
    every log_every:    one report of the window of steps since the last
    every validate_every: an evaluation, best.pt if it is the best, last.pt

Laws, each a test: looking never changes training; n + m resumed steps are n + m steps, bit for bit; an EMA changes no weight;
two accumulated batches of 8 are one of 16; two ranks are one, to rounding.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from refresher_runner.engine import checkpoint, signals
from refresher_runner.engine.device import compiled, random_state, restore_random_state, seed_step
from refresher_runner.engine.distributed import SINGLE, World, gathered, shard_like, whole, wrap
from refresher_runner.engine.ema import EMA
from refresher_runner.engine.evaluate import autocast, evaluate
from refresher_runner.engine.optim import clip_gradients, lr_factor, restore
from refresher_runner.engine.options import ScheduleOptions, TrainerOptions
from refresher_runner.engine.rundir import RunDir
from refresher_runner.engine.window import Window
from refresher_runner.errors import Interrupted, TrainingError
from refresher_runner.report import Histogram, Report
from refresher_runner.spec import Loader
from refresher_runner.task import Task


class Sink(Protocol):
    """Where reports go; engine/loggers.py fills it."""

    def log(self, report: Report, step: int) -> None: ...
    def flush(self) -> None: ...
    def warn(self, text: str) -> None: ...


@dataclass
class Progress:
    """How far training is. The next batch to train on is number `batch` of epoch `epoch`."""

    step: int = 0
    epoch: int = 0
    batch: int = 0
    elapsed: float = 0.0  # seconds, evaluations included, over all the sittings of a run
    best: float | None = None
    best_step: int = 0
    stale: int = 0  # evaluations since one was better than all before
    validated_step: int = 0  # of the last evaluation


class Trainer:
    """Fits a task. `identity` is stored in every checkpoint: what a run needs to be told from another and to be used alone."""

    def __init__(
        self,
        task: Task,
        optimizer: Callable[[Task], Any],
        *,
        schedule: ScheduleOptions,
        options: TrainerOptions,
        train: Loader,
        val: Loader,
        run: RunDir,
        sink: Sink,
        identity: Mapping[str, Any],
        device: torch.device,
        precision: str = "fp32",
        seed: int = 0,
        world: World = SINGLE,
    ):
        self.task, self.schedule, self.options = task, schedule, options
        self.train, self.val, self.run, self.sink, self.identity = train, val, run, sink, identity
        self.device, self.precision, self.seed, self.world = device, precision, seed, world
        self.progress = Progress()
        self.model = wrap(task, options.strategy, world, device)  # may replace parameters by shards: before anything holds them
        self.forward = compiled(self.model, device) if options.compile else task.step if world.size == 1 else self.model
        self.optimizer = optimizer(task)
        self.window = Window(world, options.accumulate)
        self.ema = EMA(task, options.ema_decay) if options.ema_decay is not None else None
        self.scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")
        self.base_lrs = [group["lr"] for group in self.optimizer.param_groups]
        self.params = [p for group in self.optimizer.param_groups for p in group["params"]]
        self.steps_per_epoch = len(train) // options.accumulate
        assert self.steps_per_epoch > 0, "an epoch holds less than one step"
        total_steps = options.duration.steps(self.steps_per_epoch)
        assert total_steps is not None, "a time becomes steps before there is a trainer: engine/budget.py"
        self.total_steps = total_steps

    # ---------------------------------------------------------------- the loop

    def fit(self) -> None:
        """Train from where progress stands to the end. Raises TrainingError, or Interrupted after saving."""
        self.begin()
        try:
            with self._profiler() as after_step:
                self._fit(after_step)
        except Interrupted as stop:
            self.save(final=True)
            stop.cure = f"refresher resume {self.run} goes on from step {self.progress.step}"
            raise

    def begin(self) -> None:
        """The clocks run from here."""
        self.task.train()
        self._start = time.perf_counter() - self.progress.elapsed
        self._saved_at = self._validated_at = self.progress.elapsed
        self._saved = True  # until a save fails
        self.window.start()

    def _fit(self, after_step: Callable[[], None]) -> None:
        progress, options = self.progress, self.options
        for batches in self.steps():
            if self._due(options.validate_every, self._validated_at) and progress.validated_step != progress.step:
                self.validate()
            elif self._due(options.save_every, self._saved_at):
                self.save()
            if self._done():
                break
            if signum := self._stop_requested():
                raise Interrupted(signum)
            self.advance(batches, lr_factor(self.schedule, progress.step, self.total_steps))
            after_step()
        if len(self.window):
            self._log_window()
        if progress.validated_step != progress.step:
            self.validate()
        if not self._saved:
            self.save(final=True)

    def advance(self, batches: list[Any], factor: float) -> None:
        """One step at `factor` of each learning rate, and what is said of it."""
        progress, options = self.progress, self.options
        self._train_step(batches, factor)
        progress.step += 1
        progress.batch += options.accumulate
        if progress.batch == self.steps_per_epoch * options.accumulate:
            progress.epoch, progress.batch = progress.epoch + 1, 0
        progress.elapsed = self._elapsed()
        if progress.step % options.log_every == 0:
            self._log_window()

    def _train_step(self, batches: list[Any], factor: float) -> None:
        """One optimizer step on the mean gradient of `batches`."""
        if self.world.size > 1:  # else every rank would draw the same dropout
            seed_step(self.seed, self.progress.step, self.world.rank)
        for group, lr in zip(self.optimizer.param_groups, self.base_lrs, strict=True):
            group["lr"] = lr * factor
        self.optimizer.zero_grad()
        for batch in batches:
            with self._share_gradients(batch is batches[-1]):
                with autocast(self.device, self.precision):
                    output = self.forward(batch)
                loss = output.loss if len(batches) == 1 else output.loss / len(batches)
                self.scaler.scale(loss).backward()
            self.window.add(output, len(batch[0]) * self.world.size)
        if self.options.grad_clip is not None or self.options.histograms:
            self.scaler.unscale_(self.optimizer)
        if self.options.grad_clip is not None:
            self.window.add_norm(clip_gradients(self.params, self.options.grad_clip))
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.ema:
            self.ema.update(self.progress.step)

    def steps(self) -> Iterator[list[Any]]:
        """The batches of every step from where progress stands, for ever."""
        size = self.options.accumulate
        while True:
            batches = self.train.batches(self.progress.epoch, self.progress.batch)
            for _ in range(self.steps_per_epoch - self.progress.batch // size):
                yield [next(batches) for _ in range(size)]

    # ---------------------------------------------------------------- looking

    def validate(self) -> None:
        """Evaluate on the validation split; keep the best; save."""
        self.window.pause()
        report = self.evaluate(self.val, "val")
        if self.options.histograms:
            report = {**report, **self._histograms()}
        goal, progress = self.task.goal, self.progress
        value = self.world.from_main(report[f"val/{goal.metric}"])  # ranks may differ by a rounding, and must not in what follows
        assert isinstance(value, float), f"the goal {goal.metric} is not a number"
        if not math.isfinite(value):
            self.sink.warn(f"val/{goal.metric} is {value} at step {progress.step}; it cannot be the best")
        before = progress.best, progress.best_step
        progress.stale = 0 if goal.better(value, progress.best) else progress.stale + 1
        if progress.stale == 0 or value == progress.best:  # of equals, the one that trained longer
            progress.best, progress.best_step = value, progress.step
            self._check_finite()
            with self.ema.applied() if self.ema else nullcontext():
                kept = self._write("best.pt", {"task": whole(self.task.state_dict())})
            if not kept:
                progress.best, progress.best_step = before  # best is what best.pt holds
        if progress.best is not None:
            report = {**report, "val/best": progress.best}
        self.sink.log(report, progress.step)
        progress.validated_step, progress.elapsed = progress.step, self._elapsed()
        self._validated_at = progress.elapsed
        self.save()

    def evaluate(self, loader: Loader, split: str, averaged: bool = True) -> Report:
        """Metrics and pictures of one split, tags `split/...`, under the averaged weights if there are any and they are wanted."""
        with self.ema.applied() if self.ema and averaged else nullcontext(), gathered(self.task):
            return evaluate(self.task, loader, split, device=self.device, precision=self.precision, seed=self.seed, world=self.world)

    def _log_window(self) -> None:
        progress = self.progress
        report = self.window.report(progress.step)
        position = {
            "optim/lr": float(self.optimizer.param_groups[0]["lr"]),
            "progress/epoch": progress.epoch + progress.batch / (self.steps_per_epoch * self.options.accumulate),
            "progress/fraction": min(progress.step / self.total_steps, 1.0),
        }
        self.sink.log({**report, **position}, progress.step)

    def _histograms(self) -> Report:
        named = [(name, whole(p.detach())) for name, p in self.task.named_parameters()]
        grads = [(name, whole(p.grad)) for name, p in self.task.named_parameters() if p.grad is not None]
        return {f"weights/{n}": Histogram(v.float().cpu()) for n, v in named} | {f"grads/{n}": Histogram(v.float().cpu()) for n, v in grads}

    # ---------------------------------------------------------------- keeping

    def save(self, final: bool = False) -> None:
        """last.pt, the one before kept. A failed save costs that save alone, unless it is the last. Raises TrainingError."""
        self._check_finite()
        self.window.pause()
        self.sink.flush()
        self._saved = self._write("last.pt", {**self.state_dict(), "logged": self.run.logged()}, previous="previous.pt")
        self._saved_at = self.progress.elapsed
        self.window.start()
        if final and not self._saved:
            raise TrainingError("the last checkpoint could not be written", key=str(self.run), cure="free some space, and resume the run")

    def _write(self, name: str, state: Mapping[str, Any], previous: str | None = None) -> bool:
        """Whether the checkpoint was written; every rank knows."""
        failed = False
        if self.world.is_main:
            folder = self.run.checkpoints
            try:
                content = {**self.identity, "progress": asdict(self.progress), **state}
                checkpoint.save(content, folder / name, folder / previous if previous else None)
                self.run.write_status("running", step=self.progress.step, goal=self._goal())
            except OSError as error:
                self.sink.warn(f"{name} was not saved at step {self.progress.step} ({error.strerror}); training goes on")
                failed = True
        return not self.world.largest(int(failed), self.device)

    def state_dict(self) -> dict[str, Any]:
        """All that the next step depends on, in plain containers and whole tensors; every rank must call it."""
        return {
            "task": whole(self.task.state_dict()),
            "ema": whole(self.ema.state_dict()) if self.ema else None,
            "optimizer": whole(self.optimizer.state_dict()),
            "scaler": self.scaler.state_dict(),
            "progress": asdict(self.progress),
            "window": self.window.state_dict(),
            "random": random_state(self.device),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The inverse of `state_dict`; shapes have been checked against the task."""
        self.load_weights(state["task"])
        if self.ema:
            self.ema.load_state_dict(state["ema"] if state["ema"] is not None else state["task"])
        restore(self.optimizer, state["optimizer"])
        if state["scaler"]:  # empty where it was not fp16
            self.scaler.load_state_dict(state["scaler"])
        self.progress = Progress(**state["progress"])
        self.window.load_state_dict(state["window"], self.device)
        restore_random_state(state["random"], self.device)

    def load_weights(self, weights: Mapping[str, Tensor]) -> None:
        """Whole weights into the task, sharded or not."""
        current = self.task.state_dict()
        self.task.load_state_dict({name: shard_like(value, current[name]) for name, value in weights.items()})

    def _check_finite(self) -> None:
        """No checkpoint ever holds a NaN. Raises TrainingError naming the step and the tensor."""
        self.window.check_finite(self.progress.step)
        named = [*self.task.named_parameters(), *self.task.named_buffers()]
        named += [(f"ema of {name}", value) for name, value in self.ema.shadow.items()] if self.ema else []
        floats = [(name, value) for name, value in named if value.is_floating_point()]
        shards, others = ([v.detach().float() for _, v in floats if hasattr(v, "device_mesh") == sharded] for sharded in (True, False))
        norms = [float(whole(nn.utils.get_total_norm(values))) for values in (shards, others)]  # torch takes no norm of the two together
        if self.world.largest(int(not math.isfinite(sum(norms))), self.device):
            bad = [name for name, value in floats if not torch.isfinite(whole(value.detach())).all()]
            raise TrainingError(
                f"{bad[0] if bad else 'a norm of all weights'} is not finite after step {self.progress.step}",
                cure=f"a smaller optimizer.lr, or trainer.grad_clip=1; {self.run} can be resumed from its last finite checkpoint",
            )

    # ---------------------------------------------------------------- when

    def _done(self) -> bool:
        """The duration is over, or patience is; every rank agrees."""
        patience = self.options.patience
        return self.progress.step >= self.total_steps or (patience is not None and self.progress.stale >= patience)

    def _elapsed(self) -> float:
        return time.perf_counter() - self._start

    def _due(self, every: Any, last: float) -> bool:
        steps = every.steps(self.steps_per_epoch)
        if steps is not None:
            return self.progress.step % steps == 0
        late = self.progress.elapsed - last >= every.seconds
        return bool(self._ask_ranks(int(late)))

    def _stop_requested(self) -> int:
        return self._ask_ranks(signals.received())

    def _ask_ranks(self, value: int) -> int:
        """The largest over the ranks; several wait for each other every ten steps alone, and have 0 between."""
        return self.world.largest(value, self.device) if self.world.size == 1 or self.progress.step % 10 == 0 else 0

    def _goal(self) -> dict[str, Any]:
        return {**asdict(self.task.goal), "best": self.progress.best, "best_step": self.progress.best_step}

    # ---------------------------------------------------------------- set-up

    def _share_gradients(self, last: bool) -> AbstractContextManager[Any]:
        """Ranks exchange gradients once a step, not once a batch."""
        return nullcontext() if last or not hasattr(self.model, "no_sync") else self.model.no_sync()  # type: ignore[operator]

    @contextmanager
    def _profiler(self) -> Iterator[Callable[[], None]]:
        """What to call after each step; with `profile`, a trace of 20 steps goes to the run's folder."""
        if not self.options.profile or not self.world.is_main:
            yield lambda: None
            return
        from torch.profiler import profile, schedule

        def write(profiler: profile) -> None:
            folder = self.run.path / "profile"
            folder.mkdir(exist_ok=True)
            profiler.export_chrome_trace(str(folder / "trace.json"))
            (folder / "operators.txt").write_text(profiler.key_averages().table(sort_by="self_cpu_time_total", row_limit=40))

        with profile(schedule=schedule(wait=5, warmup=5, active=20, repeat=1), on_trace_ready=write, record_shapes=True) as profiler:
            yield profiler.step
