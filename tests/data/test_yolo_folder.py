"""The layout of Ultralytics: shares of width and height, outlines, paths as tools write them, and every line that is no box."""

import logging
import os
import random

import numpy as np
import pytest
from PIL import Image

from refresher_runner.data.voc import build_voc_folder
from refresher_runner.data.yolo_folder import build_yolo_folder
from refresher_runner.errors import ConfigError, DataError
from refresher_runner.spec import DetectionSpec, Placement

COMMON = {
    "val_fraction": 0.2,
    "test_fraction": 0.2,
    "split_seed": 0,
    "size": 32,
    "batch_size": 2,
    "eval_batch_size": 2,
    "mosaic": 0.0,
    "flip": False,
    "flip_vertical": False,
    "scale": 0.0,
    "translate": 0.0,
    "colour": 0.0,
    "cache": False,
    "workers": 0,
    "timeout": 20,
}


def draw(file, size=(40, 20), **more):
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size).save(file, **more)


def label(file, text):
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


def folder(root, **options):
    return build_yolo_folder(root=str(root), **{**COMMON, **options})


def read(root, **options):
    return folder(root, **options).read()


def names(scenes):
    return [scene.picture.stem for scene in scenes]


YAML = "path: .\ntrain: images/train\nval: images/val\ntest: images/test\nnames: [cat, dog]\n"


@pytest.fixture
def three(tmp_path):
    """One picture a split; nothing in that of the test."""
    (tmp_path / "data.yaml").write_text(YAML)
    for split, name, text in (("train", "one.jpg", "1 0.5 0.5 0.5 0.2\n\n0 .25 0.25 0.25 0.5"), ("val", "two.JPG", "0 .5 .5 1 1")):
        draw(tmp_path / "images" / split / name)
        label(tmp_path / "labels" / split / f"{name[:3]}.txt", text)
    draw(tmp_path / "images/test/three.png")
    label(tmp_path / "labels/test/three.txt", "")
    return tmp_path


def test_classes_are_known_before_a_picture_is_read(three):
    for file in three.glob("images/*/*"):
        file.write_bytes(b"")
    assert folder(three).spec == DetectionSpec(3, 32, ("cat", "dog"))


def test_boxes_are_pixels_of_their_picture(three):
    splits = read(three)
    assert [names(split) for split in splits[:3]] == [["one"], ["two"], ["three"]]
    [scene] = splits.train
    assert scene.boxes.tolist() == [[10, 8, 30, 12], [5, 0, 15, 10]]
    assert scene.labels.tolist() == [1, 0]
    assert (scene.boxes.dtype, scene.labels.dtype) == (np.float32, np.int64)
    assert splits.val[0].boxes.tolist() == [[0, 0, 40, 20]]
    assert splits.test[0].boxes.shape == (0, 4)


def test_an_outline_gives_its_box(three):
    label(three / "labels/train/one.txt", "1 0.5 0.1 0.75 0.5 0.5 0.9 0.25 0.5\n0 0 0 1 0 0 1")
    assert read(three).train[0].boxes.tolist() == [[10, 2, 30, 18], [0, 0, 40, 20]]


def test_a_picture_is_turned_as_its_camera_says(three):
    exif = Image.Exif()
    exif[0x0112] = 6
    draw(three / "images/train/one.jpg", (40, 20), exif=exif)
    assert read(three).train[0].boxes.tolist()[0] == [5, 16, 15, 24]
    data = folder(three, batch_size=1)
    data.prepare()
    [batch] = data.train_loader(Placement()).batches(0)
    assert batch.boxes.tolist()[0] == pytest.approx([8 + 5 * 0.8, 16 * 0.8, 8 + 15 * 0.8, 24 * 0.8])


