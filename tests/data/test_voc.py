"""PASCAL VOC's layout: pixels counted from 1, lists of splits, downloads, and files that are absent, damaged or hostile."""

import hashlib
import logging
import random
import re
import tarfile
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from refresher_runner.data.voc import CLASSES, build_voc, build_voc_folder, picture_size
from refresher_runner.errors import ConfigError, DataError
from refresher_runner.pictures import open_picture
from refresher_runner.spec import DetectionSpec, Placement

COMMON = {
    "difficult": False,
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
OBJECT = (
    "<object><name>{}</name><difficult>{}</difficult><part><name>head</name><bndbox><xmin>1</xmin></bndbox></part>"
    "<bndbox><xmax>{}</xmax><xmin>{}</xmin><ymax>{}</ymax><ymin>{}</ymin></bndbox></object>"
)


def write(root, name, objects=(), suffix=".png", size=(40, 30), said=None):
    """A black picture, white where its objects (class, x1, y1, x2, y2, difficult) are: edges of pixels, written as VOC does."""
    for folder in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    pixels = np.zeros((size[1], size[0], 3), np.uint8)
    text = "<annotation><size><width>{}</width><height>{}</height></size>".format(*(said or size))
    for kind, x1, y1, x2, y2, *hard in objects:
        pixels[y1:y2, x1:x2] = 255
        text += OBJECT.format(kind, int(bool(hard)), x2, x1 + 1, y2, y1 + 1)
    Image.fromarray(pixels).save(root / "JPEGImages" / f"{name}{suffix}")
    (root / "Annotations" / f"{name}.xml").write_text(f"{text}</annotation>")


def lists(root, **splits):
    for split, names in splits.items():
        (root / "ImageSets/Main" / f"{split}.txt").write_text("".join(f"{name}\n" for name in names))


def folder(root, **options):
    return build_voc_folder(root=str(root), **{"val_fraction": 0.2, **COMMON, **options})


def read(root, **options):
    return folder(root, **options).read()


def names(scenes):
    return [scene.picture.stem for scene in scenes]


@pytest.fixture
def three(tmp_path):
    """One picture a split; in that of training a cat, a dog and a difficult cow."""
    write(tmp_path, "one", [("dog", 0, 0, 40, 30), ("cat", 3, 5, 12, 21), ("cow", 20, 2, 24, 28, True)])
    write(tmp_path, "two", [("cat", 1, 2, 3, 4)], ".JPG")
    write(tmp_path, "three")
    lists(tmp_path, train=["one"], val=["two"], test=["three"], trainval=["one", "two"])
    return tmp_path


def test_classes_are_known_before_a_picture_is_read(three):
    for file in (three / "JPEGImages").iterdir():
        file.write_bytes(b"")
    assert folder(three).spec == DetectionSpec(3, 32, ("cat", "cow", "dog"))


def test_a_box_is_the_edges_of_its_pixels(three):
    splits = read(three)
    [scene] = splits.train
    assert scene.boxes.tolist() == [[0, 0, 40, 30], [3, 5, 12, 21]]
    assert scene.labels.tolist() == [2, 0]
    assert (scene.boxes.dtype, scene.labels.dtype) == (np.float32, np.int64)
    assert [split[0].boxes.shape for split in splits[1:3]] == [(1, 4), (0, 4)]
    assert read(three, difficult=True).train[0].labels.tolist() == [2, 0, 1]


@pytest.mark.parametrize("seed", range(3))
def test_a_box_is_where_its_object_is_seen(tmp_path, seed):
    """From the file to a batch: the box of a white thing on black is the extent of the white pixels."""
    chance = np.random.RandomState(seed)
    for i in range(6):
        (x1, x2), (y1, y2) = (np.sort(chance.choice(np.arange(0, side + 1, 5), 2, replace=False)) for side in (160, 120))
        write(tmp_path, f"{i}", [("thing", x1, y1, x2, y2)], size=(160, 120))
    data = folder(tmp_path, size=320)
    data.prepare()
    batches = [batch for loader in (data.train_loader, data.val_loader, data.test_loader) for batch in loader(Placement()).batches(0)]
    assert sum(len(batch.owners) for batch in batches) == 6
    for batch in batches:
        for image, owner, box in zip(batch.images, batch.owners, batch.boxes, strict=False):
            y, x = (batch.images[owner].amin(0) > 0.5).nonzero().unbind(1)
            extent = [x.min(), y.min(), x.max() + 1, y.max() + 1]
            assert np.abs(np.array(extent) - box.numpy()).max() <= 1
            assert image.shape == (3, 320, 320)


def test_lists_say_which_picture_is_whose(three):
    assert [names(split) for split in read(three)[:3]] == [["one"], ["two"], ["three"]]


def test_a_split_without_a_list_is_cut_from_training(tmp_path):
    for i in range(20):
        write(tmp_path, f"{i:02}", [("cat", 1, 1, 9, 9)])
    whole = read(tmp_path)
    assert [len(split) for split in whole[:3]] == [13, 3, 4]
    assert sorted(name for split in whole[:3] for name in names(split)) == [f"{i:02}" for i in range(20)]
    assert [names(split) for split in read(tmp_path)[:3]] == [names(split) for split in whole[:3]]
    assert names(read(tmp_path, split_seed=1).val) != names(whole.val)
    lists(tmp_path, test=["03", "05"])
    listed = read(tmp_path)
    assert names(listed.test) == ["03", "05"]
    assert [len(split) for split in listed[:3]] == [14, 4, 2]
    assert not {"03", "05"} & {*names(listed.train), *names(listed.val)}
    lists(tmp_path, trainval=["00", "01", "02", "03"], val=["01"])
    assert [names(split) for split in read(tmp_path)[:3]] == [["00", "02"], ["01"], ["03", "05"]]


def test_lists_as_other_tools_write_them(three):
    (three / "ImageSets/Main/train.txt").write_bytes("\ufeffone \r\n\r\ntwo\r\none\r\n".encode())
    assert names(read(three).train) == ["one", "two"]


def test_boxes_that_are_none_are_dropped_and_told_once(three, caplog):
    write(three, "one", [("cat", 7, 8, 9, 10)])
    file = three / "Annotations/one.xml"
    wrong = [("nan", 1, 9, 9), (5, 5, 5, 5), (5, 5, 5, 9), (9, 9, 5, 5), (50, 1, 60, 9), ("1e999", 1, 9, 9), (-3, 28.5, 12.5, 99)]
    more = "".join(OBJECT.format("dog", 0, x2, x1, y2, y1) for x1, y1, x2, y2 in wrong)
    file.write_text(file.read_text().replace("</annotation>", f"{more}</annotation>"))
    with caplog.at_level(logging.WARNING):
        [scene] = read(three).train
    assert scene.boxes.tolist() == [[7, 8, 9, 10], [0, 27.5, 12.5, 30]]
    [record] = caplog.records
    assert all(words in record.message for words in (str(file), "2 not a number", "3 zero area", "1 outside the picture"))


def test_sizes_that_do_not_fit_are_told(three, caplog):
    write(three, "one", [("cat", 3, 5, 12, 21)], said=(80, 60))
    write(three, "two", [("cat", 3, 5, 12, 21)], said=(0, 0), suffix=".JPG")  # as is one that says nothing
    (three / "Annotations/three.xml").write_text("<annotation/>")
    with caplog.at_level(logging.WARNING):
        assert read(three).train[0].boxes.tolist() == [[3, 5, 12, 21]]
    [record] = [record for record in caplog.records if "another size" in record.message]
    assert str(three / "Annotations/one.xml") in record.message
    assert "2 annotations" in record.message


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".tif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_picture_is_as_large_as_it_is_read(tmp_path, suffix, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = tmp_path / f"turned{suffix}"
    Image.new("RGB", (24, 10)).save(file, exif=exif)
    assert picture_size(file) == open_picture(file, 3).size == ((10, 24) if orientation > 4 else (24, 10))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "sound annotation"),
        (b"<annotation><object></annotation>", "sound annotation"),
        (b"\x00\xff\xfe", "sound annotation"),
        (b"<html/>", "<html>, not <annotation>"),
        (b'<?xml version="1.0" encoding="klingon"?><annotation/>', "sound annotation"),
        (b"<annotation><object><bndbox/></object></annotation>", "object 1 has no name"),
        (b"<annotation><object><name>cat</name></object></annotation>", "object 1 has no bndbox"),
        (b"<annotation><object><name>cat</name><bndbox><xmin>few</xmin></bndbox></object></annotation>", "'few' is not"),
        (b"<annotation><object><name>cat</name><bndbox><ymin>1</ymin></bndbox></object></annotation>", "'' is not"),
        (b'<!DOCTYPE a [<!ENTITY x "y">]><annotation>&x;</annotation>', "DOCTYPE"),
        ('<?xml version="1.0" encoding="UTF-16"?><!DOCTYPE a SYSTEM "/etc/passwd"><annotation/>'.encode("utf-16"), "DOCTYPE"),
    ],
)
def test_an_annotation_that_is_none_is_named(three, content, words):
    data, file = folder(three), three / "Annotations/two.xml"
    file.write_bytes(content)
    for unsound in (data.prepare, lambda: folder(three)):
        with pytest.raises(DataError, match=re.escape(words)) as caught:
            unsound()
        assert caught.value.key == str(file)
        assert caught.value.exit_code == 3


