"""The first YOLO: equations 1 and 3 against slow loops and hand-made numbers, and who is responsible for what."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch
import yaml
from torch import Tensor, nn
from torchvision.ops import box_iou

from refresher_runner.errors import ConfigError
from refresher_runner.models.yolo_v1 import HALVINGS, YOLOv1, build_yolo_v1, corners
from refresher_runner.nn.darknet import conv
from refresher_runner.nn.detect import overlap, truths
from refresher_runner.registry import MODELS
from refresher_runner.report import Images
from refresher_runner.schema import check_options
from refresher_runner.spec import DetectionBatch, DetectionSpec

CONF = Path(__file__).parents[2] / "conf" / "model" / "yolo_v1.yaml"
SPEC = DetectionSpec(3, 64, ("cat", "dog", "bird"))
S, B, C = 4, 2, 3  # cells of 16 pixels


def build(spec: DetectionSpec = SPEC, **changes) -> YOLOv1:
    values = yaml.safe_load(CONF.read_text(encoding="utf-8"))["model"] | {"grid": S, "width": 8} | changes
    del values["name"]
    return build_yolo_v1(spec, **check_options(values, MODELS.signature("yolo_v1").options, "model"))


def scene(boxes: list[list[float]], labels: list[int], owners: list[int], count: int = 1) -> DetectionBatch:
    images = torch.rand(count, 3, 64, 64)
    return DetectionBatch(images, torch.tensor(boxes).view(-1, 4), torch.tensor(labels, dtype=torch.int64), torch.tensor(owners).long())


def scattered(counts: tuple[int, ...] = (3, 0, 5, 1), seed: int = 0, size: float = 64.0) -> DetectionBatch:
    """So many boxes in each picture, anywhere, some of them in one cell."""
    g = torch.Generator().manual_seed(seed)
    m = sum(counts)
    wh = size * (0.1 + 0.5 * torch.rand(m, 2, generator=g))
    xy = torch.rand(m, 2, generator=g) * (size - wh)
    owners = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    images = torch.rand(len(counts), 3, int(size), int(size), generator=g)
    return DetectionBatch(images, torch.cat([xy, xy + wh], 1), torch.randint(C, (m,), generator=g), owners)


def said(count: int = 4, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    """What a network that has learnt nothing says."""
    return torch.rand(count, S, S, 5 * B + C, generator=torch.Generator().manual_seed(seed), dtype=dtype) * 0.9 + 0.05


def encode(task: YOLOv1, batch: DetectionBatch) -> Tensor:
    """What says exactly the truth: in both boxes of a cell, but one of them is sure, and all the other cells are sure of nothing."""
    target = task.assign(torch.zeros(len(batch.images), S, S, 5 * B + C), batch)
    confidence = torch.stack([target.obj.float(), torch.zeros_like(target.obj).float()], -1)[..., None]
    boxes = target.boxes[..., None, :].expand(-1, -1, -1, B, -1)
    return torch.cat([torch.cat([boxes, confidence], -1).flatten(3), target.classes], -1)


# ---------------------------------------------------------------- responsibility


def test_responsible_by_hand():
    """One box of 32 x 16 pixels around (40, 24): column 2, half way across; row 1, half way down; sides 1/2 and 1/4 of the picture."""
    task, batch, raw = build(), scene([[24.0, 16.0, 56.0, 32.0]], [2], [0]), torch.zeros(1, S, S, 5 * B + C)
    raw[0, 1, 2, :4] = torch.tensor([0.5, 0.5, 0.5, 0.5])  # 16 x 16 around the same point: IoU 1/2
    raw[0, 1, 2, 5:9] = torch.tensor([1.0, 0.5, 0.5**0.5, 0.5])  # 32 x 16, but 8 pixels to the right: 24 / (32 + 32 - 24) = 3/5
    target = task.assign(raw, batch)
    assert target.obj.nonzero().tolist() == [[0, 1, 2]]
    assert target.responsible.nonzero().tolist() == [[0, 1, 2, 1]]
    torch.testing.assert_close(target.iou[0, 1, 2], torch.tensor([0.5, 0.6]))
    torch.testing.assert_close(target.boxes[0, 1, 2], torch.tensor([0.5, 0.5, 0.5**0.5, 0.5]))
    assert target.classes[0, 1, 2].tolist() == [0, 0, 1]
    raw[0, 1, 2, 5:7] = torch.tensor([0.0, 1.0])  # now 8 pixels to the left and 8 down: 24 * 8 / (2 * 512 - 192) = 3/13
    assert task.assign(raw, batch).responsible.nonzero().tolist() == [[0, 1, 2, 0]]


@pytest.mark.parametrize(("down", "across"), [(0, 1), (1, 0), (-1, 0), (0, -1), (2, -1)])
def test_a_box_moved_by_a_cell_moves_who_is_responsible_by_one(down: int, across: int):
    task, raw = build(), said(1)
    batch = scene([[20.0, 18.0, 31.0, 30.0]], [1], [0])
    moved = batch._replace(boxes=batch.boxes + 16 * torch.tensor([across, down, across, down]))
    before, after = task.assign(raw, batch), task.assign(raw, moved)
    assert (after.obj.nonzero() - before.obj.nonzero()).tolist() == [[0, down, across]]
    assert torch.equal(before.boxes[before.obj], after.boxes[after.obj])


def test_the_first_of_two_in_a_cell_is_kept():
    task, raw = build(), said(2)
    small, large, alone = [1.0, 1.0, 9.0, 11.0], [0.0, 0.0, 14.0, 14.0], [40.0, 40.0, 60.0, 60.0]
    for here in ([small, large, alone], [large, small, alone]):
        target = task.assign(raw, scene([[30.0, 0.0, 50.0, 30.0], *here], [0, 1, 2, 0], [0, 1, 1, 1], count=2))
        assert target.obj.nonzero().tolist() == [[0, 0, 2], [1, 0, 0], [1, 3, 3]]
        x1, y1, x2, y2 = here[0]
        expected = torch.tensor([(x1 + x2) / 32, (y1 + y2) / 32, ((x2 - x1) / 64) ** 0.5, ((y2 - y1) / 64) ** 0.5])
        torch.testing.assert_close(target.boxes[1, 0, 0], expected)
        assert target.classes[1, 0, 0].tolist() == [0, 1, 0]


def test_responsibility_is_a_loops():
    """One box a cell that holds a centre, and in it that of the highest IoU, as torchvision has it."""
    task, raw, batch = build(), said(), scattered()
    target = task.assign(raw, batch)
    boxes = task.decode(raw)[0].view(4, S, S, B, 4)
    expected: dict[tuple[int, int, int], tuple[int, int]] = {}  # cell -> box, true box
    for k, (box, owner) in enumerate(zip(batch.boxes, batch.owners.tolist(), strict=True)):
        column, row = (int((box[i] + box[i + 2]) / 2 // 16) for i in (0, 1))
        if (owner, row, column) not in expected:
            expected[owner, row, column] = int(box_iou(boxes[owner, row, column], box[None]).argmax()), k
    assert {tuple(at) for at in target.obj.nonzero().tolist()} == set(expected)
    assert {tuple(at) for at in target.responsible.nonzero().tolist()} == {(*cell, j) for cell, (j, _) in expected.items()}
    for cell, (j, k) in expected.items():
        torch.testing.assert_close(target.iou[(*cell, j)], box_iou(boxes[(*cell, j)][None], batch.boxes[k : k + 1])[0, 0])


@pytest.mark.parametrize(
    ("box", "cell"),
    [
        ([0.0, 0.0, 64.0, 64.0], [2, 2]),  # on the line between cells: the later one's
        ([60.0, 0.0, 64.0, 5.0], [0, 3]),
        ([64.0, 64.0, 64.0, 64.0], [3, 3]),  # nothing left of it, in the far corner
        ([0.0, 0.0, 0.0, 20.0], [0, 0]),
    ],
)
def test_boxes_at_the_border(box: list[float], cell: list[int]):
    task, raw, batch = build(), said(1).requires_grad_(), scene([box], [0], [0])
    assert task.assign(raw, batch).obj.nonzero().tolist() == [[0, *cell]]
    loss, _ = task.loss(raw, batch)
    [gradient] = torch.autograd.grad(loss, raw)
    assert torch.isfinite(loss)
    assert torch.isfinite(gradient).all()


# ---------------------------------------------------------------- the loss, eq. 3


def test_eq_3_as_a_loop():
    """Every part, for every picture, cell, box and class in turn; the mean over pictures."""
    task, raw, batch = build(lambda_coord=3.0, lambda_noobj=0.25), said(), scattered()
    target = task.assign(raw, batch)
    expected = dict.fromkeys(("coord", "size", "confidence", "noobj", "class"), 0.0)
    for n, row, column in itertools.product(range(4), range(S), range(S)):
        cell = raw[n, row, column].tolist()
        for j in range(B):
            x, y, root_w, root_h, confidence = cell[5 * j : 5 * j + 5]
            if not target.responsible[n, row, column, j]:
                expected["noobj"] += 0.25 * confidence**2 / 4
                continue
            own = [b for b, o in zip(batch.boxes.tolist(), batch.owners.tolist(), strict=True) if o == n]
            x1, y1, x2, y2 = next(b for b in own if [(b[1] + b[3]) // 32, (b[0] + b[2]) // 32] == [row, column])
            expected["coord"] += 3 * ((x - ((x1 + x2) / 32 - column)) ** 2 + (y - ((y1 + y2) / 32 - row)) ** 2) / 4
            expected["size"] += 3 * ((root_w - ((x2 - x1) / 64) ** 0.5) ** 2 + (root_h - ((y2 - y1) / 64) ** 0.5) ** 2) / 4
            at = [16 * (column + x), 16 * (row + y), 64 * root_w**2, 64 * root_h**2]
            box = torch.tensor([[at[0] - at[2] / 2, at[1] - at[3] / 2, at[0] + at[2] / 2, at[1] + at[3] / 2]])
            expected["confidence"] += (confidence - box_iou(box, torch.tensor([[x1, y1, x2, y2]])).item()) ** 2 / 4
        if target.obj[n, row, column]:
            expected["class"] += sum((p - q) ** 2 for p, q in zip(cell[10:], target.classes[n, row, column].tolist(), strict=True)) / 4
    loss, parts = task.loss(raw, batch)
    assert {name: part.item() for name, part in parts.items()} == pytest.approx(expected, rel=1e-5)
    assert loss.item() == pytest.approx(sum(expected.values()), rel=1e-5)
    assert not any(part.requires_grad for part in parts.values())


def test_eq_3_by_hand():
    """One cell says 0.5 of everything; the truth is a square of a quarter of the picture's sides at three quarters of the cell."""
    task, raw = build(), torch.zeros(1, S, S, 5 * B + C)
    raw[0, 0, 0] = 0.5
    _, parts = task.loss(raw, scene([[4.0, 4.0, 20.0, 20.0]], [1], [0]))
    overlap = 12 * 12 / (2 * 256 - 144)  # the box said is as large, 4 pixels up and to the left
    assert parts["coord"].item() == pytest.approx(5 * (0.25**2 + 0.25**2))
    assert parts["size"].item() == pytest.approx(0.0, abs=1e-12)
    assert parts["confidence"].item() == pytest.approx((0.5 - overlap) ** 2)
    assert parts["noobj"].item() == pytest.approx(0.5 * 0.5**2)  # the cell's other box
    assert parts["class"].item() == pytest.approx(3 * 0.5**2)


