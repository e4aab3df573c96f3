"""The public sets: what their files hold, how they are cut, and that a config's keys are a builder's."""

import gzip
import hashlib
import io
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from sklearn.datasets import load_digits

from refresher_runner.data import images
from refresher_runner.data.images import build_digits, build_fashion_mnist, build_mnist, read_cifar10, stratified
from refresher_runner.errors import ConfigError
from refresher_runner.registry import DATASETS
from refresher_runner.schema import check_options
from refresher_runner.spec import (
    CaptionSpec,
    CorpusSpec,
    DetectionSpec,
    ImageSpec,
    InteractionSpec,
    LabelledTextSpec,
    PairSpec,
    Placement,
    TextSpec,
)

CONF = Path(__file__).parents[2] / "conf" / "data"
DIGITS = {
    "size": 8,
    "batch_size": 64,
    "eval_batch_size": 512,
    "val_fraction": 0.1,
    "test_fraction": 0.2,
    "split_seed": 0,
    "pad": 0,
    "flip": False,
}
OFFICIAL = {"batch_size": 128, "eval_batch_size": 1000, "val_fraction": 0.1, "split_seed": 0, "pad": 0, "flip": False}


def digits(**options):
    data = build_digits(**{**DIGITS, **options})
    data.prepare()
    return data


def whole(loader):
    """Pixels (N, C, S, S) in 0..255 and labels of an evaluation split."""
    batches = list(loader.batches(0))
    return torch.cat([b.images for b in batches]), torch.cat([b.labels for b in batches])


def rows(data, split):
    return [tuple(image.reshape(-1)) for image in data.splits[split].images]


# -------------------------------------------------------------------- cuts


@pytest.mark.parametrize("fraction", [0.01, 0.1, 0.5, 0.99])
def test_a_cut_is_disjoint_complete_and_stratified(fraction):
    labels = np.random.RandomState(0).choice([0, 3, 7], 500, p=[0.7, 0.25, 0.05])
    kept, taken = stratified(labels, fraction, 0)
    assert sorted([*kept, *taken]) == list(range(500))
    for label in (0, 3, 7):
        count = int((labels == label).sum())
        assert (labels[taken] == label).sum() == min(max(1, round(fraction * count)), count - 1)


def test_a_cut_is_a_function_of_its_seed():
    labels = np.repeat(np.arange(10), 30)
    a, b, c = (stratified(labels, 0.1, seed)[1].tolist() for seed in (0, 0, 1))
    assert a == b != c


def test_a_class_of_one_stays_whole():
    assert stratified([0, 1, 1], 0.5, 0)[0].tolist()[0] == 0


# -------------------------------------------------------------------- black and white


def test_a_grey_becomes_white_as_often_as_it_says():
    grey = images.Split(np.repeat(np.arange(256, dtype=np.uint8), 2000).reshape(256, 1, 40, 50), np.arange(256))
    drawn = images.binarised(grey, 0)
    assert set(np.unique(drawn.images)) == {0, 255}
    share = (drawn.images == 255).mean((1, 2, 3))
    assert share[0] == 0 and share[255] == 1
    assert np.abs(share - np.arange(256) / 255).max() < 5 * 0.5 / np.sqrt(2000)
    assert (images.binarised(grey, 0).images == drawn.images).all()
    assert (images.binarised(grey, 1).images != drawn.images).any()


# -------------------------------------------------------------------- digits


def test_digits_of_another_size_are_the_same_pictures():
    """Upsampled by straight lines, as torch does it; the cut and the labels stay."""
    small, large = digits(), digits(size=16)
    assert large.spec.size == 16
    for split in small.splits:
        assert (small.splits[split].labels == large.splits[split].labels).all()
        x = torch.tensor(small.splits[split].images).float()
        expected = torch.nn.functional.interpolate(x, size=16, mode="bilinear", align_corners=False)
        assert (torch.tensor(large.splits[split].images).float() - expected).abs().max() <= 1