def test_no_damage_escapes_as_another_error(three):
    file, chance, refused = three / "Annotations/one.xml", random.Random(0), 0
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
            refused += error.key == str(file)
    assert refused > 50


def test_what_is_named_but_absent_is_named(three):
    lists(three, train=["one", "four", "five"])
    with pytest.raises(DataError, match="2 of 5 pictures are absent") as caught:
        read(three)
    assert caught.value.key == str(three / "JPEGImages/five.jpg")
    write(three, "four")
    write(three, "five")
    (three / "Annotations/four.xml").unlink()
    with pytest.raises(DataError, match="1 of 5 annotations are absent") as caught:
        read(three)
    assert caught.value.key == str(three / "Annotations/four.xml")


def test_a_name_leads_to_no_other_folder(three):
    lists(three, train=["../../secret"])
    Image.new("RGB", (9, 9)).save(three.parent / "secret.jpg")
    (three.parent / "secret.xml").write_text("<annotation/>")
    with pytest.raises(DataError, match="1 of 3 pictures are absent"):
        read(three)


def test_two_pictures_of_one_name(three):
    write(three, "one", suffix=".bmp")
    with pytest.raises(DataError, match=r"one\.png: and one\.bmp have one name"):
        read(three)


@pytest.mark.parametrize("damage", [b"", b"not a picture"])
def test_a_damaged_picture_is_named(three, damage):
    file = three / "JPEGImages/one.png"
    file.write_bytes(damage)
    with pytest.raises(DataError, match="not a readable picture") as caught:
        read(three)
    assert caught.value.key == str(file)