def test_the_truth_costs_nothing():
    task, batch = build(), scattered()
    loss, parts = task.loss(encode(task, batch), batch)
    assert set(parts) == {"coord", "size", "confidence", "noobj", "class"}
    assert all(part < 1e-10 for part in parts.values()), parts
    assert loss < 1e-10


def test_gradient_against_finite_differences():
    """Of all five parts; the IoU that confidence is to reach is a target, and not descended."""
    task, raw, batch = build(), said(2, dtype=torch.float64).requires_grad_(), scattered((3, 1))
    target = task.assign(raw, batch)
    for part in task.errors(raw, target):
        assert torch.autograd.gradcheck(lambda raw, part=part: task.errors(raw, target)[part], raw)
    [gradient] = torch.autograd.grad(task.loss(raw, batch)[0], raw)
    [expected] = torch.autograd.grad(torch.stack([*task.errors(raw, target).values()]).sum(), raw)
    assert torch.equal(gradient, expected)


def test_two_halves_are_one_batch():
    task, raw, batch = build(), said(), scattered()
    first = batch.owners < 2
    halves = [
        batch._replace(images=batch.images[:2], boxes=batch.boxes[first], labels=batch.labels[first], owners=batch.owners[first]),
        batch._replace(images=batch.images[2:], boxes=batch.boxes[~first], labels=batch.labels[~first], owners=batch.owners[~first] - 2),
    ]
    losses = [task.loss(part, half)[0] for part, half in zip(raw.split(2), halves, strict=True)]
    torch.testing.assert_close(torch.stack(losses).mean(), task.loss(raw, batch)[0])


