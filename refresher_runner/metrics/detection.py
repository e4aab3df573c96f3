"""What is measured of a detector. Importing this imports torchmetrics, so tasks do it inside `metrics`.

Shapes: n detections and m true boxes in a picture, K classes, T thresholds of the score.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric as TorchMetric
from torchmetrics.detection import MeanAveragePrecision
from torchmetrics.utilities.data import dim_zero_cat

from refresher_runner.metrics.wrappers import Part
from refresher_runner.nn.detect import SHOWN, Detections, Truth
from refresher_runner.report import Matrix, PRCurve
from refresher_runner.task import Metric

IOU = 0.5  # from which a detection is of a true box, but for `map` and `map75`
IOUS = [percent / 100 for percent in range(50, 100, 5)]
MOST = 100  # detections of a class in a picture that average precision looks at, the likeliest, as COCO has it
THRESHOLDS = 101  # of the score: 0, 0.01, ..., 1

Picture = tuple[Detections, Truth]


def detection_metrics(classes: Sequence[str]) -> dict[str, Metric]:
    """Average precision as COCO measures it: the mean over classes at an IoU of 0.5 (`map50`, and `ap50` of each class), of 0.75, and
    over ten from 0.5 to 0.95 (`map`); precision and recall of what is drawn; confusion matrix with a background; and for each
    class precision and recall at every score.

    A class without a true box has no average precision and is in no mean; a split without any has 0. Average precision looks at the
    100 likeliest detections of a class in a picture, a limit of COCO's; all else looks at every one.
    """
    names, thresholds = tuple(classes), torch.linspace(0, 1, THRESHOLDS)
    whole = DetectionMeasures(len(names), thresholds)

    def mean(ap: Tensor) -> Tensor:
        return ap.nanmean().nan_to_num(0.0)

    def by_class(ap: Tensor) -> dict[str, Tensor]:
        return {name: value for name, value in zip(names, ap, strict=True) if not value.isnan()}

    def drawn(counts: Tensor) -> Tensor:
        """True and false positives, true and false negatives of all classes together, of what scores at least SHOWN: (4,)"""
        return counts[:, :, round(SHOWN * (THRESHOLDS - 1))].sum(1)

    def precision(counts: Tensor) -> Tensor:
        tp, fp, _, _ = drawn(counts)
        return tp / (tp + fp).clamp(min=1)

    def recall(counts: Tensor) -> Tensor:
        tp, _, _, fn = drawn(counts)
        return tp / (tp + fn).clamp(min=1)

    with_background = (*names, "background")
    return {
        "map50": Part(whole, lambda values: mean(values["ap"][IOUS.index(0.5)])),
        "map": Part(whole, lambda values: mean(values["ap"])),
        "map75": Part(whole, lambda values: mean(values["ap"][IOUS.index(0.75)])),
        "precision": Part(whole, lambda values: precision(values["counts"])),
        "recall": Part(whole, lambda values: recall(values["counts"])),
        "ap50": Part(whole, lambda values: by_class(values["ap"][IOUS.index(0.5)])),
        "confusion_matrix": Part(whole, lambda values: Matrix(values["confusion"], with_background, with_background)),
        "pr_curve": Part(whole, lambda values: PRCurve(names, thresholds, *values["counts"])),
    }


class DetectionMeasures(TorchMetric):
    """All boxes of a split, and all that is measured of them: `ap` (10, K) at every IoU of IOUS, NaN for a class without a true box;
    `confusion` (K + 1, K + 1), the background last; `counts` (4, K, T), true and false positives, true (0: what is not an object
    cannot be counted) and false negatives.

    Boxes are kept as rows of numbers, with how many rows each picture has: three flat tensors on every rank, which torchmetrics
    can gather whatever the number of pictures, even none. (Its own metric keeps a tensor for each picture, and ranks of unequal
    numbers would wait for one another for ever.)
    """

    numbers: list[Tensor]  # of each picture: detections, true boxes
    detections: list[Tensor]  # of each: x1 y1 x2 y2 score label
    truths: list[Tensor]  # of each: x1 y1 x2 y2 label

    def __init__(self, num_classes: int, thresholds: Tensor):
        super().__init__()
        self.num_classes, self.thresholds = num_classes, thresholds
        for name in ("numbers", "detections", "truths"):
            self.add_state(name, [], dist_reduce_fx="cat")

    def update(self, preds: Sequence[Detections], targets: Sequence[Truth]) -> None:
        boxes, scores, labels = (torch.cat(field) for field in zip(*preds, strict=True))
        true_boxes, true_labels = (torch.cat(field) for field in zip(*targets, strict=True))
        numbers = [[len(found.scores), len(truth.labels)] for found, truth in zip(preds, targets, strict=True)]
        self.numbers.append(boxes.new_tensor(numbers).flatten())
        self.detections.append(torch.column_stack([boxes, scores, labels]).flatten())
        self.truths.append(torch.column_stack([true_boxes, true_labels]).flatten())

    def compute(self) -> dict[str, Tensor]:
        pictures = self._pictures()
        hits, confusion = _matches(pictures, self.num_classes)
        counts = _counts(pictures, hits, self.num_classes, self.thresholds)
        return {"ap": _average_precision(pictures, self.num_classes), "confusion": confusion, "counts": counts}

    def _pictures(self) -> list[Picture]:
        """In an order that is theirs, whoever looked at which and when: of detections that score the same, COCO ranks those of the
        first picture first.
        """
        n, m = dim_zero_cat(self.numbers).view(-1, 2).long().cpu().unbind(1)
        detections = dim_zero_cat(self.detections).view(-1, 6).cpu().split(n.tolist())
        truths = dim_zero_cat(self.truths).view(-1, 5).cpu().split(m.tolist())
        rows = sorted(zip(detections, truths, strict=True), key=lambda both: (_digest(both[1]), _digest(both[0])))
        return [(Detections(d[:, :4], d[:, 4], d[:, 5].long()), Truth(t[:, :4], t[:, 4].long())) for d, t in rows]


def _digest(rows: Tensor) -> bytes:
    return hashlib.blake2b(rows.numpy().tobytes(), digest_size=8).digest()


def _average_precision(pictures: Sequence[Picture], num_classes: int) -> Tensor:
    """(10, K), NaN for a class without a true box."""
    metric = MeanAveragePrecision(
        backend="faster_coco_eval",
        iou_thresholds=IOUS,
        rec_thresholds=np.linspace(0, 1, 101).tolist(),  # COCO's; torchmetrics rounds them to single precision
        max_detection_thresholds=[1, 10, MOST],
        extended_summary=True,
        sync_on_compute=False,  # every rank has all pictures already
    )
    metric.warn_on_many_detections = False
    metric.update([found._asdict() for found, _ in pictures], [truth._asdict() for _, truth in pictures])
    values = metric.compute()
    ap = torch.full((len(IOUS), num_classes), float("nan"), dtype=torch.float64)
    seen = values["classes"].view(-1).long()  # torchmetrics makes a scalar of a single one
    if len(seen):
        every_size, most = 0, -1
        precision = values["precision"][:, :, :, every_size, most]  # (IoU, recall, class that is seen), -1 without a true box
        ap[:, seen] = precision.mean(1).where(precision.amin(1) >= 0, float("nan"))
    return ap


def _matches(pictures: Sequence[Picture], num_classes: int) -> tuple[Tensor, Tensor]:
    """Which detections hit a true box of their class, of all pictures together, and the confusion matrix (K + 1, K + 1)."""
    from torchvision.ops import box_iou

    hits: list[bool] = []
    cells: list[tuple[int, int]] = []  # true, predicted
    background = num_classes
    for found, truth in pictures:
        assert (found.scores.diff() <= 0).all(), "detections come likeliest first"
        iou = box_iou(found.boxes, truth.boxes)  # (n, m)
        d, t = (iou >= IOU).nonzero().unbind(1)
        near = list(zip(d.tolist(), (-iou[d, t]).tolist(), t.tolist(), strict=True))
        scores, labels, true = found.scores.tolist(), found.labels.tolist(), truth.labels.tolist()

        # the likeliest detection chooses first, of the true boxes of its class the one it covers best
        hit = _pair_off((d, t) for d, _, t in sorted(near) if labels[d] == true[t])
        hits += [d in hit for d in range(len(labels))]

        # the closest are paired off first, whatever their classes
        shown = [d for d, score in enumerate(scores) if score >= SHOWN]
        matched = _pair_off((d, t) for _, d, t in sorted((u, d, t) for d, u, t in near) if scores[d] >= SHOWN)
        missed = {*range(len(true))} - {*matched.values()}
        cells += [(true[matched[d]] if d in matched else background, labels[d]) for d in shown]
        cells += [(true[t], background) for t in missed]
    size = num_classes + 1
    rows, columns = torch.tensor(cells, dtype=torch.int64).view(-1, 2).unbind(1)
    return torch.tensor(hits, dtype=torch.bool), (rows * size + columns).bincount(minlength=size * size).view(size, size)


def _pair_off(pairs: Iterable[tuple[int, int]]) -> dict[int, int]:
    """Of pairs (detection, true box), best first, those of which both are still free: detection -> true box."""
    matched: dict[int, int] = {}
    taken: set[int] = set()
    for d, t in pairs:
        if d not in matched and t not in taken:
            matched[d] = t
            taken.add(t)
    return matched


def _counts(pictures: Sequence[Picture], hits: Tensor, num_classes: int, thresholds: Tensor) -> Tensor:
    """True and false positives, true and false negatives of what scores at least each threshold: (4, K, T), int64."""
    scores, labels = torch.cat([found.scores for found, _ in pictures]), torch.cat([found.labels for found, _ in pictures])
    truths = torch.cat([truth.labels for _, truth in pictures]).bincount(minlength=num_classes)
    # gap g holds thresholds[g - 1] <= score < thresholds[g]
    gap = torch.bucketize(scores, thresholds, right=True)
    where = (hits.long() * num_classes + labels) * (len(thresholds) + 1) + gap
    inside = where.bincount(minlength=2 * num_classes * (len(thresholds) + 1)).view(2, num_classes, -1)
    fp, tp = inside.sum(-1, keepdim=True) - inside.cumsum(-1)[..., :-1]
    return torch.stack([tp, fp, torch.zeros_like(tp), truths[:, None] - tp])