def test_a_split_without_pictures(three):
    lists(three, val=[])
    with pytest.raises(DataError, match="no pictures for a val split"):
        read(three)
    (three / "ImageSets/Main/val.txt").unlink()
    with pytest.raises(DataError, match="no pictures for a val split"):  # one picture cannot be shared
        read(three)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda root: None, "no such folder"),
        (lambda root: root.mkdir(), "holds no Annotations"),
        (lambda root: write(root / "VOC2007", "one"), "holds no Annotations"),
        (lambda root: (root / "Annotations").mkdir(parents=True) or (root / "Annotations/a.xml").write_text(""), "holds no JPEGImages"),
    ],
)
def test_a_root_of_another_layout_is_named(tmp_path, monkeypatch, make, words):
    monkeypatch.chdir(tmp_path)
    root = Path("pictures")
    make(root)
    with pytest.raises(ConfigError, match=words) as caught:
        folder(root)
    assert caught.value.key == "data.root"
    assert str(root) in str(caught.value)
    assert "JPEGImages" in caught.value.cure


def test_annotations_without_objects(tmp_path):
    write(tmp_path, "one")
    with pytest.raises(DataError, match="no annotation holds an object"):
        folder(tmp_path)


def test_the_record_changes_with_pictures_and_boxes(three):
    records = [read(three).checksums]
    assert read(three).checksums == records[0]
    write(three, "one", [("dog", 0, 0, 40, 30), ("cat", 3, 5, 12, 21), ("cow", 20, 2, 24, 27, True)])
    records.append(read(three).checksums)
    write(three, "two", [("cat", 1, 2, 3, 4)], ".JPG", size=(400, 300), said=(40, 30))
    records.append(read(three).checksums)
    assert len({str(record) for record in records}) == 3


