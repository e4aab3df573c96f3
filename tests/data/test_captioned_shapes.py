"""Captioned shapes: words and scenes are each other's inverse, pictures show what is said, splits share no scene."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from refresher_runner.data import scenes
from refresher_runner.data.captioned_shapes import SEVERAL, build_captioned_shapes, cut
from refresher_runner.data.captions import CaptionSet
from refresher_runner.data.scenes import ASPECTS, COLOURS, RELATIONS, Scene, Thing, alone, caption, draw, pairs, parse, truth, turned
from refresher_runner.errors import ConfigError, UsageError
from refresher_runner.spec import CaptionBatch, Placement, Spec

CONF = Path(__file__).parents[2] / "conf" / "data" / "captioned_shapes.yaml"
SMALL = {**yaml.safe_load(CONF.read_text(encoding="utf-8")), "train_count": 300, "val_count": 40, "test_count": 60, "batch_size": 50}
del SMALL["name"]


def made(**options):
    data = build_captioned_shapes(**{**SMALL, **options})
    assert isinstance(data, CaptionSet)
    data.prepare()
    return data


@pytest.fixture(scope="module")
def data():
    return made()


# -------------------------------------------------------------------- words


def test_every_scene_is_read_back_from_its_caption():
    every = [*alone(), *pairs(), *map(turned, pairs())]
    assert len({caption(scene) for scene in every}) == len(every) == 72 * 5 + 72 * 71 * 4
    assert all(parse(caption(scene)) == scene for scene in every)


def test_what_goes_without_saying_may_be_said():
    assert caption(Scene(Thing("medium", "red", "circle"), "in the middle")) == "a red circle"
    assert parse("A  medium red circle in the middle") == parse("a red circle")
    assert parse("a small red circle left of a blue square") == Scene(
        Thing("small", "red", "circle"), "left of", Thing("medium", "blue", "square")
    )


@pytest.mark.parametrize(
    "text",
    ["", "red circle", "a pink circle", "a red circle above", "a red circle on the left a blue square", "a red circle a blue square"],
)
def test_other_texts_are_refused(text):
    with pytest.raises(UsageError, match=re.escape(f"{text!r} is no caption of shapes")):
        parse(text)


def test_a_scene_is_told_in_two_ways():
    scene = parse("a small red circle above a blue square")
    assert caption(turned(scene)) == "a blue square below a small red circle"
    assert all(turned(turned(scene)) == scene != turned(scene) for scene in pairs())
    assert turned(parse("a red circle")) == parse("a red circle")


def test_what_is_known_of_a_scene():
    values = dict(ASPECTS)
    said = dict(zip(values, truth(parse("a large red circle below a blue square")), strict=True))
    told = {name: values[name][value] for name, value in said.items()}
    assert list(told.values()) == ["large", "red", "circle", "below", "medium", "blue", "square"]
    assert truth(parse("a green cross"))[-3:] == [-1, -1, -1]


# -------------------------------------------------------------------- pictures


def seen(pixels, colour):
    """Rows and columns of the pixels that are nearest to a colour, rather than to another or to the dark ground."""
    palette = np.array([[35, 35, 35], *COLOURS.values()])
    nearest = abs(pixels.astype(int).transpose(1, 2, 0)[:, :, None] - palette).sum(-1).argmin(-1)
    return np.nonzero(nearest == 1 + list(COLOURS).index(colour))


def test_a_picture_shows_what_is_said():
    """Of two things of different colours the middles lie as they are said to, farther that way than across it; sizes are ordered."""
    random, areas = np.random.RandomState(0), {size: [] for size in scenes.SIZES}
    told = [scene for scene in pairs() if scene.other and scene.thing.colour != scene.other.colour]
    for i in random.permutation(len(told))[:300]:
        scene = turned(told[i]) if i % 2 else told[i]
        pixels = draw(scene, 64, random)
        places = []
        for thing in filter(None, (scene.thing, scene.other)):
            rows, columns = seen(pixels, thing.colour)
            assert min(rows.min(), columns.min(), 63 - rows.max(), 63 - columns.max()) >= 0
            places.append((columns.mean(), rows.mean()))
            if thing.shape == "circle":
                areas[thing.size].append(len(rows))
        (x, y), (way_x, way_y) = np.subtract(places[1], places[0]), RELATIONS[scene.where]
        along, across = x * way_x + y * way_y, x * way_y + y * way_x
        assert along > abs(across) + 1, caption(scene)
    assert max(areas["small"]) < min(areas["medium"]) <= max(areas["medium"]) < min(areas["large"])


@pytest.mark.parametrize("size", [24, 32, 65])
def test_one_thing_is_wholly_inside_and_where_it_is_said(size):
    random = np.random.RandomState(1)
    for scene in alone():
        rows, columns = seen(draw(scene, size, random), scene.thing.colour)
        x, y = (np.array([columns.mean(), rows.mean()]) + 0.5) / size - 0.5
        way = scenes.PLACES[scene.where]
        assert [abs(c) < 0.12 if not w else c * w > 0.12 for c, w in zip((x, y), way, strict=True)] == [True, True], caption(scene)


# -------------------------------------------------------------------- splits


def test_no_scene_is_of_two_splits(data):
    meanings = {split: set(found.meanings.tolist()) for split, found in data.splits.items()}
    said = {split: set(found.captions) for split, found in data.splits.items()}
    for one, other in (("train", "val"), ("train", "test"), ("val", "test")):
        assert not meanings[one] & meanings[other]
        assert not said[one] & {caption(turned(parse(text))) for text in said[other]}
    parts = cut({"test": 0.1, "val": 0.1}, np.random.RandomState(0))
    every = [scene for both in parts.values() for some in both for scene in some]
    assert sorted(map(caption, every)) == sorted(map(caption, [*alone(), *pairs()]))
    assert [len(parts[split][1]) for split in ("val", "test")] == [1022, 1022]


def test_every_class_is_tested_by_captions_of_its_own(data):
    for single, _ in cut({"test": 0.1, "val": 0.1}, np.random.RandomState(0)).values():
        assert {scene.thing[1:] for scene in single} == {scene.thing[1:] for scene in alone()}
    found = data.splits["test"]
    for label, text, said in zip(found.labels, found.captions, found.truth, strict=True):
        name, scene = data.spec.classes[label], parse(text)
        assert name == (SEVERAL if scene.other else f"{scene.thing.colour} {scene.thing.shape}")
        assert (text in data.spec.prompts[label]) == (scene.other is None)
        assert said.tolist() == truth(scene)
    assert (found.labels != 24).sum() == 15


def test_no_scene_comes_again_before_all_others_have():
    found = made(train_count=10, val_count=10, test_count=1500, single=0.0).splits["test"]
    assert len(set(found.meanings[:1022])) == 1022
    assert (found.meanings[1022:] == found.meanings[: 1500 - 1022]).all()


def test_a_picture_depends_on_its_split_and_number_alone(data):
    longer, other = made(train_count=350), made(split_seed=1)
    assert (longer.splits["train"].images[:300] == data.splits["train"].images).all()
    assert longer.splits["test"].captions == data.splits["test"].captions != other.splits["test"].captions
    assert data.checksums() != other.checksums()


# -------------------------------------------------------------------- batches


def test_batches_hold_captions_that_can_be_read(data):
    assert Spec.from_dict(data.spec.to_dict()) == data.spec
    batches = list(data.test_loader(Placement()).batches(0))
    assert all(isinstance(batch, CaptionBatch) for batch in batches)
    images, _, captions, known, _ = (torch.cat(parts) for parts in zip(*batches, strict=True))
    found = data.splits["test"]
    assert data.spec.decode(captions) == list(found.captions)
    assert (data.spec.pixels(images) * 255).round().byte().equal(torch.from_numpy(found.images))
    assert known.equal(torch.from_numpy(found.truth))
    batch = next(data.train_loader(Placement()).batches(0))
    for text, said in zip(data.spec.decode(batch.captions), batch.truth.tolist(), strict=True):
        assert truth(parse(text)) == said


def test_a_caption_is_as_long_as_the_block(data):
    begin, end, pad = 1, 2, 0
    rows = data.spec.encode(["a red circle", "A  RED circle ", "a cyan circle", "a red " * 40]).tolist()
    assert rows[0] == rows[1] == [begin, *data.spec.vocabulary.encode("a red circle"), end, *[pad] * (16 - 5)]
    assert data.spec.decode(torch.tensor(rows[2:3])) == ["a cyan circle"], "whatever is written has tokens"
    assert len(rows[3]) == 16 == rows[3].index(end) + 1
    assert len(data.spec.vocabulary.encode("a")) == len(data.spec.vocabulary.encode("triangle")) == 1, "words are tokens"


def test_a_vocabulary_is_kept(data):
    again = build_captioned_shapes(**{**SMALL, "split_seed": 3})
    again.adopt(data.spec)
    again.prepare()
    assert again.spec.vocabulary == data.spec.vocabulary != made(split_seed=3, train_count=20, batch_size=2).spec.vocabulary


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"size": 23}, "data.size=23: cannot be drawn"),
        ({"val_fraction": 0.6, "test_fraction": 0.4}, "data.test_fraction=0.4: with data.val_fraction=0.6 leaves nothing to train on"),
        ({"val_fraction": 0.49, "test_fraction": 0.5}, "data.test_fraction=0.5: leaves no scene to train on"),
        ({"block_size": 9}, "data.block_size=9: captions have up to 12 tokens, the first and the last included"),
        ({"vocab_size": 200}, "data.vocab_size=200: has no room for 256 bytes and 4 special tokens"),
    ],
)
def test_options_that_cannot_be_had(options, said):
    with pytest.raises(ConfigError) as caught:
        made(**{"train_count": 100, **options})
    assert str(caught.value).startswith(said)
    assert caught.value.cure
