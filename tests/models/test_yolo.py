"""YOLO at three scales: what the paper and its successors' equations say, against slow loops, hand-made cases and torchvision."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
import yaml
from torch import Tensor
from torchvision.ops import batched_nms, box_iou, complete_box_iou_loss

from refresher_runner.errors import ConfigError
from refresher_runner.models.yolo import PRIOR, STRIDES, YOLO, build_yolo
from refresher_runner.nn.detect import overlap
from refresher_runner.registry import MODELS
from refresher_runner.schema import check_options
from refresher_runner.spec import DetectionBatch, DetectionSpec

SPEC = DetectionSpec(3, 64, ("cat", "dog", "bird"))
CONF = Path(__file__).parents[2] / "conf" / "model" / "yolo.yaml"
CELLS = [8, 4, 2]  # a side, at 64 pixels
N = 64 + 16 + 4


def options(**changes):
    values = yaml.safe_load(CONF.read_text(encoding="utf-8"))["model"]
    return check_options({k: v for k, v in values.items() if k != "name"} | changes, MODELS.signature("yolo").options, "model")


def build(spec: DetectionSpec = SPEC, **changes) -> YOLO:
    return build_yolo(spec, **options(**{"width": 8, "depth": 1} | changes))


def truth(boxes, labels, owners, count: int, size: int = 64) -> DetectionBatch:
    return DetectionBatch(
        torch.rand(count, 3, size, size), torch.tensor(boxes, dtype=torch.float32).view(-1, 4), torch.tensor(labels), torch.tensor(owners)
    )


def scene(count: int = 4, each: int = 3, seed: int = 0) -> DetectionBatch:
    """Boxes of 6 to 40 pixels anywhere, as many in each picture."""
    g = torch.Generator().manual_seed(seed)
    wh = 6 + 34 * torch.rand(count * each, 2, generator=g)
    xy = torch.rand(count * each, 2, generator=g) * (64 - wh)
    owners = torch.arange(count).repeat_interleave(each)
    labels = torch.randint(3, (count * each,), generator=g)
    return DetectionBatch(torch.rand(count, 3, 64, 64, generator=g), torch.cat([xy, xy + wh], 1), labels, owners)


def centre(cell: int) -> tuple[float, float, int]:
    """x, y and stride of a cell, counted as the raw output does."""
    for side, stride in zip(CELLS, STRIDES, strict=True):
        if cell < side * side:
            return (cell % side + 0.5) * stride, (cell // side + 0.5) * stride, stride
        cell -= side * side
    raise AssertionError


def encode(box: Tensor, cell: int) -> Tensor:
    """tx ty tw th with which a cell would say exactly this box: section 2.1, solved for t."""
    x, y, stride = centre(cell)
    x1, y1, x2, y2 = box.tolist()
    return torch.tensor(
        [
            ((x1 + x2) / 2 - x) / stride,
            ((y1 + y2) / 2 - y) / stride,
            math.log((x2 - x1) / (PRIOR * stride)),
            math.log((y2 - y1) / (PRIOR * stride)),
        ]
    )


def test_shapes_and_parameters():
    task = build_yolo(DetectionSpec(3, 128, tuple("abcdef")), **options())
    assert sum(p.numel() for p in task.parameters()) == 1_140_686
    raw = task.network(torch.rand(2, 3, 128, 128))
    assert raw.shape == (2, 16 * 16 + 8 * 8 + 4 * 4, 4 + 6)
    assert [x.shape[1:] for x in task.network.backbone(torch.rand(1, 3, 128, 128))] == [(64, 16, 16), (128, 8, 8), (256, 4, 4)]


def test_cells_are_in_the_order_of_the_network():
    """A bright spot changes most what its own cell says, on every grid."""
    task = build()
    for cell in range(N):
        x, y, stride = centre(cell)
        assert task.centres[cell].tolist() == [x, y]
        assert task.strides[cell].item() == stride
    features = [torch.zeros(1, 32, n, n) for n in CELLS]
    features[1][0, :, 2, 3] = 1.0
    raw = torch.cat([head.eval()(x) for head, x in zip(task.network.heads, features, strict=True)], 1)
    quiet = torch.cat([head(torch.zeros_like(x)) for head, x in zip(task.network.heads, features, strict=True)], 1)
    changed = (raw != quiet).any(-1).nonzero()[:, 1].tolist()
    around = {64 + 4 * y + x for y in (1, 2, 3) for x in (2, 3)}  # a 3 x 3 convolution sees it from there
    assert set(changed) == around
    assert 64 + 4 * 2 + 3 in changed


@pytest.mark.parametrize("cell", [0, 27, 63, 64, 75, 80, 83])
def test_decode_is_the_inverse_of_encode(cell: int):
    task = build()
    for box in torch.tensor([[3.0, 5.0, 20.0, 41.0], [0.0, 0.0, 64.0, 64.0], [30.0, 30.0, 33.5, 32.0]]):
        raw = torch.zeros(1, N, 7)
        raw[0, cell, :4] = encode(box, cell)
        assert torch.allclose(task.decode(raw)[0][0, cell], box, atol=1e-4)


def test_scores_are_the_sigmoid_of_each_class_apart():
    boxes, scores = build().decode(torch.full((1, N, 7), 0.3))
    assert boxes.shape == (1, N, 4)
    assert torch.allclose(scores, torch.full((1, N, 3), 1 / (1 + math.exp(-0.3))))


def test_a_perfect_prediction_costs_nothing():
    """Every cell says the box that is nearest to it, exactly, and those that answer for it are as sure as they should be."""
    task, batch = build(), scene(count=2, each=2)
    raw = torch.full((2, N, 7), -40.0)
    for owner in range(2):
        mine = (batch.owners == owner).nonzero().flatten().tolist()
        for cell in range(N):
            x, y, _ = centre(cell)
            middle = (batch.boxes[mine, :2] + batch.boxes[mine, 2:]) / 2
            nearest = mine[int((middle - torch.tensor([x, y])).norm(dim=1).argmin())]
            raw[owner, cell, :4] = encode(batch.boxes[nearest], cell)
            raw[owner, cell, 4 + int(batch.labels[nearest])] = 40.0
    chosen = task.assign(*task.decode(raw), batch)
    assert torch.allclose(chosen.scores, torch.ones_like(chosen.scores), atol=1e-5)
    silent = torch.ones(2 * N, dtype=torch.bool)
    silent[chosen.cells] = False
    raw.view(-1, 7)[silent, 4:] = -40.0
    loss, parts = task.loss(raw, batch)
    assert loss.item() == pytest.approx(0.0, abs=1e-4)
    assert parts["box_loss"].item() == pytest.approx(0.0, abs=1e-5)
    assert parts["class_loss"].item() == pytest.approx(0.0, abs=1e-5)


def slow_assignment(task: YOLO, boxes: Tensor, scores: Tensor, batch: DetectionBatch) -> dict[int, tuple[int, float]]:
    """TOOD's rule in loops: cell -> (box, score)."""
    u = {}
    t: dict[int, dict[int, float]] = {}
    for m, (box, label, owner) in enumerate(zip(batch.boxes, batch.labels.tolist(), batch.owners.tolist(), strict=True)):
        x1, y1, x2, y2 = box.tolist()
        row = {}
        for cell in range(N):
            x, y, stride = centre(cell)
            half_w, half_h = max((x2 - x1) / 2, stride / 2), max((y2 - y1) / 2, stride / 2)
            if abs(x - (x1 + x2) / 2) <= half_w and abs(y - (y1 + y2) / 2) <= half_h:
                u[m, cell] = float(box_iou(box[None], boxes[owner, cell][None]))
                row[cell] = float(scores[owner, cell, label]) * u[m, cell] ** 6
        t[m] = {cell: row[cell] for cell in sorted(row, key=lambda c: -row[c])[: task.candidates]}
    answer: dict[int, int] = {}
    for m in t:
        for cell in t[m]:
            at = int(batch.owners[m]) * N + cell
            if at not in answer or u[m, cell] > u[answer[at], cell]:
                answer[at] = m
    result = {}
    for at, m in answer.items():
        mine = [c % N for c, box in answer.items() if box == m]
        scale = max(u[m, c] for c in mine) / max(max(t[m][c] for c in mine), 1e-9)
        result[at] = (m, t[m][at % N] * scale)
    return result