def test_a_box_is_where_its_object_is_seen(tmp_path):
    """From the file to a batch: the box of a white thing on black is the extent of the white pixels."""
    chance = np.random.RandomState(0)
    (tmp_path / "data.yaml").write_text("train: images\nnames: {0: thing}")
    for i in range(6):
        pixels = np.zeros((120, 160, 3), np.uint8)
        (x1, x2), (y1, y2) = (np.sort(chance.choice(np.arange(0, side + 1, 5), 2, replace=False)) for side in (160, 120))
        pixels[y1:y2, x1:x2] = 255
        draw(tmp_path / f"images/{i}.png")
        Image.fromarray(pixels).save(tmp_path / f"images/{i}.png")
        label(tmp_path / f"labels/{i}.txt", f"0 {(x1 + x2) / 320:.6f} {(y1 + y2) / 240:.6f} {(x2 - x1) / 160:.6f} {(y2 - y1) / 120:.6f}")
    data = folder(tmp_path, size=320)
    data.prepare()
    batches = [batch for loader in (data.train_loader, data.val_loader, data.test_loader) for batch in loader(Placement()).batches(0)]
    assert sum(len(batch.owners) for batch in batches) == 6
    for batch in batches:
        for owner, box in zip(batch.owners, batch.boxes, strict=True):
            y, x = (batch.images[owner].amin(0) > 0.5).nonzero().unbind(1)
            extent = [x.min(), y.min(), x.max() + 1, y.max() + 1]
            assert np.abs(np.array(extent) - box.numpy()).max() <= 1


@pytest.mark.parametrize(
    ("pictures", "labels"),
    [
        ("images/train", "labels/train"),
        ("train/images", "train/labels"),
        ("train/images/deeper", "train/labels/deeper"),
        ("images/images/train", "images/labels/train"),
        ("train", "train"),
        ("myimages/train", "myimages/train"),
    ],
)
def test_where_boxes_lie(tmp_path, pictures, labels):
    root = tmp_path / "images" / "set"  # what lies above the set tells nothing
    root.mkdir(parents=True)
    (root / "data.yaml").write_text(f"train: {pictures}\nval: {pictures}\ntest: {pictures}\nnames: [cat]")
    draw(root / pictures / "a.b.jpg")
    label(root / labels / "a.b.txt", "0 .5 .5 .5 .5")
    assert [len(scene.boxes) for split in read(root)[:3] for scene in split] == [1, 1, 1]


@pytest.mark.parametrize(
    "paths",
    [
        "train: ../train/images\nval: ../valid/images",  # as Roboflow writes it
        "path: ../datasets/mine\ntrain: train/images\nval: valid/images",
        "path: /somewhere/else\ntrain: [train/images]\nval: [valid/images]\ntest: []",
        "train: ./train/images/\nval: train/../valid/images\ntest: ''",
        "path: train\ntrain: images\nval: ../valid/images\ntest:",
        "train: lists/train.txt\nval: lists/../lists/val.txt",
    ],
)
def test_paths_as_tools_write_them(tmp_path, paths):
    (tmp_path / "data.yaml").write_text(f"{paths}\nnc: 1\nnames: {{0: cat}}")
    for split in ("train", "valid"):
        for i in range(5):
            draw(tmp_path / split / f"images/{split}{i}.jpg")
            label(tmp_path / split / f"labels/{split}{i}.txt", "0 .5 .5 .5 .5")
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists/train.txt").write_text("".join(f"../train/images/train{i}.jpg\n" for i in range(5)))
    (tmp_path / "lists/val.txt").write_text("".join(f"{tmp_path}/valid/images/valid{i}.jpg\r\n" for i in range(5)))
    splits = read(tmp_path)
    assert names(splits.val) == [f"valid{i}" for i in range(5)]
    assert sorted(names(splits.train) + names(splits.test)) == [f"train{i}" for i in range(5)]
    assert len(splits.test) == 1


def test_relative_paths_stay_inside_and_absolute_ones_lead_where_they_say(tmp_path):
    outside, root = tmp_path / "outside", tmp_path / "set"
    root.mkdir()
    for i in range(3):
        draw(outside / f"images/{i}.jpg")
        label(outside / f"labels/{i}.txt", "0 .5 .5 .5 .5")
    for path in ("../outside/images", "images/../../outside/images", "list.txt"):
        (root / "list.txt").write_text("../outside/images/0.jpg\n")
        (root / "data.yaml").write_text(f"train: {path}\nnames: [cat]")
        with pytest.raises(DataError, match=r"no such folder|not there") as caught:
            read(root)
        assert caught.value.key.startswith(str(root))
    (root / "data.yaml").write_text(f"train: {outside}/images\nnames: [cat]")
    assert [len(split) for split in read(root)[:3]] == [1, 1, 1]
    (root / "data.yaml").write_text(f"path: {outside}\ntrain: images\nnames: [cat]")
    assert [scene.boxes.tolist() for scene in read(root).train] == [[[10, 5, 30, 15]]]