def test_pictures_without_boxes_teach_that_nothing_is_there():
    task, raw = build(), said(3)
    loss, parts = task.loss(raw, scattered((0, 0, 0)))
    torch.testing.assert_close(loss, 0.5 * (task.read(raw).confidence ** 2).sum() / 3)
    torch.testing.assert_close(loss, parts["noobj"])
    assert parts["coord"] == parts["size"] == parts["confidence"] == parts["class"] == 0
    output = task.eval().step(scattered((0, 0)))
    assert [len(truth.labels) for truth in output.targets] == [0, 0]


# ---------------------------------------------------------------- what the cells say


def test_corners_by_hand():
    """16 x 4 pixels around (24, 56) of 64: column 1 and half of it; row 3 and half of it."""
    boxes = torch.zeros(1, S, S, 1, 4)
    boxes[0, 3, 1, 0] = torch.tensor([0.5, 0.5, 0.5, 0.25])
    torch.testing.assert_close(64 * corners(boxes)[0, 3, 1, 0], torch.tensor([16.0, 54.0, 32.0, 58.0]))


def test_iou_is_torchvisions():
    a, b = scattered((40,), seed=1).boxes, scattered((40,), seed=2).boxes
    torch.testing.assert_close(overlap(a, b), box_iou(a, b).diagonal())
    assert overlap(a, b).max() > 0.2
    assert overlap(torch.zeros(1, 4), torch.zeros(1, 4)) == 0