@pytest.mark.parametrize("seed", range(4))
def test_assignment_is_toods(seed: int):
    task, batch = build(candidates=5), scene(each=4, seed=seed)
    g = torch.Generator().manual_seed(seed)
    boxes, scores = task.decode(torch.randn(4, N, 7, generator=g) * 0.7)
    chosen = task.assign(boxes, scores, batch)
    expected = slow_assignment(task, boxes, scores, batch)
    got = {int(c): (int(b), float(s)) for c, b, s in zip(*chosen, strict=True)}
    assert got.keys() == expected.keys()
    for cell, (box, score) in expected.items():
        assert got[cell] == (box, pytest.approx(score, rel=1e-3, abs=1e-6))


def test_assignment_moves_with_the_picture_by_one_cell():
    """A box and all predictions moved by the coarsest stride: the same cells on all grids, moved."""
    task = build(DetectionSpec(3, 96, ("cat",)))
    sides = [12, 6, 3]
    logits = torch.zeros(1, sum(n * n for n in sides), 1) + 0.5
    one, other = (truth([[4 + d, 8, 37 + d, 51]], [0], [0], 1, 96) for d in (0, 32))  # no two cells alike
    boxes = task.boxes(torch.zeros(1, logits.shape[1], 4))
    here, there = (task.assign(boxes, logits, batch) for batch in (one, other))
    moved = task.centres[here.cells] + torch.tensor([32, 0])
    assert {tuple(c) for c in moved.tolist()} == {tuple(c) for c in task.centres[there.cells].tolist()}
    assert torch.allclose(here.scores.sort().values, there.scores.sort().values)