def test_blood_cells(shared_data, caplog):
    """364 pictures with 4,888 boxes, of which two have no area."""
    root = shared_data / "BCCD"
    data = folder(root)
    with caplog.at_level(logging.WARNING):
        splits = data.read()
    assert [len(split) for split in splits[:3]] == [205, 87, 72]
    assert data.spec.classes == ("Platelets", "RBC", "WBC")
    texts = [file.read_text() for file in (root / "Annotations").iterdir()]
    counts = Counter(name for text in texts for name in re.findall(r"<name>(\w+)</name>", text))
    assert sum(counts.values()) == 4888
    found = Counter(data.spec.classes[label] for split in splits[:3] for scene in split for label in scene.labels)
    assert sum((counts - found).values()) == 2
    assert not found - counts
    [record] = caplog.records
    assert "2 zero area" in record.message
    for scene in (scene for split in splits[:3] for scene in split):
        assert (scene.boxes >= 0).all()
        assert (scene.boxes <= [640, 480, 640, 480]).all()
        assert (scene.boxes[:, 2:] > scene.boxes[:, :2]).all()


# ---------------------------------------------------------------- the official set


def devkit(root, year, **splits):
    home = root / "VOCdevkit" / f"VOC{year}"
    for i, name in enumerate(name for names in splits.values() for name in names):
        write(home, name, [(CLASSES[i % 20], 2, 3, 20 + i, 21), ("person", 5, 5, 9, 9, True)], ".jpg")
    lists(home, **splits, trainval=[name for split in ("train", "val") for name in splits.get(split, [])])


def official(root, year=2007, **options):
    return build_voc(root=str(root), year=year, **{**COMMON, "test_fraction": 0.5, **options})


def test_an_unpacked_devkit_asks_nobody(tmp_path):
    devkit(tmp_path, 2007, train=["000012", "000017"], val=["000005"], test=["000001"])
    before = sorted(tmp_path.rglob("*"))
    data = official(tmp_path)
    assert data.spec == DetectionSpec(3, 32, CLASSES)
    assert len(set(CLASSES)) == 20
    splits = data.read()
    assert [names(split) for split in splits[:3]] == [["000012", "000017"], ["000005"], ["000001"]]
    assert [scene.labels.tolist() for split in splits[:3] for scene in split] == [[0], [1], [2], [3]]
    assert sorted(tmp_path.rglob("*")) == before


def test_boxes_are_those_of_torchvision(tmp_path):
    from torchvision.datasets import VOCDetection

    devkit(tmp_path, 2012, train=["a", "b"], val=["c", "d"])
    scenes = official(tmp_path, 2012, difficult=True).read().train
    for scene, (_, target) in zip(scenes, VOCDetection(str(tmp_path), "2012", "train"), strict=True):
        objects = target["annotation"]["object"]
        first_and_last = [[int(thing["bndbox"][key]) for key in ("xmin", "ymin", "xmax", "ymax")] for thing in objects]
        assert np.add(scene.boxes, [1, 1, 0, 0]).tolist() == first_and_last
        assert [CLASSES[label] for label in scene.labels] == [thing["name"] for thing in objects]


def test_the_test_of_2012_is_cut_from_validation(tmp_path):
    val = [f"2008_{i:06}" for i in range(10)]
    devkit(tmp_path, 2012, train=["a", "b"], val=val)
    splits = official(tmp_path, 2012, test_fraction=0.3).read()
    assert [len(split) for split in splits[:3]] == [2, 7, 3]
    assert sorted(names(splits.val) + names(splits.test)) == val
    assert names(splits.test) != names(official(tmp_path, 2012, test_fraction=0.3, split_seed=1).read().test)


