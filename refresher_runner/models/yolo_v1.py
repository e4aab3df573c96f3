"""You only look once: one network sees the whole picture and says, for every cell of a grid, what is there and how far it reaches.

Redmon, Divvala, Girshick and Farhadi, "You Only Look Once: Unified, Real-Time Object Detection", 2016. https://arxiv.org/abs/1506.02640

An S x S grid is laid over the picture. The cell that holds the centre of an object is responsible for it (section 2). Every cell says B
boxes, each with a confidence, and one set of C class probabilities: B * 5 + C numbers.

    x, y               the box's centre, from 0 to 1 across and down its cell
    sqrt w, sqrt h     of its sides, as fractions of the picture's (section 2.2 has the network say the roots)
    confidence         Pr(object) * IoU with the true box
    p(c)               Pr(class c | object), one for all the cell's boxes

    picture -> Grid -> raw (N, S, S, B * 5 + C) -> decode, eq. 1 -> suppress
                                               `-> assign -> loss, eq. 3   (training)

Differs: batch norm after every convolution, in place of a week's pre-training on ImageNet; width and depth are options. A sigmoid comes
last, as all that is said lies in [0, 1]: linear outputs, the paper's, learn more slowly. By default each cell is read by one and the
same 1 x 1 convolution, which learns from all cells; the paper's two connected layers (`hidden`) learn each cell for itself, which without
pre-training is far slower. Of two objects in one cell the paper keeps one; here it is the one listed first. The loss is a mean over
pictures.

Letters: N pictures of P x P pixels, S x S cells, B boxes a cell, C classes, M true boxes of all pictures together. A hat, x^, is the truth.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from refresher_runner.errors import ConfigError
from refresher_runner.nn.darknet import conv
from refresher_runner.nn.detect import Detector, overlap
from refresher_runner.nn.pictures import enlarged, tinted
from refresher_runner.registry import MODELS
from refresher_runner.report import Images, Report
from refresher_runner.schema import Fraction, NonNegative, NonNegativeFloat, Positive
from refresher_runner.spec import DetectionBatch, DetectionSpec

HALVINGS = range(2, 7)  # of the picture's side on the way to the grid's; the paper has 6, from 448 to 7


def stage(before: int, after: int, depth: int) -> nn.Sequential:
    """Half the resolution, then so many pairs of a 1 x 1 convolution that reduces and a 3 x 3 that sees (section 2.1)."""
    pairs = [layer for n in [before] + [after] * (depth - 1) for layer in (conv(n, after // 2, 1), conv(after // 2, after, 3))]
    return nn.Sequential(nn.MaxPool2d(2), *pairs)


def connected(features: int, outputs: int, grid: int, hidden: int, dropout: float) -> nn.Sequential:
    """The paper's head: (N, features, S, S) -> (N, outputs, S, S), each number of all that is seen anywhere."""
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(features * grid * grid, hidden),
        nn.LeakyReLU(0.1),
        nn.Dropout(dropout),
        nn.Linear(hidden, outputs * grid * grid),
        nn.Unflatten(1, (outputs, grid, grid)),
    )


class Grid(nn.Module):
    """Images (N, channels, P, P) -> raw (N, S, S, B * 5 + C) in [0, 1]: row by row, what each cell says."""

    def __init__(self, spec: DetectionSpec, outputs: int, *, grid: int, width: int, depth: int, hidden: int, dropout: float):
        super().__init__()
        halvings = (spec.size // grid).bit_length() - 1
        widths = [width * 2 ** min(i, 4) for i in range(halvings)]  # 64, ..., 1024 in the paper
        stages = [stage(before, after, depth) for before, after in pairwise(widths)]
        self.backbone = nn.Sequential(conv(spec.channels, width, 7, stride=2), *stages, conv(widths[-1], widths[-1], 3))
        features = widths[-1]
        self.head = connected(features, outputs, grid, hidden, dropout) if hidden else nn.Conv2d(features, outputs, 1)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.backbone(images)).permute(0, 2, 3, 1).float().sigmoid()


