"""Models as `conf/model` has them, and batches for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import yaml

from refresher_runner.registry import MODELS
from refresher_runner.schema import check_options
from refresher_runner.spec import ImageBatch, ImageSpec
from refresher_runner.task import Task

CONF = Path(__file__).parents[2] / "conf" / "model"
DIGITS = ImageSpec(1, 8, tuple("0123456789"), (0.3,), (0.4,))
GREY = ImageSpec(1, 28, tuple("0123456789"), (0.3,), (0.3,))
COLOUR = ImageSpec(3, 32, ("cat", "dog", "bird"), (0.5, 0.4, 0.3), (0.2, 0.2, 0.3))


def options(name: str) -> dict[str, Any]:
    """The `model:` block of a model's YAML, less its name."""
    values = yaml.safe_load((CONF / f"{name}.yaml").read_text(encoding="utf-8"))["model"]
    return {key: value for key, value in values.items() if key != "name"}


def build(name: str, spec: ImageSpec = DIGITS, **changes: Any) -> Task:
    values = check_options(options(name) | changes, MODELS.signature(name).options, "model")
    return MODELS.builder(name)(spec, **values)


def batch(spec: ImageSpec = DIGITS, size: int = 16) -> ImageBatch:
    """Noise in the range that the spec normalises to, and labels."""
    return ImageBatch(spec.normalise(torch.rand(size, spec.channels, spec.size, spec.size)), torch.arange(size) % spec.num_classes)
