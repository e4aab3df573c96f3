"""What is measured of a classifier. Importing this imports torchmetrics, so tasks do it inside `metrics`.

Shapes: B samples, K classes, T thresholds. Every metric takes logits (B, K) and labels (B,).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric as TorchMetric
from torchmetrics.classification import (
    MulticlassAccuracy,
    MulticlassCalibrationError,
    MulticlassConfusionMatrix,
    MulticlassF1Score,
    MulticlassPrecision,
    MulticlassRecall,
)

from refresher_runner.metrics.wrappers import Through
from refresher_runner.report import Matrix, PRCurve
from refresher_runner.task import Metric

THRESHOLDS = 101  # 0, 0.01, ..., 1


def classification_metrics(classes: Sequence[str], *, ignore_index: int | None = None) -> dict[str, Metric]:
    """Accuracy, macro F1, calibration error (Guo et al., 2017, section 2; 15 bins), confusion matrix, and per class precision, recall
    and their curve; with more than five classes also top-5 accuracy. Samples with the label `ignore_index` are left out.
    """
    names, k = tuple(classes), len(classes)
    thresholds = torch.linspace(0, 1, THRESHOLDS)

    def by_class(values: Tensor) -> dict[str, Tensor]:
        return dict(zip(names, values, strict=True))

    def matrix(counts: Tensor) -> Matrix:
        return Matrix(counts.cpu(), names, names)

    def curve(counts: Tensor) -> PRCurve:
        return PRCurve(names, thresholds, *counts.cpu())

    # Our labels are in range, and torchmetrics' own check would wait for the device at every batch.
    unchecked: dict[str, Any] = {"num_classes": k, "validate_args": False, "ignore_index": ignore_index}
    metrics: dict[str, Metric] = {
        "accuracy": MulticlassAccuracy(average="micro", **unchecked),
        "f1": MulticlassF1Score(average="macro", **unchecked),
        "precision": Through(MulticlassPrecision(average="none", **unchecked), show=by_class),
        "recall": Through(MulticlassRecall(average="none", **unchecked), show=by_class),
        "calibration_error": Through(MulticlassCalibrationError(n_bins=15, **unchecked), prepare=_softmax),
        "confusion_matrix": Through(MulticlassConfusionMatrix(**unchecked), show=matrix),
        "pr_curve": Through(ThresholdCounts(k, thresholds, ignore_index), prepare=_softmax, show=curve),
    }
    if k > 5:
        metrics["top5"] = MulticlassAccuracy(average="micro", top_k=5, **unchecked)
    return metrics


class ThresholdCounts(TorchMetric):
    """True and false positives, true and false negatives of each class against the rest: (4, K, T), int64.

    A sample is taken for a class when its probability is at least the threshold. Each update sorts B x K probabilities into the
    gaps between thresholds, whatever T; `torchmetrics` compares every probability with every threshold.
    """

    counts: Tensor
    thresholds: Tensor

    def __init__(self, num_classes: int, thresholds: Tensor, ignore_index: int | None = None):
        super().__init__()
        self.ignore_index = ignore_index
        self.register_buffer("thresholds", thresholds, persistent=False)
        # gap g holds thresholds[g - 1] <= p < thresholds[g]
        self.add_state("counts", torch.zeros(2, num_classes, len(thresholds) + 1, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, p: Tensor, targets: Tensor) -> None:
        """Probabilities p (B, K), targets (B,)"""
        if self.ignore_index is not None:
            p, targets = p[targets != self.ignore_index], targets[targets != self.ignore_index]
        classes = torch.arange(p.shape[1], device=p.device)
        positive = (classes == targets[:, None]).long()  # (B, K)
        gap = torch.bucketize(p, self.thresholds, right=True)  # (B, K): thresholds that p reaches
        where = (positive * p.shape[1] + classes) * self.counts.shape[-1] + gap
        self.counts += where.flatten().bincount(minlength=self.counts.numel()).view_as(self.counts)

    def compute(self) -> Tensor:
        total = self.counts.sum(-1, keepdim=True)
        below = self.counts.cumsum(-1)[..., :-1]  # [..., t]: samples that do not reach threshold t
        (fn, tn), (tp, fp) = below.flip(0), (total - below).flip(0)
        return torch.stack([tp, fp, tn, fn])


def _softmax(logits: Tensor) -> Tensor:
    """Probabilities (B, K): torchmetrics would take logits that happen to lie in [0, 1] for probabilities."""
    return logits.softmax(-1)
