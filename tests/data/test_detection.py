"""Pictures with boxes: what is dropped, how squares are laid and augmented, and the laws of their batches."""

import logging
import random
import subprocess
import sys
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision.transforms.v2.functional as reference
from PIL import Image
from torchvision import tv_tensors

from refresher_runner.data.detection import (
    LEAST_SHARE,
    LEAST_SIDE,
    Augment,
    DetectionSet,
    Dropped,
    Scene,
    Splits,
    Square,
    coloured,
    flipped,
    mosaic,
    moved,
    sound_boxes,
)
from refresher_runner.data.loaders import seeded
from refresher_runner.errors import ConfigError, DataError
from refresher_runner.nn.detect import truths
from refresher_runner.pictures import GREY, open_picture
from refresher_runner.spec import DetectionSpec, Placement

SIZE = 48
PLAIN = Augment(mosaic=0.0, flip=False, flip_vertical=False, scale=0.0, translate=0.0, colour=0.0)
FULL = Augment(mosaic=0.5, flip=True, flip_vertical=True, scale=0.5, translate=0.1, colour=0.4)
COLOURS = torch.tensor([[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 0]], dtype=torch.uint8)


def scene(number: int, boxes: int = 2) -> Scene:
    """A picture of noise, wider than high, with some boxes."""
    chance = np.random.RandomState(number)
    corners = chance.uniform(0, [40, 30], (boxes, 2))
    around = np.concatenate([corners, corners + chance.uniform(5, [20, 14], (boxes, 2))], 1).astype(np.float32)
    return Scene(chance.randint(256, size=(44, 60, 3)).astype(np.uint8), around, chance.randint(3, size=boxes))


def detection_set(scenes=None, *, augment=PLAIN, size=SIZE, cache=True, workers=0, batch_size=4):
    scenes = [scene(i, i % 3) for i in range(10)] if scenes is None else scenes
    splits = Splits(scenes, scenes[:7], scenes[:5], {"file": "digest"})
    return DetectionSet(DetectionSpec(3, size, ("a", "b", "c", "d")), lambda: splits, batch_size, 3, augment, cache, workers, 20)


def prepared(*args, **options):
    data = detection_set(*args, **options)
    data.prepare()
    return data


def same(some, others):
    some, others = list(some), list(others)
    return len(some) == len(others) and all(torch.equal(x, y) for a, b in zip(some, others, strict=True) for x, y in zip(a, b, strict=True))


# -------------------------------------------------------------------- annotations


def test_boxes_without_area_in_their_picture_are_dropped_counted_and_told_once(caplog):
    nan, inf, dropped = float("nan"), float("inf"), Dropped("my set")
    rows = [
        [1, 2, 3, 4],
        [-5, 10, 30, 60],  # reaches out
        [nan, 0, 1, 1],
        [0, 0, inf, 1],
        [0, 0, 1e39, 1],  # is infinite as float32
        [7, 7, 7, 9],
        [9, 9, 3, 12],
        [50, 3, 60, 8],  # right of the picture
        [20, 3, 21, 3],
    ]
    boxes, labels = sound_boxes(np.array(rows), np.arange(9), 50, 40, Path("one.xml"), dropped)
    assert boxes.tolist() == [[1, 2, 3, 4], [0, 10, 30, 40]]
    assert labels.tolist() == [0, 1]
    assert (boxes.dtype, labels.dtype) == (np.float32, np.int64)
    sound_boxes(np.array([[0, 0, 0, 0.0]]), np.array([3]), 50, 40, Path("two.xml"), dropped)
    dropped.add("unknown size", Path("three.xml"))
    assert dropped.counts == {"not a number": 3, "zero area": 4, "outside the picture": 1, "unknown size": 1}
    with caplog.at_level(logging.WARNING):
        dropped.tell()
    (line,) = caplog.messages
    assert line.startswith("my set: 9 annotations left out")
    assert "4 zero area (first in one.xml)" in line
    assert "1 unknown size (first in three.xml)" in line


def test_of_sound_boxes_nothing_is_told(caplog):
    dropped = Dropped("my set")
    boxes, labels = sound_boxes(np.zeros((0, 4)), np.zeros(0), 5, 5, Path("empty.xml"), dropped)
    dropped.tell()
    assert (boxes.shape, labels.shape, caplog.messages) == ((0, 4), (0,), [])


