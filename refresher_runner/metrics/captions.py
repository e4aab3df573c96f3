"""Whether pictures show what captions say, by what a reader finds on them, or how like they are in a space that both are put into.

Hessel et al., "CLIPScore: A Reference-free Evaluation Metric for Image Captioning", 2021. https://arxiv.org/abs/2104.08718

Letters: B pictures, A aspects (colour, shape, ...), -1 for an aspect that a picture or a caption has not.
"""

from __future__ import annotations

import torch
from torch import Tensor

from refresher_runner.report import Loggable, Matrix, Report
from refresher_runner.task import Scorer

NONE = "none"
WEIGHT = 2.5  # of CLIPScore
OTHER = "other "  # what the name of an aspect begins with where it is that of a second thing


def read_back(aspects: tuple[tuple[str, tuple[str, ...]], ...], asked: Tensor, found: Tensor) -> Report:
    """Of values asked and found, (B, A): the share of each aspect that is as asked, that of whole captions, that of the `relation` in
    captions that have every aspect; and each aspect's confusion matrix. Aspects of both things are counted together.
    """
    asked, found, right = asked.cpu(), found.cpu(), (asked == found).cpu()
    report: dict[str, Loggable] = {"as_asked/caption": right.all(1).double().mean().item()}
    columns = {name: i for i, (name, _) in enumerate(aspects)}
    for name, values in aspects:
        if name.startswith(OTHER):
            continue
        both = [columns[part] for part in (name, OTHER + name) if part in columns]
        wanted, got = asked[:, both].flatten(), found[:, both].flatten()
        said = wanted >= 0
        report[f"as_asked/{name}"] = (wanted == got)[said].double().mean().item()
        report[f"read_{name}"] = _confusion(wanted[said], got[said], values)
        whole = (asked >= 0).all(1)
        if len(both) == 1 and whole.any():
            report["as_asked/relation"] = right[whole, both[0]].double().mean().item()
    return report


def clip_score(scorer: Scorer, images: Tensor, captions: Tensor) -> float:
    """2.5 max(cos, 0) of pictures and captions, section 3, a mean. Both as a batch has them: (B, C, S, S) and (B, T).

    The paper's is by the CLIP of its authors: compare figures of one scorer alone.
    """
    cosine = (scorer.encode_image(images).float() * scorer.encode_text(captions).float()).sum(-1)
    return WEIGHT * cosine.clamp(min=0).mean().item()


def _confusion(wanted: Tensor, got: Tensor, values: tuple[str, ...]) -> Matrix:
    k = len(values)
    counts = torch.bincount(wanted * (k + 1) + got.where(got >= 0, k), minlength=k * (k + 1)).view(k, k + 1)
    return Matrix(counts, values, (*values, NONE), "asked", "read")
