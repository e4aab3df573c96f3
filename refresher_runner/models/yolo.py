"""You only look once, at three scales.

Redmon and Farhadi, "YOLOv3: An Incremental Improvement", 2018. https://arxiv.org/abs/1804.02767

One pass of a convolutional network over a picture gives, at every cell of three grids (strides 8, 16 and 32), one box and the
probability of every class. Deep features see far and are coarse; they are laid over finer ones on the way back up (section 2.3), so
that small things are found with the knowledge of large ones. What overlaps a likelier box of its class is then dropped.

    picture -> Backbone -> features at strides 8, 16, 32 -> Pyramid -> Head -> raw (B, N, 4 + K) -> decode -> suppress
                                                                              `-> assign, loss   (training)

Read on from `Detector` in nn/detect.py, which holds what every detector shares: the step, the suppression, the metrics.

Differs: what made the idea good since. Each cell predicts one box around a square prior of four strides, in place of three anchors
(Ge et al., 2021: YOLOX). Which cells answer for which box is learned with the boxes: those whose class score and IoU are jointly best
(Feng et al., 2021: TOOD, https://arxiv.org/abs/2108.07755), not the one prior that overlaps most; a class score is therefore taught how
well its box fits, which makes the paper's objectness needless. Boxes are fitted by complete IoU (Zheng et al., 2020,
https://arxiv.org/abs/1911.08287), not squared error; boxes and classes are read by convolutions of their own. The backbone has
Darknet-53's blocks, and far fewer of them.

Letters: B pictures, C channels, S x S pixels, N cells of all three grids, K classes, M true boxes of all pictures together.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from refresher_runner.errors import ConfigError
from refresher_runner.nn.darknet import conv
from refresher_runner.nn.detect import SHOWN, Detector, overlap
from refresher_runner.nn.pictures import enlarged, tinted
from refresher_runner.registry import MODELS
from refresher_runner.report import Images, Report
from refresher_runner.schema import Fraction, NonNegativeFloat, Positive
from refresher_runner.spec import DetectionBatch, DetectionSpec

STRIDES = (8, 16, 32)
PRIOR = 4  # side of a cell's prior box, in strides


class Block(nn.Module):
    """Darknet-53's (table 1): x + conv3x3(conv1x1(x)), half as many channels between."""

    def __init__(self, channels: int):
        super().__init__()
        self.squeeze, self.expand = conv(channels, channels // 2), conv(channels // 2, channels, 3)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.expand(self.squeeze(x))


def stage(before: int, after: int, blocks: int) -> nn.Sequential:
    """Half the resolution, then blocks: (B, before, H, W) -> (B, after, H / 2, W / 2)"""
    return nn.Sequential(conv(before, after, 3, stride=2), *(Block(after) for _ in range(blocks)))


class Backbone(nn.Module):
    """Images (B, C, S, S) -> features (B, 4w, S/8, S/8), (B, 8w, S/16, S/16), (B, 16w, S/32, S/32)"""

    def __init__(self, channels: int, w: int, depth: int):
        super().__init__()
        self.stem = nn.Sequential(conv(channels, w, 3, stride=2), stage(w, 2 * w, 1))
        self.stages = nn.ModuleList(stage(2**i * w, 2 ** (i + 1) * w, depth) for i in (1, 2, 3))

    def forward(self, x: Tensor) -> list[Tensor]:
        x, features = self.stem(x), []
        for s in self.stages:
            features.append(x := s(x))
        return features


class Pyramid(nn.Module):
    """From the coarsest features up, each map is doubled in size and laid beside the next finer one: the same shapes, 4w channels each."""

    def __init__(self, w: int, depth: int):
        super().__init__()
        self.narrow = nn.ModuleList(conv(2**i * w, 4 * w) for i in (2, 3, 4))
        self.merge = nn.ModuleList(nn.Sequential(conv(8 * w, 4 * w), *(Block(4 * w) for _ in range(depth))) for _ in (0, 1))

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        fine, middle, coarse = (narrow(x) for narrow, x in zip(self.narrow, features, strict=True))
        middle = self.merge[1](torch.cat([middle, F.interpolate(coarse, scale_factor=2.0)], 1))
        fine = self.merge[0](torch.cat([fine, F.interpolate(middle, scale_factor=2.0)], 1))
        return [fine, middle, coarse]


class Head(nn.Module):
    """What one grid's features say of each of its cells: (B, 4w, H, W) -> raw (B, H W, 4 + K), tx ty tw th and a logit for each class."""

    def __init__(self, w: int, num_classes: int):
        super().__init__()
        self.box = nn.Sequential(conv(4 * w, 4 * w, 3), nn.Conv2d(4 * w, 4, 1))
        self.classes = nn.Sequential(conv(4 * w, 4 * w, 3), nn.Conv2d(4 * w, num_classes, 1))
        for last, bias in ((self.box[-1], 0.0), (self.classes[-1], math.log(0.01 / 0.99))):  # nearly every cell shows nothing
            assert isinstance(last, nn.Conv2d) and last.bias is not None
            nn.init.normal_(last.weight, std=0.01)
            nn.init.constant_(last.bias, bias)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.box(x), self.classes(x)], 1).flatten(2).mT