# -------------------------------------------------------------------- batches


@pytest.mark.parametrize("augment", [PLAIN, FULL])
def test_a_batch_keeps_its_promise(augment):
    seen = 0
    for batch in prepared(augment=augment).train_loader(Placement()).batches(0):
        assert batch.images.shape == (4, 3, SIZE, SIZE) == (len(batch[0]), 3, SIZE, SIZE)
        assert batch.images.dtype == batch.boxes.dtype == torch.float32
        assert batch.labels.dtype == batch.owners.dtype == torch.int64
        assert batch.images.min() >= 0
        assert batch.images.max() <= 1
        assert batch.boxes.shape == (len(batch.labels), 4) == (len(batch.owners), 4)
        assert ((batch.boxes >= 0) & (batch.boxes <= SIZE)).all()
        assert (batch.boxes[:, 2:] > batch.boxes[:, :2]).all()
        assert batch.owners.tolist() == sorted(batch.owners.tolist())
        assert all(type(tensor) is torch.Tensor for tensor in batch)
        seen += len(batch.labels)
    assert seen > 4


def test_evaluation_shows_files_as_the_spec_reads_them(tmp_path):
    scenes = []
    for i in range(5):
        drawn = scene(i, i % 3)
        Image.fromarray(drawn.picture).save(tmp_path / f"{i}.png")
        scenes.append(drawn._replace(picture=tmp_path / f"{i}.png"))
    data = prepared(scenes, augment=FULL, batch_size=5)
    batches = list(data.test_loader(Placement()).batches(0))
    assert [len(batch[0]) for batch in batches] == [3, 2]
    images, found = torch.cat([batch.images for batch in batches]), [truth for batch in batches for truth in truths(batch)]
    for image, truth, (path, boxes, labels) in zip(images, found, scenes, strict=True):
        expected, how = data.spec.fit(open_picture(path, 3))
        assert torch.equal(image, expected)
        torch.testing.assert_close(truth.boxes, how.to_square(torch.tensor(boxes)))
        assert truth.labels.tolist() == labels.tolist()


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_what_is_held_is_what_is_read(split):
    loaders = [getattr(prepared(augment=FULL, cache=cache), f"{split}_loader")(Placement(seed=3)) for cache in (True, False)]
    assert same(*(loader.batches(1) for loader in loaders))


def test_pictures_are_held_as_one_tensor():
    squares = prepared().splits["train"].items
    assert len({square.pixels.untyped_storage().data_ptr() for square in squares}) == 1
    assert {square.pixels.dtype for square in squares} == {torch.uint8}


def test_workers_change_no_bit():
    loaders = [prepared(augment=FULL, workers=workers).train_loader(Placement(seed=5)) for workers in (0, 2)]
    for epoch in (0, 1):
        assert same(*(loader.batches(epoch) for loader in loaders))


@pytest.mark.parametrize("start", [1, 2])
def test_beginning_at_a_batch_is_skipping_those_before(start):
    loader = prepared(augment=FULL, batch_size=3).train_loader(Placement())
    assert same(loader.batches(2, start), islice(loader.batches(2), start, None))


def test_ranks_together_see_what_one_process_sees():
    data = prepared(augment=FULL)
    shares = [data.train_loader(Placement(rank=rank, world_size=2)).batches(1) for rank in (0, 1)]
    for whole, *parts in zip(data.train_loader(Placement()).batches(1), *shares, strict=True):
        assert torch.equal(whole.images, torch.cat([part.images for part in parts]))
        assert torch.equal(whole.boxes, torch.cat([part.boxes for part in parts]))
        assert torch.equal(whole.owners, torch.cat([parts[0].owners, parts[1].owners + 2]))


def test_a_ranks_share_of_a_batch_may_be_empty():
    last = list(prepared().val_loader(Placement(rank=1, world_size=2)).batches(0))[-1]
    assert [tuple(tensor.shape) for tensor in last] == [(0, 3, SIZE, SIZE), (0, 4), (0,), (0,)]
    assert (last.labels.dtype, last.owners.dtype) == (torch.int64, torch.int64)


