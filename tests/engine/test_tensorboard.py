"""TensorBoard shows what was logged, each tag and step once, whatever happened to the run: as its own readers see it."""

from __future__ import annotations

import io
import json
import math
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
from tensorboard.plugins.hparams import metadata as hparams_metadata
from tensorboard.util import tensor_util
from torch import nn

from refresher_runner.engine.figures import Gallery, draw
from refresher_runner.engine.hparams import session_start
from refresher_runner.engine.metrics_file import JSONLines
from refresher_runner.engine.metrics_file import rewind as rewind_lines
from refresher_runner.engine.tensorboard import TensorBoard, rebuild
from refresher_runner.report import Curve, Embedding, Histogram, Images, Matrix, PRCurve, Report, Text
from refresher_runner.task import Output, Task
from tests.engine.test_metrics_file import end_of
from tests.engine.toy import Toy, ToyLoader

NAMES = ("cat", "dog")
Events = dict[tuple[str, int], Any]
CONFIG = {
    "optimizer.lr": 0.1,
    "trainer.compile": False,
    "model.name": "cnn",
    "data.name": "digits",
    "model.channels": [16, 32],
    "trainer.patience": None,
}
CONFIG |= {"seed": 3, "outputs": "here"}


def report_at(step: int) -> Report:
    """A report as a trainer makes it: curves every 5 steps, an evaluation with everything every 10."""
    generator = torch.Generator().manual_seed(step)
    if step == 0:
        return {"config": Text("seed: 0"), "summary": Text("| a |\n|---|")}
    report: dict[str, Any] = {"train/loss": 1 / step, "optim/lr": 0.1 if step % 3 else math.nan}
    if step % 10 == 0:
        counts = torch.randint(0, 50, (4, 2, 11), generator=generator)
        report |= {
            "val/loss": 2 / step,
            "val/best": 2 / step,
            "val/confusion_matrix": Matrix(counts[0, :, :2], NAMES, NAMES),
            "val/curve": Curve(torch.arange(3.0), {"y": torch.rand(3, generator=generator)}),
            "val/pr_curve": PRCurve(NAMES, torch.linspace(0, 1, 11), *counts.unbind()),
            "val/samples": Images(torch.rand(2, 1, 8, 8, generator=generator), NAMES),
            "weights/w": Histogram(torch.randn(50, generator=generator)),
            "val/vectors": Embedding(torch.rand(5, 3, generator=generator), tuple("abcde"), torch.rand(5, 1, 8, 8, generator=generator)),
        }
    return report