class Cells(NamedTuple):
    """What every cell says: boxes (N, S, S, B, 4), x y sqrt(w) sqrt(h); confidence (N, S, S, B); classes (N, S, S, C), p(c)."""

    boxes: Tensor
    confidence: Tensor
    classes: Tensor


class Target(NamedTuple):
    """What they should say. Where no object is, boxes and classes are zero, and eq. 3 does not look.

    obj (N, S, S), 1_i^obj: an object's centre is in cell i; responsible (N, S, S, B), 1_ij^obj: its box j is to fit that object;
    boxes (N, S, S, 4), x y sqrt(w) sqrt(h); iou (N, S, S, B), of the predicted boxes with it; classes (N, S, S, C), 0 or 1.
    """

    obj: Tensor
    responsible: Tensor
    boxes: Tensor
    iou: Tensor
    classes: Tensor


def corners(boxes: Tensor) -> Tensor:
    """Boxes (N, S, S, B, 4), x y sqrt(w) sqrt(h) of the grid's cells -> x1 y1 x2 y2 as fractions of the picture."""
    at = torch.arange(boxes.shape[1], device=boxes.device)
    cell = torch.stack(torch.meshgrid(at, at, indexing="xy"), -1)[:, :, None]  # (S, S, 1, 2): column, row
    centre, wh = (cell + boxes[..., :2]) / len(at), boxes[..., 2:].square()
    return torch.cat([centre - wh / 2, centre + wh / 2], -1)


class YOLOv1(Detector):
    """Squared error of all that the cells say, weighted so that boxes matter and the many empty cells do not drown the others."""

    network: Grid

    def __init__(self, spec: DetectionSpec, network: Grid, *, grid: int, boxes: int, lambda_coord: float, lambda_noobj: float, iou: float):
        super().__init__(spec, network, iou)
        self.grid, self.boxes, self.lambda_coord, self.lambda_noobj = grid, boxes, lambda_coord, lambda_noobj

    def class_layers(self) -> list[nn.Module]:
        """The last, which says boxes too."""
        return [layer for layer in self.network.head.modules() if [*layer.parameters(recurse=False)]][-1:]

    def read(self, raw: Tensor) -> Cells:
        boxes, classes = raw.split([5 * self.boxes, self.spec.num_classes], -1)
        boxes = boxes.unflatten(-1, (self.boxes, 5))
        return Cells(boxes[..., :4], boxes[..., 4], classes)

    @torch.no_grad()
    def assign(self, raw: Tensor, batch: DetectionBatch) -> Target:
        """Responsible is the cell that holds a true box's centre (section 2), and in it the box of the highest IoU (section 2.2)."""
        n, s, device = len(raw), self.grid, raw.device
        start, end = (batch.boxes / self.spec.size).split(2, -1)
        centre = (start + end) / 2 * s  # (M, 2): in cells, across and down
        cell = centre.long().clamp(0, s - 1)  # a centre on the picture's far edge is in the last one
        truths = torch.cat([centre - cell, (end - start).sqrt()], -1)
        labels = batch.labels[:, None] == torch.arange(self.spec.num_classes, device=device)

        # for every cell the first of the true boxes that it holds, or, holding none, the row of zeros past the last
        m = len(truths)
        where = (batch.owners * s + cell[:, 1]) * s + cell[:, 0]
        first = torch.full((n * s * s,), m, device=device)
        first = first.scatter_reduce(0, where, torch.arange(m, device=device), "amin").view(n, s, s)
        obj, truths, labels = first < m, F.pad(truths, (0, 0, 0, 1))[first], F.pad(labels, (0, 0, 0, 1))[first]

        iou = overlap(corners(self.read(raw).boxes), corners(truths[..., None, :]))  # (N, S, S, B)
        best = iou.argmax(-1, keepdim=True) == torch.arange(self.boxes, device=device)
        return Target(obj, best & obj[..., None], truths, iou, labels.to(raw.dtype))

    def errors(self, raw: Tensor, target: Target) -> dict[str, Tensor]:
        """The five lines of eq. 3: of each picture a sum over cells i and their boxes j; the mean over pictures."""
        said, n = self.read(raw), len(raw)
        obj_i, obj_ij = target.obj, target.responsible
        off = (said.boxes - target.boxes[..., None, :]).square()
        return {
            "coord": self.lambda_coord * (obj_ij * off[..., :2].sum(-1)).sum() / n,  # (x - x^)^2 + (y - y^)^2
            "size": self.lambda_coord * (obj_ij * off[..., 2:].sum(-1)).sum() / n,  # (sqrt w - sqrt w^)^2 + (sqrt h - sqrt h^)^2
            "confidence": (obj_ij * (said.confidence - target.iou).square()).sum() / n,  # (C - C^)^2, C^ = IoU
            "noobj": self.lambda_noobj * (~obj_ij * said.confidence.square()).sum() / n,  # (C - 0)^2
            "class": (obj_i * (said.classes - target.classes).square().sum(-1)).sum() / n,  # sum_c (p(c) - p^(c))^2
        }

    def loss(self, raw: Tensor, batch: DetectionBatch) -> tuple[Tensor, Mapping[str, Tensor]]:
        parts = self.errors(raw, self.assign(raw, batch))
        return torch.stack([*parts.values()]).sum(), {name: part.detach() for name, part in parts.items()}

    def decode(self, raw: Tensor) -> tuple[Tensor, Tensor]:
        """Eq. 1: Pr(class | object) * Pr(object) * IoU, the first factor said by the cell, the others by each of its boxes."""
        said = self.read(raw)
        scores = said.classes[..., None, :] * said.confidence[..., None]  # (N, S, S, B, C)
        return self.spec.size * corners(said.boxes).flatten(1, 3), scores.flatten(1, 3)

    def observe(self, batch: DetectionBatch) -> Report:
        """Figure 2, of the first picture: the grid, with every cell that holds a centre in the colour of its class; how sure each cell
        is that it shows something; the likeliest class of each.
        """
        mine = batch.owners == 0
        one = DetectionBatch(batch.images[:1], batch.boxes[mine], batch.labels[mine], batch.owners[mine])
        raw = self.network(one.images)
        [confidence], [classes] = self.read(raw)[1:]
        [obj], _, _, _, [truth] = self.assign(raw, one)

        photo, size = one.images[0], self.spec.size
        centres = tinted(photo, torch.where(obj, truth.argmax(-1), -1), lines=True)
        sure = enlarged(confidence.amax(-1), size).to(photo.dtype).expand(3, -1, -1)
        captions = (f"{self.grid} x {self.grid} cells, {obj.sum()} responsible", f"confidence, at most {sure.max():.2f}", "likeliest class")
        return {"cells": Images(torch.stack([centres, sure, tinted(photo, classes.argmax(-1))]), captions), **super().observe(batch)}


