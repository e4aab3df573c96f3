"""The layout of COCO: categories by their ids, crowds, where pictures lie, and every part of a file that can be malformed."""

import json
import logging
import random
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from refresher_runner.data.coco import build_coco_folder
from refresher_runner.data.voc import build_voc_folder
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
CATEGORIES = [{"id": 90, "name": "toothbrush"}, {"id": 3, "name": "car"}, {"id": 18, "name": "dog"}]


def write(file, images, things=(), categories=CATEGORIES):
    """A file of images (id, name) and things (image, category, box), all images 40 x 20."""
    file.parent.mkdir(parents=True, exist_ok=True)
    values = {
        "images": [{"id": number, "file_name": name, "width": 40, "height": 20} for number, name in images],
        "annotations": [{"id": i, "image_id": n, "category_id": c, "bbox": box} for i, (n, c, box) in enumerate(things)],
        "categories": categories,
    }
    file.write_text(json.dumps(values))
    return values


def draw(file, size=(40, 20)):
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size).save(file)


def folder(root, **options):
    return build_coco_folder(root=str(root), **{"train": None, "val": None, "test": None, **COMMON, **options})


def read(root, **options):
    return folder(root, **options).read()


def names(scenes):
    return [scene.picture.stem for scene in scenes]


TRAIN = "annotations/instances_train2017.json"


@pytest.fixture
def three(tmp_path):
    """One picture a split."""
    write(tmp_path / TRAIN, [(7, "one.jpg")], [(7, 90, [1, 2, 3, 4.5]), (7, 3, [0, 0, 40, 20])])
    write(tmp_path / "annotations/instances_val2017.json", [(7, "two.jpg")], [(7, 18, [10, 5, 10, 5])])
    write(tmp_path / "annotations/instances_test.json", [(1, "three.png")])
    for file in ("train2017/one.jpg", "val2017/two.jpg", "test/three.png"):
        draw(tmp_path / file)
    return tmp_path


def test_classes_are_known_before_a_picture_is_read(three):
    for file in three.glob("*/*.jpg"):
        file.write_bytes(b"")
    assert folder(three).spec == DetectionSpec(3, 32, ("car", "dog", "toothbrush"))


def test_boxes_are_pixels_of_their_picture(three):
    splits = read(three)
    assert [names(split) for split in splits[:3]] == [["one"], ["two"], ["three"]]
    [scene] = splits.train
    assert scene.boxes.tolist() == [[1, 2, 4, 6.5], [0, 0, 40, 20]]
    assert scene.labels.tolist() == [2, 0]
    assert (scene.boxes.dtype, scene.labels.dtype) == (np.float32, np.int64)
    assert splits.val[0].labels.tolist() == [1]
    assert splits.test[0].boxes.shape == (0, 4)


def test_a_box_is_where_its_object_is_seen(tmp_path):
    """From the file to a batch: the box of a white thing on black is the extent of the white pixels."""
    chance, things = np.random.RandomState(0), []
    for i in range(6):
        pixels = np.zeros((20, 40, 3), np.uint8)
        (x1, x2), (y1, y2) = (np.sort(chance.choice(np.arange(0, side + 1, 2), 2, replace=False)) for side in (40, 20))
        pixels[y1:y2, x1:x2] = 255
        draw(tmp_path / f"train2017/{i}.png")
        Image.fromarray(pixels).save(tmp_path / f"train2017/{i}.png")
        things.append((i, 3, [int(x1), int(y1), int(x2 - x1), int(y2 - y1)]))
    write(tmp_path / TRAIN, [(i, f"{i}.png") for i in range(6)], things)
    data = folder(tmp_path, size=160)
    data.prepare()
    batches = [batch for loader in (data.train_loader, data.val_loader, data.test_loader) for batch in loader(Placement()).batches(0)]
    assert sum(len(batch.owners) for batch in batches) == 6
    for batch in batches:
        for owner, box in zip(batch.owners, batch.boxes, strict=True):
            y, x = (batch.images[owner].amin(0) > 0.5).nonzero().unbind(1)
            extent = [x.min(), y.min(), x.max() + 1, y.max() + 1]
            assert np.abs(np.array(extent) - box.numpy()).max() <= 1


