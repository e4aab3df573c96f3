"""What detectors share, on one whose boxes are fixed."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from refresher_runner.engine.evaluate import evaluate
from refresher_runner.errors import DataError
from refresher_runner.nn.detect import CONTENDERS, FLOOR, MOST, SHOWN, Detector, clip, truths
from refresher_runner.nn.pictures import READABLE, colour, draw_boxes, enlargement, side_by_side
from refresher_runner.report import Images, Matrix, PRCurve, Report
from refresher_runner.spec import DetectionBatch, DetectionSpec

SPEC = DetectionSpec(3, 64, ("cat", "dog", "bird"))
BOXES = [[8.0, 19.2, 40.0, 35.2], [10.0, 20.0, 40.0, 35.2], [30.0, 10.0, 80.0, 60.0], [0.0, 0.0, 64.0, 16.0], [1.0, 20.0, 9.0, 30.0]]
SCORES = [[0.9, 0.0, 0.0], [0.8, 0.0, 0.0], [0.0, 0.0, 0.6], [0.0, 0.5, 0.0], [0.2, 0.0, 0.0]]


class Eye(nn.Module):
    """Sees the same everywhere, but moves a buffer in training as batch norm does."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))
        self.norm = nn.BatchNorm2d(3)

    def forward(self, images: Tensor) -> Tensor:
        return self.norm(images).mean((1, 2, 3)) * self.weight


class Fixed(Detector):
    """Boxes of every picture, whatever is in it."""

    def __init__(self, boxes: Any = BOXES, scores: Any = SCORES, spec: DetectionSpec = SPEC, iou: float = 0.5):
        super().__init__(spec, Eye(), iou)
        self.boxes, self.scores = torch.as_tensor(boxes), torch.as_tensor(scores)

    def loss(self, raw: Tensor, batch: DetectionBatch) -> tuple[Tensor, Mapping[str, Tensor]]:
        return raw.square().mean(), {"size": raw.detach().abs().mean()}

    def decode(self, raw: Tensor) -> tuple[Tensor, Tensor]:
        return self.boxes.expand(len(raw), -1, -1), self.scores.expand(len(raw), -1, -1)


@pytest.fixture
def task() -> Detector:
    return Fixed().eval()


def scene(pictures: int = 10) -> DetectionBatch:
    """The first has no box, the second has one, the third has four."""
    owners = torch.tensor([1, 2, 2, 2, 2])
    boxes = torch.tensor([BOXES[0], BOXES[0], BOXES[2], [0.0, 40, 8, 60], [50.0, 2, 60, 12]]).clamp(max=64)
    return DetectionBatch(torch.rand(pictures, 3, 64, 64), boxes, torch.tensor([0, 0, 2, 1, 1]), owners)


# -------------------------------------------------------------------- suppression


def overlap(one: list[float], other: list[float]) -> float:
    """Intersection over union."""
    both = math.prod(max(min(one[k + 2], other[k + 2]) - max(one[k], other[k]), 0) for k in (0, 1))
    area = [(b[2] - b[0]) * (b[3] - b[1]) for b in (one, other)]
    return both / (sum(area) - both)


def test_suppression_by_hand(task: Detector):
    """The second box covers the first by 450 of 512; the third ends where the picture does; the fourth is of another class."""
    assert overlap(BOXES[0], BOXES[1]) == pytest.approx(30 * 15.2 / 512)
    [found] = task.suppress(task.boxes[None], task.scores[None])  # type: ignore[index]
    assert found.scores.tolist() == pytest.approx([0.9, 0.6, 0.5, 0.2])
    assert found.labels.tolist() == [0, 2, 1, 0]
    assert found.boxes[1].tolist() == [30, 10, 64, 60]
    assert found.above(0.5).labels.tolist() == [0, 2, 1]


