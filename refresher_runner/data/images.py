"""Public sets of small labelled pictures, held in memory: digits, MNIST, Fashion-MNIST, CIFAR-10.

A set with no validation split gives up a part of its training pictures. That cut depends on `split_seed`, never on the run's
seed, so runs with different seeds are measured on the same pictures. Free of torch and numpy until `prepare`.
"""

from __future__ import annotations

import gzip
import importlib.util
import io
import tarfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from refresher_runner.data.fetch import Published, fetch, sha256
from refresher_runner.errors import ConfigError, DataError
from refresher_runner.registry import DATASETS
from refresher_runner.schema import NonNegative, Positive, Share
from refresher_runner.spec import DataModule, ImageBatch, ImageSpec, Placement

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from refresher_runner.data.loaders import MemoryLoader

DIGITS = tuple("0123456789")
FASHION = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def _idx(folder: str, url: str, *digests: str) -> tuple[Published, ...]:
    names = [f"{name}-ubyte.gz" for name in ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1")]
    return tuple(Published(f"{folder}/raw/{name}", url + name, digest) for name, digest in zip(names, digests, strict=True))


MNIST_FILES = _idx(
    "MNIST",
    "https://ossci-datasets.s3.amazonaws.com/mnist/",
    "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
    "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
    "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
    "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
)
FASHION_FILES = _idx(
    "FashionMNIST",
    "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/",
    "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
    "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
    "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
    "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
)
CIFAR10_FILE = Published(  # the binary version: the other one is a pickle
    "cifar-10-binary.tar.gz",
    "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
    "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
)


class Split(NamedTuple):
    """images (N, C, S, S) uint8; labels (N,) int64."""

    images: NDArray
    labels: NDArray

    def take(self, index: NDArray) -> Split:
        return Split(self.images[index], self.labels[index])


class Read(NamedTuple):
    """What a set's files hold: its two official splits, and the files' digests."""

    train: Split
    test: Split
    checksums: dict[str, str]


@dataclass
class MemoryImages(DataModule[ImageSpec]):
    """A set that is read whole, once, and served by `MemoryLoader`s."""

    spec: ImageSpec
    read: Callable[[], Read]
    batch_size: int
    eval_batch_size: int
    val_fraction: float
    split_seed: int
    pad: int
    flip: bool
    splits: dict[str, Split] = field(default_factory=dict, init=False)
    digests: dict[str, str] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        check_pad(self.pad, self.spec.size)

    def prepare(self) -> None:
        if self.splits:
            return
        train, test, self.digests = self.read()
        rest, val = stratified(train.labels, self.val_fraction, self.split_seed)
        self.splits = {"train": train.take(rest), "val": train.take(val), "test": test}

    def checksums(self) -> dict[str, str]:
        return self.digests

    def train_loader(self, placement: Placement) -> MemoryLoader[ImageBatch]:
        return self._loader("train", self.batch_size, placement, pad=self.pad, flip=self.flip)

    def val_loader(self, placement: Placement) -> MemoryLoader[ImageBatch]:
        return self._loader("val", self.eval_batch_size, placement)

    def test_loader(self, placement: Placement) -> MemoryLoader[ImageBatch]:
        return self._loader("test", self.eval_batch_size, placement)

    def _loader(self, split: str, batch_size: int, placement: Placement, *, pad: int = 0, flip: bool = False) -> MemoryLoader[ImageBatch]:
        import torch

        from refresher_runner.data.loaders import MemoryLoader, Order

        assert self.splits, "prepare() comes first"
        images, labels = (torch.tensor(array) for array in self.splits[split])
        order = Order(len(labels), batch_size, placement, train=split == "train")
        return MemoryLoader(ImageBatch, images, [labels], self.spec, order, pad=pad, flip=flip)


def check_pad(pad: int, size: int) -> None:
    """Raises ConfigError where a crop could miss the picture."""
    if pad >= size:
        raise ConfigError("a crop could miss the picture", key="data.pad", value=pad, cure=f"less than the pictures' {size} pixels")


def stratified(labels: Sequence[int] | NDArray, fraction: float, seed: int) -> tuple[NDArray, NDArray]:
    """Sample numbers (kept, taken), both ascending: of each class the rounded fraction is taken, at least 1, never all."""
    import numpy as np

    random = np.random.RandomState(seed % 2**32)  # the one generator whose draws numpy has frozen for good
    taken = []
    for label in np.unique(labels):
        members = random.permutation(np.flatnonzero(np.equal(labels, label)))
        taken.append(members[: min(max(1, round(fraction * len(members))), len(members) - 1)])
    chosen = np.sort(np.concatenate(taken))
    return np.setdiff1d(np.arange(len(labels)), chosen), chosen


@DATASETS.register("digits")
def build_digits(
    *,
    size: Positive,
    batch_size: Positive,
    eval_batch_size: Positive,
    val_fraction: Share,
    test_fraction: Share,
    split_seed: NonNegative,
    pad: NonNegative,
    flip: bool,
) -> DataModule[ImageSpec]:
    """Handwritten digits: 1,797 grey pictures of 8 x 8, installed with scikit-learn (Alpaydin and Kaynak 1998)."""
    spec = ImageSpec(channels=1, size=size, classes=DIGITS, mean=(0.3053,), std=(0.3760,))
    return MemoryImages(
        spec, lambda: read_digits(test_fraction, split_seed, size), batch_size, eval_batch_size, val_fraction, split_seed, pad, flip
    )


@DATASETS.register("mnist")
def build_mnist(
    *,
    root: str,
    binarise: bool,
    batch_size: Positive,
    eval_batch_size: Positive,
    val_fraction: Share,
    split_seed: NonNegative,
    pad: NonNegative,
    flip: bool,
) -> DataModule[ImageSpec]:
    """MNIST: 70,000 grey pictures of handwritten digits, 28 x 28 (LeCun et al. 1998)."""

    def read() -> Read:
        found = read_idx(root, MNIST_FILES)
        return found._replace(train=binarised(found.train, 0), test=binarised(found.test, 1)) if binarise else found

    spec = ImageSpec(channels=1, size=28, classes=DIGITS, mean=(0.1307,), std=(0.3081,))
    return MemoryImages(spec, read, batch_size, eval_batch_size, val_fraction, split_seed, pad, flip)


@DATASETS.register("fashion_mnist")
def build_fashion_mnist(
    *,
    root: str,
    batch_size: Positive,
    eval_batch_size: Positive,
    val_fraction: Share,
    split_seed: NonNegative,
    pad: NonNegative,
    flip: bool,
) -> DataModule[ImageSpec]:
    """Fashion-MNIST: 70,000 grey pictures of clothes, 28 x 28 (Xiao et al. 2017, https://arxiv.org/abs/1708.07747)."""
    spec = ImageSpec(channels=1, size=28, classes=FASHION, mean=(0.2860,), std=(0.3530,))
    return MemoryImages(spec, lambda: read_idx(root, FASHION_FILES), batch_size, eval_batch_size, val_fraction, split_seed, pad, flip)


@DATASETS.register("cifar10")
def build_cifar10(
    *,
    root: str,
    batch_size: Positive,
    eval_batch_size: Positive,
    val_fraction: Share,
    split_seed: NonNegative,
    pad: NonNegative,
    flip: bool,
) -> DataModule[ImageSpec]:
    """CIFAR-10: 60,000 colour photographs of animals and vehicles, 32 x 32 (Krizhevsky 2009)."""
    spec = ImageSpec(channels=3, size=32, classes=CIFAR10, mean=(0.4914, 0.4822, 0.4465), std=(0.2470, 0.2435, 0.2616))
    return MemoryImages(
        spec, lambda: read_cifar10(fetch(root, CIFAR10_FILE)), batch_size, eval_batch_size, val_fraction, split_seed, pad, flip
    )


def read_digits(test_fraction: float, split_seed: int, size: int) -> Read:
    """The copy inside scikit-learn, read without importing it, resized if `size` is not their 8 pixels.

    It has no official test split: one is cut like the other.
    """
    import numpy as np

    found = importlib.util.find_spec("sklearn")
    path = Path(found.submodule_search_locations[0] if found and found.submodule_search_locations else "", "datasets/data/digits.csv.gz")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(
            f"cannot be read ({error.strerror})", key=str(path), cure="install scikit-learn anew: it brings this file"
        ) from None
    table = np.loadtxt(io.BytesIO(gzip.decompress(content)), delimiter=",")  # 64 pixels of 0..16, and the label
    pixels = np.rint(table[:, :64] * (255 / 16)).astype(np.uint8)
    both = Split(resized(pixels.reshape(-1, 1, 8, 8), size), table[:, 64].astype(np.int64))
    train, test = stratified(both.labels, test_fraction, split_seed)
    return Read(both.take(train), both.take(test), {path.name: sha256(content)})


def resized(images: NDArray, size: int) -> NDArray:
    """Grey pictures (N, 1, S, S) uint8, each as (1, size, size), by straight lines between pixels."""
    import numpy as np
    from PIL import Image

    if images.shape[-1] == size:
        return images
    return np.stack([np.asarray(Image.fromarray(image[0]).resize((size, size), Image.Resampling.BILINEAR))[None] for image in images])


def read_idx(root: str, files: tuple[Published, ...]) -> Read:
    """MNIST's format: a header of 4 bytes and 4 more for each dimension, then unsigned bytes."""
    import numpy as np

    images, labels, test_images, test_labels = (gzip.decompress(fetch(root, file)) for file in files)

    def split(images: bytes, labels: bytes) -> Split:
        pixels = np.frombuffer(images, np.uint8, offset=16).reshape(-1, 1, 28, 28)
        return Split(pixels, np.frombuffer(labels, np.uint8, offset=8).astype(np.int64))

    return Read(split(images, labels), split(test_images, test_labels), {file.path: file.sha256 for file in files})


def binarised(split: Split, seed: int) -> Split:
    """Black and white: every pixel is drawn once and for all, white with the probability that its grey says.

    What is called static binarisation since Larochelle and Murray, 2011; the draws are ours, not those of their files.
    """
    import numpy as np

    draws = np.random.RandomState(seed).randint(0, 255, split.images.shape, np.uint8)  # 0 .. 254
    return split._replace(images=np.where(draws < split.images, np.uint8(255), np.uint8(0)))


def read_cifar10(archive: bytes) -> Read:
    """Records of 1 label and 3 x 32 x 32 pixels, in five files for training and one for the test, straight from the archive."""
    import numpy as np

    def split(tar: tarfile.TarFile, *names: str) -> Split:
        members = [tar.extractfile(f"cifar-10-batches-bin/{name}.bin") for name in names]
        records = np.concatenate([np.frombuffer(m.read(), np.uint8).reshape(-1, 3073) for m in members if m])
        return Split(records[:, 1:].reshape(-1, 3, 32, 32), records[:, 0].astype(np.int64))

    with tarfile.open(fileobj=io.BytesIO(gzip.decompress(archive))) as tar:  # unpacked first: members are not read in their order
        train = split(tar, *(f"data_batch_{i}" for i in range(1, 6)))
        return Read(train, split(tar, "test_batch"), {CIFAR10_FILE.path: CIFAR10_FILE.sha256})
