"""Average precision, matrix and curves by hand, and against loops that know nothing of torchmetrics or COCO's tools."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor

from refresher_runner.metrics.detection import THRESHOLDS, detection_metrics
from refresher_runner.nn.detect import SHOWN, Detections, Truth
from refresher_runner.report import Matrix, PRCurve

CLASSES = ("a", "b", "c", "d")
Picture = tuple[Detections, Truth]


def detections(*rows: tuple[list[float], float, int]) -> Detections:
    """(box, score, label), likeliest first."""
    boxes, scores, labels = zip(*rows, strict=True) if rows else ((), (), ())
    return Detections(torch.tensor(boxes).view(-1, 4), torch.tensor(scores), torch.tensor(labels, dtype=torch.int64))


def truth(*rows: tuple[list[float], int]) -> Truth:
    boxes, labels = zip(*rows, strict=True) if rows else ((), ())
    return Truth(torch.tensor(boxes).view(-1, 4), torch.tensor(labels, dtype=torch.int64))


def measure(pictures: Sequence[Picture], batch: int = 4, classes: Sequence[str] = CLASSES) -> dict[str, Any]:
    metrics = detection_metrics(classes)
    for start in range(0, len(pictures), batch):
        found, true = zip(*pictures[start : start + batch], strict=True)
        for metric in metrics.values():
            metric.update(list(found), list(true))
    return {name: metric.compute() for name, metric in metrics.items()}


def crowd(pictures: int = 30, score_step: float = 0.0) -> list[Picture]:
    """Pictures of up to 8 true boxes, some empty, and detections near them, often of another class, or anywhere; d never occurs."""

    def anywhere(n: int) -> Tensor:
        corner = torch.rand(n, 2) * 60
        return torch.cat([corner, corner + 8 + torch.rand(n, 2) * 30], 1)

    made = []
    for k in range(pictures):
        m = k % 9
        boxes, labels = anywhere(m), torch.randint(0, 3, (m,))
        near = torch.randint(0, m, (2 * m,)) if m else torch.zeros(0, dtype=torch.int64)
        found = torch.cat([boxes[near] + 2 * torch.randn(len(near), 4), anywhere(k % 5)])
        guess = torch.where(torch.rand(len(near)) < 0.8, labels[near], torch.randint(0, 4, (len(near),)))
        guess = torch.cat([guess, torch.randint(0, 4, (k % 5,))])
        scores = torch.rand(len(found))
        if score_step:
            scores = (scores / score_step).round() * score_step
        scores, order = scores.sort(descending=True, stable=True)
        made.append((Detections(found[order], scores, guess[order]), Truth(boxes, labels)))
    return made


# -------------------------------------------------------------------- a reference


def overlap(one: Sequence[float], other: Sequence[float]) -> float:
    """Intersection over union."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    both = max(width, 0) * max(height, 0)
    return both / ((one[2] - one[0]) * (one[3] - one[1]) + (other[2] - other[0]) * (other[3] - other[1]) - both)


def hits(found: Detections, true: Truth, label: int, iou: float, score: float = 0.0) -> list[tuple[float, bool]]:
    """Score of each detection of a class, and whether it is of a true box that no likelier one has taken."""
    free = [box for box, k in zip(true.boxes.tolist(), true.labels.tolist(), strict=True) if k == label]
    answer = []
    for box, s, k in zip(found.boxes.tolist(), found.scores.tolist(), found.labels.tolist(), strict=True):
        if k == label and s >= score:
            best = max(free, key=lambda b: overlap(box, b), default=None)
            hit = best is not None and overlap(box, best) >= iou
            if hit:
                free.remove(best)
            answer.append((s, hit))
    return answer


def average_precision(pictures: Sequence[Picture], label: int, iou: float) -> float | None:
    """The mean over 101 recalls of the best precision at that recall or more; None for a class that is not there."""
    total = sum(int((true.labels == label).sum()) for _, true in pictures)
    if total == 0:
        return None
    ranked = sorted((pair for found, true in pictures for pair in hits(found, true, label, iou)), key=lambda pair: -pair[0])
    right = np.cumsum([hit for _, hit in ranked])
    points = [(n / total, n / (k + 1)) for k, n in enumerate(right.tolist())]
    return float(np.mean([max((p for r, p in points if r >= recall), default=0.0) for recall in np.linspace(0, 1, 101)]))


