"""Pictures of one's own, in a folder for each class: `root/<class>/*.png`, or `root/{train,val,test}/<class>/*.png`.

A split without a folder is cut from the training pictures, by `split_seed` and never by the run's seed. Constructing the data set
lists the names of the classes; `prepare` lists the pictures, which are read as they are needed.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from refresher_runner.data.fetch import sha256
from refresher_runner.data.images import check_pad, stratified
from refresher_runner.errors import ConfigError, DataError
from refresher_runner.registry import DATASETS
from refresher_runner.schema import Fraction, NonNegative, Positive, PositiveFloat, Share
from refresher_runner.spec import SUFFIXES, DataModule, ImageBatch, ImageSpec, Placement, read_picture

if TYPE_CHECKING:
    from torch import Tensor

    from refresher_runner.data.loaders import FileLoader

    PictureLoader = FileLoader[tuple[Tensor, int], ImageBatch]

Files = list[tuple[Path, int]]  # each picture with its label


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
    spec = ImageSpec(channels, size, _classes(Path(root)), *per_channel)
    check_pad(pad, size)
    fractions = {"test": test_fraction, "val": val_fraction}
    return PictureFolder(Path(root), spec, batch_size, eval_batch_size, fractions, split_seed, pad, flip, workers, timeout)


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

    root: Path
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
        splits, rest = {}, self._list(_training_folder(self.root))
        for split, fraction in self.fractions.items():
            if (self.root / split).is_dir():
                splits[split] = self._list(self.root / split)
            else:
                kept, taken = stratified([label for _, label in rest], fraction, self.split_seed)
                splits[split], rest = [rest[i] for i in taken], [rest[i] for i in kept]
        splits["train"] = rest
        for split, files in splits.items():
            if not files:
                raise DataError(f"has too few pictures for a {split} split", key=str(self.root), cure="two or more of each class")
        self.splits = splits

    def checksums(self) -> dict[str, str]:
        """One digest of all names and sizes: to read every picture would take as long as an epoch."""
        files = sorted(file for files in self.splits.values() for file, _ in files)
        listing = "".join(f"{file.relative_to(self.root).as_posix()} {file.stat().st_size}\n" for file in files)
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

    def _list(self, folder: Path) -> Files:
        """The pictures below a split's folder, by class and name."""
        for name in _folders(folder, self.root):
            if name not in self.spec.classes:
                raise DataError("is no class of the training pictures", key=str(folder / name))
        files: Files = []
        for label, name in enumerate(self.spec.classes):
            found = [file for file in sorted((folder / name).rglob("*")) if file.suffix.lower() in SUFFIXES]
            if not found and folder == _training_folder(self.root):
                raise DataError("holds no pictures", key=str(folder / name), cure=f"pictures end in {' '.join(sorted(SUFFIXES))}")
            files += [(file, label) for file in found]
        return files


def _training_folder(root: Path) -> Path:
    return root / "train" if (root / "train").is_dir() else root


def _folders(folder: Path, root: Path) -> list[str]:
    """Names of the folders of classes, sorted; beside the classes there may be other splits."""
    splits = ("val", "test") if folder == root else ()
    return sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and entry.name[0] != "." and entry.name not in splits)


def _classes(root: Path) -> tuple[str, ...]:
    folder = _training_folder(root)
    names = _folders(folder, root) if folder.is_dir() else []
    if len(names) < 2:
        problem = f"holds {len(names)} folders of pictures" if folder.is_dir() else "no such folder"
        raise ConfigError(problem, key="data.root", value=folder, cure="one folder of pictures for each of two classes or more")
    return tuple(names)