@pytest.mark.parametrize("n", [60, 800], ids=["all classes at once", "class by class"])  # torchvision's two ways
@pytest.mark.parametrize("iou", [0.3, 0.6])
def test_suppression_against_a_loop(n: int, iou: float):
    """Keep the likeliest, strike what overlaps it in its class, again and again; many boxes begin outside the picture."""
    corner = torch.rand(2, n, 2) * 80 - 20
    boxes, scores = torch.cat([corner, corner + 5 + torch.rand(2, n, 2) * 30], -1), torch.rand(2, n, 3)
    found = Fixed(iou=iou).suppress(boxes, scores)
    for box, score, seen in zip(boxes.clamp(0, 64).tolist(), scores.tolist(), found, strict=True):
        kept: list[tuple[float, int, list[float]]] = []
        for s, k, b in sorted(((s, k, b) for b, row in zip(box, score, strict=True) for k, s in enumerate(row)), reverse=True):
            inside = b[2] > b[0] and b[3] > b[1]
            if inside and s > FLOOR and all(k != label or overlap(b, other) <= iou for _, label, other in kept):
                kept.append((s, k, b))
        kept = kept[:MOST]
        assert seen.labels.tolist() == [k for _, k, _ in kept]
        assert seen.scores.tolist() == [s for s, _, _ in kept]
        assert seen.boxes.tolist() == [b for _, _, b in kept]


def test_what_is_no_box_is_not_found():
    """Outside, inside out, a line, not a number, or without end."""
    bad = [[70.0, 0, 90, 9], [-9.0, 0, 0, 9], [9.0, 9, 3, 3], [5.0, 5, 5, 9], [math.nan, 0, 5, 5], [math.inf, 0, math.inf, 5]]
    boxes, scores = torch.tensor([[*bad, [-math.inf, 0, math.inf, 5]]]), torch.full((1, 7, 3), 0.5)
    scores[0, :, 1:] = torch.tensor([math.nan, 0.0])
    [found] = Fixed().suppress(boxes, scores)
    assert (found.boxes.tolist(), found.scores.tolist(), found.labels.tolist()) == ([[0, 0, 64, 5]], [0.5], [0])


def test_clip_by_hand():
    boxes, inside = clip(torch.tensor([[-1.0, 2, 8, 9], [10.0, 0, 12, 2]]), height=6, width=7)
    assert boxes.tolist() == [[0, 2, 7, 6], [7, 0, 7, 2]]
    assert inside.tolist() == [True, False]


def test_a_network_that_sees_everything_everywhere_is_heard_in_part():
    task = Fixed()
    seen = task.contenders(torch.rand(3000, 4) + torch.tensor([0, 0, 2, 2]), torch.rand(3000, 3))
    assert len(seen.scores) == CONTENDERS
    assert (seen.scores.diff() <= 0).all()
    apart = torch.arange(400.0)[:, None] / 10 + torch.tensor([0, 0, 0.05, 0.05])
    [found] = task.suppress(apart[None], torch.rand(1, 400, 3))
    assert len(found.scores) == MOST


def test_sixteen_bits_come_out_as_thirty_two(task: Detector):
    [found] = task.suppress(task.boxes[None].bfloat16(), task.scores[None].bfloat16())  # type: ignore[index]
    assert (found.boxes.dtype, found.scores.dtype, found.labels.dtype) == (torch.float32, torch.float32, torch.int64)


# -------------------------------------------------------------------- step and metrics


def test_truths_are_cut_by_picture():
    batch = scene(4)
    found = truths(batch)
    assert [len(one.labels) for one in found] == [0, 1, 4, 0]
    assert torch.equal(torch.cat([one.boxes for one in found]), batch.boxes)
    assert found[2].labels.tolist() == [0, 2, 1, 1]


def test_preds_are_made_for_metrics_alone(task: Detector):
    batch = scene()
    output = task.step(batch)
    assert [len(found.labels) for found in output.preds] == [4] * 10
    assert [len(true.labels) for true in output.targets] == [0, 1, 4, *[0] * 7]
    assert set(output.parts) == {"size"}
    assert task.train().step(batch).preds is None


def test_the_graph_that_tensorboard_draws_ends_at_the_loss(task: Detector):
    task.requires_grad_(False)  # the tracer takes them for constants
    batch, preds = scene(), []

    def loss(images: Tensor) -> Tensor:
        output = task.step(batch._replace(images=images))
        preds.append(output.preds)
        return output.loss

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the tracer
        torch.jit.trace(loss, batch.images, check_trace=False)
    assert preds == [None]


class Loader:
    def __len__(self) -> int:
        return 2

    def batches(self, epoch: int, start: int = 0) -> Iterator[DetectionBatch]:
        for k in range(start, 2):
            torch.manual_seed(k)
            yield scene(4 - k)