def test_digits_are_scikit_learns():
    data, known = digits(), load_digits()
    found = sorted(
        (int(label), *np.rint(image.reshape(-1) / 255 * 16).astype(int).tolist())
        for split in data.splits.values()
        for image, label in zip(split.images, split.labels, strict=True)
    )
    assert found == sorted((int(label), *pixels.astype(int).tolist()) for pixels, label in zip(known.data, known.target, strict=True))


def test_digits_splits_do_not_depend_on_the_runs_seed_but_on_their_own():
    data = digits()
    assert [len(data.splits[s].labels) for s in ("train", "val", "test")] == [1295, 143, 359]
    a, b = (whole(data.test_loader(Placement(seed=seed))) for seed in (0, 1))
    assert torch.equal(a[0], b[0])
    assert rows(digits(split_seed=1), "test") != rows(data, "test")


def test_mean_and_deviation_of_digits():
    pixels = load_digits().images / 16
    spec = build_digits(**DIGITS).spec
    assert spec.mean[0] == pytest.approx(pixels.mean(), abs=1e-4)
    assert spec.std[0] == pytest.approx(pixels.std(), abs=1e-4)


def test_a_crop_that_could_miss_the_picture_is_refused():
    build_digits(**{**DIGITS, "pad": 7})
    with pytest.raises(ConfigError, match=r"data\.pad=8"):
        build_digits(**{**DIGITS, "pad": 8})


def imported(statements: str, *names: str) -> str:
    """Which of `names` a new interpreter has imported after `statements`."""
    script = f"import sys\n{statements}\nprint(sorted(set({names}) & set(sys.modules)))"
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.strip()


def test_constructing_reads_nothing_and_imports_nothing_heavy():
    statements = f"from refresher_runner.data.images import *\nbuild_digits(**{DIGITS})\nbuild_cifar10(root='/nowhere', **{OFFICIAL})"
    assert imported(statements, "torch", "numpy", "sklearn", "torchvision", "PIL") == "[]"


def test_preparing_digits_imports_no_sklearn():
    statements = f"from refresher_runner.data.images import *\nbuild_digits(**{DIGITS}).prepare()"
    assert imported(statements, "torch", "numpy", "sklearn") == "['numpy']"


# -------------------------------------------------------------------- the official files


