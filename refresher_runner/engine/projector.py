"""Vectors for TensorBoard's PROJECTOR tab, which reads files beside the events: the latest of each tag."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from google.protobuf import text_format
from tensorboard.plugins.projector.projector_config_pb2 import EmbeddingInfo, ProjectorConfig  # type: ignore[attr-defined]
from torch import Tensor, nn

from refresher_runner.engine.rundir import write_atomically
from refresher_runner.report import Embedding

LARGEST_SPRITE = 8192  # pixels of a side that a browser still takes as a texture


def write_embedding(folder: Path, tag: str, shown: Embedding) -> None:
    """tensors.tsv, metadata.tsv and sprite.png of one tag, and its entry in projector_config.pbtxt."""
    place = Path("projector", tag.replace("/", "_"))
    (folder / place).mkdir(parents=True, exist_ok=True)
    info = EmbeddingInfo(tensor_name=tag, tensor_path=str(place / "tensors.tsv"), metadata_path=str(place / "metadata.tsv"))
    rows = ["\t".join(f"{number:.6g}" for number in row) for row in shown.vectors.detach().float().tolist()]
    write_atomically(folder / place / "tensors.tsv", "\n".join(rows) + "\n")
    write_atomically(folder / place / "metadata.tsv", _metadata(shown))
    if shown.images is not None:
        info.sprite.image_path = str(place / "sprite.png")
        info.sprite.single_image_dim.extend(_write_sprite(shown.images, folder / place / "sprite.png"))
    path = folder / "projector_config.pbtxt"
    config = text_format.Parse(path.read_text(encoding="utf-8"), ProjectorConfig()) if path.is_file() else ProjectorConfig()
    others = [entry for entry in config.embeddings if entry.tensor_name != tag]
    write_atomically(path, text_format.MessageToString(ProjectorConfig(embeddings=[*others, info])))


def _metadata(shown: Embedding) -> str:
    """A line for each label; of several columns the first line names them."""
    labels, groups = ([" ".join(text.split()) or "-" for text in texts] for texts in (shown.labels, shown.groups))
    rows = ["label\tgroup", *map("\t".join, zip(labels, groups, strict=True))] if groups else labels
    return "".join(f"{row}\n" for row in rows)


def _write_sprite(images: Tensor, path: Path) -> tuple[int, int]:
    """(N, C, H, W) in [0, 1] as one square picture of pictures; the width and the height of each."""
    from PIL import Image

    side = math.ceil(math.sqrt(len(images)))
    images = images.detach().float().clamp(0, 1).cpu().expand(-1, 3, -1, -1)
    if (largest := LARGEST_SPRITE // side) < max(images.shape[2:]):
        images = nn.functional.interpolate(images, scale_factor=largest / max(images.shape[2:]), mode="area")
    n, _, height, width = images.shape
    sprite = torch.zeros(side * side, 3, height, width)
    sprite[:n] = images
    rows = sprite.view(side, side, 3, height, width).permute(0, 3, 1, 4, 2).reshape(side * height, side * width, 3)
    Image.fromarray((rows * 255).round().byte().numpy()).save(path)
    return width, height