def test_an_evaluation_holds_the_goal_and_the_rest():
    task = Fixed()
    before = {name: value.clone() for name, value in task.state_dict().items()}
    report = evaluate(task, Loader(), "val", device=torch.device("cpu"))
    assert all(torch.equal(before[name], value) for name, value in task.state_dict().items())
    assert task.training
    numbers = {tag: value for tag, value in report.items() if isinstance(value, float)}
    assert set(numbers) == {
        *("val/loss", "val/size", "val/map50", "val/map", "val/map75", "val/precision", "val/recall"),
        *("val/ap50/cat", "val/ap50/dog", "val/ap50/bird", "val/speed/ms_per_image", "val/speed/nms_share"),
    }
    assert numbers[f"val/{task.goal.metric}"] == pytest.approx(sum(numbers[f"val/ap50/{name}"] for name in SPEC.classes) / 3)
    assert numbers["val/ap50/dog"] == 0
    kinds = {tag: type(value) for tag, value in report.items() if tag not in numbers}
    assert kinds == {"val/boxes": Images, "val/suppression": Images, "val/confusion_matrix": Matrix, "val/pr_curve": PRCurve}
    # in each of seven pictures three are shown; of ten true boxes four cats and two birds are found
    assert numbers["val/recall"] == pytest.approx(6 / 10)
    assert numbers["val/precision"] == pytest.approx(6 / 21)


# -------------------------------------------------------------------- what is seen


