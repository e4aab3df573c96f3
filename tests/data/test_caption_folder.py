"""Pictures with captions of one's own: names, tables, archives, classes, and splits that part no family."""

import logging
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from refresher_runner.data.caption_folder import build_captions, family, read_pairs
from refresher_runner.data.captions import CaptionSet
from refresher_runner.errors import ConfigError, DataError
from refresher_runner.pictures import read_picture
from refresher_runner.spec import Placement

CONF = Path(__file__).parents[2] / "conf" / "data"
OPTIONS = yaml.safe_load((CONF / "captions.yaml").read_text(encoding="utf-8"))
del OPTIONS["name"]
TWEMOJI = yaml.safe_load((CONF / "twemoji.yaml").read_text(encoding="utf-8"))
COLOURS = ["red", "green", "blue", "black", "white", "grey", "pink", "orange", "brown", "gold"]


def made(root: Path, **options):
    data = build_captions(**{**OPTIONS, "root": str(root), "size": 8, "batch_size": 2, "eval_batch_size": 4, **options})
    assert isinstance(data, CaptionSet)
    data.prepare()
    return data


@pytest.fixture
def cards(tmp_path):
    """Ten pictures in two folders, one of them transparent, and what an operating system hides beside them."""
    for i, colour in enumerate(COLOURS):
        file = tmp_path / "root" / ("warm" if i % 2 else "cold") / f"A_{colour}  card.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (12, 8 + i), colour).save(file)
    Image.new("RGBA", (8, 8), (0, 0, 0, 0)).save(tmp_path / "root" / "nothing.png")
    (tmp_path / "root" / ".hidden.png").write_bytes(b"")
    (tmp_path / "root" / "notes.txt").write_text("none", encoding="utf-8")
    return tmp_path / "root"


def everything(data):
    """Caption -> image and meaning, over all splits."""
    return {c: (im, m) for found in data.splits.values() for c, im, m in zip(found.captions, found.images, found.meanings, strict=True)}


def packed(root: Path, kind: str) -> Path:
    file = root.parent / f"cards{kind}"
    if kind == ".zip":
        with zipfile.ZipFile(file, "w") as archive:
            for path in sorted(root.rglob("*.*")):
                archive.write(path, f"top/{path.relative_to(root)}")
    else:
        with tarfile.open(file, "w:gz") as archive:
            archive.add(root, "top")
    return file


# -------------------------------------------------------------------- what is read


@pytest.mark.parametrize("kind", ["", ".zip", ".tar.gz"])
def test_a_picture_is_named_by_its_caption(cards, kind):
    data = made(packed(cards, kind) if kind else cards)
    found = everything(data)
    assert set(found) == {f"A {colour}  card" for colour in COLOURS} | {"nothing"}
    for colour in COLOURS:
        [file] = cards.rglob(f"A_{colour}*")
        assert (found[f"A {colour}  card"][0] == (read_picture(file, 3, 8) * 255).round().byte().numpy()).all()
    assert (found["nothing"][0] == 255).all(), "white where it is transparent"
    assert data.spec.classes == ("any",)
    assert data.spec.prompts == ((),)
    batch = next(data.train_loader(Placement()).batches(0))
    assert batch.images.shape == (2, 3, 8, 8)
    assert batch.truth.shape == (2, 0)
    assert all(text in {f"a {colour} card" for colour in COLOURS} | {"nothing"} for text in data.spec.decode(batch.captions))


def test_folder_and_archive_are_cut_alike(cards):
    one, two = made(cards), made(packed(cards, ".zip"))
    assert {split: set(found.captions) for split, found in one.splits.items()} == {
        split: set(found.captions) for split, found in two.splits.items()
    }


def table(root: Path, text: str, name: str = "captions.csv") -> str:
    (root / name).write_text(text, encoding="utf-8")
    return name


def test_a_table_tells_captions_and_classes(cards):
    rows = [f'{"warm" if i % 2 else "cold"}/A_{c}  card.png,"a {c}, plain card",{"hot" if i % 2 else ""}' for i, c in enumerate(COLOURS)]
    rows.append("cold/A_red  card.png,something red,cool")
    data = made(cards, table=table(cards, "file,caption,class\n" + "\n".join(rows)), templates=["{}", "a {} card"])
    found = everything(data)
    assert len(found) == 11, "a picture may have several captions, and one that is not listed is left out"
    assert (found["something red"][0] == found["a red, plain card"][0]).all()
    assert found["something red"][1] == found["a red, plain card"][1], "captions of one picture are right for it"
    assert data.spec.classes == ("cool", "hot", "any")
    assert data.spec.prompts == (("cool", "a cool card"), ("hot", "a hot card"), ())
    for part in data.splits.values():
        for caption, label in zip(part.captions, part.labels, strict=True):
            assert data.spec.classes[label] == ("cool" if caption == "something red" else "hot" if found_hot(caption) else "any")


def found_hot(caption: str) -> bool:
    return COLOURS.index(caption.split()[1].rstrip(",")) % 2 == 1


def test_tabs_separate_the_columns_of_a_tsv(cards):
    lines = [f"{'warm' if i % 2 else 'cold'}/A_{c}  card.png\t{c}, at last" for i, c in enumerate(COLOURS)]
    data = made(cards, table=table(cards, "file\tcaption\n" + "\n".join(lines), "x.tsv"))
    assert set(everything(data)) == {f"{c}, at last" for c in COLOURS}


