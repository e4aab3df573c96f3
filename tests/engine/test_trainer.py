"""The laws of the pipeline, on the smallest task that has every kind of state."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from refresher_runner.engine import checkpoint, signals
from refresher_runner.engine.distributed import SINGLE
from refresher_runner.engine.limit import FirstBatches
from refresher_runner.engine.window import Window
from refresher_runner.errors import Interrupted, TrainingError
from refresher_runner.report import Histogram
from refresher_runner.task import Goal, Output
from tests.engine.toy import Points, Toy, ToyLoader, schedule, trainer, weights


def fitted(folder: Path, **changes: object) -> Tensor:
    made = trainer(folder, **changes)  # type: ignore[arg-type]
    made.fit()
    return weights(made.task)


def test_looking_never_changes_training(tmp_path: Path) -> None:
    often = fitted(tmp_path / "a", validate_every="1 steps", histograms=True)
    seldom = fitted(tmp_path / "b", validate_every="20 steps", log_every=1)
    assert torch.equal(often, seldom)


def test_the_sink_sees_every_step_once(tmp_path: Path) -> None:
    made = trainer(tmp_path, duration="12 steps", log_every=5, validate_every="1 epochs")
    made.fit()
    assert [step for step, _ in made.sink.series("train/loss")] == [5, 10, 12]  # type: ignore[attr-defined]
    assert [step for step, _ in made.sink.series("val/loss")] == [8, 12]  # type: ignore[attr-defined]


def test_the_training_curve_is_the_mean_of_its_window(tmp_path: Path) -> None:
    made = trainer(tmp_path, duration="8 steps", log_every=4, make=lambda: Toy(dropout=0.0))
    losses = []
    step = made.forward
    made.forward = lambda batch: losses.append(step(batch)) or losses[-1]
    made.fit()
    logged = made.sink.series("train/loss")  # type: ignore[attr-defined]
    expected = [sum(o.loss.item() for o in losses[i : i + 4]) / 4 for i in (0, 4)]
    assert [value for _, value in logged] == pytest.approx(expected, rel=1e-6)


def test_the_loss_of_a_split_weighs_a_short_last_batch_by_its_size(tmp_path: Path) -> None:
    class Uneven(ToyLoader):
        def __len__(self) -> int:
            return math.ceil(len(self.x) / self.batch_size)

    made = trainer(tmp_path, make=lambda: Toy(dropout=0.0))
    loader = Uneven(20, 8)
    with torch.no_grad():
        whole = made.task.step(Points(loader.x, loader.y)).loss.item()
    assert made.evaluate(loader, "val")["val/loss"] == pytest.approx(whole, rel=1e-6)


@pytest.mark.parametrize("at", [1, 3, 8, 10, 13, 16, 19])
@pytest.mark.parametrize("extra", [{}, {"ema_decay": 0.9, "grad_clip": 0.5, "accumulate": 2}])
def test_resumed_steps_are_uninterrupted_steps_bit_for_bit(tmp_path: Path, at: int, extra: dict[str, object]) -> None:
    straight = trainer(tmp_path / "a", lambda: Toy(batch_norm=True), **extra)  # type: ignore[arg-type]
    straight.fit()
    first = trainer(tmp_path / "b", lambda: Toy(batch_norm=True), **extra)  # type: ignore[arg-type]
    _stop_before(first, at)
    state = checkpoint.load(first.run.checkpoints / "last.pt", "toy")
    torch.manual_seed(99)  # whatever the new process draws first must not matter
    second = trainer(tmp_path / "b", lambda: Toy(batch_norm=True), **extra)  # type: ignore[arg-type]
    second.load_state_dict(state)
    second.fit()
    _assert_same(straight.state_dict(), second.state_dict())
    values = [(s, tag, v) for t in (first, second) for s, report in t.sink.reports for tag, v in report.items()]  # type: ignore[attr-defined]
    expected = [(s, tag, v) for s, report in straight.sink.reports for tag, v in report.items()]  # type: ignore[attr-defined]
    assert _untimed(values) == _untimed(expected)


def test_resuming_without_the_random_state_is_noticed(tmp_path: Path) -> None:
    """The negative control of the law above: its comparison can fail."""
    straight = trainer(tmp_path / "a")
    straight.fit()
    first = trainer(tmp_path / "b")
    _stop_before(first, 7)
    state = checkpoint.load(first.run.checkpoints / "last.pt", "toy")
    second = trainer(tmp_path / "b")
    second.load_state_dict({**state, "random": {**state["random"], "torch": torch.get_rng_state()}})
    second.fit()
    assert not torch.equal(weights(straight.task), weights(second.task))


def test_a_signal_during_an_evaluation_leaves_the_evaluation_to_the_resumed_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    straight = trainer(tmp_path / "a")
    straight.fit()

    class Stopping(ToyLoader):
        def batches(self, epoch: int, start: int = 0):  # type: ignore[no-untyped-def]
            signals._received = 15
            yield from super().batches(epoch, start)

    first = trainer(tmp_path / "b", val=Stopping(32))
    with pytest.raises(Interrupted) as stop:
        first.fit()
    signals._received = 0
    assert stop.value.exit_code == 143
    second = trainer(tmp_path / "b")
    second.load_state_dict(checkpoint.load(first.run.checkpoints / "last.pt", "toy"))
    assert second.progress.step == 10
    second.fit()
    _assert_same(straight.state_dict(), second.state_dict())
    assert second.sink.series("val/loss") == straight.sink.series("val/loss")  # type: ignore[attr-defined]


def test_an_average_changes_no_weight_and_is_what_is_judged(tmp_path: Path) -> None:
    plain = trainer(tmp_path / "a")
    plain.fit()
    averaged = trainer(tmp_path / "b", ema_decay=0.9)
    averaged.fit()
    assert torch.equal(weights(plain.task), weights(averaged.task))
    assert averaged.ema is not None
    best = checkpoint.load(averaged.run.checkpoints / "best.pt")["task"]
    if averaged.progress.best_step == averaged.progress.step:
        assert all(torch.equal(best[name], value) for name, value in averaged.ema.shadow.items())
    assert plain.sink.series("val/loss") != averaged.sink.series("val/loss")  # type: ignore[attr-defined]


def test_the_average_is_the_closed_form(tmp_path: Path) -> None:
    made = trainer(tmp_path, ema_decay=0.5, duration="6 steps", make=lambda: Toy(dropout=0.0))
    seen = [weights(made.task)]
    update = made.ema.update  # type: ignore[union-attr]
    made.ema.update = lambda step: (update(step), seen.append(weights(made.task)))[0]  # type: ignore[union-attr,method-assign]
    made.fit()
    expected = seen[0]
    for step, now in enumerate(seen[1:]):
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * now
    shadow = torch.cat([v.flatten() for v in made.ema.shadow.values()])  # type: ignore[union-attr]
    assert torch.allclose(shadow, expected, atol=1e-6)


def test_a_buffer_that_is_no_statistic_is_not_averaged(tmp_path: Path) -> None:
    """What was measured once, say, is not a mean of itself and of what was there before."""

    def measuring() -> Toy:
        toy = Toy(dropout=0.0, batch_norm=True)
        toy.register_buffer("scale", torch.ones(()))
        return toy

    made = trainer(tmp_path, ema_decay=0.5, duration="3 steps", make=measuring)
    made.task.scale.fill_(5.0)  # type: ignore[operator,union-attr]
    made.fit()
    assert made.ema is not None
    assert "scale" not in made.ema.shadow
    assert "net.1.running_mean" in made.ema.shadow
    with made.ema.applied():
        assert made.task.scale == 5.0


def test_what_batch_norm_has_seen_is_averaged_with_the_weights(tmp_path: Path) -> None:
    made = trainer(tmp_path, ema_decay=0.5, duration="6 steps", make=lambda: Toy(dropout=0.0, batch_norm=True))
    assert made.ema is not None
    norm, update, expected = made.task.net[1], made.ema.update, torch.zeros(())  # type: ignore[index]

    def followed(step: int) -> None:
        nonlocal expected
        update(step)
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * norm.running_mean

    made.ema.update = followed  # type: ignore[method-assign]
    made.fit()
    assert torch.allclose(made.ema.shadow["net.1.running_mean"], expected, atol=1e-6)
    raw = norm.running_mean.clone()
    with made.ema.applied():
        assert not torch.equal(norm.running_mean, raw)
        assert torch.allclose(norm.running_mean, expected, atol=1e-6)
    assert torch.equal(norm.running_mean, raw)


def test_two_batches_of_eight_are_one_of_sixteen(tmp_path: Path) -> None:
    two = fitted(tmp_path / "a", accumulate=2, train=ToyLoader(batch_size=8), make=lambda: Toy(dropout=0.0))
    one = fitted(tmp_path / "b", train=ToyLoader(batch_size=16), make=lambda: Toy(dropout=0.0))
    assert torch.allclose(two, one, atol=1e-6)


def test_a_run_of_two_lengths_is_one(tmp_path: Path) -> None:
    """10 + 10 = 20, with a schedule that does not depend on the length."""
    constant = schedule(schedule="constant")
    straight = fitted(tmp_path / "a", schedule=constant, duration="20 steps")
    first = trainer(tmp_path / "b", schedule=constant, duration="10 steps")
    first.fit()
    second = trainer(tmp_path / "b", schedule=constant, duration="20 steps")
    second.load_state_dict(checkpoint.load(first.run.checkpoints / "last.pt"))
    second.fit()
    assert torch.equal(straight, weights(second.task))


def test_a_resume_keeps_the_optimizer_s_new_options(tmp_path: Path) -> None:
    first = trainer(tmp_path / "a", decay=0.5, duration="10 steps")
    first.fit()
    state = checkpoint.load(first.run.checkpoints / "last.pt")

    def resumed(folder: str, decay: float) -> Tensor:
        made = trainer(tmp_path / folder, decay=decay)
        made.load_state_dict(state)
        assert made.optimizer.param_groups[0]["weight_decay"] == decay
        made.fit()
        return weights(made.task)

    assert resumed("b", 10.0).norm() < resumed("c", 0.5).norm()


def test_a_resume_may_change_the_precision(tmp_path: Path) -> None:
    state = trainer(tmp_path).state_dict()
    scaled = trainer(tmp_path)
    scaled.scaler = torch.amp.GradScaler("cpu", enabled=True)  # as fp16 has it
    scaled.load_state_dict(state)
    trainer(tmp_path).load_state_dict(scaled.state_dict())


def test_the_speed_of_a_window_counts_its_seconds_before_a_resume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr("time.perf_counter", lambda: now)
    before = Window(SINGLE)
    before.start()
    for _ in range(3):
        before.add(Output(torch.ones(())), 8)
        now += 2.0
    state = before.state_dict()
    after = Window(SINGLE)
    now += 100.0  # between two sittings
    after.load_state_dict(state, torch.device("cpu"))
    after.start()
    after.add(Output(torch.ones(())), 8)
    now += 2.0
    after.pause()
    now += 50.0  # a save
    after.pause()
    assert after.report(4)["speed/seconds_per_step"] == pytest.approx(2.0)


def test_a_save_is_no_training_time(tmp_path: Path) -> None:
    made = trainer(tmp_path, duration="7 steps", validate_every="3 steps")
    running: list[bool] = []
    write = made._write

    def watched(*args: Any, **kwargs: Any) -> bool:
        running.append(made.window._since is not None)
        return write(*args, **kwargs)

    made._write = watched  # type: ignore[method-assign]
    made.fit()
    made.save()
    assert running
    assert not any(running)


def test_best_is_the_best_and_patience_ends_a_run(tmp_path: Path) -> None:
    class Worse(Toy):
        goal = Goal("rmse", "max")  # training makes it fall, so the first evaluation stays the best

    made = trainer(tmp_path, lambda: Worse(0.0), validate_every="1 steps", patience=3, duration="20 steps")
    made.fit()
    series = made.sink.series("val/rmse")  # type: ignore[attr-defined]
    assert made.progress.best == max(value for _, value in series)
    assert made.progress.step == made.progress.best_step + 3
    status = json.loads(made.run.status.read_text())
    assert status["goal"]["best"] == made.progress.best


@pytest.mark.parametrize("where", ["loss", "gradient", "weight", "average", "buffer"])
@pytest.mark.parametrize("at", [1, 5, 6, 13])
def test_the_first_nan_ends_the_run_and_reaches_no_checkpoint(tmp_path: Path, where: str, at: int) -> None:
    made = trainer(tmp_path, lambda: Toy(batch_norm=True), ema_decay=0.9, validate_every="4 steps")
    step = made._train_step

    def poisoned(batches: list[Points], factor: float) -> None:
        count = made.progress.step + 1
        if count == at and where == "loss":
            batches = [Points(b.x * float("nan"), b.y) for b in batches]
        if count == at and where == "gradient":
            made.task.net[0].weight.register_hook(lambda g: g * float("inf"))  # type: ignore[union-attr,operator]
        step(batches, factor)
        with torch.no_grad():
            if count == at and where == "weight":
                made.task.net[0].weight[0, 0] = float("nan")  # type: ignore[index,union-attr]
            if count == at and where == "average":
                made.ema.shadow["net.0.bias"][0] = float("inf")  # type: ignore[union-attr]
            if count == at and where == "buffer":
                made.task.net[1].running_mean[0] = float("nan")  # type: ignore[index,union-attr]

    made._train_step = poisoned  # type: ignore[method-assign]
    with pytest.raises(TrainingError, match=r"not finite (at|after) step \d+") as raised:
        made.fit()
    assert raised.value.exit_code == 1
    if where == "loss":
        assert f"step {at}" in str(raised.value)
    for file in made.run.checkpoints.glob("*.pt"):
        for value in checkpoint.load(file)["task"].values():
            assert torch.isfinite(value.float()).all()


@pytest.mark.parametrize("mode", ["min", "max"])
def test_nan_is_never_the_best(tmp_path: Path, mode: str) -> None:
    for value in (math.nan, math.inf, -math.inf):
        assert not Goal("loss", mode).better(value, None)  # type: ignore[arg-type]
        assert not Goal("loss", mode).better(value, 1.0)  # type: ignore[arg-type]
    assert Goal("loss", mode).better(1.0, None)  # type: ignore[arg-type]

    class Nan:
        def update(self, preds: object, targets: object) -> None: ...
        def compute(self) -> Tensor:
            return torch.tensor(float("nan"))

    class Judged(Toy):
        goal = Goal("score", mode)  # type: ignore[arg-type]

        def metrics(self) -> dict[str, Nan]:  # type: ignore[override]
            return {"score": Nan()}

    made = trainer(tmp_path, Judged)
    made.fit()
    assert made.progress.best is None
    assert not (made.run.checkpoints / "best.pt").exists()
    assert any("val/score is nan" in text for text in made.sink.warnings)  # type: ignore[attr-defined]


def test_durations_count_steps_and_epochs_and_looks_are_timed_too(tmp_path: Path) -> None:
    epochs = trainer(tmp_path / "a", duration="3 epochs", accumulate=2)
    epochs.fit()
    assert (epochs.progress.step, epochs.progress.epoch, epochs.progress.batch) == (12, 3, 0)
    timed = trainer(tmp_path / "b", duration="400 steps", validate_every="0.05 seconds", save_every="0.03 seconds")
    timed.fit()
    assert 2 <= len(timed.sink.series("val/loss")) < 400  # type: ignore[attr-defined]
    assert timed.progress.elapsed >= 0.05 * (len(timed.sink.series("val/loss")) - 1)  # type: ignore[attr-defined]


def test_overfitting_sees_the_same_batches_for_ever(tmp_path: Path) -> None:
    same = FirstBatches(ToyLoader(), 2, always_epoch=0)
    made = trainer(
        tmp_path,
        lambda: Toy(0.0),
        train=same,
        val=same,
        duration="200 steps",
        validate_every="200 steps",
        schedule=schedule(warmup_steps=0),
    )
    before = made.evaluate(same, "val")["val/loss"]
    made.fit()
    assert made.progress.best < 0.5 * before  # type: ignore[operator]
    assert len(FirstBatches(ToyLoader(), 100)) == 8
    assert [b.x[0, 0].item() for b in FirstBatches(ToyLoader(), 3).batches(1, 1)] == [
        b.x[0, 0].item() for b in list(ToyLoader().batches(1))[1:3]
    ]


def test_a_failed_save_costs_that_save_alone(tmp_path: Path) -> None:
    made = trainer(tmp_path, validate_every="5 steps", duration="15 steps")
    folder = made.run.checkpoints
    log = made.sink.log

    def log_and_break(report: dict[str, Any], step: int) -> None:  # type: ignore[type-arg]
        log(report, step)
        if "val/loss" in report and step == 5:
            folder.rename(folder.with_name("gone"))
        if "val/loss" in report and step == 10:
            folder.mkdir()

    made.sink.log = log_and_break  # type: ignore[method-assign,assignment]
    made.fit()
    assert any("last.pt was not saved at step 5" in text for text in made.sink.warnings)  # type: ignore[attr-defined]
    assert checkpoint.load(folder / "last.pt")["progress"]["step"] == 15


def test_histograms_hold_weights_and_gradients(tmp_path: Path) -> None:
    made = trainer(tmp_path, histograms=True)
    made.fit()
    (_, shown), *_ = made.sink.series("grads/net.0.weight")  # type: ignore[attr-defined]
    assert isinstance(shown, Histogram)
    assert shown.values.shape == (8, 4)


def test_histograms_hold_gradients_as_the_optimizer_sees_them(tmp_path: Path) -> None:
    plain, scaled = (trainer(tmp_path / name, lambda: Toy(0.0), histograms=True, duration="3 steps") for name in ("a", "b"))
    scaled.scaler = torch.amp.GradScaler("cpu", enabled=True)  # as fp16 has it
    (expected,), (shown,) = ((made.fit(), made.sink.series("grads/net.0.weight"))[1] for made in (plain, scaled))  # type: ignore[attr-defined]
    assert torch.allclose(torch.as_tensor(expected[1].values), torch.as_tensor(shown[1].values), rtol=1e-3, atol=1e-6)


def test_profile_writes_a_trace(tmp_path: Path) -> None:
    made = trainer(tmp_path, profile=True, duration="40 steps")
    made.fit()
    assert json.loads((tmp_path / "profile" / "trace.json").read_text())["traceEvents"]


def test_compiled_and_plain_checkpoints_interchange(tmp_path: Path) -> None:
    names = set(trainer(tmp_path, compile=True).state_dict()["task"])
    assert names == set(trainer(tmp_path).state_dict()["task"])


def test_output_parts_reach_the_report(tmp_path: Path) -> None:
    made = trainer(tmp_path)
    made.fit()
    assert made.sink.series("train/rmse")  # type: ignore[attr-defined]
    assert made.sink.series("val/noise")  # type: ignore[attr-defined]
    assert isinstance(Output(torch.zeros(())).parts, dict)


def _stop_before(made, at: int) -> None:  # type: ignore[no-untyped-def]
    """A SIGTERM that arrives while step number `at` is being prepared."""
    step = made._train_step

    def counted(batches: list[Points], factor: float) -> None:
        step(batches, factor)
        if made.progress.step + 1 == at:
            signals._received = 15

    made._train_step = counted
    try:
        with pytest.raises(Interrupted):
            made.fit()
    finally:
        signals._received = 0
    assert made.progress.step == at


def _untimed(values: list[tuple[int, str, object]]) -> list[tuple[int, str, object]]:
    return sorted((v for v in values if not v[1].startswith("speed/")), key=lambda v: v[:2])


def _assert_same(a: object, b: object, at: str = "") -> None:
    if isinstance(a, dict):
        assert isinstance(b, dict)
        assert a.keys() == b.keys(), at
        for key in a:
            if key != "elapsed":
                _assert_same(a[key], b[key], f"{at}.{key}")
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b), at  # type: ignore[arg-type]
        for i, (x, y) in enumerate(zip(a, b, strict=True)):  # type: ignore[arg-type]
            _assert_same(x, y, f"{at}.{i}")
    elif isinstance(a, Tensor):
        assert torch.equal(a, b), at  # type: ignore[arg-type]
    else:
        assert a == b, at