def test_pictures_without_a_box_belong_to_the_batch():
    batch = next(prepared([scene(i, 0) for i in range(4)], augment=replace(FULL, mosaic=0.5)).train_loader(Placement()).batches(0))
    assert batch.images.shape[0] == 4
    assert batch.boxes.shape == (0, 4)


def test_draws_differ_between_samples_and_epochs():
    loader = prepared([scene(1)] * 8, augment=FULL, batch_size=8).train_loader(Placement())
    images = torch.cat([batch.images for epoch in range(3) for batch in loader.batches(epoch)])
    assert len(images.flatten(1).unique(dim=0)) == 24


def test_checksums_are_those_of_the_splits():
    assert prepared().checksums() == {"file": "digest"}


@pytest.mark.parametrize(("cache", "workers"), [(True, 0), (False, 0), (False, 2)])
@pytest.mark.parametrize("content", [b"not a picture", None])
def test_a_picture_that_cannot_be_read_is_named(tmp_path, cache, workers, content):
    path = tmp_path / "damaged.png"
    if content:
        path.write_bytes(content)
    data = detection_set([scene(0), scene(1)._replace(picture=path), scene(2)], cache=cache, workers=workers)

    def read():
        data.prepare()
        return list(data.val_loader(Placement()).batches(0))

    with pytest.raises(DataError) as caught:
        read()
    assert caught.value.exit_code == 3
    assert str(caught.value).startswith(f"{path}: ")


def test_more_pictures_than_can_be_held_are_refused():
    with pytest.raises(ConfigError, match=r"data\.cache=True: 10 pictures take \d+ GiB") as caught:
        prepared(size=2**24)
    assert "data.cache=false" in caught.value.cure