def test_the_smallest_box_has_a_cell():
    task, batch = build(), truth([[33.0, 33.0, 34.0, 34.5]], [1], [0], 1)
    chosen = task.assign(*task.decode(torch.zeros(1, N, 7)), batch)
    assert len(chosen.cells) >= 1
    assert {centre(int(c))[2] for c in chosen.cells} <= set(STRIDES)


def test_loss_is_its_equation():
    """Of each picture alone, in loops; then the mean."""
    task, batch = build(), scene()
    raw = torch.randn(4, N, 7) * 0.5
    boxes, scores = task.decode(raw)
    chosen = task.assign(boxes, scores, batch)
    losses = []
    for owner in range(4):
        target, box_loss = torch.zeros(N, 3), 0.0
        for cell, box, score in zip(*chosen, strict=True):
            if int(cell) // N == owner:
                target[int(cell) % N, batch.labels[box]] = score
                box_loss += float(score * complete_box_iou_loss(boxes.view(-1, 4)[cell], batch.boxes[box]))
        p = scores[owner]
        bce = -(target * p.log() + (1 - target) * (1 - p).log()).sum()
        losses.append((task.box_gain * box_loss + task.class_gain * bce) / task.candidates)
    assert task.loss(raw, batch)[0].item() == pytest.approx(float(sum(losses)) / 4, rel=1e-4)