@pytest.mark.parametrize(
    ("file", "pictures"),
    [
        (TRAIN, "train2017"),
        (TRAIN, "images/train2017"),
        (TRAIN, "train"),
        (TRAIN, "images/train"),
        (TRAIN, "images"),
        (TRAIN, "."),
        (TRAIN, "annotations"),
        ("train/_annotations.coco.json", "train"),
        ("mine.json", "."),
        ("mine.json", "mine/deeper"),
    ],
)
def test_where_pictures_lie(tmp_path, file, pictures):
    above = "deeper/" if "deeper" in pictures else ""
    write(tmp_path / file, [(i, f"{above}{i}.jpg") for i in range(3)], [(1, 3, [1, 2, 3, 4])])
    for i in range(3):
        draw(tmp_path / pictures / f"{i}.jpg")
    (tmp_path / "train2017").mkdir(exist_ok=True)  # an empty folder of the right name misleads nobody
    splits = read(tmp_path, train=None if file == TRAIN else file)
    assert sorted(scene.picture for split in splits[:3] for scene in split) == [tmp_path / pictures / f"{i}.jpg" for i in range(3)]


def test_files_and_pictures_outside_the_root(tmp_path):
    write(tmp_path / "away/all.json", [(i, f"{i}.jpg") for i in range(3)])
    (tmp_path / "root").mkdir()
    with pytest.raises(DataError, match="2 more pictures are in no folder"):
        read(tmp_path / "root", train=str(tmp_path / "away/all.json"))
    for i in range(3):
        draw(tmp_path / f"away/{i}.jpg")
    assert [len(split) for split in read(tmp_path / "root", train=str(tmp_path / "away/all.json"))[:3]] == [1, 1, 1]


def test_a_split_without_a_file_is_cut_from_training(tmp_path):
    write(tmp_path / TRAIN, [(i, f"{i:02}.jpg") for i in range(20)])
    for i in range(20):
        draw(tmp_path / f"train2017/{i:02}.jpg")
    splits = read(tmp_path)
    assert [len(split) for split in splits[:3]] == [13, 3, 4]
    assert sorted(name for split in splits[:3] for name in names(split)) == [f"{i:02}" for i in range(20)]
    assert names(read(tmp_path, split_seed=1).val) != names(splits.val) == names(read(tmp_path).val)
    write(tmp_path / "annotations/instances_val2017.json", [(1, "05.jpg")])
    draw(tmp_path / "val2017/05.jpg")
    assert [len(split) for split in read(tmp_path)[:3]] == [16, 1, 4]


def test_what_is_no_box_is_dropped_and_told_once(three, caplog):
    file = three / TRAIN
    boxes = [[float("nan"), 1, 2, 3], [1, 1, float("inf"), 3], [1, 1, 0, 3], [1, 1, 3, -3], [50, 1, 3, 3], [-1, 15, 3, 30]]
    values = write(file, [(7, "one.jpg")], [*((7, 3, box) for box in boxes), (8, 3, [1, 2, 3, 4]), (7, 18, [1, 2, 3, 4])])
    values["annotations"].append({"image_id": 7, "category_id": 3, "bbox": [0, 0, 9, 9], "iscrowd": 1})
    file.write_text(json.dumps(values))
    with caplog.at_level(logging.WARNING):
        [scene] = read(three).train
    assert scene.boxes.tolist() == [[0, 15, 2, 20], [1, 2, 4, 6]]
    assert scene.labels.tolist() == [0, 1]
    [record] = caplog.records
    told = (str(file), "2 not a number", "2 zero area", "1 outside the picture", "1 crowds", "1 of pictures not listed")
    assert all(words in record.message for words in told)


