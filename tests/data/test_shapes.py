"""The drawn set: outlines, boxes that are tight, what may be hidden, and a file that is drawn once and verified ever after."""

import logging
import subprocess
import sys
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from refresher_runner.data import shapes
from refresher_runner.data.drawing import CLASSES, LEAST_RADIUS, LEVELS, Level, Stack, area, cover_of, draw_all, outline
from refresher_runner.data.shapes import build_shapes, read_shapes, scenes
from refresher_runner.errors import ConfigError
from refresher_runner.registry import DATASETS, _inspect_signature, _read_signature
from refresher_runner.schema import check_options
from refresher_runner.spec import DetectionSpec, Placement

CONF = Path(__file__).parents[2] / "conf" / "data" / "shapes.yaml"
COUNTS = (12, 4, 5)


def options(**changed):
    found = yaml.safe_load(CONF.read_text(encoding="utf-8"))
    assert found.pop("name") == "shapes"
    return {**found, "root": "data", **changed}


def read(root, *, difficulty="hard", counts=COUNTS, split_seed=0, size=32):
    return read_shapes(str(root), difficulty, counts, split_seed, size)


def arrays(splits):
    return [np.asarray(array) for split in splits[:3] for scene in split for array in scene]


def equal(some, others):
    return len(some) == len(others) and all(np.array_equal(a, b) for a, b in zip(some, others, strict=True))


def file_of(root):
    (found,) = (file for file in (root / "shapes").iterdir() if file.suffix != ".lock")
    return found


# -------------------------------------------------------------------- outlines


def inside(kind: str, x: np.ndarray, y: np.ndarray, form: float) -> np.ndarray:
    """Which points belong to a shape of radius 1 about 0, from what the word means."""
    r = np.hypot(x, y)
    if kind == "circle":
        return r <= 1
    if kind == "ring":
        return (r <= 1) & (r >= 0.45 + 0.2 * form)
    if kind == "square":  # on its corner
        return abs(x) + abs(y) <= 1
    if kind == "triangle":  # its corner to the right
        return (x >= -0.5) & (x + np.sqrt(3) * abs(y) <= 1)
    if kind == "cross":
        ratio = 0.38 - 0.12 * form
        length = 1 / np.hypot(1, ratio)
        return (np.maximum(abs(x), abs(y)) <= length) & (np.minimum(abs(x), abs(y)) <= ratio * length)
    turned = abs((np.arctan2(y, x) + np.pi / 5) % (2 * np.pi / 5) - np.pi / 5)  # a star: the angle to the nearest of five points
    waist = (0.5 - 0.12 * form) * np.exp(1j * np.pi / 5)
    return r * (np.cos(turned) * waist.imag + np.sin(turned) * (1 - waist.real)) <= waist.imag


@pytest.mark.parametrize("kind", CLASSES)
@pytest.mark.parametrize("form", [0.0, 0.9])
def test_an_outline_is_what_the_word_means(kind, form):
    centre, radius, size = 31.3 + 33.7j, 22.4, 64
    turn = np.exp(0.7j)
    loops = [loop * radius * turn + centre for loop in outline(kind, form)]
    cover = cover_of(loops, size)
    grid = (np.arange(size * 8) + 0.5) / 8
    point = (grid[None] + 1j * grid[:, None] - centre) / (radius * turn)
    fine = inside(kind, point.real, point.imag, form)
    expected = fine.reshape(size, 8, size, 8).mean((1, 3))
    drawn = np.zeros((size, size))
    drawn[cover.where] = cover.share
    assert abs(drawn - expected).max() < 0.45
    assert abs(drawn - expected).mean() < 0.006
    assert area(loops) == pytest.approx(fine.sum() / 64, rel=0.01)
    rows, columns = fine.nonzero()
    assert cover.box == pytest.approx(np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]) / 8, abs=0.4)


def test_a_box_ends_with_the_picture_and_not_with_the_shape_beyond():
    """The upper corner of a square stands in the picture, whose box is not the cut box of the square."""
    cover = cover_of([outline("square", 0)[0] * 10 + (16 + 28j)], 32)
    assert cover.box == pytest.approx((6, 18, 26, 32), abs=0.4)
    cover = cover_of([outline("square", 0)[0] * 10 + (16 + 38j)], 32)
    assert cover.box == pytest.approx((12, 28, 20, 32), abs=0.4)
    assert cover_of([outline("square", 0)[0] * 10 + (16 + 43j)], 32) is None