@MODELS.register("yolo_v1")
def build_yolo_v1(
    spec: DetectionSpec,
    *,
    grid: Positive,
    boxes: Positive,
    width: Positive,
    depth: Positive,
    hidden: NonNegative,
    dropout: Fraction,
    lambda_coord: NonNegativeFloat,
    lambda_noobj: NonNegativeFloat,
    iou: Fraction,
) -> YOLOv1:
    """The first one-stage detector (Redmon et al., 2016). Raises ConfigError unless a cell is 4, 8, 16, 32 or 64 pixels wide."""
    grids = [spec.size // 2**k for k in HALVINGS if spec.size % 2**k == 0]
    if grid not in grids:
        near = min((grid * 2**k for k in HALVINGS), key=lambda size: abs(size - spec.size))
        key, value = ("model.grid", grid) if grids else ("data.size", spec.size)
        sides = ", ".join(str(2**k) for k in HALVINGS)
        problem = f"pictures of {spec.size} pixels cannot be cut into {grid} x {grid} cells of {sides} pixels"
        choices = [f"model.grid={' or '.join(map(str, grids))}"] * bool(grids) + [f"data.size={near}"]
        raise ConfigError(problem, key=key, value=value, cure=f"try {', or '.join(choices)}")
    outputs = 5 * boxes + spec.num_classes
    network = Grid(spec, outputs, grid=grid, width=width, depth=depth, hidden=hidden, dropout=dropout)
    return YOLOv1(spec, network, grid=grid, boxes=boxes, lambda_coord=lambda_coord, lambda_noobj=lambda_noobj, iou=iou)