class Run:
    """The two records that must agree."""

    def __init__(self, folder: Path):
        self.folder, self.truth = folder / "tensorboard", folder / "metrics.jsonl"
        self.warnings: list[str] = []

    def board(self) -> TensorBoard:
        return TensorBoard(self.folder, Gallery(), self.warnings.append)

    def train(self, start: int, end: int) -> None:
        loggers = (JSONLines(self.truth), self.board())
        if start == 0:
            loggers[1].begin(Toy(), None, config=CONFIG, graph=False)
        for step in range(start, end + 1, 5):
            for logger in loggers:
                logger.log(report_at(step), step)
        for logger in loggers:
            logger.close()

    def rewind(self, step: int) -> None:
        rewind_lines(self.truth, end_of(self.truth, step))
        rebuild(self.folder, self.truth, CONFIG)

    def events(self) -> Events:
        """Every value in every file, as bytes; two of one tag and step are an error."""
        found = [
            ((value.tag, event.step), value.SerializeToString())
            for path in sorted(self.folder.glob("*tfevents*"))
            for event in EventFileLoader(str(path)).Load()
            for value in event.summary.value
        ]
        twice = [key for key, count in Counter(key for key, _ in found).items() if count > 1]
        assert not twice
        return dict(found)

    def accumulated(self) -> EventAccumulator:
        return EventAccumulator(str(self.folder), size_guidance=dict.fromkeys(("scalars", "images", "histograms", "tensors"), 0)).Reload()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run that nothing happened to."""
    run = Run(tmp_path_factory.mktemp("whole"))
    run.train(0, 40)
    return run


@pytest.fixture
def cut(whole: Run, tmp_path: Path) -> Run:
    """A copy of it that can be damaged."""
    shutil.copytree(whole.folder.parent, tmp_path / "cut")
    return Run(tmp_path / "cut")


# -------------------------------------------------------------------- what is shown


def test_scalars_are_what_was_logged(whole: Run) -> None:
    seen = whole.accumulated()
    assert [(e.step, e.value) for e in seen.Scalars("val/loss")] == [(s, float(np.float32(2 / s))) for s in (10, 20, 30, 40)]
    assert [e.step for e in seen.Scalars("train/loss")] == list(range(5, 41, 5))
    assert [math.isnan(e.value) for e in seen.Scalars("optim/lr")] == [s % 3 == 0 for s in range(5, 41, 5)]


def test_pictures_are_those_of_the_figures(whole: Run) -> None:
    seen = whole.accumulated()
    for tag in ("val/confusion_matrix", "val/curve", "val/samples"):
        for event in seen.Images(tag):
            png = draw(report_at(event.step)[tag], tag)
            assert png is not None
            shown, drawn = (np.asarray(Image.open(io.BytesIO(b))) for b in (event.encoded_image_string, png))
            assert np.array_equal(shown, drawn)
        assert [event.step for event in seen.Images(tag)] == [10, 20, 30, 40]


def test_precision_and_recall_have_their_own_tab(whole: Run) -> None:
    seen = whole.accumulated()
    assert set(seen.PluginTagToContent("pr_curves")) == {"val/pr_curve/cat", "val/pr_curve/dog"}
    event = seen.Tensors("val/pr_curve/dog")[0]
    curve = report_at(10)["val/pr_curve"]
    assert isinstance(curve, PRCurve)
    tp, fp, tn, fn, precision, recall = tensor_util.make_ndarray(event.tensor_proto)
    assert np.array_equal(tp, curve.true_positives[1].numpy())
    assert np.array_equal(tn, curve.true_negatives[1].numpy())
    assert np.allclose(precision, np.where(tp + fp > 0, tp / np.maximum(tp + fp, 1), 1))
    assert np.allclose(recall, tp / np.maximum(tp + fn, 1))


def test_text_and_histograms_have_theirs(whole: Run) -> None:
    seen = whole.accumulated()
    assert tensor_util.make_ndarray(seen.Tensors("config/text_summary")[0].tensor_proto).item() == b"seed: 0"
    assert seen.Histograms("weights/w")[0].histogram_value.num == 50


def test_a_histogram_of_nothing_finite_is_no_error(tmp_path: Path) -> None:
    run = Run(tmp_path)
    board = run.board()
    board.log({"grads/w": Histogram(torch.tensor([math.nan, math.inf])), "grads/v": Histogram(torch.tensor([math.nan, 2.0]))}, 1)
    board.close()
    assert run.accumulated().Histograms("grads/v")[0].histogram_value.num == 1


def test_the_projector_finds_vectors_labels_and_sprites(whole: Run) -> None:
    from tensorboard.plugins.projector.projector_plugin import _read_tensor_tsv_file

    folder = whole.folder / "projector" / "val_vectors"
    config = (whole.folder / "projector_config.pbtxt").read_text()
    assert config.count("embeddings {") == 1
    for name in ("tensors.tsv", "metadata.tsv", "sprite.png"):
        assert f'"projector/val_vectors/{name}"' in config
    shown = report_at(40)["val/vectors"]
    assert isinstance(shown, Embedding)
    assert np.allclose(_read_tensor_tsv_file(str(folder / "tensors.tsv")), shown.vectors, atol=1e-5)
    assert (folder / "metadata.tsv").read_text().split() == list("abcde")
    with Image.open(folder / "sprite.png") as image:
        sprite = np.asarray(image)
    assert sprite.shape == (24, 24, 3)  # five of 8 x 8 on a board of 3 x 3
    assert shown.images is not None
    assert np.array_equal(sprite[8:16, 8:16, 0], (shown.images[4, 0] * 255).round().numpy())


def test_sprites_fit_into_a_browser(tmp_path: Path) -> None:
    board = Run(tmp_path).board()
    board.log({"long": Embedding(torch.rand(9, 2), tuple("abcdefghi"), torch.rand(9, 1, 2800, 24))}, 1)
    board.close()
    with Image.open(tmp_path / "tensorboard" / "projector" / "long" / "sprite.png") as sprite:
        assert 8000 < max(sprite.size) <= 8192


def test_vectors_may_be_coloured_by_a_group(tmp_path: Path) -> None:
    board = Run(tmp_path).board()
    board.log({"items": Embedding(torch.rand(2, 3), ("Toy\tStory", "Heat"), groups=("Animation", "Crime"))}, 1)
    board.close()
    [file] = tmp_path.rglob("metadata.tsv")
    assert file.read_text(encoding="utf-8").splitlines() == ["label\tgroup", "Toy Story\tAnimation", "Heat\tCrime"]


def test_hparams_are_of_the_run_itself(cut: Run) -> None:
    """From its beginning: its configuration but for the seed, in a group with the runs that differ in that alone."""
    assert [path.name for path in cut.folder.iterdir() if path.is_dir()] == ["projector"]
    content = cut.accumulated().summary_metadata
    start = hparams_metadata.parse_session_start_info_plugin_data(content[hparams_metadata.SESSION_START_INFO_TAG].plugin_data.content)
    assert {key: value.number_value or value.string_value for key, value in start.hparams.items()} == {
        "optimizer.lr": 0.1,
        "trainer.compile": "False",
        "model.name": "cnn",
        "data.name": "digits",
        "model.channels": "[16, 32]",
    }
    groups = [session_start({**CONFIG, **other}).metadata.plugin_data.content for other in ({}, {"seed": 4}, {"trainer.patience": 1})]
    names = [hparams_metadata.parse_session_start_info_plugin_data(group).group_name for group in groups]
    assert names[0] == names[1] == start.group_name
    assert names[0].startswith("cnn on digits ")
    assert names[2] != names[0]
    assert hparams_metadata.EXPERIMENT_TAG not in content, "columns of one run would hide what other runs have"


def test_the_graph_of_a_model(tmp_path: Path) -> None:
    run = Run(tmp_path)
    board = run.board()
    task = Toy(batch_norm=True)
    before = {name: value.clone() for name, value in task.state_dict().items()}
    state = torch.get_rng_state()
    board.begin(task, next(ToyLoader().batches(0)), config=CONFIG, graph=True)
    board.close()
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in task.state_dict().items())
    assert task.training
    assert any("Linear" in node.name for node in run.accumulated().Graph().node)
    rebuild(run.folder, run.truth, CONFIG)
    assert any("Linear" in node.name for node in run.accumulated().Graph().node)
    assert not run.warnings


class Wordy(Task):
    """What no tracer takes."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(2, 1)

    def step(self, batch: Any) -> Output:
        return Output(self.net(batch[0]).mean())