def test_decode_inverts_encode():
    """Every true box that a cell could keep is found where it was, surely, and nothing else is."""
    task, batch = build(), scattered()
    target = task.assign(said(), batch)
    for found, truth, kept in zip(task.suppress(*task.decode(encode(task, batch))), truths(batch), target.obj.sum((1, 2)), strict=True):
        assert len(found.labels) == kept
        assert torch.equal(found.scores, torch.ones(int(kept)))
        if kept:
            distance, nearest = torch.cdist(found.boxes, truth.boxes, p=torch.inf).min(1)
            assert distance.max() < 1e-4
            assert torch.equal(found.labels, truth.labels[nearest])
    assert target.obj.sum() >= 6


def test_eq_1_by_hand():
    """Pr(class | object) * Pr(object) * IoU: p = (0.5, 0.4, 0.1) in a cell whose boxes are sure by 0.8 and 0.2."""
    task, raw = build(), torch.zeros(1, S, S, 5 * B + C)
    raw[0, 2, 3] = torch.tensor([0.5, 0.5, 0.5, 0.5, 0.8, 0.0, 1.0, 0.25, 0.5, 0.2, 0.5, 0.4, 0.1])
    boxes, scores = task.decode(raw)
    assert boxes.shape == (1, S * S * B, 4)
    assert scores.shape == (1, S * S * B, C)
    first = (2 * S + 3) * B
    torch.testing.assert_close(scores[0, first : first + 2], torch.tensor([[0.4, 0.32, 0.08], [0.1, 0.08, 0.02]]))
    torch.testing.assert_close(boxes[0, first : first + 2], torch.tensor([[48.0, 32.0, 64.0, 48.0], [46.0, 40.0, 50.0, 56.0]]))
    assert scores.sum() == pytest.approx(1.0)


# ---------------------------------------------------------------- the network


def test_leaky_relu_is_eq_2():
    """phi(x) = x where x > 0, else 0.1 x; batch norm as it is made changes nothing (to 1e-5, its epsilon)."""
    layer = conv(1, 1, 1).eval()
    nn.init.ones_(next(layer.parameters()))
    x = torch.tensor([-2.0, -0.5, 0.0, 3.0])
    torch.testing.assert_close(layer(x.view(1, 1, 1, 4)).flatten(), torch.tensor([-0.2, -0.05, 0.0, 3.0]), rtol=1e-5, atol=0)


