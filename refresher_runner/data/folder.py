"""Pictures of one's own, in a folder for each class.

Constructing the data set lists the names of the classes; `prepare` lists the pictures, which are read as they are needed.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from refresher_runner.data.class_folders import ClassFolders, Files
from refresher_runner.data.fetch import sha256
from refresher_runner.data.images import check_pad
from refresher_runner.errors import ConfigError
from refresher_runner.pictures import SUFFIXES, read_picture
from refresher_runner.registry import DATASETS
from refresher_runner.schema import Fraction, NonNegative, Positive, PositiveFloat, Share
from refresher_runner.spec import DataModule, ImageBatch, ImageSpec, Placement

if TYPE_CHECKING:
    from torch import Tensor

    from refresher_runner.data.loaders import FileLoader

    PictureLoader = FileLoader[tuple[Tensor, int], ImageBatch]


@DATASETS.register("image_folder")
def build_image_folder(
    *,
    root: str,
    channels: Literal[1, 3],
    size: Positive,
    mean: list[Fraction],
    std: list[PositiveFloat],
    batch_size: Positive,
    eval_batch_size: Positive,
    val_fraction: Share,
    test_fraction: Share,
    split_seed: NonNegative,
    pad: NonNegative,
    flip: bool,
    workers: NonNegative | None,
    timeout: NonNegative,
) -> DataModule[ImageSpec]:
    """Your own pictures, in a folder for each class."""
    for key, values in (("data.mean", mean), ("data.std", std)):
        if len(values) not in (1, channels):
            raise ConfigError(f"needs one value, or one for each of {channels} channels", key=key, value=values)
    per_channel = [tuple(values * channels)[:channels] for values in (mean, std)]
    folders = ClassFolders(Path(root), "pictures", frozenset(SUFFIXES))
    spec = ImageSpec(channels, size, folders.classes(), *per_channel)
    check_pad(pad, size)
    fractions = {"test": test_fraction, "val": val_fraction}
    return PictureFolder(folders, spec, batch_size, eval_batch_size, fractions, split_seed, pad, flip, workers, timeout)


@dataclass(frozen=True)
class Pictures:
    """The pictures of one split, read one by one: a random crop of the padded picture, a random flip."""

    spec: ImageSpec
    files: Files
    pad: int = 0
    flip: bool = False

    def __call__(self, index: int) -> tuple[Tensor, int]:
        """An image (C, S, S) and its label. Raises DataError naming a file that cannot be read."""
        import torch
        import torch.nn.functional as F

        size, (file, label) = self.spec.size, self.files[index]
        picture = read_picture(file, self.spec.channels, size)
        if self.pad:
            top, left = torch.randint(2 * self.pad + 1, (2,)).tolist()
            picture = F.pad(picture, [self.pad] * 4)[:, top : top + size, left : left + size]
        if self.flip and torch.rand(()) < 0.5:
            picture = picture.flip(2)
        return self.spec.normalise(picture), label

    def collate(self, samples: list[tuple[Tensor, int]]) -> ImageBatch:
        import torch

        images = torch.empty(len(samples), self.spec.channels, self.spec.size, self.spec.size)  # a rank's share may be none
        for i, (image, _) in enumerate(samples):
            images[i] = image
        return ImageBatch(images, torch.tensor([label for _, label in samples], dtype=torch.int64))


@dataclass
class PictureFolder(DataModule[ImageSpec]):
    """Pictures below `root`, served by `FileLoader`s."""

    folders: ClassFolders
    spec: ImageSpec
    batch_size: int
    eval_batch_size: int
    fractions: dict[str, float]
    split_seed: int
    pad: int
    flip: bool
    workers: int | None
    timeout: int
    splits: dict[str, Files] = field(default_factory=dict, init=False)

    def prepare(self) -> None:
        if self.splits:
            return
        self.splits = self.folders.splits(self.fractions, self.split_seed)

    def checksums(self) -> dict[str, str]:
        """One digest of all names and sizes: to read every picture would take as long as an epoch."""
        files = sorted(file for files in self.splits.values() for file, _ in files)
        listing = "".join(f"{file.relative_to(self.folders.root).as_posix()} {file.stat().st_size}\n" for file in files)
        return {"names and sizes of the pictures": sha256(listing.encode())}

    def train_loader(self, placement: Placement) -> PictureLoader:
        return self._loader("train", self.batch_size, placement, self.pad, self.flip)

    def val_loader(self, placement: Placement) -> PictureLoader:
        return self._loader("val", self.eval_batch_size, placement)

    def test_loader(self, placement: Placement) -> PictureLoader:
        return self._loader("test", self.eval_batch_size, placement)

    def _loader(self, split: str, batch_size: int, placement: Placement, pad: int = 0, flip: bool = False) -> PictureLoader:
        from refresher_runner.data.loaders import FileLoader, Order

        assert self.splits, "prepare() comes first"
        pictures = Pictures(self.spec, self.splits[split], pad, flip)
        order = Order(len(pictures.files), batch_size, placement, train=split == "train")
        return FileLoader(pictures, pictures.collate, order, workers=self.workers, timeout=self.timeout)
