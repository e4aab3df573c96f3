"""What every detector shares: one decoding, non-maximum suppression, the metrics, pictures with boxes, the `predict` verb.

Shapes: B pictures, C channels, S x S pixels, N candidate boxes a picture, K classes, M true boxes of all pictures together.
Boxes are x1 y1 x2 y2 in pixels of the square picture.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from refresher_runner.spec import DetectionBatch, DetectionSpec
from refresher_runner.task import Goal, Metric, Output, Task

FLOOR = 0.001  # candidates that score less are never looked at: mean average precision wants the faint ones too
SHOWN = 0.25  # the score from which a box is drawn, predicted and counted in the confusion matrix
MOST = 300  # boxes kept in a picture


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
        if self.training:
            return Output(loss, parts)
        return Output(loss, parts, preds=self.suppress(*self.decode(raw)), targets=truths(batch))

    def detect(self, images: Tensor) -> list[Detections]:
        """Images (B, C, S, S) -> what is seen in each."""
        return self.suppress(*self.decode(self.network(images)))

    def suppress(self, boxes: Tensor, scores: Tensor) -> list[Detections]:
        """Non-maximum suppression in each picture, class by class: of boxes that overlap by more than `iou`, the likeliest."""
        from torchvision.ops import batched_nms  # takes seconds to import

        found = []
        for box, score in zip(boxes.float(), scores.float(), strict=True):
            where, label = (score > FLOOR).nonzero().unbind(1)
            box, score = box[where], score[where, label]
            keep = batched_nms(box, score, label, self.iou)[:MOST]
            found.append(Detections(box[keep], score[keep], label[keep]))
        return found

    def metrics(self) -> dict[str, Metric]:
        from refresher_runner.metrics.detection import detection_metrics

        return detection_metrics(self.spec.classes)


def truths(batch: DetectionBatch) -> list[Truth]:
    """The boxes of every picture."""
    counts = torch.bincount(batch.owners, minlength=len(batch.images)).tolist()
    return [Truth(*both) for both in zip(batch.boxes.split(counts), batch.labels.split(counts), strict=True)]