def test_half_batches_average_to_the_whole():
    task, batch = build(), scene()
    raw = torch.randn(4, N, 7)
    halves = [
        batch._replace(images=batch.images[s], boxes=batch.boxes[m], labels=batch.labels[m], owners=batch.owners[m] - first)
        for first in (0, 2)
        for s, m in [(slice(first, first + 2), (batch.owners // 2) * 2 == first)]
    ]
    parts = [task.loss(raw[first : first + 2], half)[0] for first, half in zip((0, 2), halves, strict=True)]
    assert torch.allclose(task.loss(raw, batch)[0], sum(parts) / 2, rtol=1e-5)


def test_gradients_are_those_of_finite_differences():
    """At boxes of the right shape: torchvision holds CIoU's trade-off alpha constant, as its paper does, and there it has no share."""
    task, batch = build(DetectionSpec(3, 32, ("cat", "dog"))).double(), truth([[3, 4, 17, 18], [10, 9, 30, 29]], [0, 1], [0, 0], 1, 32)
    batch = batch._replace(boxes=batch.boxes.double())
    g = torch.Generator().manual_seed(1)
    raw = torch.randn(1, 16 + 4 + 1, 6, generator=g, dtype=torch.float64) * 0.3
    raw[..., 3] = raw[..., 2]
    chosen = task.assign(*task.decode(raw), batch)
    assert len(chosen.cells) > 5
    task.assign = lambda *_: chosen  # type: ignore[method-assign]  # who answers is chosen, not descended
    assert torch.autograd.gradcheck(lambda r: task.loss(r, batch)[0], (raw.requires_grad_(),), atol=1e-5, rtol=1e-4)


def test_iou_against_torchvision():
    a, b = scene(seed=3).boxes, scene(seed=4).boxes
    assert torch.allclose(overlap(a[:, None], b), box_iou(a, b), atol=1e-6)
    assert overlap(torch.tensor([0.0, 0, 4, 4]), torch.tensor([2.0, 2, 6, 6])).item() == pytest.approx(4 / 28)


def test_suppression_keeps_the_likeliest_of_each_class():
    task = build(iou=0.5)
    boxes = torch.tensor([[[0.0, 0, 10, 10], [1, 1, 11, 11], [30, 30, 40, 40], [0, 0, 10, 10]]])
    scores = torch.tensor([[[0.9, 0, 0], [0.8, 0, 0], [0.3, 0, 0], [0, 0.7, 0]]])
    [found] = task.suppress(boxes, scores)
    assert found.labels.tolist() == [0, 1, 0]
    assert found.scores.tolist() == pytest.approx([0.9, 0.7, 0.3])
    assert torch.equal(found.boxes, boxes[0, [0, 3, 2]])
    flat = boxes[0].repeat_interleave(3, 0)
    keep = batched_nms(flat, scores[0].flatten(), torch.arange(3).repeat(4), 0.5)
    assert torch.equal(found.boxes, flat[keep][:3])


def test_pictures_without_boxes_teach_silence():
    task = build()
    empty = truth([], [], [], 2)._replace(labels=torch.zeros(0, dtype=torch.int64), owners=torch.zeros(0, dtype=torch.int64))
    raw = torch.randn(2, N, 7, requires_grad=True)
    loss, parts = task.loss(raw, empty)
    loss.backward()
    assert parts["box_loss"].item() == 0.0
    assert raw.grad is not None
    assert (raw.grad[..., 4:] > 0).all()
    assert (raw.grad[..., :4] == 0).all()


@pytest.mark.parametrize("channels_last", [False, True])
def test_bf16_trains_every_parameter(channels_last: bool):
    task, batch = build(), scene()
    if channels_last:
        task.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    with torch.autocast("cpu", torch.bfloat16):
        output = task.step(batch)
    output.loss.backward()
    assert output.loss.dtype == torch.float32
    assert output.preds is None
    for name, parameter in task.named_parameters():
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all() and parameter.grad.any(), name


def test_learns_a_few_pictures_by_heart():
    task, batch = build(), scene(each=2, seed=5)
    optimizer = torch.optim.Adam(task.parameters(), lr=3e-3)
    for _ in range(120):
        optimizer.zero_grad()
        task.step(batch).loss.backward()
        optimizer.step()
    task.eval()
    with torch.no_grad():
        output = task.step(batch)
    for found, real in zip(output.preds, output.targets, strict=True):
        sure = found.above(0.25)
        best, which = box_iou(real.boxes, sure.boxes).max(1)
        assert (best > 0.6).all()
        assert torch.equal(sure.labels[which], real.labels)


def test_a_size_that_the_coarsest_grid_does_not_fit_is_refused():
    with pytest.raises(ConfigError, match=r"data.size=100: should be a multiple of 32") as refused:
        build(DetectionSpec(3, 100, ("cat",)))
    assert refused.value.cure == "try 96 or 128"