def mean(values: Sequence[float | None]) -> float:
    return float(np.mean([v for v in values if v is not None]))


def test_overlap_by_hand():
    assert overlap([0, 0, 4, 4], [2, 2, 6, 6]) == pytest.approx(4 / 28)
    assert overlap([0, 0, 4, 4], [0, 0, 4, 2]) == 0.5
    assert overlap([0, 0, 4, 4], [4, 0, 8, 4]) == 0


# -------------------------------------------------------------------- average precision

A, B, C, FAR = [0.0, 0, 10, 10], [20.0, 0, 30, 10], [40.0, 0, 50, 10], [70.0, 70, 80, 80]


@pytest.mark.parametrize("classes", [("a",), CLASSES], ids=["one class", "four"])
def test_average_precision_by_hand(classes: Sequence[str]):
    """Right, wrong, right, of two true boxes: precision 1 at the 51 recalls to 0.50, 2/3 at the 50 beyond."""
    found = measure([(detections((A, 0.9, 0), (FAR, 0.8, 0), (B, 0.7, 0)), truth((A, 0), (B, 0)))], classes=classes)
    for name in ("map50", "map75", "map"):
        assert float(found[name]) == pytest.approx((51 + 50 * 2 / 3) / 101)


def test_the_iou_that_is_asked_for():
    """62 of 100 pixels covered is enough at 0.50, 0.55 and 0.60, and at none of the other seven."""
    found = measure([(detections(([0.0, 0, 10, 6.2], 0.9, 0)), truth((A, 0)))])
    assert [float(found[name]) for name in ("map50", "map75", "map")] == pytest.approx([1.0, 0.0, 0.3])


def test_a_box_found_twice_is_wrong_once():
    """The likelier is right; the other comes after all recall is reached, and costs nothing; before, it does."""
    twice = [(detections((A, 0.9, 0), (A, 0.8, 0)), truth((A, 0)))]
    assert float(measure(twice)["map50"]) == 1
    then = [*twice, (detections((B, 0.1, 0)), truth((B, 0)))]  # recall 1 at a precision of 2/3
    assert float(measure(then)["map50"]) == pytest.approx((51 + 50 * 2 / 3) / 101)


def test_a_class_without_a_true_box_is_in_no_mean():
    """Found or not: of a, b, c and d, a is right, b is missed, c is found where it is not."""
    found = measure([(detections((A, 0.9, 0), (FAR, 0.8, 2)), truth((A, 0), (B, 1)))])
    assert {name: float(value) for name, value in found["ap50"].items()} == {"a": 1.0, "b": 0.0}
    assert float(found["map50"]) == float(found["map"]) == 0.5


@pytest.mark.parametrize(
    "picture", [(detections(), truth()), (detections(), truth((A, 0))), (detections((A, 0.9, 0)), truth())], ids=["both", "found", "true"]
)
@pytest.mark.parametrize("times", [1, 3])
def test_nothing_is_worth_nothing(picture: Picture, times: int, capsys: pytest.CaptureFixture[str]):
    found = measure([picture] * times, batch=2)
    assert [float(found[name]) for name in ("map50", "map75", "map", "precision", "recall")] == [0.0] * 5
    assert found["ap50"] == ({"a": 0.0} if len(picture[1].labels) else {})
    assert found["confusion_matrix"].values.sum() == times * (len(picture[0].labels) + len(picture[1].labels))
    assert capsys.readouterr() == ("", "")


