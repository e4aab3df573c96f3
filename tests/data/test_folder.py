"""One's own pictures: layouts, splits, augmentation, and files that are absent or damaged."""

import random
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from refresher_runner.data.folder import Pictures, build_image_folder
from refresher_runner.data.loaders import seeded
from refresher_runner.errors import ConfigError, DataError
from refresher_runner.spec import ImageSpec, Placement

OPTIONS = {
    "channels": 3,
    "size": 8,
    "mean": [0.5],
    "std": [0.5],
    "batch_size": 4,
    "eval_batch_size": 4,
    "val_fraction": 0.2,
    "test_fraction": 0.2,
    "split_seed": 0,
    "pad": 0,
    "flip": False,
    "workers": 0,
    "timeout": 20,
}


def draw(folder, count, suffix=".png"):
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        Image.fromarray(np.random.RandomState(i).randint(256, size=(10, 12, 3), dtype=np.uint8)).save(folder / f"{i:02}{suffix}")


@pytest.fixture
def flat(tmp_path):
    """20 cats and 10 dogs, one of which lies deeper, beside what is no picture."""
    draw(tmp_path / "dog", 9, ".jpg")
    draw(tmp_path / "dog" / "more", 1, ".JPG")
    draw(tmp_path / "cat", 20)
    (tmp_path / "cat" / "notes.txt").write_text("not a picture")
    (tmp_path / ".hidden").mkdir()
    return tmp_path


def folder(root, **options):
    return build_image_folder(root=str(root), **{**OPTIONS, **options})


def prepared(root, **options):
    data = folder(root, **options)
    data.prepare()
    return data


def test_classes_are_known_before_anything_is_read(flat):
    data = folder(flat)
    assert data.spec == ImageSpec(3, 8, ("cat", "dog"), (0.5,) * 3, (0.5,) * 3)
    assert data.splits == {}


def test_a_flat_folder_is_cut_by_class(flat):
    data = prepared(flat)
    files = [file for split in data.splits.values() for file, _ in split]
    assert len(files) == len(set(files)) == 30
    counts = {split: Counter(label for _, label in files) for split, files in data.splits.items()}
    assert counts == {"train": {0: 13, 1: 6}, "val": {0: 3, 1: 2}, "test": {0: 4, 1: 2}}
    assert all(file.relative_to(flat).parts[0] == ("cat", "dog")[label] for split in data.splits.values() for file, label in split)


def test_folders_of_splits_are_taken_as_they_are(tmp_path):
    for split, count in {"train": 6, "val": 2, "test": 3}.items():
        draw(tmp_path / split / "a", count)
        draw(tmp_path / split / "b", count)
    assert {split: len(files) for split, files in prepared(tmp_path).splits.items()} == {"train": 12, "val": 4, "test": 6}


def test_a_split_without_a_folder_is_cut_from_training(tmp_path):
    for split in ("train", "test"):
        draw(tmp_path / split / "a", 10)
        draw(tmp_path / split / "b", 10)
    data = prepared(tmp_path)
    assert {split: len(files) for split, files in data.splits.items()} == {"train": 16, "val": 4, "test": 20}
    assert all(file.is_relative_to(tmp_path / "train") for file, _ in data.splits["val"])


def test_pictures_are_those_that_the_spec_reads(flat):
    data = prepared(flat)
    images = torch.cat([batch.images for batch in data.test_loader(Placement()).batches(0)])
    assert torch.equal(images, torch.stack([data.spec.read(file) for file, _ in data.splits["test"]]))


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_change_no_bit(flat, workers):
    loaders = [prepared(flat, pad=2, flip=True, workers=n).train_loader(Placement(seed=5)) for n in (0, workers)]
    for epoch in (0, 1):
        none, some = ([*loader.batches(epoch)] for loader in loaders)
        assert len(none) == len(some) == 4
        assert all(torch.equal(x, y) for a, b in zip(none, some, strict=True) for x, y in zip(a, b, strict=True))