def test_parameters():
    """7 x 7 x 3 x 16 and twice 16 for batch norm; three stages of 1 x 1 and 3 x 3; 3 x 3; and 16 numbers of 128, each with a bias."""
    stem, last, head = 49 * 3 * 16 + 32, 9 * 128 * 128 + 256, 128 * 16 + 16
    stages = (16 * 16 + 32 + 9 * 16 * 32 + 64) + (32 * 32 + 64 + 9 * 32 * 64 + 128) + (64 * 64 + 128 + 9 * 64 * 128 + 256)
    task = build(DetectionSpec(3, 128, tuple("abcdef")), grid=8, width=16)
    assert sum(p.numel() for p in task.parameters()) == stem + stages + last + head == 254_976
    connected = build(DetectionSpec(3, 128, tuple("abcdef")), grid=8, width=16, hidden=10)
    assert sum(p.numel() for p in connected.parameters()) == stem + stages + last + (128 * 64 + 1) * 10 + (10 + 1) * 16 * 64


def test_the_papers_geometry():
    """448 pixels to 7 x 7 cells of 1024 channels, 16 times the first layer's 64; 30 numbers a cell for 20 classes."""
    task = build(DetectionSpec(3, 448, tuple("abcdefghijklmnopqrst")), grid=7, width=2, hidden=6)
    images = torch.rand(1, 3, 448, 448)
    assert task.network.backbone(images).shape == (1, 32, 7, 7)
    raw = task.network(images)
    assert raw.shape == (1, 7, 7, 30)
    boxes, scores = task.decode(raw)
    assert (boxes.shape, scores.shape) == ((1, 98, 4), (1, 98, 20))


@pytest.mark.parametrize("halvings", HALVINGS)
@pytest.mark.parametrize("depth", [1, 2])
def test_any_size_that_halves_into_cells(halvings: int, depth: int):
    spec = DetectionSpec(1, 3 * 2**halvings, ("a", "b"))
    task = build(spec, grid=3, width=2, depth=depth, boxes=3)
    assert task.network(torch.rand(2, 1, spec.size, spec.size)).shape == (2, 3, 3, 17)


@pytest.mark.parametrize(
    ("size", "grid", "key", "cure"),
    [
        (128, 7, "model.grid", "try model.grid=32 or 16 or 8 or 4 or 2, or data.size=112"),
        (128, 64, "model.grid", "try model.grid=32 or 16 or 8 or 4 or 2, or data.size=256"),
        (128, 1, "model.grid", "try model.grid=32 or 16 or 8 or 4 or 2, or data.size=64"),
        (100, 8, "model.grid", "try model.grid=25, or data.size=128"),
        (90, 8, "data.size", "try data.size=64"),
        (3, 4, "data.size", "try data.size=16"),
    ],
)
def test_other_grids_are_refused(size: int, grid: int, key: str, cure: str):
    with pytest.raises(ConfigError) as caught:
        build(DetectionSpec(3, size, ("a",)), grid=grid)
    assert (caught.value.key, caught.value.cure) == (key, cure)
    assert f"{size} pixels" in str(caught.value)
    good = int(cure.rsplit("=", 1)[1])
    build(DetectionSpec(3, good, ("a",)), grid=grid)


def test_connected_layers_see_everything_and_a_convolution_sees_cells():
    """Both tell rows from columns, and only connected units are dropped."""
    features = torch.zeros(1, 64, 4, 4)
    features[0, :, 3, 1] = 1.0
    for hidden, changed in ((0, [[3, 1]]), (16, [[row, column] for row in range(4) for column in range(4)])):
        network = build(hidden=hidden).eval().network
        network.backbone = nn.Sequential()
        difference = (network(features) - network(0 * features))[0].abs().amax(-1)
        assert (difference > 0).nonzero().tolist() == changed
        network.train()
        assert torch.equal(network(features), network(features)) == (hidden == 0)


@pytest.mark.parametrize("hidden", [0, 32])
def test_every_parameter_learns(hidden: int):
    task, batch = build(hidden=hidden), scattered()
    task.step(batch).loss.backward()
    for name, parameter in task.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.any(), name