def test_average_precision_against_loops():
    pictures = crowd()
    found = measure(pictures)
    ious = [0.5 + 0.05 * k for k in range(10)]
    ap = [[average_precision(pictures, label, iou) for label in range(4)] for iou in ious]
    assert ap[0][3] is None
    assert list(found["ap50"]) == ["a", "b", "c"]
    assert [float(v) for v in found["ap50"].values()] == pytest.approx(ap[0][:3])
    assert float(found["map50"]) == pytest.approx(mean(ap[0]))
    assert float(found["map75"]) == pytest.approx(mean(ap[5]))
    assert float(found["map"]) == pytest.approx(mean([value for row in ap for value in row]))
    assert 0.2 < found["map75"] < found["map50"] < 0.9  # neither is trivial


def test_only_the_hundred_likeliest_of_a_class_have_average_precision(capsys: pytest.CaptureFixture[str]):
    """A limit of COCO's. Another class in the same picture has its own hundred, and the curve sees them all."""
    wrong = [(FAR, 0.9 - k / 1000, 0) for k in range(100)]
    picture = detections(*wrong, (A, 0.5, 0), (B, 0.4, 1)), truth((A, 0), (B, 1))
    found = measure([picture])
    assert {name: float(value) for name, value in found["ap50"].items()} == {"a": 0.0, "b": 1.0}
    assert found["pr_curve"].true_positives[0, 50] == 1
    last = detections(*wrong[1:], (A, 0.5, 0)), truth((A, 0))
    assert float(measure([last])["map50"]) == pytest.approx(1 / 100)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("score_step", [0.0, 0.25], ids=["different scores", "equal scores"])
def test_neither_batches_nor_the_order_of_pictures_make_a_difference(score_step: float):
    """To the last bit, although COCO ranks equal scores as they come."""
    pictures = crowd(score_step=score_step)
    one, many, back = measure(pictures, 100), measure(pictures, 1), measure(pictures[::-1], 7)
    for other in (many, back):
        assert [float(one[name]) for name in ("map50", "map75", "map")] == [float(other[name]) for name in ("map50", "map75", "map")]
        assert torch.equal(one["confusion_matrix"].values, other["confusion_matrix"].values)
        assert torch.equal(one["pr_curve"].true_positives, other["pr_curve"].true_positives)


def test_all_are_measured_at_once():
    """Eight values, one metric, to which each batch is given once; and any of them alone is the same."""
    pictures = crowd(6)
    metrics: dict[str, Any] = dict(detection_metrics(CLASSES))
    assert list(metrics) == ["map50", "map", "map75", "precision", "recall", "ap50", "confusion_matrix", "pr_curve"]
    for found, true in pictures:
        for metric in metrics.values():
            metric.update([found], [true])
    assert len({id(metric.whole) for metric in metrics.values()}) == 1
    assert metrics["recall"].whole.update_count == len(pictures)
    assert metrics["map"].whole.compute() is metrics["map50"].whole.compute()
    alone = detection_metrics(CLASSES)["map"]
    for found, true in pictures:
        alone.update([found], [true])
    assert alone.compute() == metrics["map"].compute()


# -------------------------------------------------------------------- matrix and curves

FIVE = (
    detections(
        ([0.0, 0, 10, 6], 0.9, 0),  # covers 0.6 of A, for which another is closer
        (A, 0.8, 0),
        (FAR, 0.7, 1),
        (B, 0.6, 0),  # taken for another class
        (C, 0.2, 0),  # too faint to be shown
    ),
    truth((A, 0), (B, 1), (C, 0)),
)


def test_matrix_by_hand():
    matrix = measure([FIVE], classes=("a", "b"))["confusion_matrix"]
    assert isinstance(matrix, Matrix)
    assert matrix.rows == matrix.columns == ("a", "b", "background")
    assert matrix.values.tolist() == [
        [1, 0, 1],  # A found, C not
        [1, 0, 0],  # B taken for a
        [1, 1, 0],  # A found a second time, and FAR
    ]