def test_looking_shows_the_batch(task: Detector):
    batch = scene()
    before = {name: value.clone() for name, value in task.state_dict().items()}
    with torch.no_grad():
        report = task.observe(batch)
    assert all(torch.equal(before[name], value) for name, value in task.state_dict().items())
    assert set(report) == {"boxes", "suppression", "speed/ms_per_image", "speed/nms_share"}
    boxes, suppression, speed, share = report.values()
    assert isinstance(boxes, Images)
    assert isinstance(suppression, Images)
    side = 64 * enlargement(64, 64)
    assert boxes.pixels.shape == (8, 3, side, 2 * side + 4)
    assert boxes.captions[:3] == ("0 true, 3 found", "1 true, 3 found", "4 true, 3 found")
    assert suppression.pixels.shape == (1, 3, side, 2 * side + 4)
    assert suppression.captions == ("4 before, 3 after",)  # of the third picture, the fullest; what is fainter than SHOWN is neither
    plain = batch.images[0].repeat_interleave(side // 64, 1).repeat_interleave(side // 64, 2)
    left, line, right = boxes.pixels[0].split([side, 4, side], -1)
    assert (left - plain).abs().max() <= 0.5 / 255 + 1e-6  # nothing is in it
    assert line.min() == 1
    assert ((right - plain).abs().amax(0) > 0.01).any()
    for shown in (boxes, suppression):
        assert 0 <= shown.pixels.min() <= shown.pixels.max() <= 1
    assert isinstance(speed, float)
    assert isinstance(share, float)
    assert speed > 0
    assert 0 < share < 1


def test_a_subclass_shows_more(task: Detector):
    class More(Fixed):
        def observe(self, batch: DetectionBatch) -> Report:
            return {**super().observe(batch), "more": 1.0}

    with torch.no_grad():
        assert {*More().eval().observe(scene())} == {*task.observe(scene()), "more"}


def test_a_picture_without_anything_can_be_looked_at():
    task = Fixed(torch.zeros(0, 4), torch.zeros(0, 3)).eval()
    empty = DetectionBatch(torch.rand(2, 3, 64, 64), torch.zeros(0, 4), *torch.zeros(2, 0, dtype=torch.int64))
    with torch.no_grad():
        report = task.observe(empty)
    assert isinstance(report["boxes"], Images)
    assert report["boxes"].captions == ("0 true, 0 found",) * 2


def test_a_frame_is_drawn_where_the_box_is():
    picture = torch.full((1, 40, 60), 0.5)
    drawn = draw_boxes(picture, torch.tensor([[10.0, 5, 30, 25]]), torch.tensor([2]), scale=3)
    assert drawn.shape == (3, 120, 180)
    frame = torch.zeros(120, 180, dtype=torch.bool)
    frame[15:75, 30:90] = True
    frame[17:73, 32:88] = False  # two pixels wide
    hue = torch.tensor(colour(2))[:, None] / 255
    assert torch.allclose(drawn[:, frame], hue.expand(3, int(frame.sum())))
    assert torch.allclose(drawn[:, ~frame], torch.tensor(128 / 255))


def test_a_caption_stands_on_its_box_or_hangs_in_it():
    picture = torch.zeros(3, 200, 200)
    for y, above in ((100.0, True), (0.0, False)):
        box = torch.tensor([[150.0, y, 199, y + 60]])
        bare, named = (draw_boxes(picture, box, torch.tensor([0]), captions) for captions in ((), ("a long name",)))
        rows, columns = ((bare - named).abs().amax(0) > 0).nonzero().unbind(1)
        assert len(rows) > 500
        assert (rows.max() <= y) if above else (rows.min() >= y)
        assert columns.max() <= 199  # and is moved into the picture
        assert columns.min() < 150


def test_what_comes_first_is_drawn_on_top():
    box = torch.tensor([[5.0, 5, 50, 50]])
    drawn = draw_boxes(torch.zeros(3, 60, 60), box.expand(2, 4), torch.tensor([1, 2]))
    assert torch.allclose(drawn[:, 5, 20], torch.tensor(colour(1)) / 255)


def test_every_class_has_its_colour():
    assert len({colour(k) for k in range(80)}) == 80
    for k in range(80):
        assert sum(abs(a - b) for a, b in zip(colour(k), colour(k + 1), strict=True)) > 150


def test_small_pictures_are_enlarged():
    assert [enlargement(side, side // 2) for side in (32, 64, 160, READABLE - 1, READABLE, 640)] == [10, 5, 2, 2, 1, 1]


def test_side_by_side():
    both = side_by_side(torch.zeros(3, 2, 5), torch.full((3, 2, 5), 0.5))
    assert both[0, 0].tolist() == [0] * 5 + [1] * 4 + [0.5] * 5


# -------------------------------------------------------------------- predict


def picture(path: Path, size: tuple[int, int] = (40, 20), mode: str = "RGB") -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, "white").save(path)
    return str(path)


def test_predict_gives_boxes_in_pixels_of_the_photograph(task: Detector, tmp_path: Path):
    """400 x 200 pixels lie in the square at 0.16 of their size, 16 from its top: the dog is in the grey above, the bird ends below."""
    path = picture(tmp_path / "photo.png", (400, 200))
    rows = list(task.predict([path]))
    assert [row.input for row in rows] == [path] * 2
    cat = {"class": "cat", "confidence": pytest.approx(0.9), "x1": 50.0, "y1": 20.0, "x2": 250.0, "y2": 120.0}
    bird = {"class": "bird", "confidence": pytest.approx(0.6), "x1": 187.5, "y1": 0.0, "x2": 400.0, "y2": 200.0}
    assert [row.values for row in rows] == [cat, bird]
    assert [set(row.report) for row in rows] == [{"boxes"}, set()]
    shown = rows[0].report["boxes"]
    assert isinstance(shown, Images)
    assert shown.pixels.shape == (1, 3, 200, 400)
    assert torch.allclose(shown.pixels[0, :, 119, 100], torch.tensor(colour(0)) / 255)
    assert shown.pixels[0, :, 150, 20].tolist() == [1, 1, 1]


def test_predict_says_when_there_is_nothing(tmp_path: Path):
    faint = Fixed(scores=torch.tensor(SCORES) * (SHOWN - 0.01)).eval()
    path = picture(tmp_path / "photo.png")
    [row] = faint.predict([path])
    assert (row.input, row.values) == (path, {"class": "nothing"})
    shown = row.report["boxes"]
    assert isinstance(shown, Images)
    assert shown.pixels.min() == 1


def test_predict_reads_files_and_folders_and_draws_in_colour(tmp_path: Path):
    task = Fixed(spec=DetectionSpec(1, 64, SPEC.classes)).eval()
    task.network = nn.Sequential(nn.Conv2d(1, 3, 1), Eye()).eval()
    picture(tmp_path / "more" / "b.png", mode="L")
    picture(tmp_path / "more" / "a" / "z.JPG")
    first = picture(tmp_path / "first.png", (20, 40))
    rows = list(task.predict([first, str(tmp_path / "more")]))
    assert [Path(row.input).name for row in rows if row.report] == ["first.png", "z.JPG", "b.png"]
    for row in rows:
        for shown in row.report.values():
            assert isinstance(shown, Images)
            assert shown.pixels.shape[:2] == (1, 3)


def test_predict_names_the_file_it_cannot_read(task: Detector, tmp_path: Path):
    damaged = tmp_path / "damaged.png"
    damaged.write_bytes(b"\x89PNG\r\n\x1a\nrubbish")
    (tmp_path / "empty").mkdir()
    for path in (damaged, tmp_path / "absent.png", tmp_path / "empty"):
        with pytest.raises(DataError, match=str(path)):
            list(task.predict([str(path)]))