class Network(nn.Module):
    """Images (B, C, S, S) -> raw (B, N, 4 + K), the cells of the finest grid first, row by row."""

    def __init__(self, channels: int, num_classes: int, *, width: int, depth: int):
        super().__init__()
        self.backbone, self.pyramid = Backbone(channels, width, depth), Pyramid(width, 1)
        self.heads = nn.ModuleList(Head(width, num_classes) for _ in STRIDES)

    def forward(self, images: Tensor) -> Tensor:
        maps = self.pyramid(self.backbone(images))
        return torch.cat([head(x) for head, x in zip(self.heads, maps, strict=True)], 1)


class Assignment(NamedTuple):
    """The cells that answer for a true box: P of them.

    `cells` (P,) in [0, B N), `boxes` (P,) in [0, M), and how much each is to trust its class, `scores` (P,) in [0, 1].
    """

    cells: Tensor
    boxes: Tensor
    scores: Tensor


class YOLO(Detector):
    """Fit boxes to the truth and teach every cell how sure it may be of each class."""

    centres: Tensor  # (N, 2), x y of every cell's centre, in pixels
    strides: Tensor  # (N, 1), in pixels

    def __init__(self, spec: DetectionSpec, network: Network, *, iou: float, box_gain: float, class_gain: float, candidates: int):
        super().__init__(spec, network, iou)
        self.box_gain, self.class_gain, self.candidates = box_gain, class_gain, candidates
        sides = [spec.size // stride for stride in STRIDES]
        cells = [torch.cartesian_prod(torch.arange(n), torch.arange(n)).flip(1) for n in sides]  # (n n, 2), x y, row by row
        centres = torch.cat([(cell + 0.5) * stride for cell, stride in zip(cells, STRIDES, strict=True)])
        self.register_buffer("centres", centres, persistent=False)
        counts = torch.tensor([n * n for n in sides])
        self.register_buffer("strides", torch.tensor(STRIDES).repeat_interleave(counts)[:, None].float(), persistent=False)

    def class_layers(self) -> list[nn.Module]:
        """The last of each grid; those of its boxes serve any class."""
        return [head.classes[-1] for head in self.network.heads]  # type: ignore[union-attr]

    def boxes(self, raw: Tensor) -> Tensor:
        """Section 2.1, in strides: b_xy = c_xy + t_xy and b_wh = p_wh exp(t_wh): raw (..., N, 4 or more) -> boxes (..., N, 4)"""
        xy = self.centres + self.strides * raw[..., :2]
        wh = PRIOR * self.strides * raw[..., 2:4].clamp(max=6.0).exp()
        return torch.cat([xy - wh / 2, xy + wh / 2], -1)

    def decode(self, raw: Tensor) -> tuple[Tensor, Tensor]:
        raw = at_least_fp32(raw)
        return self.boxes(raw), raw[..., 4:].sigmoid()

    def loss(self, raw: Tensor, batch: DetectionBatch) -> tuple[Tensor, Mapping[str, Tensor]]:
        """Of a picture: (box_gain sum_p t_p CIoU_p + class_gain sum of binary cross-entropies) / candidates; the mean over pictures.

        p runs over the cells that answer for a true box, and t_p, how well it is aligned with it, is what its class score should be.
        Divided by `candidates`, not by sum_p t_p: a box weighs as much among many as one alone in its picture.
        """
        from torchvision.ops import complete_box_iou_loss

        raw = at_least_fp32(raw)
        boxes, logits = self.boxes(raw), raw[..., 4:]
        count, _, num_classes = logits.shape
        chosen = self.assign(boxes.detach(), logits.detach().sigmoid(), batch)
        targets = torch.zeros_like(logits).view(-1, num_classes)
        targets[chosen.cells, batch.labels[chosen.boxes]] = chosen.scores
        ciou = complete_box_iou_loss(boxes.view(-1, 4)[chosen.cells], batch.boxes[chosen.boxes])
        box = (ciou * chosen.scores).sum() / (count * self.candidates)
        classes = F.binary_cross_entropy_with_logits(logits, targets.view_as(logits), reduction="sum") / (count * self.candidates)
        loss = self.box_gain * box + self.class_gain * classes
        return loss, {"box_loss": box.detach(), "class_loss": classes.detach()}

    @torch.no_grad()
    def assign(self, boxes: Tensor, scores: Tensor, batch: DetectionBatch) -> Assignment:
        """TOOD's choice: of the cells inside a true box, the `candidates` with the largest t = s u^6 answer for it, s being their score of
        its class and u the IoU of their box; of several true boxes, the one they fit best.

        Their targets are t, scaled so that the largest of a true box is its largest IoU. boxes (B, N, 4), scores (B, N, K).
        """
        n, owners = boxes.shape[1], batch.owners
        u = overlap(batch.boxes[:, None], boxes[owners])  # (M, N)
        s = scores[owners, :, batch.labels]
        middle, half = (batch.boxes[:, :2] + batch.boxes[:, 2:]) / 2, (batch.boxes[:, 2:] - batch.boxes[:, :2]) / 2
        reach = torch.maximum(half[:, None], self.strides / 2)  # a box smaller than a cell has at least the one it lies in
        inside = ((self.centres - middle[:, None]).abs() <= reach).all(-1)
        t = (s * u**6).where(inside, -1.0)
        best, index = t.topk(min(self.candidates, n))  # (M, k)
        mine, k = (best >= 0).nonzero().unbind(1)
        at = index[mine, k]
        cell = owners[mine] * n + at
        # a cell that several boxes want answers for the one it fits best, of equals the first
        fit = u[mine, at]
        most = fit.new_zeros(boxes.shape[0] * n).scatter_reduce(0, cell, fit, "amax")
        wins = fit == most[cell]
        first = torch.full_like(most, len(batch.boxes), dtype=torch.int64).scatter_reduce(0, cell[wins], mine[wins], "amin")
        wins &= mine == first[cell]
        cell, mine, fit, aligned = cell[wins], mine[wins], fit[wins], best[mine, k][wins]
        per_box = fit.new_zeros(len(batch.boxes))
        scale = per_box.scatter_reduce(0, mine, fit, "amax") / per_box.scatter_reduce(0, mine, aligned, "amax").clamp(min=1e-9)
        return Assignment(cell, mine, aligned * scale[mine])

    def observe(self, batch: DetectionBatch) -> Report:
        """One picture's way through the three grids: the cells that answer for its boxes, in the colours of their classes; how sure every
        cell is that it shows something; and of what.
        """
        mine = batch.owners == 0
        one = DetectionBatch(batch.images[:1], batch.boxes[mine], batch.labels[mine], batch.owners[mine])
        boxes, scores = self.decode(self.network(one.images))
        chosen = self.assign(boxes, scores, one)
        answers = torch.full_like(scores[0, :, 0], -1, dtype=torch.int64)
        answers[chosen.cells] = one.labels[chosen.boxes]
        sure, likeliest = scores[0].max(-1)
        photo, sides = one.images[0], [self.spec.size // stride for stride in STRIDES]
        counts = [n * n for n in sides]
        shown: list[tuple[Tensor, str]] = []
        for cells, n in zip(answers.split(counts), sides, strict=True):
            shown.append((tinted(photo, cells.view(n, n), lines=True), f"{n} x {n}: {(cells >= 0).sum()} cells answer"))
        for p, n in zip(sure.split(counts), sides, strict=True):
            shown.append((enlarged(p.view(1, n, n), self.spec.size).expand(3, -1, -1), f"{n} x {n}: at most {p.max():.2f} sure"))
        for cells, p, n in zip(likeliest.split(counts), sure.split(counts), sides, strict=True):
            seen = torch.where(p >= SHOWN, cells, -1)
            shown.append((tinted(photo, seen.view(n, n)), f"{n} x {n}: of what, from {SHOWN} on"))
        pictures, captions = zip(*shown, strict=True)
        return {"cells": Images(torch.stack([picture.float() for picture in pictures]), captions), **super().observe(batch)}


def at_least_fp32(x: Tensor) -> Tensor:
    """What autocast left in 16 bits; too coarse for boxes."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


@MODELS.register("yolo")
def build_yolo(
    spec: DetectionSpec,
    *,
    width: Positive,
    depth: Positive,
    candidates: Positive,
    box_gain: NonNegativeFloat,
    class_gain: NonNegativeFloat,
    iou: Fraction,
) -> YOLO:
    """Multi-scale one-stage detector (Redmon and Farhadi, 2018). Raises ConfigError unless the coarsest grid fits the picture."""
    coarsest = STRIDES[-1]
    if spec.size % coarsest:
        below = max(spec.size // coarsest, 1) * coarsest
        raise ConfigError(
            f"should be a multiple of {coarsest}", key="data.size", value=spec.size, cure=f"try {below} or {below + coarsest}"
        )
    network = Network(spec.channels, spec.num_classes, width=width, depth=depth)
    return YOLO(spec, network, iou=iou, box_gain=box_gain, class_gain=class_gain, candidates=candidates)