def test_what_is_heavy_is_imported_when_it_is_needed():
    script = (
        "import sys\nfrom pathlib import Path\n"
        "from refresher_runner.data.detection import *\n"
        "import refresher_runner.data.shapes\n"
        "def known(): return sorted({'torch', 'numpy', 'PIL', 'torchvision'} & set(sys.modules))\n"
        "plain = Augment(0.0, False, False, 0.0, 0.0, 0.0)\n"
        "data = DetectionSet(DetectionSpec(3, 8, ('a',)), lambda: Splits([], [], [], {}), 1, 1, plain, True, 0, 0)\n"
        "print(known())\n"
        "import numpy as np\n"
        "data.read = lambda: Splits([Scene(np.zeros((8, 8, 3), np.uint8), np.zeros((1, 4)), np.zeros(1))], [], [], {})\n"
        "data.prepare()\n"
        "print(len(list(data.train_loader(Placement()).batches(0))), 'torchvision' in known())\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["[]", "1 False"]


# -------------------------------------------------------------------- augmentation


def rectangle(size: int, box: list[int], colour: torch.Tensor, label: int = 0) -> Square:
    """One rectangle on black, and its box."""
    pixels = torch.zeros(3, size, size, dtype=torch.uint8)
    pixels[:, box[1] : box[3], box[0] : box[2]] = colour[:, None, None]
    return Square(pixels, torch.tensor([box], dtype=torch.float32), torch.tensor([label]))


def drawn_rectangle(chance: random.Random, size: int, colour: torch.Tensor, label: int = 0) -> Square:
    x, y, w, h = (chance.randrange(size // 3) for _ in range(4))
    return rectangle(size, [x, y, x + w + size // 8, y + h + size // 8], colour, label)


def extent(pixels: torch.Tensor, colour: torch.Tensor) -> torch.Tensor | None:
    """The box around the pixels of a colour, which are at least half of it."""
    difference = (pixels.float() - colour[:, None, None]).abs().amax(0)
    rows, columns = (difference < 127).nonzero().unbind(1)
    return torch.stack([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]).float() if len(rows) else None


@pytest.mark.parametrize("size", [64, 97])
def test_a_moved_rectangle_moves_its_box(size):
    """All that is drawn is drawn again here: magnified by g about the middle, then shifted, x becomes g (x - S/2) + S/2 + dx."""
    white, chance, outcomes = torch.tensor([255, 255, 255]), random.Random(0), set()
    for seed in range(300):
        before = drawn_rectangle(chance, size, white)
        random.seed(seed)
        after = moved(before, 0.5, 0.6)
        random.seed(seed)
        gain = random.uniform(0.5, 1.5)
        shift = torch.tensor([random.uniform(-0.6, 0.6) * size for _ in range(2)])
        expected = ((before.boxes - size / 2) * gain + size / 2 + shift.repeat(2))[0]
        inside = expected.clamp(0, size)
        whole, left = ((box[2:] - box[:2]).clamp(min=0) for box in (expected, inside))
        if len(after.boxes):
            assert (after.boxes[0] - inside).abs().max() < 1.5
            found = extent(after.pixels, white)
            assert found is not None
            assert (after.boxes[0] - found).abs().max() < 1.5
        share, side = left.prod() / whole.prod(), left.min()
        outcomes.add((len(after.boxes), bool(share < 1), bool(side > 0)))
        if share > LEAST_SHARE + 0.1 and side > LEAST_SIDE + 1:
            assert len(after.boxes) == 1
        if share < LEAST_SHARE - 0.05 or side < LEAST_SIDE - 1:
            assert len(after.boxes) == 0
    assert outcomes >= {(1, False, True), (1, True, True), (0, True, False), (0, True, True)}


def test_moving_is_torchvisions_affine():
    """Of a smooth picture, to a grey level or two: there the place is exact, here rounded to a pixel."""
    size = 64
    y, x = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    pixels = torch.stack([60 + x, 60 + y, 60 + (x + y) // 2]).to(torch.uint8)
    boxes = torch.tensor([[20, 24, 40, 45.0]])
    wrapped = tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=(size, size))  # type: ignore[call-overload]
    for seed in range(20):
        random.seed(seed)
        after = moved(Square(pixels, boxes, torch.zeros(1, dtype=torch.int64)), 0.3, 0.1)
        random.seed(seed)
        gain, shift = random.uniform(0.7, 1.3), [random.uniform(-0.1, 0.1) * size for _ in range(2)]
        how = {"angle": 0.0, "translate": shift, "scale": gain, "shear": [0.0, 0.0]}
        expected = reference.affine(pixels, **how, interpolation=reference.InterpolationMode.BILINEAR, fill=[float(GREY)] * 3)
        difference = (after.pixels.float() - expected.float()).abs()
        assert difference.median() <= 1
        assert difference.mean() < 2.5
        assert (after.boxes - reference.affine(wrapped, **how)).abs().max() < 1


@pytest.mark.parametrize("across", [False, True])
@pytest.mark.parametrize("down", [False, True])
def test_a_mirrored_rectangle_mirrors_its_box(across, down):
    before = rectangle(32, [3, 5, 13, 25], COLOURS[0])
    after = flipped(before, across, down)
    assert torch.equal(after.boxes[0], extent(after.pixels, COLOURS[0]))
    assert after.boxes[0].tolist() == [19 if across else 3, 7 if down else 5, 29 if across else 13, 27 if down else 25]
    assert torch.equal(flipped(after, across, down).pixels, before.pixels)


@pytest.mark.parametrize("scale", [0.0, 0.5, 1.0])
def test_a_mosaic_keeps_what_every_label_says(scale):
    """Four pictures with a rectangle of another colour each: a box is where its colour is, and no colour is left without one."""
    size, chance, counts = 80, random.Random(1), [0] * 5
    for seed in range(200):
        squares = [drawn_rectangle(chance, size, COLOURS[label], label) for label in range(4)]
        random.seed(seed)
        after = mosaic(squares, scale)
        assert after.pixels.shape == (3, size, size)
        assert after.pixels.dtype == torch.uint8
        boxes = dict(zip(after.labels.tolist(), after.boxes, strict=True))
        assert len(boxes) == len(after.labels)
        counts[len(boxes)] += 1
        for label, colour in enumerate(COLOURS):
            found = extent(after.pixels, colour)
            if label in boxes:
                assert found is not None
                assert (found - boxes[label]).abs().max() < 1.5
            elif found is not None:
                width, height = (found[2:] - found[:2]).tolist()
                whole = (squares[label].boxes[0, 2:] - squares[label].boxes[0, :2]).prod()
                assert min(width, height) <= LEAST_SIDE + 1 or width * height < 1.5 * LEAST_SHARE * whole * (1 + scale) ** 2
    assert counts[4] > 10
    assert sum(counts[1:4]) > 10


def test_a_mosaics_quarters_are_of_its_four_pictures():
    """Round a centre in the middle half of the square, in the order of reading, whatever the draws."""
    flat = [Square(torch.full((3, 40, 40), 50 + k, dtype=torch.uint8), torch.zeros(0, 4), torch.zeros(0).long()) for k in range(4)]
    centres = set()
    for seed in range(200):
        random.seed(seed)
        plane = mosaic(flat, 0.2).pixels[0]
        assert {50, 51, 52, 53} <= set(plane.unique().tolist()) <= {50, 51, 52, 53, GREY}
        where = [(plane == 50 + k).nonzero() for k in range(4)]
        top, left = torch.cat([where[0], where[1]])[:, 0].max(), torch.cat([where[0], where[2]])[:, 1].max()
        assert torch.cat([where[2], where[3]])[:, 0].min() > top
        assert torch.cat([where[1], where[3]])[:, 1].min() > left
        centres.add((int(top) + 1, int(left) + 1))
    assert all(10 <= side <= 30 for centre in centres for side in centre)
    assert len(centres) > 100


def test_a_share_of_pictures_are_mosaics_of_itself_and_three_of_the_split():
    pictures = [Scene(np.full((16, 16, 3), 50 + k, np.uint8), np.zeros((0, 4)), np.zeros(0)) for k in range(50)]
    squares = replace(prepared(pictures, size=16).splits["train"], augment=replace(PLAIN, mosaic=0.3))
    mixed, others = 0, set()
    for index in range(50):
        for epoch in range(8):
            with seeded(100 * index + epoch):
                found = {value - 50 for value in squares(index).pixels.unique().tolist()}
            assert index in found
            assert len(found) <= 4
            mixed += len(found) > 1
            others |= found - {index}
    assert 0.3 * 400 - 4 * 9.2 < mixed < 0.3 * 400 + 4 * 9.2  # 9.2: the standard deviation
    assert others == set(range(50))


def test_colours_are_those_of_torchvision():
    """Where nothing is clipped: brightness, then contrast, then saturation."""
    pixels = torch.randint(90, 140, (3, 32, 32), dtype=torch.uint8)
    for brightness, contrast, saturation in ((1.3, 1.0, 1.0), (1.0, 0.6, 1.0), (1.0, 1.0, 0.0), (0.8, 1.4, 1.3), (1.2, 0.7, 0.5)):
        expected = reference.adjust_brightness(pixels.float() / 255, brightness)
        expected = reference.adjust_saturation(reference.adjust_contrast(expected, contrast), saturation)
        torch.testing.assert_close(coloured(pixels, brightness, contrast, saturation) / 255, expected, atol=2e-4, rtol=0)


def test_colours_are_clipped():
    pixels = torch.tensor([0, 255], dtype=torch.uint8).expand(3, 2, 2)
    assert coloured(pixels, 2.0, 2.0, 1.0).aminmax() == (0, 255)


def test_the_number_of_threads_changes_no_bit():
    """Workers have one, the run's own process may have many."""
    pixels = torch.randint(256, (3, 320, 320), dtype=torch.uint8)
    square = Square(pixels, torch.tensor([[10, 20, 200, 210.0]]), torch.zeros(1, dtype=torch.int64))

    def made() -> list[torch.Tensor]:
        random.seed(0)
        return [coloured(moved(square, 0.5, 0.1).pixels, 1.1, 0.9, 0.7), coloured(mosaic([square] * 4, 0.5).pixels, 0.8, 1.2, 1.3)]

    one = made()
    torch.set_num_threads(3)
    try:
        assert all(torch.equal(a, b) for a, b in zip(one, made(), strict=True))
    finally:
        torch.set_num_threads(1)


def test_augmentation_leaves_what_is_held_as_it_was():
    squares = replace(prepared().splits["train"], augment=FULL)
    before = [[tensor.clone() for tensor in square] for square in squares.items]
    for index in range(10):
        squares(index)
    assert same(before, squares.items)