@pytest.mark.shared
@pytest.mark.parametrize(
    ("build", "files", "first_labels"),
    [(build_fashion_mnist, images.FASHION_FILES, [9, 2, 1, 1, 6]), (build_mnist, images.MNIST_FILES, [7, 2, 1, 0, 4])],
)
def test_the_official_files(shared_data, build, files, first_labels):
    data = build(root=str(shared_data), **OFFICIAL, **({"binarise": False} if build is build_mnist else {}))
    data.prepare()
    train, val, test = (data.splits[split] for split in ("train", "val", "test"))
    assert train.images.shape[1:] == val.images.shape[1:] == test.images.shape[1:] == (1, 28, 28)
    assert len(train.labels) + len(val.labels) == 60000
    assert len(test.labels) == 10000
    assert test.labels[:5].tolist() == first_labels
    assert data.checksums() == {f.path: hashlib.sha256((shared_data / f.path).read_bytes()).hexdigest() for f in files}
    pixels = np.concatenate([train.images, val.images]) / 255
    assert data.spec.mean[0] == pytest.approx(pixels.mean(), abs=2e-4)
    assert data.spec.std[0] == pytest.approx(pixels.std(), abs=2e-4)
    counts = np.bincount(np.concatenate([train.labels, val.labels]))
    known = [6000] * 10 if build is build_fashion_mnist else [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert counts.tolist() == known
    assert np.bincount(val.labels).tolist() == [round(0.1 * count) for count in known]
    batch = next(data.train_loader(Placement()).batches(0))
    assert batch.images.shape == (128, 1, 28, 28)
    assert batch.images.is_contiguous()
    assert batch.labels.dtype == torch.int64


@pytest.mark.shared
def test_pixels_are_those_that_torchvision_reads(shared_data, tmp_path):
    from torchvision.datasets import FashionMNIST

    for file in images.FASHION_FILES[2:]:
        target = tmp_path / file.path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.with_suffix("").write_bytes(gzip.decompress((shared_data / file.path).read_bytes()))
    for file in images.FASHION_FILES[:2]:
        (tmp_path / file.path).with_suffix("").write_bytes(b"")
    expected = FashionMNIST(str(tmp_path), train=False)
    data = build_fashion_mnist(root=str(shared_data), **OFFICIAL)
    data.prepare()
    found, labels = whole(data.test_loader(Placement()))
    assert torch.equal(labels, expected.targets)
    assert torch.equal((data.spec.pixels(found) * 255).round().byte()[:, 0], expected.data)
    assert list(data.spec.classes) == expected.classes


def test_digests_are_of_the_files_that_torchvision_knows():
    """By their names and md5; the sha256 are checked against the files themselves above."""
    from torchvision.datasets import MNIST

    assert [Path(f.path).name for f in images.MNIST_FILES] == [name for name, _ in MNIST.resources]
    assert all(f.url.startswith("https://") for f in (*images.MNIST_FILES, *images.FASHION_FILES, images.CIFAR10_FILE))


def test_cifar10_is_read_from_its_archive_by_name():
    """Records of label, then planes of red, green and blue; other members, such as a way out of the folder, are not touched."""
    random = np.random.RandomState(0)
    records = {f"data_batch_{i}": random.randint(256, size=(4, 3073), dtype=np.uint8) for i in (5, 3, 1, 2, 4)}
    records["test_batch"] = random.randint(256, size=(6, 3073), dtype=np.uint8)
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        for name, content in {"../../escaped": b"x", **{f"cifar-10-batches-bin/{n}.bin": r.tobytes() for n, r in records.items()}}.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    train, test, _ = read_cifar10(packed.getvalue())
    assert train.images.shape == (20, 3, 32, 32)
    assert train.labels.tolist() == [int(records[f"data_batch_{i}"][k, 0]) for i in range(1, 6) for k in range(4)]
    assert test.images[2, 1, 5, 9] == records["test_batch"][2, 1 + 1024 + 5 * 32 + 9]


# -------------------------------------------------------------------- configs


def values(name):
    """A file's options, with the data folder filled in as a composed configuration has it."""
    found = yaml.safe_load((CONF / f"{name}.yaml").read_text(encoding="utf-8"))
    assert found.pop("name") == name
    return {key: str(value).replace("${oc.env:REFRESHER_DATA,data}", "data") if key == "root" else value for key, value in found.items()}


@pytest.mark.parametrize("name", DATASETS.names())
def test_a_config_has_every_key_of_its_builder_and_no_other(name):
    signature = DATASETS.signature(name)
    assert list(values(name)) == list(signature.options)
    assert check_options(values(name), signature.options, "data")
    assert signature.summary.endswith(".")
    assert signature.yields in (ImageSpec, CaptionSpec, DetectionSpec, TextSpec, LabelledTextSpec, PairSpec, CorpusSpec, InteractionSpec)


@pytest.mark.parametrize("name", DATASETS.names())
def test_a_signature_reads_the_same_from_the_file_and_from_the_function(name):
    from refresher_runner.registry import _inspect_signature, _read_signature

    assert _read_signature(DATASETS._shipped[name][1]) == _inspect_signature(DATASETS.builder(name))


@pytest.mark.parametrize("name", ["digits", "mnist", "fashion_mnist", "cifar10"])
def test_options_reach_the_data_set(name):
    """Distinct values, so that no two can be mistaken for one another."""
    options = {**values(name), "batch_size": 11, "eval_batch_size": 13, "val_fraction": 0.17, "split_seed": 19, "pad": 3, "flip": True}
    data = DATASETS.builder(name)(**options)
    elsewhere = ("root", "test_fraction", "size", "binarise")
    assert {key: getattr(data, key) for key in options if key not in elsewhere} == {
        key: value for key, value in options.items() if key not in elsewhere
    }


@pytest.mark.parametrize(("key", "bad"), [("val_fraction", 0.0), ("val_fraction", 1.0), ("batch_size", 0), ("pad", -1), ("flip", "maybe")])
def test_a_value_out_of_range_is_refused(key, bad):
    with pytest.raises(ConfigError, match=rf"data\.{key}"):
        check_options({**DIGITS, key: bad}, DATASETS.signature("digits").options, "data")