def test_no_more_of_a_shape_is_hidden_than_the_level_allows():
    """Counted anew from all that were let in."""
    level, random, refused, touched = Level(most=20, radius=(0.1, 0.2), hidden=0.3, clutter=0, noise=0), np.random.RandomState(0), 0, 0
    for _ in range(20):
        stack, masks = Stack(64, level), []
        for _ in range(40):
            kind, radius, centre = CLASSES[random.randint(6)], random.uniform(6, 13), complex(*random.uniform(0, 64, 2))
            loops = [loop * radius + centre for loop in outline(kind, 0.5)]
            cover = cover_of(loops, 64)
            if stack.count == level.most or not stack.add(cover, area(loops)):
                refused += 1
                continue
            mask = np.zeros((64, 64), bool)
            mask[cover.where] = cover.share >= 0.5
            masks.append((mask, area(loops)))
        for i, (mask, whole) in enumerate(masks):
            above = sum((later for later, _ in masks[i + 1 :]), np.zeros((64, 64), bool))
            assert (mask & ~above).sum() >= 0.7 * whole
            touched += (mask & above).any()
    assert refused > 100
    assert touched > 20


# -------------------------------------------------------------------- pictures


@pytest.mark.parametrize("difficulty", LEVELS)
@pytest.mark.parametrize("size", [32, 128])
def test_pictures_hold_what_the_level_says(difficulty, size):
    level = LEVELS[difficulty]
    drawn = draw_all(level, (100, 0, 0), 0, size)
    assert drawn.pixels.shape == (100, size, size, 3)
    assert set(drawn.counts) == set(range(1, level.most + 1)) if size == 128 else set(drawn.counts) <= set(range(1, level.most + 1))
    assert set(drawn.labels) == set(range(6))
    assert (drawn.pixels.dtype, drawn.boxes.dtype, drawn.labels.dtype) == (np.uint8, np.float32, np.int64)
    assert drawn.boxes.min() >= 0
    assert drawn.boxes.max() <= size
    sides = drawn.boxes[:, 2:] - drawn.boxes[:, :2]
    assert sides.max() <= 2 * max(LEAST_RADIUS, level.radius[1] * size) + 1
    assert sides.min() >= (1 - level.hidden) * LEAST_RADIUS


def test_boxes_are_tight_around_what_is_seen():
    """Easy pictures are a gradient and shapes apart: a plane fitted to all that is outside of the boxes tells what is a shape."""
    size, checked = 128, 0
    y, x = np.mgrid[:size, :size]
    design = np.stack([np.ones(size * size), x.ravel(), y.ravel()], 1)
    for scene in scenes(draw_all(LEVELS["easy"], (100, 0, 0), 7, size)):
        boxes = scene.boxes.astype(float)
        outside = np.ones((size, size), bool)
        for x1, y1, x2, y2 in boxes:
            outside[max(0, int(y1) - 1) : int(y2) + 2, max(0, int(x1) - 1) : int(x2) + 2] = False
        values = scene.picture.reshape(-1, 3).astype(float)
        plane = design @ np.linalg.lstsq(design[outside.ravel()], values[outside.ravel()], rcond=None)[0]
        other = (abs(values - plane).sum(1) > 45).reshape(size, size)
        assert not other[outside].any()
        for i, (x1, y1, x2, y2) in enumerate(boxes):
            mine = np.zeros((size, size), bool)
            mine[max(0, int(y1) - 2) : int(y2) + 3, max(0, int(x1) - 2) : int(x2) + 3] = True
            if any(mine[int(b) : int(d) + 1, int(a) : int(c) + 1].any() for j, (a, b, c, d) in enumerate(boxes) if j != i):
                continue  # a neighbour's pixels are not told apart
            rows, columns = (other & mine).nonzero()
            assert [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1] == pytest.approx([x1, y1, x2, y2], abs=1.3)
            checked += 1
    assert checked > 60