def test_curves_by_hand():
    """The likeliest takes the box, so the closer one is wrong; B is not of class a; C is found from 0.2 down."""
    found = measure([FIVE], classes=("a", "b"))
    curve = found["pr_curve"]
    assert isinstance(curve, PRCurve)
    assert curve.classes == ("a", "b")
    assert curve.thresholds.tolist() == torch.linspace(0, 1, THRESHOLDS).tolist()
    tp = [2] * 21 + [1] * 70 + [0] * 10  # of C to 0.20, of A to 0.90
    fp = [2] * 61 + [1] * 20 + [0] * 20  # of B to 0.60, the second of A to 0.80
    assert curve.true_positives.tolist() == [tp, [0] * 101]
    assert curve.false_positives.tolist() == [fp, [1] * 71 + [0] * 30]
    assert curve.false_negatives.tolist() == [[2 - n for n in tp], [1] * 101]
    assert not curve.true_negatives.any()
    assert float(found["precision"]) == pytest.approx(1 / 4)  # of four shown
    assert float(found["recall"]) == pytest.approx(1 / 3)


def test_the_matrix_adds_up():
    pictures = crowd()
    counts = measure(pictures)["confusion_matrix"].values
    true = torch.cat([t.labels for _, t in pictures]).bincount(minlength=4)
    shown = torch.cat([found.labels[found.scores >= SHOWN] for found, _ in pictures]).bincount(minlength=4)
    assert counts[:4].sum(1).tolist() == true.tolist()
    assert counts[:, :4].sum(0).tolist() == shown.tolist()
    assert counts[4, 4] == 0
    assert counts[:4, :4].sum() > counts[:4, :4].trace() > 0  # some are taken for another class


def test_the_matrix_against_loops():
    """Pair off what is closest, again and again."""
    pictures = crowd()
    expected = torch.zeros(5, 5, dtype=torch.int64)
    for found, true in pictures:
        left = [(b, k) for b, s, k in zip(found.boxes.tolist(), found.scores.tolist(), found.labels.tolist(), strict=True) if s >= SHOWN]
        right = list(zip(true.boxes.tolist(), true.labels.tolist(), strict=True))
        while left and right:
            one, other = max(((p, q) for p in left for q in right), key=lambda pair: overlap(pair[0][0], pair[1][0]))
            if overlap(one[0], other[0]) < 0.5:
                break
            expected[other[1], one[1]] += 1
            left.remove(one)
            right.remove(other)
        for _, label in left:
            expected[4, label] += 1
        for _, label in right:
            expected[label, 4] += 1
    assert torch.equal(measure(pictures)["confusion_matrix"].values, expected)


def test_curves_against_loops():
    pictures = crowd()
    curve = measure(pictures)["pr_curve"]
    for label in range(4):
        total = sum(int((true.labels == label).sum()) for _, true in pictures)
        for t in range(0, THRESHOLDS, 5):
            score = float(curve.thresholds[t])
            hit = [h for found, true in pictures for _, h in hits(found, true, label, 0.5, score)]
            counts = [values[label, t].item() for values in (curve.true_positives, curve.false_positives, curve.false_negatives)]
            assert counts == [sum(hit), len(hit) - sum(hit), total - sum(hit)], (label, score)


# -------------------------------------------------------------------- several ranks


def plain(found: dict[str, Any]) -> list[Tensor]:
    curve, numbers = found["pr_curve"], [float(found[name]) for name in ("map50", "map", "map75", "precision", "recall")]
    return [torch.tensor([*numbers, *map(float, found["ap50"].values())]), found["confusion_matrix"].values, curve.true_positives]


def _rank(rank: int, world: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=world)
    pictures = [(Detections(*found), Truth(*true)) for found, true in torch.load(f"{folder}/pictures.pt", weights_only=True)]
    torch.save(plain(measure(pictures[rank::2] if rank < 2 else [], batch=3)), f"{folder}/{rank}.pt")  # the last has nothing to look at
    dist.destroy_process_group()


@pytest.mark.slow
def test_three_ranks_see_the_whole(tmp_path: Path):
    """With unequal numbers of pictures and of batches, of boxes, and none at all."""
    pictures = crowd(25, score_step=0.25)
    torch.save([(tuple(found), tuple(true)) for found, true in pictures], tmp_path / "pictures.pt")
    mp.spawn(_rank, (3, str(tmp_path)), nprocs=3)
    for rank in range(3):
        seen = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert all(torch.equal(one, other) for one, other in zip(seen, plain(measure(pictures)), strict=True))