@pytest.mark.parametrize("sides", [{}, {"width": 0, "height": 0}, {"width": None, "height": "20"}, {"width": 10**400, "height": 20}])
def test_a_size_that_is_not_told_is_looked_up(three, sides):
    values = write(three / TRAIN, [(7, "one.jpg")], [(7, 3, [30, 10, 99, 99])])
    values["images"] = [{"id": 7, "file_name": "one.jpg", **sides}]
    (three / TRAIN).write_text(json.dumps(values))
    assert read(three).train[0].boxes.tolist() == [[30, 10, 40, 20]]
    (three / "train2017/one.jpg").write_bytes(b"not a picture")
    with pytest.raises(DataError, match=r"one\.jpg: not a readable picture"):
        read(three)


@pytest.mark.parametrize(
    ("place", "value", "key"),
    [
        (["images"], None, "images"),
        (["images"], {}, "images"),
        (["images", 0], "one.jpg", "images[0]"),
        (["images", 0, "id"], "7", "images[0].id"),
        (["images", 0, "id"], True, "images[0].id"),
        (["images"], [{"id": 7, "file_name": "one.jpg"}] * 2, "images[1].id"),
        (["images", 0, "file_name"], None, "images[0].file_name"),
        (["images", 0, "file_name"], "../one.jpg", "images[0].file_name"),
        (["images", 0, "file_name"], "a/../../one.jpg", "images[0].file_name"),
        (["images", 0, "file_name"], "/etc/one.jpg", "images[0].file_name"),
        (["annotations"], None, "annotations"),
        (["annotations", 1], [], "annotations[1]"),
        (["annotations", 1, "bbox"], None, "annotations[1].bbox"),
        (["annotations", 1, "bbox"], [1, 2, 3], "annotations[1].bbox"),
        (["annotations", 1, "bbox"], [1, 2, 3, "4"], "annotations[1].bbox"),
        (["annotations", 1, "bbox"], [1, 2, 3, 10**400], "annotations[1].bbox"),
        (["annotations", 1, "image_id"], "7", "annotations[1].image_id"),
        (["annotations", 1, "category_id"], 4, "annotations[1].category_id"),
        (["annotations", 1, "category_id"], [3], "annotations[1].category_id"),
        (["categories"], None, "categories"),
        (["categories"], [], "categories"),
        (["categories"], CATEGORIES[:2], "categories"),
        (["categories", 0, "id"], 3, "categories[1].id"),
        (["categories", 0, "id"], 3.0, "categories[0].id"),
        (["categories", 2, "name"], "car", "categories[2].name"),
        (["categories", 2, "name"], 7, "categories[2].name"),
    ],
)
def test_a_malformed_part_is_named(three, place, value, key):
    file = three / TRAIN
    values = part = json.loads(file.read_text())
    for step in place[:-1]:
        part = part[step]
    part[place[-1]] = value
    file.write_text(json.dumps(values))
    with pytest.raises(DataError) as caught:
        read(three)
    assert caught.value.key == f"{file}: {key}"
    assert caught.value.exit_code == 3


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe\xfa", b"[" * 100_000, b'{"images": [1,]}'])
def test_a_file_that_is_no_json_is_named(three, content):
    (three / TRAIN).write_bytes(content)
    with pytest.raises(DataError, match="is not JSON") as caught:
        read(three)
    assert caught.value.key == str(three / TRAIN)


def test_json_of_another_shape(three):
    (three / TRAIN).write_text("[]")
    with pytest.raises(DataError, match="categories: is absent"):
        folder(three)


def test_no_damage_escapes_as_another_error(three):
    file, chance, refused = three / TRAIN, random.Random(0), 0
    whole = file.read_bytes()
    for trial in range(200):
        content = bytearray(whole[: chance.randrange(len(whole))] if trial % 4 == 0 else whole)
        for _ in range(chance.randrange(1, 3)):
            if content:
                content[chance.randrange(len(content))] = chance.choice(b'0123456789-e.,:[]{}" abc')
        file.write_bytes(content)
        try:
            assert all(np.isfinite(scene.boxes).all() for scene in read(three).train)
        except DataError:
            refused += 1
    assert 100 < refused < 200


def test_pictures_that_are_absent_are_named(three):
    write(three / TRAIN, [(1, "one.jpg"), (2, "four.jpg"), (3, "five.jpg")])
    with pytest.raises(DataError, match="2 of 3 pictures are absent") as caught:
        read(three)
    assert caught.value.key == str(three / "train2017/four.jpg")
    (three / "train2017/one.jpg").unlink()
    with pytest.raises(DataError, match=r"one\.jpg: and 2 more pictures are in no folder") as caught:
        read(three)
    assert "train2017, train, images/train2017" in caught.value.cure


def test_a_split_without_pictures(three):
    write(three / "annotations/instances_val2017.json", [])
    with pytest.raises(DataError, match="no pictures for a val split"):
        read(three)
    (three / "annotations/instances_val2017.json").unlink()
    with pytest.raises(DataError, match="no pictures for a val split"):  # one picture cannot be shared
        read(three)


@pytest.mark.parametrize(
    ("make", "words"),
    [(lambda root: None, "no such folder"), (lambda root: root.mkdir(), r"holds no annotations/instances_train\*\.json")],
)
def test_a_root_of_another_layout_is_named(tmp_path, monkeypatch, make, words):
    monkeypatch.chdir(tmp_path)
    root = Path("pictures")
    make(root)
    with pytest.raises(ConfigError, match=words) as caught:
        folder(root)
    assert caught.value.key == "data.root"
    assert str(root) in str(caught.value)
    assert "data.train" in caught.value.cure


def test_files_that_are_absent_or_too_many(three):
    with pytest.raises(ConfigError, match=r"data\.val=other\.json: no such file"):
        folder(three, val="other.json")
    write(three / "annotations/instances_val2014.json", [(7, "two.jpg")])
    with pytest.raises(ConfigError, match=r"data\.val: there are instances_val2014\.json, instances_val2017\.json") as caught:
        folder(three)
    assert "data.val=annotations/instances_val2017.json" in caught.value.cure
    assert names(read(three, val="annotations/instances_val2017.json").val) == ["two"]


def test_the_record_changes_with_pictures_and_boxes(three):
    records = [read(three).checksums]
    assert read(three).checksums == records[0]
    write(three / "annotations/instances_val2017.json", [(7, "two.jpg")], [(7, 18, [10, 5, 10, 6])])
    records.append(read(three).checksums)
    draw(three / "val2017/two.jpg", (400, 200))
    records.append(read(three).checksums)
    assert len({str(record) for record in records}) == 3
    assert set(records[0]) > {TRAIN, "annotations/instances_val2017.json", "annotations/instances_test.json"}


def test_a_set_rewritten_is_the_same_set(tmp_path, shared_data):
    """Blood cells from VOC's layout to this one and back."""
    options = {key: value for key, value in COMMON.items() if key != "size"}
    source = build_voc_folder(root=str(shared_data / "BCCD"), difficult=True, size=32, **options)
    scenes = source.read().test[:20]
    (tmp_path / "images").mkdir()
    things = []
    for i, scene in enumerate(scenes):
        (tmp_path / "images" / scene.picture.name).symlink_to(scene.picture)
        for kind, (x1, y1, x2, y2) in zip(scene.labels, scene.boxes.tolist(), strict=True):
            things.append((i, 10 - int(kind), [x1, y1, x2 - x1, y2 - y1]))
    categories = [{"id": 10 - i, "name": name} for i, name in enumerate(source.spec.classes)]
    values = write(tmp_path / "all.json", [(i, scene.picture.name) for i, scene in enumerate(scenes)], things, categories)
    for image in values["images"]:
        image |= {"width": 640, "height": 480}
    (tmp_path / "all.json").write_text(json.dumps(values))
    data = folder(tmp_path, train="all.json", val="all.json", test="all.json")
    assert data.spec.classes == source.spec.classes[::-1]
    for before, after in zip(scenes, data.read().val, strict=True):
        assert before.picture.name == after.picture.name
        assert np.array_equal(before.boxes, after.boxes)
        assert np.array_equal(before.labels, 2 - after.labels)