def test_a_class_that_voc_does_not_have(tmp_path):
    devkit(tmp_path, 2007, train=["a"], val=["b"], test=["c"])
    write(tmp_path / "VOCdevkit/VOC2007", "b", [("unicorn", 1, 1, 9, 9)], ".jpg")
    with pytest.raises(DataError, match=r"b\.xml: 'unicorn' is none of the 20 classes"):
        official(tmp_path).prepare()


@pytest.fixture
def published(tmp_path, monkeypatch):
    """VOC2007 as two archives on a server of this machine, where torchvision looks for them. `asked` lists what was asked for."""
    from torchvision.datasets import voc

    made, asked, contents = tmp_path / "made", [], {}
    for archive, key, splits in (
        ("trainval.tar", "2007", {"train": ["a", "b"], "val": ["c"]}),
        ("test.tar", "2007-test", {"test": ["d"]}),
    ):
        devkit(made / key, 2007, **splits)
        with tarfile.open(made / archive, "w") as tar:
            tar.add(made / key / "VOCdevkit", "VOCdevkit")
        contents[f"/{archive}"] = (made / archive).read_bytes()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            if self.headers["Method"] != "HEAD":  # torchvision's question where the file lies
                asked.append(self.path)
            self.send_response(200)
            self.send_header("Content-Length", str(len(contents[self.path])))
            self.end_headers()
            self.wfile.write(contents[self.path])

        def log_message(self, format, *args):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.02,))
        thread.start()
        for archive, key in (("trainval.tar", "2007"), ("test.tar", "2007-test")):
            entry = {
                "url": f"http://127.0.0.1:{running.server_address[1]}/{archive}",
                "filename": archive,
                "md5": hashlib.md5(contents[f"/{archive}"]).hexdigest(),
                "base_dir": "VOCdevkit/VOC2007",
            }
            monkeypatch.setitem(voc.DATASET_YEAR_DICT, key, entry)
        yield asked, contents
        running.shutdown()
        thread.join()


unpacking = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torchvision's way to unpack, of which newer pythons warn


@unpacking
def test_many_at_once_download_once(tmp_path, published):
    asked, _ = published
    found, root = [], tmp_path / "data"
    threads = [threading.Thread(target=lambda: found.append(official(root).read())) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert asked == ["/trainval.tar", "/test.tar"]
    assert len(found) == 4
    assert all([names(split) for split in splits[:3]] == [["a", "b"], ["c"], ["d"]] for splits in found)


@unpacking
def test_what_was_half_unpacked_is_unpacked_again(tmp_path, published):
    asked, _ = published
    root = tmp_path / "data"
    official(root).read()
    (root / "VOCdevkit/VOC2007/JPEGImages/c.jpg").unlink()
    (root / "VOCdevkit/VOC2007/Annotations/d.xml").unlink()
    assert len(official(root).read().test) == 1
    assert asked == ["/trainval.tar", "/test.tar"]  # the archives are still there, and sound


def test_a_damaged_download_is_refused(tmp_path, published):
    _, contents = published
    contents["/trainval.tar"] = contents["/trainval.tar"][:-1] + b"!"
    with pytest.raises(DataError, match="cannot be downloaded") as caught:
        official(tmp_path / "data").prepare()
    assert caught.value.exit_code == 3
    assert not (tmp_path / "data/VOCdevkit").exists()


def test_without_a_network_the_archive_and_the_cure_are_named(tmp_path, published, monkeypatch):
    from torchvision.datasets import voc

    url = "http://127.0.0.1:9/trainval.tar"
    monkeypatch.setitem(voc.DATASET_YEAR_DICT, "2007", {**voc.DATASET_YEAR_DICT["2007"], "url": url})
    with pytest.raises(DataError, match="cannot be downloaded") as caught:
        official(tmp_path / "data").prepare()
    assert caught.value.key == str(tmp_path / "data/VOCdevkit/VOC2007")
    assert f"download {url} to {tmp_path / 'data' / 'trainval.tar'}" in caught.value.cure
    assert "data.root" in caught.value.cure


def test_a_root_that_is_a_file(tmp_path):
    (tmp_path / "data").write_text("not a folder")
    with pytest.raises(DataError, match="cannot be downloaded") as caught:
        official(tmp_path / "data").prepare()
    assert "data.root" in caught.value.cure