def test_a_relative_root(three, monkeypatch):
    expected = read(three)
    monkeypatch.chdir(three.parent)
    found = read(three.name)
    assert str(found) == str(expected)
    assert found.checksums == expected.checksums


def test_the_same_folder_twice(three):
    (three / "data.yaml").write_text("train: images\nval: images\nnames: [cat, dog]")
    splits = read(three)
    assert len(splits.val) == 3
    assert [len(splits.train), len(splits.test)] == [2, 1]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("0 .5 .5 .5", "has 4 numbers"),
        ("0", "has 1 numbers"),
        ("0 .5 .5 .5 .5 .9", "has 6 numbers"),
        ("0 .5 .5 .5 .5 .5 .5 .5", "has 8 numbers"),
        ("cat .5 .5 .5 .5", "not a line of numbers"),
        ("0 .5 .5 .5 .5,", "not a line of numbers"),
        ("2 .5 .5 .5 .5", "class 2 is none of the 2"),
        ("-1 .5 .5 .5 .5", "class -1 is none of the 2"),
        ("0.5 .5 .5 .5 .5", "class 0.5 is none"),
        ("nan .5 .5 .5 .5", "class nan is none"),
        ("0 20 10 40 20", "not in shares"),
        ("0 0 0 40 0 40 20", "not in shares"),
    ],
)
def test_a_line_that_is_no_box_is_named(three, line, words):
    file = three / "labels/train/one.txt"
    label(file, f"0 .5 .5 .5 .5\n\n{line}\n")
    with pytest.raises(DataError, match=words) as caught:
        read(three)
    assert caught.value.key == f"{file}:3"
    assert caught.value.exit_code == 3


def test_boxes_that_are_none_are_dropped_and_told_once(three, caplog):
    wrong = "0 nan .5 .5 .5\n1 .5 .5 inf .5\n0 .5 .5 0 .5\n0 .5 .5 -.5 .5\n0 1.5 .5 .5 .5\n1 0 0 1 0 1 nan\n1.0 1 .5 1 2\n"
    label(three / "labels/train/one.txt", wrong)
    with caplog.at_level(logging.WARNING):
        [scene] = read(three).train
    assert scene.boxes.tolist() == [[20, 0, 40, 20]]
    assert scene.labels.tolist() == [1]
    [record] = caplog.records
    told = (str(three / "labels/train/one.txt"), "3 not a number", "2 zero area", "1 outside the picture")
    assert all(words in record.message for words in told)


def test_no_damage_escapes_as_another_error(three):
    file, chance, refused = three / "labels/train/one.txt", random.Random(0), 0
    whole = file.read_bytes()
    for trial in range(100):
        content = bytearray(whole[: chance.randrange(len(whole))] if trial % 2 else whole)
        for _ in range(chance.randrange(1, 8)):
            if content:
                content[chance.randrange(len(content))] = chance.randrange(256)
        file.write_bytes(content)
        try:
            assert all(np.isfinite(scene.boxes).all() for scene in read(three).train)
        except DataError as error:
            refused += error.key.startswith(str(file))
    assert refused > 50


def test_pictures_without_boxes(three):
    for i in range(3):
        draw(three / f"images/train/empty{i}.jpg")
    assert [len(scene.boxes) for scene in read(three).train] == [0, 0, 0, 2]
    (three / "labels/val/two.txt").unlink()
    with pytest.raises(DataError, match="no picture of val has a file of boxes") as caught:
        read(three)
    assert caught.value.key == str(three / "labels/val/two.txt")


def test_pictures_that_a_list_names_and_that_are_absent(three):
    (three / "data.yaml").write_text("train: train.txt\nnames: [cat, dog]")
    (three / "train.txt").write_text("images/train/one.jpg\nimages/train/two.jpg\nimages/train/three.jpg\n")
    with pytest.raises(DataError, match="2 of 3 pictures are absent") as caught:
        read(three)
    assert caught.value.key == str(three / "images/train/three.jpg")


def test_a_damaged_picture_is_named(three):
    (three / "images/train/one.jpg").write_bytes(b"not a picture")
    with pytest.raises(DataError, match="not a readable picture") as caught:
        read(three)
    assert caught.value.key == str(three / "images/train/one.jpg")