def test_augmentation_is_that_of_torchvision(flat):
    """All outcomes of one picture are crops and flips of the padded picture, and all of them occur."""
    import torchvision.transforms.v2.functional as reference

    spec = ImageSpec(3, 8, ("cat", "dog"), (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    file = flat / "cat" / "00.png"
    padded = reference.pad(spec.pixels(spec.read(file)), [1] * 4)
    crops = [reference.crop(padded, top, left, 8, 8) for top in range(3) for left in range(3)]
    expected = torch.stack([spec.normalise(x) for crop in crops for x in (crop, reference.horizontal_flip(crop))])
    pictures, found = Pictures(spec, [(file, 0)], pad=1, flip=True), set()
    for seed in range(300):
        with seeded(seed):
            image, _ = pictures(0)
        distance = (expected - image).abs().amax((1, 2, 3))
        assert distance.min() < 1e-5
        found.add(int(distance.argmin()))
    assert found == set(range(18))


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("damage", [b"", b"not a picture", None])
def test_a_damaged_or_vanished_picture_is_named(flat, workers, damage):
    data = prepared(flat, workers=workers)
    file = data.splits["val"][3][0]
    file.unlink() if damage is None else file.write_bytes(damage)
    with pytest.raises(DataError) as caught:
        list(data.val_loader(Placement()).batches(0))
    assert caught.value.exit_code == 3
    assert str(caught.value).startswith(f"{file}: ")


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::PIL.Image.DecompressionBombWarning")  # Pillow's, of what it still reads
@pytest.mark.parametrize("suffix", [".png", ".jpg", ".gif", ".bmp", ".webp", ".tif"])
def test_no_damage_escapes_as_another_error(tmp_path, suffix):
    """Cut off, or with bytes changed: a picture is read, or a DataError names it."""
    draw(tmp_path, 1, suffix)
    file, spec, chance = tmp_path / f"00{suffix}", ImageSpec(3, 8, ("a",), (0.0,) * 3, (1.0,) * 3), random.Random(0)
    whole, refused = file.read_bytes(), 0
    for trial in range(60):
        content = bytearray(whole[: chance.randrange(len(whole))] if trial % 2 else whole)
        for _ in range(chance.randrange(1, 8)):
            if content:
                content[chance.randrange(len(content))] = chance.randrange(256)
        file.write_bytes(content)
        try:
            assert spec.read(file).isfinite().all()
        except DataError as error:
            refused += error.key == str(file)
    assert refused > 10


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda root: None, "no such folder"),
        (lambda root: root.mkdir(), "holds no folder of pictures"),
        (lambda root: draw(root / "a", 3), "holds but one folder of pictures"),
    ],
)
def test_a_root_without_classes_is_named(tmp_path, monkeypatch, make, words):
    monkeypatch.chdir(tmp_path)
    root = Path("pictures")
    make(root)
    with pytest.raises(ConfigError, match=words) as caught:
        folder(root)
    assert caught.value.key == "data.root"
    assert str(root) in str(caught.value)


def test_folders_that_do_not_fit_are_named(tmp_path):
    draw(tmp_path / "train" / "a", 3)
    (tmp_path / "train" / "b").mkdir()
    with pytest.raises(DataError, match=r"train.b: holds no pictures"):
        prepared(tmp_path)
    draw(tmp_path / "train" / "b", 3)
    draw(tmp_path / "val" / "c", 3)
    with pytest.raises(DataError, match=r"val.c: is no class") as caught:
        prepared(tmp_path)
    assert "to train on" in caught.value.cure


def test_too_few_pictures_to_cut_from(tmp_path):
    draw(tmp_path / "a", 1)
    draw(tmp_path / "b", 1)
    with pytest.raises(DataError, match="too few pictures for a test split"):
        prepared(tmp_path)


def test_one_value_for_each_channel(flat):
    assert folder(flat, mean=[0.1, 0.2, 0.3]).spec.mean == (0.1, 0.2, 0.3)
    with pytest.raises(ConfigError, match=r"data\.std=\[0\.5, 0\.5\]"):
        folder(flat, std=[0.5, 0.5])


def test_the_record_changes_with_the_pictures(flat):
    before = prepared(flat).checksums()
    assert before == prepared(flat).checksums()
    draw(flat / "cat", 21)
    assert prepared(flat).checksums() != before


def test_the_order_is_kept_across_ranks_without_samples(flat):
    last = list(prepared(flat, eval_batch_size=5).test_loader(Placement(rank=3, world_size=4)).batches(0))[-1]
    assert last.images.shape == (0, 3, 8, 8)
    assert last.labels.dtype == torch.int64
