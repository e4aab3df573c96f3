"""What every detector shares: one decoding, non-maximum suppression, the metrics, pictures with boxes, the `predict` verb.

Shapes: B pictures, C channels, S x S pixels, N candidate boxes a picture, K classes, M true boxes of all pictures together.
Boxes are x1 y1 x2 y2 in pixels of the square picture.
"""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from refresher_runner.nn.pictures import draw_boxes, enlargement, picture_files, side_by_side
from refresher_runner.pictures import open_picture, to_tensor
from refresher_runner.report import Images, Prediction, Report
from refresher_runner.spec import DetectionBatch, DetectionSpec
from refresher_runner.task import Goal, Metric, Output, Task

FLOOR = 0.001  # candidates that score less are never looked at: mean average precision wants the faint ones too
CONTENDERS = 3000  # the likeliest, which suppression looks at: a network that has learnt nothing yet sees everything everywhere
SHOWN = 0.25  # the score from which a box is drawn, predicted and counted in the confusion matrix
MOST = 300  # boxes kept in a picture
LOOKED_AT = 8  # pictures of a batch


class Detections(NamedTuple):
    """Boxes of one picture, likeliest first: boxes (n, 4), scores (n,) in [0, 1], labels (n,) int64."""

    boxes: Tensor
    scores: Tensor
    labels: Tensor

    def above(self, score: float) -> Detections:
        keep = self.scores >= score
        return Detections(self.boxes[keep], self.scores[keep], self.labels[keep])


class Truth(NamedTuple):
    """What is in one picture: boxes (n, 4), labels (n,) int64."""

    boxes: Tensor
    labels: Tensor


