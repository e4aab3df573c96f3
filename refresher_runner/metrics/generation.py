"""What drawn pictures are worth, in the eyes of a classifier of real ones.

Heusel et al., "GANs Trained by a Two Time-Scale Update Rule Converge to a Local Nash Equilibrium", 2017. https://arxiv.org/abs/1706.08500
Kynkäänniemi et al., "Improved Precision and Recall Metric for Assessing Generative Models", 2019. https://arxiv.org/abs/1904.06991

Both papers look through a network trained on ImageNet. Here it is one trained on the very data (see `Judge`), so figures compare runs
on one data set under one judge, with as many pictures, and nothing else: **they are no Inception-FID**.

Letters: N pictures, D features, K classes.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics import Metric as TorchMetric

from refresher_runner.report import Loggable, Matrix, Report, Text
from refresher_runner.task import Judge

NEIGHBOURS = 3  # as in Kynkäänniemi et al., section 3


def frechet_distance(a: Tensor, b: Tensor) -> float:
    """|| mu_a - mu_b ||^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2)), Heusel et al., eq. 6, of the Gaussians through features (N, D) and (M, D).

    It is biased upwards by the fewness of pictures: compare figures of equally many.
    """
    a, b = a.double(), b.double()
    cov_a, cov_b = (torch.atleast_2d(x.T.cov()) for x in (a, b))
    root_a = _root(cov_a)
    trace_of_root = torch.linalg.eigvalsh(root_a @ cov_b @ root_a).clamp(min=0).sqrt().sum()  # that of C_a C_b, made symmetric
    return float(((a.mean(0) - b.mean(0)) ** 2).sum() + cov_a.trace() + cov_b.trace() - 2 * trace_of_root)


def _root(matrix: Tensor) -> Tensor:
    """The symmetric root of a symmetric matrix without negative eigenvalues."""
    values, vectors = torch.linalg.eigh(matrix)
    return vectors * values.clamp(min=0).sqrt() @ vectors.T


def precision_recall(real: Tensor, drawn: Tensor, k: int = NEIGHBOURS) -> tuple[float, float]:
    """Shares of the drawn that lie among the real, and of the real that lie among the drawn: Kynkäänniemi et al., eqs. 1 and 2.

    To lie among others is to be no farther from one of them than its k-th nearest neighbour among themselves. Features (N, D), (M, D).
    """
    return _covered(real, drawn, k), _covered(drawn, real, k)


def _covered(manifold: Tensor, points: Tensor, k: int) -> float:
    reach = torch.cdist(manifold, manifold).kthvalue(k + 1, dim=1).values  # the nearest is itself
    return float((torch.cdist(points, manifold) <= reach).any(1).double().mean())


def judged(judge: Judge, real: Tensor, drawn: Tensor, asked: Tensor | None, classes: tuple[str, ...]) -> Report:
    """What a judge says of images drawn (M, C, H, W), beside real ones (N, C, H, W), both as a batch has them; asked (M,) are the classes
    that were wanted, None where none was.
    """
    (features, _), (features_drawn, logits) = judge(real), judge(drawn)
    precision, recall = precision_recall(features, features_drawn)
    distance = frechet_distance(features, features_drawn)
    about = f"Features of {judge.name}, not of Inception: {len(real)} real pictures, {len(drawn)} drawn. Compare like with like."
    report: dict[str, Loggable] = {
        "judge_frechet_distance": distance,
        "judge_precision": precision,
        "judge_recall": recall,
        "judge": Text(about),
    }
    return report if asked is None else {**report, **_counted(logits, asked, classes, "asked", "recognised")}


def recognised(judge: Judge, images: Tensor, labels: Tensor, classes: tuple[str, ...], rows: str, columns: str) -> Report:
    """Which classes a judge recognises in images (M, C, H, W) that are to show labels (M,), under the titles of rows and columns."""
    return _counted(judge(images)[1], labels, classes, rows, columns)


def _counted(logits: Tensor, labels: Tensor, classes: tuple[str, ...], rows: str, columns: str) -> Report:
    found, k = logits.argmax(-1), len(classes)
    counts = torch.bincount(labels * k + found, minlength=k * k).view(k, k).cpu()
    right = float((found == labels).double().mean())
    return {f"recognised_as_{rows.split()[0]}": right, "confusion_matrix": Matrix(counts, classes, classes, rows, columns)}


class MeanOfPreds(TorchMetric):
    """The mean of what each picture is given, (B,)."""

    total: Tensor
    count: Tensor

    def __init__(self):
        super().__init__()
        for name in ("total", "count"):
            self.add_state(name, torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, preds: Tensor, targets: object) -> None:
        self.total += preds.double().sum()
        self.count += len(preds)

    def compute(self) -> Tensor:
        return self.total / self.count


class LossByTime(TorchMetric):
    """Mean loss of each quarter of the time, `quarter1` next to data: update takes losses (B,) and t (B,) in [0, T)."""

    sums: Tensor
    counts: Tensor

    def __init__(self, num_timesteps: int):
        super().__init__()
        self.num_timesteps = num_timesteps
        for name in ("sums", "counts"):
            self.add_state(name, torch.zeros(4, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, losses: Tensor, t: Tensor) -> None:
        quarter = (4 * t / self.num_timesteps).long()
        self.sums.index_add_(0, quarter, losses.double())
        self.counts.index_add_(0, quarter, torch.ones_like(losses, dtype=torch.float64))

    def compute(self) -> dict[str, Tensor]:
        """Of the quarters that were seen."""
        return {f"quarter{i}": s / n for i, (s, n) in enumerate(zip(self.sums, self.counts, strict=True), 1) if n > 0}