# -------------------------------------------------------------------- splits


def test_what_is_left_without_variants():
    variants = TWEMOJI["variants"]
    assert family("woman judge, medium-light skin tone", variants) == family("man judge", variants) == "judge"
    assert family("kiss, person, person, light skin tone, dark skin tone", variants) == "kiss"
    assert family("old woman", variants) == family("boy", variants) == ""
    assert family("mango", variants) == "mango"
    assert family("flag, norway", []) == "flag norway"


def test_families_are_of_one_split(cards):
    """Same captions in capitals, same pixels under two names, and variants stay together; whatever else is cut as asked."""
    Image.new("RGB", (8, 8), "red").save(cards / "a_RED_card.png")  # as the other red one, when it is cut out
    Image.new("RGB", (8, 8), "teal").save(cards / "a_pale_green_card.png")
    pairs = read_pairs(cards, None, 3, 8, ["pale"])
    said = {caption: (m, f) for caption, m, f in zip(pairs.pairs.captions, pairs.pairs.meanings, pairs.families, strict=True)}
    assert said["A red  card"] == said["a RED card"]
    assert said["A green  card"][0] != said["a pale green card"][0]
    assert said["A green  card"][1] == said["a pale green card"][1]
    assert said["A white  card"][0] == said["nothing"][0], "what is transparent is white too"
    assert len({f for _, f in said.values()}) == 10
    for seed in range(20):
        data = made(cards, variants=["pale"], split_seed=seed, val_fraction=0.3, test_fraction=0.3)
        of = [{said[caption][1] for caption in found.captions} for found in data.splits.values()]
        assert sum(map(len, of)) == 10 == len(set().union(*of))


def test_twemoji(shared_data):
    """3,664 pairs; no two splits share an emoji but for skin tone and gender."""
    options = {**TWEMOJI, "root": str(shared_data / "twemoji-captions/twemoji-captions.tar.gz"), "size": 16}
    data = made(Path(options.pop("root")), **{key: value for key, value in options.items() if key != "defaults"})
    sizes = {split: len(found.captions) for split, found in data.splits.items()}
    assert sum(sizes.values()) == 3664
    assert all(300 < sizes[split] < 440 for split in ("val", "test"))
    left = [{family(caption.lower(), TWEMOJI["variants"]) for caption in found.captions} for found in data.splits.values()]
    assert sum(map(len, left)) == len(set().union(*left))
    everything_seen = np.concatenate([found.images for found in data.splits.values()]) / 255
    assert np.allclose(everything_seen.mean((0, 2, 3)), TWEMOJI["mean"], atol=0.02)
    assert np.allclose(everything_seen.std((0, 2, 3)), TWEMOJI["std"], atol=0.03)


# -------------------------------------------------------------------- what is refused


def test_long_captions_are_cut_and_counted(cards, caplog):
    with caplog.at_level(logging.WARNING):
        data = made(cards, block_size=3, vocab_size=260)
    assert "11 of 11 captions are read up to data.block_size=3 tokens" in caplog.text
    tokens = next(data.test_loader(Placement()).batches(0)).captions
    assert tokens.shape[1] == 3
    assert torch.equal(tokens[:, 2], torch.full((len(tokens),), 2))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("picture,caption\n", "has no column 'file'"),
        ("file,caption\nnone.png,a cat\n", "line 2 names 'none.png', which is not there"),
        ("file,caption\nnothing.png,\n", "line 2 has no caption"),
        ("file,caption\n", "holds no picture"),
    ],
)
def test_tables_that_are_wrong(cards, text, said):
    with pytest.raises(DataError, match=said) as caught:
        made(cards, table=table(cards, text))
    assert caught.value.cure


def test_files_that_are_wrong(cards, tmp_path):
    with pytest.raises(DataError, match="no such file"):
        made(tmp_path / "none")
    with pytest.raises(DataError, match="no such file"):
        made(cards, table="none.csv")
    (tmp_path / "bad.zip").write_bytes(b"PK, but no archive")
    with pytest.raises(DataError, match="is no archive that can be read"):
        made(tmp_path / "bad.zip")
    (cards / "broken.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match="not a readable picture") as caught:
        made(cards)
    assert caught.value.key == str(cards / "broken.png")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"mean": [0.1, 0.2]}, "data.mean=[0.1, 0.2]: needs one value, or one for each of 3 channels"),
        ({"templates": ["a picture"]}, "data.templates=a picture: has no one place for a class"),
        ({"val_fraction": 0.5, "test_fraction": 0.5}, "data.test_fraction=0.5: with data.val_fraction=0.5 leaves nothing to train on"),
        ({"block_size": 2}, "data.block_size=2: has no room for a token between the first and the last"),
        ({"pad": 9}, "data.pad=9: a crop could miss the picture"),
        ({"vocab_size": 200}, "data.vocab_size=200: has no room for 256 bytes and 4 special tokens"),
    ],
)
def test_options_that_cannot_be_had(cards, options, said):
    with pytest.raises(ConfigError) as caught:
        made(cards, **options)
    assert str(caught.value) == said


def test_too_few_for_a_split(tmp_path):
    for name in ("a", "b"):
        Image.effect_noise((8, 8), 60).save(tmp_path / f"{name}.png")
    with pytest.raises(DataError, match="2 pairs are too few for a test split"):
        made(tmp_path)