class Detector(Task):
    """A network whose output `loss` compares with the truth and `decode` turns into scored boxes."""

    goal = Goal("map50", "max")

    def __init__(self, spec: DetectionSpec, network: nn.Module, iou: float):
        super().__init__()
        self.spec, self.network, self.iou = spec, network, iou

    @abstractmethod
    def loss(self, raw: Any, batch: DetectionBatch) -> tuple[Tensor, Mapping[str, Tensor]]:
        """The objective, and its parts, of the network's output on one batch."""

    @abstractmethod
    def decode(self, raw: Any) -> tuple[Tensor, Tensor]:
        """The network's output as boxes (B, N, 4) and scores of every class (B, N, K) in [0, 1]."""

    def step(self, batch: DetectionBatch) -> Output:
        raw = self.network(batch.images)
        loss, parts = self.loss(raw, batch)
        if self.training or torch.jit.is_tracing():  # type: ignore[attr-defined]  # TensorBoard's graph ends at the loss
            return Output(loss, parts)
        return Output(loss, parts, preds=self.suppress(*self.decode(raw)), targets=truths(batch))

    def detect(self, images: Tensor) -> list[Detections]:
        """Images (B, C, S, S) -> what is seen in each."""
        return self.suppress(*self.decode(self.network(images)))

    def suppress(self, boxes: Tensor, scores: Tensor) -> list[Detections]:
        """Non-maximum suppression in each picture, class by class: of boxes that overlap by more than `iou`, the likeliest."""
        from torchvision.ops import batched_nms  # takes seconds to import

        found = []
        for picture in zip(boxes, scores, strict=True):
            seen = self.contenders(*picture)
            keep = batched_nms(*seen, self.iou)[:MOST]
            found.append(Detections(*(field[keep] for field in seen)))
        return found

    def contenders(self, boxes: Tensor, scores: Tensor) -> Detections:
        """What one picture's boxes (N, 4) and scores (N, K) might be, once for every class that is not ruled out.

        A box ends where the picture does; those outside are left out.
        """
        boxes, inside = clip(boxes.float(), self.spec.size, self.spec.size)
        where, labels = ((scores > FLOOR) & inside[:, None]).nonzero().unbind(1)
        scores, order = scores[where, labels].float().sort(descending=True, stable=True)
        scores, order = scores[:CONTENDERS], order[:CONTENDERS]
        return Detections(boxes[where[order]], scores, labels[order])

    def metrics(self) -> dict[str, Metric]:
        from refresher_runner.metrics.detection import detection_metrics

        return detection_metrics(self.spec.classes)

    def observe(self, batch: DetectionBatch) -> Report:
        """Pictures with their true boxes on the left and what was found on the right; what suppression did to the fullest picture of
        the batch; and how long a picture takes, and which share of that is suppression.
        """
        self.detect(batch.images)  # the pass that is timed is not the first
        started = self._clock()
        boxes, scores = self.decode(self.network(batch.images))
        decoded = self._clock()
        found = self.suppress(boxes, scores)
        ended = self._clock()

        true = truths(batch)
        fullest = max(range(len(true)), key=lambda k: len(true[k].labels))
        before = self.contenders(boxes[fullest], scores[fullest]).above(SHOWN)
        after = found[fullest].above(SHOWN)
        suppression = side_by_side(self._draw(batch.images[fullest], before, named=False), self._draw(batch.images[fullest], after))
        looked_at = [
            (image, here, seen.above(SHOWN))
            for image, here, seen in zip(batch.images[:LOOKED_AT], true[:LOOKED_AT], found[:LOOKED_AT], strict=True)
        ]
        return {
            "boxes": Images(
                torch.stack([side_by_side(self._draw(image, here), self._draw(image, seen)) for image, here, seen in looked_at]),
                tuple(f"{len(here.labels)} true, {len(seen.labels)} found" for _, here, seen in looked_at),
            ),
            "suppression": Images(suppression[None], (f"{len(before.labels)} before, {len(after.labels)} after",)),
            "speed/ms_per_image": 1000 * (ended - started) / len(batch.images),
            "speed/nms_share": (ended - decoded) / (ended - started),
        }

    def predict(self, inputs: Sequence[str]) -> Iterator[Prediction]:
        """A row for every box found in each picture among the files and folders, likeliest first, in pixels of the photograph, which
        comes with the first of them; a row of class `nothing` for a picture in which nothing is found.

        Raises DataError, naming the file, for one that is absent, empty of pictures or unreadable.
        """
        device = next(self.parameters()).device
        for path in picture_files(inputs):
            picture = open_picture(path, self.spec.channels)
            image, how = self.spec.fit(picture)
            [found] = self.detect(image[None].to(device))
            photo = to_tensor(picture) / 255
            boxes, inside = clip(how.to_photo(found.boxes), *photo.shape[1:])
            found = Detections(*(field[inside] for field in (boxes, found.scores, found.labels))).above(SHOWN)
            report: Report = {"boxes": Images(draw_boxes(photo, found.boxes, found.labels, self._captions(found))[None])}
            found_rows = zip(found.labels.tolist(), found.scores.tolist(), found.boxes.tolist(), strict=True)
            rows = [self._row(label, score, box) for label, score, box in found_rows] or [{"class": "nothing"}]
            for number, values in enumerate(rows):
                yield Prediction(str(path), values, {} if number else report)

    def _row(self, label: int, score: float, box: Sequence[float]) -> dict[str, object]:
        corners = zip(("x1", "y1", "x2", "y2"), box, strict=True)
        return {"class": self.spec.classes[label], "confidence": score, **{name: round(value, 2) for name, value in corners}}

    def _draw(self, image: Tensor, seen: Detections | Truth, named: bool = True) -> Tensor:
        """One picture of a batch with boxes on it, enlarged if it is small."""
        return draw_boxes(image, seen.boxes, seen.labels, self._captions(seen) if named else (), scale=enlargement(*image.shape[1:]))

    def _captions(self, seen: Detections | Truth) -> list[str]:
        names = [self.spec.classes[label] for label in seen.labels.tolist()]
        if isinstance(seen, Truth):
            return names
        return [f"{name} {score:.2f}" for name, score in zip(names, seen.scores.tolist(), strict=True)]

    def _clock(self) -> float:
        """Seconds, when all that was asked of the device is done."""
        device = next(self.parameters()).device
        if device.type != "cpu":
            torch.accelerator.synchronize(device)
        return time.perf_counter()


def truths(batch: DetectionBatch) -> list[Truth]:
    """The boxes of every picture."""
    counts = torch.bincount(batch.owners, minlength=len(batch.images)).tolist()
    return [Truth(*both) for both in zip(batch.boxes.split(counts), batch.labels.split(counts), strict=True)]


def overlap(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over union of boxes, each with its own, broadcast against each other: (..., 4), (..., 4) -> (...)"""
    sides = torch.minimum(a[..., 2:], b[..., 2:]) - torch.maximum(a[..., :2], b[..., :2])
    intersection = sides.clamp(min=0).prod(-1)
    union = (a[..., 2:] - a[..., :2]).prod(-1) + (b[..., 2:] - b[..., :2]).prod(-1) - intersection
    return intersection / union.clamp(min=1e-9)


def clip(boxes: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Boxes (n, 4) as far as a picture reaches, and which of them have an area there, (n,): none that is inside out or NaN has."""
    boxes = boxes.clamp(min=0).minimum(boxes.new_tensor([width, height, width, height]))
    return boxes, (boxes[:, 2:] > boxes[:, :2]).all(-1)