def test_folders_without_pictures(three):
    (three / "images/val/two.JPG").unlink()
    with pytest.raises(DataError, match=r"images/val: holds no pictures"):
        read(three)
    (three / "images/val").rmdir()
    with pytest.raises(DataError, match=r"images/val: no such folder, though data\.yaml names it as images/val"):
        read(three)
    (three / "data.yaml").write_text("train: images/train\nnames: [cat, dog]")
    with pytest.raises(DataError, match="no pictures for a test split"):  # one picture cannot be shared
        read(three)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("train: [", "not readable YAML"),
        ("\x00", "not readable YAML"),
        ("!!python/object/apply:os.system ['true']", "not readable YAML"),
        ("", "holds no keys"),
        ("- train", "holds no keys"),
        ("train: images", "names is neither"),
        ("train: images\nnames: cat", "names is neither"),
        ("train: images\nnames: []", "names is neither"),
        ("train: images\nnames: [[cat]]", "names is neither"),
        ("train: images\nnames: {1: cat, 2: dog}", "not every number from 0 to 1"),
        ("train: images\nnames: {a: cat}", "not every number from 0 to 0"),
        ("train: images\nnames: [cat, cat]", "one name twice"),
        ("train: images\nnc: 3\nnames: [cat, dog]", "nc is 3, and names has 2"),
        ("val: images\nnames: [cat]", "has no train"),
        ("train: 7\nnames: [cat]", "train is neither a path"),
        ("train: [7]\nnames: [cat]", "train is neither a path"),
    ],
)
def test_a_description_that_says_too_little(tmp_path, text, words):
    (tmp_path / "data.yaml").write_text(text)
    with pytest.raises(DataError, match=words) as caught:
        folder(tmp_path)
    assert caught.value.key == str(tmp_path / "data.yaml")


def test_numbers_may_be_names(three):
    (three / "data.yaml").write_text(YAML.replace("[cat, dog]", "{1: 8, 0: '7'}"))
    assert folder(three).spec.classes == ("7", "8")


@pytest.mark.parametrize(("make", "words"), [(lambda root: None, "no such folder"), (os.mkdir, r"holds no data\.yaml")])
def test_a_root_of_another_layout_is_named(tmp_path, make, words):
    root = tmp_path / "pictures"
    make(root)
    with pytest.raises(ConfigError, match=words) as caught:
        folder(root)
    assert caught.value.key == "data.root"
    assert str(root)[:60] in str(caught.value), "of a long path the beginning"


def test_the_record_changes_with_pictures_and_boxes(three):
    records = [read(three).checksums]
    assert read(three).checksums == records[0]
    label(three / "labels/val/two.txt", "0 .5 .5 1 .9")
    records.append(read(three).checksums)
    draw(three / "images/val/two.JPG", (400, 200))
    records.append(read(three).checksums)
    assert len({str(record) for record in records}) == 3


def test_a_set_rewritten_is_the_same_set(tmp_path, shared_data):
    """Blood cells from VOC's layout to this one and back."""
    source = build_voc_folder(root=str(shared_data / "BCCD"), difficult=True, **COMMON)
    scenes = source.read().test[:20]
    (tmp_path / "data.yaml").write_text(f"train: images\nval: images\ntest: images\nnames: {[*source.spec.classes]}")
    (tmp_path / "images").mkdir()
    for scene in scenes:
        (tmp_path / "images" / scene.picture.name).symlink_to(scene.picture)
        lines = [
            f"{kind} {(x1 + x2) / 1280:.7f} {(y1 + y2) / 960:.7f} {(x2 - x1) / 640:.7f} {(y2 - y1) / 480:.7f}\n"
            for kind, (x1, y1, x2, y2) in zip(scene.labels, scene.boxes, strict=True)
        ]
        label(tmp_path / "labels" / f"{scene.picture.stem}.txt", "".join(lines))
    data = folder(tmp_path)
    assert data.spec.classes == source.spec.classes
    for before, after in zip(scenes, data.read().val, strict=True):
        assert before.picture.name == after.picture.name
        assert np.array_equal(before.labels, after.labels)
        assert np.abs(before.boxes - after.boxes).max() < 1e-3