@pytest.mark.parametrize("hidden", [0, 64])
def test_learns_one_batch_by_heart(hidden: int):
    """Where objects are, how large, and what: as many are found as a cell could keep, at an IoU of 0.7 and more."""
    task, batch = build(hidden=hidden, width=16, dropout=0.0), scattered((3, 2, 4, 1), seed=3)
    optimizer = torch.optim.AdamW(task.parameters(), lr=5e-3)
    for _ in range(120):
        optimizer.zero_grad()
        task.step(batch).loss.backward()
        optimizer.step()
    output = task.eval().step(batch)
    assert task.assign(said(), batch).obj.sum() == len(batch.boxes)
    for found, truth in zip(output.preds, output.targets, strict=True):
        sure = found.above(0.5)
        overlap, nearest = box_iou(sure.boxes, truth.boxes).max(1)
        assert sorted(nearest.tolist()) == list(range(len(truth.labels)))
        assert overlap.min() > 0.7
        assert torch.equal(sure.labels, truth.labels[nearest])


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("hidden", [0, 32])
def test_bf16(hidden: int, channels_last: bool):
    task, batch = build(hidden=hidden).eval(), scattered()
    exact = task.network(batch.images)
    if channels_last:
        task.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        batch = batch._replace(images=batch.images.contiguous(memory_format=torch.channels_last))
    with torch.autocast("cpu", torch.bfloat16):
        raw = task.network(batch.images)
        output = task.step(batch)
    assert raw.dtype == output.loss.dtype == output.preds[0].boxes.dtype == output.preds[0].scores.dtype == torch.float32
    torch.testing.assert_close(raw, exact, atol=0.02, rtol=0)
    torch.testing.assert_close(output.loss, task.loss(raw, batch)[0])
    output.loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in task.parameters() if p.grad is not None)


# ---------------------------------------------------------------- what a run sees


def test_preds_are_made_for_metrics_alone():
    task, batch = build(), scattered()
    assert task.step(batch).preds is None
    output = task.eval().step(batch)
    assert len(output.preds) == len(output.targets) == 4
    assert torch.equal(output.targets[2].boxes, batch.boxes[3:8])
    assert all(0 <= found.scores.min() <= found.scores.max() <= 1 for found in output.preds)


def test_figure_2_of_the_first_picture():
    """A circle of one cell in a dark picture: its cell has half of its class's colour, and lines of white stand around every cell."""
    task, batch = build().eval(), scene([[18.0, 34.0, 30.0, 46.0]], [1], [0])
    batch = batch._replace(images=torch.zeros(1, 3, 64, 64))
    with torch.no_grad():
        shown = task.observe(batch)["cells"]
        raw = task.read(task.network(batch.images))
    assert isinstance(shown, Images)
    cells, sure, likeliest = shown.pixels
    inside = (
        torch.ones(64, 64, dtype=torch.bool).index_fill(0, torch.arange(0, 64, 16), False).index_fill(1, torch.arange(0, 64, 16), False)
    )
    assert (cells[:, ~inside] == 1).all()
    lit = cells.amax(0).where(inside, torch.zeros(())) > 0
    assert lit.nonzero().amin(0).tolist() == [33, 17]
    assert lit.nonzero().amax(0).tolist() == [47, 31]
    assert lit.sum() == 15 * 15
    torch.testing.assert_close(sure[0, 8::16, 8::16], raw.confidence[0].amax(-1))
    same = raw.classes[0].argmax(-1) == 1  # cells in which the network sees the class that is there
    assert torch.equal((likeliest[:, 8::16, 8::16] == cells[:, 40, 24, None, None]).all(0), same)
    assert shown.captions == ("4 x 4 cells, 1 responsible", f"confidence, at most {raw.confidence.max():.2f}", "likeliest class")


@pytest.mark.parametrize(("channels", "counts"), [(1, (3, 1)), (3, (0, 2)), (3, (0,))])
def test_looking_moves_nothing(channels: int, counts: tuple[int, ...]):
    task, batch = build(DetectionSpec(channels, 64, SPEC.classes)).eval(), scattered(counts)
    batch = batch._replace(images=batch.images[:, :channels])
    before = {key: value.clone() for key, value in task.state_dict().items()}
    with torch.no_grad():
        report = task.observe(batch)
    assert all(torch.equal(before[key], value) for key, value in task.state_dict().items())
    assert {"cells", "boxes", "suppression"} <= set(report)
    for shown in report.values():
        if isinstance(shown, Images):
            assert shown.pixels.shape[1] == 3
            assert 0 <= shown.pixels.min() <= shown.pixels.max() <= 1
            assert len(shown.captions) == len(shown.pixels)


def test_config_and_signature_have_the_same_keys():
    values = yaml.safe_load(CONF.read_text(encoding="utf-8"))["model"]
    assert list(values) == ["name", *MODELS.signature("yolo_v1").options]