def test_a_model_without_a_graph_is_warned_of(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = Run(tmp_path)
    board = run.board()
    board.begin(Wordy(), (torch.ones(1, 2), object()), config=CONFIG, graph=True)
    board.close()
    assert len(run.warnings) == 1


# -------------------------------------------------------------------- exactly once


@pytest.mark.parametrize("step", [0, 7, 20, 40])
def test_resumed_is_as_if_never_stopped(whole: Run, cut: Run, step: int) -> None:
    cut.rewind(step)
    assert cut.events() == {key: value for key, value in whole.events().items() if key[1] <= step}
    cut.train(step - step % 5 + 5, 40)
    assert cut.events() == whole.events()
    cut.rewind(-1)
    assert cut.events() == {}


def test_an_earlier_end_is_gone(cut: Run) -> None:
    for _ in range(2):
        board = cut.board()
        board.finish({})
        board.close()
        assert (hparams_metadata.SESSION_END_INFO_TAG, 0) in cut.events()
        cut.rewind(40)
        assert (hparams_metadata.SESSION_END_INFO_TAG, 0) not in cut.events()
        assert (hparams_metadata.SESSION_START_INFO_TAG, 0) in cut.events()


def test_a_damaged_event_file_costs_pictures_of_samples_at_most(whole: Run, cut: Run) -> None:
    expected = whole.events()
    kept_nowhere_else = {key for key in expected if key[0] in ("val/samples", "weights/w")}
    path = next(cut.folder.glob("*tfevents*"))
    content = path.read_bytes()
    generator = np.random.default_rng(0)
    cuts = [content[:n] for n in (0, 11, len(content) // 2, len(content) - 1)]
    flips = []
    for _ in range(4):
        flipped = bytearray(content)
        flipped[generator.integers(len(content))] ^= 1 << generator.integers(8)
        flips.append(bytes(flipped))
    for damaged in [*cuts, *flips, b"\0" * 5000, content + b"half a record"]:
        for old in cut.folder.glob("*tfevents*"):
            old.unlink()
        path.write_bytes(damaged)
        rebuild(cut.folder, cut.truth, CONFIG)
        found = cut.events()
        assert found.keys() <= expected.keys()
        assert expected.keys() - found.keys() <= kept_nowhere_else
        assert all(found[key] == expected[key] for key in found)


def test_killed_while_rebuilding(whole: Run, cut: Run) -> None:
    """The folder at each moment of a rebuild, and after another of it."""
    expected = {key: value for key, value in whole.events().items() if key[1] <= 20}
    old = next(cut.folder.glob("*tfevents*"))
    content = old.read_bytes()
    cut.rewind(20)
    new = next(cut.folder.glob("*tfevents*"))
    assert new.name > old.name
    rebuilt = new.read_bytes()
    moments = [(b"", False, True), (rebuilt[:5000], False, True), (rebuilt, False, True), (None, True, True), (None, True, False)]
    for aside, has_new, has_old in moments:
        for path in cut.folder.glob("*tfevents*"):
            path.unlink()
        for path, is_there, text in ((new, has_new, rebuilt), (old, has_old, content)):
            if is_there:
                path.write_bytes(text)
        if aside is not None:
            (cut.folder / "rebuilding").write_bytes(aside)
        rebuild(cut.folder, cut.truth, CONFIG)
        assert cut.events() == expected
        assert len(list(cut.folder.glob("*tfevents*"))) == 1
        assert not (cut.folder / "rebuilding").exists()


def test_the_clock_may_go_back(whole: Run, cut: Run) -> None:
    lines = [json.loads(line) for line in cut.truth.read_text().splitlines()]
    cut.truth.write_text("".join(json.dumps({**line, "time": line["time"] + 3600}) + "\n" for line in lines))
    cut.rewind(20)
    cut.train(25, 40)
    assert [e.step for e in cut.accumulated().Scalars("train/loss")] == list(range(5, 41, 5))
    assert cut.events() == whole.events()


def test_events_keep_the_time_they_were_logged_at(cut: Run) -> None:
    times = {line["step"]: line["time"] for line in map(json.loads, cut.truth.read_text().splitlines())}
    rebuild(cut.folder, cut.truth, CONFIG)
    assert all(event.wall_time == times[event.step] for event in cut.accumulated().Scalars("train/loss"))


def test_tensorboard_that_is_looking_goes_on_to_the_rebuilt_file(cut: Run) -> None:
    """The reader that `refresher tensorboard` starts, while a run is resumed under its eyes."""
    server = pytest.importorskip("tensorboard_data_server")
    with _served(server.server_binary(), cut.folder.parent) as read:
        assert read("train/loss", 8) == list(range(5, 41, 5))
        cut.rewind(20)
        cut.train(25, 60)
        assert read("train/loss", 12) == list(range(5, 61, 5))


class _served:
    """TensorBoard's data server on a folder; `read(tag, n)` waits until it shows n points, and gives their steps."""

    def __init__(self, binary: str, folder: Path):
        self.binary, self.folder = binary, folder

    def __enter__(self) -> Any:
        import grpc
        from tensorboard import context
        from tensorboard.data import grpc_provider, provider

        port_file = self.folder / "port"
        command = [
            self.binary,
            f"--logdir={self.folder}",
            "--reload=1",
            "--port=0",
            f"--port-file={port_file}",
            "--samples-per-plugin=scalars=all",
        ]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self.channel: Any = None
        for _ in _patiently():
            if port_file.is_file() and port_file.read_text().strip():
                break
        self.channel = grpc.insecure_channel(f"localhost:{port_file.read_text().strip()}")
        source = grpc_provider.make_stub(self.channel)
        data = grpc_provider.GrpcDataProvider("localhost", source)

        def read(tag: str, count: int) -> list[int]:
            steps: list[int] = []
            for _ in _patiently():
                run_tags = provider.RunTagFilter(runs=["tensorboard"], tags=[tag])
                found = data.read_scalars(
                    context.RequestContext(), experiment_id="", plugin_name="scalars", downsample=1000, run_tag_filter=run_tags
                )
                steps = [point.step for point in found.get("tensorboard", {}).get(tag, [])]
                if len(steps) == count:
                    break
            return steps

        return read

    def __exit__(self, *error: object) -> None:
        if self.channel is not None:
            self.channel.close()
        self.process.kill()
        self.process.wait()


def _patiently() -> Iterator[None]:
    end = time.monotonic() + 20
    while time.monotonic() < end:
        yield
        time.sleep(0.1)


CHILD = """
import sys
from pathlib import Path
from tests.engine.test_tensorboard import Run
run = Run(Path(sys.argv[1]))
run.rewind(int(sys.argv[2]))
print("ready", flush=True)
run.train(int(sys.argv[2]) + 5, 1000)
"""


@pytest.mark.slow
def test_killed_at_any_instant(tmp_path: Path) -> None:
    """Six kills of one run, each resumed ten steps before the last line: every tag and step once in both records."""
    run, reached = Run(tmp_path), -5
    run.folder.mkdir()
    for k in range(6):
        process = subprocess.Popen([sys.executable, "-c", CHILD, str(tmp_path), str(reached)], stdout=subprocess.PIPE)
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        time.sleep(1.0 + 0.13 * k)
        process.kill()
        process.wait()
        process.stdout.close()
        lines = run.truth.read_text().splitlines() if run.truth.is_file() else []
        reached = max(-5, 5 * (len(lines) - 3))
    run.rewind(reached)
    assert reached >= 10
    expected = Run(tmp_path / "expected")
    expected.train(0, reached)
    assert run.events() == expected.events()