def test_a_picture_is_a_function_of_seed_split_index_difficulty_and_size():
    drawn = {
        (seed, level, size): [scene.picture for scene in scenes(draw_all(LEVELS[level], (6, 3, 3), seed, size))]
        for seed in (0, 1, 2**33)
        for level in ("easy", "hard")
        for size in (32, 33)
    }
    assert equal(drawn[0, "hard", 32], [s.picture for s in scenes(draw_all(LEVELS["hard"], (6, 3, 3), 0, 32))])
    pictures = [picture.tobytes() for some in drawn.values() for picture in some]
    assert len(set(pictures)) == len(pictures) == 3 * 2 * 2 * 12


def test_more_pictures_change_none():
    few, more = (scenes(draw_all(LEVELS["medium"], counts, 3, 32)) for counts in ((3, 2, 1), (5, 4, 2)))
    for mine, others in ((few[:3], more[:3]), (few[3:5], more[5:7]), (few[5:], more[9:10])):
        assert all(equal(a, b) for a, b in zip(mine, others, strict=True))


def test_the_global_random_state_is_neither_used_nor_changed():
    before = str(np.random.get_state())
    first = draw_all(LEVELS["medium"], (3, 0, 0), 0, 32)
    assert str(np.random.get_state()) == before
    np.random.seed(5)
    assert equal(first, draw_all(LEVELS["medium"], (3, 0, 0), 0, 32))


# -------------------------------------------------------------------- the file


def test_what_is_kept_is_what_was_drawn(tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        first, second = read(tmp_path), read(tmp_path)
    assert [line for line in caplog.messages if "drawing" in line] == [f"drawing 21 pictures for {file_of(tmp_path)}"]
    assert [len(split) for split in first[:3]] == [*COUNTS]
    assert equal(arrays(first), arrays(second))
    assert first.checksums == second.checksums == {f"shapes/{file_of(tmp_path).name}": file_of(tmp_path).read_bytes()[:64].decode()}


@pytest.mark.parametrize("change", [{"difficulty": "easy"}, {"counts": (12, 5, 4)}, {"split_seed": 1}, {"size": 33}])
def test_other_pictures_are_in_another_file(tmp_path, change):
    first, other = read(tmp_path), read(tmp_path, **change)
    assert first.checksums.keys() != other.checksums.keys()
    assert equal(arrays(first), arrays(read(tmp_path)))
    assert len([file for file in (tmp_path / "shapes").iterdir() if file.suffix != ".lock"]) == 2


def test_another_version_draws_anew(tmp_path, monkeypatch):
    first = read(tmp_path)
    monkeypatch.setattr(shapes, "VERSION", shapes.VERSION + 1)
    assert first.checksums.keys() != read(tmp_path).checksums.keys()


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: content[:30],
        lambda content: content[:-1],
        lambda content: content[: len(content) // 2],
        lambda content: content + b"\0",
        lambda content: content[:-5] + bytes([content[-5] ^ 1]) + content[-4:],
        lambda content: b"0" * 64 + content[64:],
        lambda content: content[:70] + bytes([content[70] ^ 128]) + content[71:],
    ],
)
def test_a_damaged_file_is_drawn_anew(tmp_path, damage):
    wanted = arrays(read(tmp_path))
    file = file_of(tmp_path)
    whole = file.read_bytes()
    file.write_bytes(damage(whole))
    assert equal(arrays(read(tmp_path)), wanted)
    assert file.read_bytes() == whole


def test_a_renamed_file_is_not_what_it_is_called(tmp_path):
    read(tmp_path, split_seed=1)
    other = file_of(tmp_path)
    other.rename(other.with_name(other.name.replace("_1.", "_0.")))
    assert equal(arrays(read(tmp_path)), arrays(read(tmp_path / "elsewhere")))


def test_a_writer_that_was_killed_leaves_no_file(tmp_path):
    wanted = read(tmp_path)
    file = file_of(tmp_path)
    file.rename(f"{file}.part")  # as much of it as may be
    assert equal(arrays(read(tmp_path)), arrays(wanted))
    assert file_of(tmp_path) == file


@pytest.mark.parametrize("blocked", ["shapes", "shapes/file", "shapes/part"])
def test_where_nothing_can_be_kept_pictures_are_drawn_for_the_run(tmp_path, caplog, blocked):
    name = next(iter(read(tmp_path / "elsewhere").checksums))
    if blocked == "shapes":
        (tmp_path / "shapes").write_text("not a folder")
    else:
        (tmp_path / (name if blocked == "shapes/file" else f"{name}.part")).mkdir(parents=True)
    found = read(tmp_path)
    assert any("cannot be kept" in line and str(tmp_path / name) in line for line in caplog.messages)
    kept = read(tmp_path / "elsewhere")
    assert equal(arrays(found), arrays(kept))
    assert found.checksums == kept.checksums


def test_processes_at_once_draw_once(tmp_path):
    script = (
        "import hashlib, logging, sys; from refresher_runner.data.shapes import read_shapes\n"
        "logging.basicConfig(level=logging.INFO)\n"
        "splits = read_shapes(sys.argv[1], 'medium', (300, 30, 30), 0, 64)\n"
        "content = b''.join(array.tobytes() for split in splits[:3] for scene in split for array in scene)\n"
        "print(hashlib.sha256(content).hexdigest(), 'torch' in sys.modules)"
    )
    command = [sys.executable, "-c", script, str(tmp_path)]
    started = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(8)]
    ended = [process.communicate() for process in started]
    assert [process.returncode for process in started] == [0] * 8
    assert len({said for said, _ in ended}) == 1
    assert ended[0][0].strip().endswith("False")
    assert sum(told.count("drawing") for _, told in ended) == 1


# -------------------------------------------------------------------- the data set


def test_the_config_has_every_key_of_the_builder_in_its_order():
    signature = DATASETS.signature("shapes")
    assert list(options()) == list(signature.options)
    assert check_options(options(), signature.options, "data")
    assert signature.yields is DetectionSpec
    assert _read_signature(DATASETS._shipped["shapes"][1]) == _inspect_signature(build_shapes)


def test_options_reach_the_data_set(tmp_path):
    """Distinct values, so that no two can be mistaken for one another."""
    data = build_shapes(
        root=str(tmp_path),
        difficulty="easy",
        train_count=9,
        val_count=7,
        test_count=5,
        split_seed=11,
        size=40,
        batch_size=3,
        eval_batch_size=4,
        mosaic=0.1,
        flip=False,
        flip_vertical=True,
        scale=0.2,
        translate=0.3,
        colour=0.4,
        cache=True,
        workers=1,
        timeout=13,
    )
    assert data.spec == DetectionSpec(3, 40, CLASSES)
    augment = {"mosaic": 0.1, "flip": False, "flip_vertical": True, "scale": 0.2, "translate": 0.3, "colour": 0.4}
    assert vars(data.augment) == augment
    assert (data.batch_size, data.eval_batch_size, data.cache, data.workers, data.timeout) == (3, 4, True, 1, 13)
    data.prepare()
    (name,) = data.checksums()
    assert name.startswith("shapes/easy_40_9-7-5_11.")
    assert [len(data.splits[split].items) for split in ("train", "val", "test")] == [9, 7, 5]


@pytest.mark.parametrize("size", [31, 1025])
def test_a_size_that_cannot_be_drawn_is_refused(size):
    with pytest.raises(ConfigError, match=rf"data\.size={size}") as caught:
        build_shapes(**options(size=size))
    assert "32 to 1024" in caught.value.cure


def test_what_is_evaluated_is_what_was_drawn(tmp_path):
    data = build_shapes(**options(root=str(tmp_path), train_count=8, val_count=4, test_count=6, size=32, batch_size=8, eval_batch_size=4))
    scenes = read(tmp_path, difficulty="medium", counts=(8, 4, 6)).test
    data.prepare()  # from the file
    batches = list(data.test_loader(Placement()).batches(0))
    pixels = torch.cat([batch.images for batch in batches]).mul(255).round().byte().permute(0, 2, 3, 1).numpy()
    assert np.array_equal(pixels, np.stack([scene.picture for scene in scenes]))
    assert np.array_equal(torch.cat([batch.boxes for batch in batches]).numpy(), np.concatenate([scene.boxes for scene in scenes]))
    assert [len(batch[0]) for batch in data.train_loader(Placement()).batches(0)] == [8]


def test_splits_share_no_picture(tmp_path):
    splits = read(tmp_path, counts=(40, 40, 40))
    for some, others in combinations(splits[:3], 2):
        assert not {scene.picture.tobytes() for scene in some} & {scene.picture.tobytes() for scene in others}
