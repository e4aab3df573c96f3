"""Whose vocabulary a set of text has: its own, or that of a run it goes on from or begins from."""

import pytest

from refresher_runner.data.learnt import vocabulary_of
from refresher_runner.data.subwords import learn_subwords
from refresher_runner.data.text import build_text_file
from refresher_runner.data.translation import build_translation
from refresher_runner.errors import ConfigError, DataError
from refresher_runner.spec import ImageSpec, LabelledTextSpec, PairSpec, TextSpec
from refresher_runner.vocabulary import SPECIAL, characters

TEXT = "the quick brown fox jumps over lazy dogs, low lower newest widest. " * 20
OTHER = characters(" ,.abcdefghijklmnopqrstuvwxyz")
SUBWORDS = learn_subwords([TEXT], 280)
SIZES = {"block_size": 8, "batch_size": 4, "eval_batch_size": 4, "val_fraction": 0.1, "test_fraction": 0.1}


def of(tokens, vocab_size, known):
    return vocabulary_of(TEXT, [TEXT[:670]], tokens, vocab_size, known, source="a.txt")


def text(tmp_path, **options):
    (tmp_path / "a.txt").write_text(TEXT, encoding="utf-8")
    return build_text_file(root=str(tmp_path / "a.txt"), **SIZES, **options)


def test_without_another_run_it_is_learnt():
    assert of("characters", 0, None) == characters(TEXT)
    assert of("subwords", 270, None) == learn_subwords([TEXT[:670]], 270)


def test_one_that_is_known_is_kept():
    assert of("characters", 0, OTHER) is OTHER
    assert of("subwords", 280, SUBWORDS) is SUBWORDS
    assert of("subwords", 5000, SUBWORDS) is SUBWORDS, "it has at most so many"


def test_a_text_with_a_character_that_is_not_known():
    with pytest.raises(DataError, match=r"a\.txt: holds ' ', a character that the vocabulary of the checkpoint lacks") as caught:
        of("characters", 0, characters(TEXT.replace(" ", "")))
    assert caught.value.cure


@pytest.mark.parametrize(
    ("tokens", "vocab_size", "known", "said", "cure"),
    [
        ("subwords", 280, OTHER, "data.tokens=subwords: the checkpoint's vocabulary is of characters", "data.tokens=characters"),
        ("characters", 280, SUBWORDS, "data.tokens=characters: the checkpoint's vocabulary is of subwords", "data.tokens=subwords"),
        ("subwords", 270, SUBWORDS, "data.vocab_size=270: the checkpoint's vocabulary has 280 subwords", "data.vocab_size=280"),
    ],
)
def test_options_that_ask_for_another_are_refused(tokens, vocab_size, known, said, cure):
    """A run's configuration would not be true of it."""
    with pytest.raises(ConfigError) as caught:
        of(tokens, vocab_size, known)
    assert str(caught.value) == said
    assert cure in caught.value.cure


@pytest.mark.parametrize("spec", [TextSpec(OTHER, 99), LabelledTextSpec(OTHER, 99, ("x", "y"))])
def test_a_text_adopts_the_vocabulary_of_texts(tmp_path, spec):
    data = text(tmp_path, tokens="characters", vocab_size=1)
    data.adopt(spec)
    data.prepare()
    assert data.spec == TextSpec(OTHER, 8)
    assert OTHER.decode(data.splits["train"].tolist()) == TEXT[: int(len(TEXT) * 0.8)]


@pytest.mark.parametrize("spec", [ImageSpec(1, 8, ("x", "y"), (0.0,), (1.0,)), PairSpec(OTHER, SUBWORDS, 9)])
def test_a_text_adopts_nothing_of_what_is_no_text(tmp_path, spec):
    data = text(tmp_path, tokens="characters", vocab_size=1)
    data.adopt(spec)
    data.prepare()
    assert data.spec.vocabulary == characters(TEXT)


def pairs(tmp_path, vocab_size=300):
    lines = [f"sentence {n}\tSatz {n}" for n in range(60)]
    (tmp_path / "pairs.tsv").write_text("\n".join(lines), encoding="utf-8")
    options = {**SIZES, "block_size": 64, "vocab_size": vocab_size, "split_seed": 0}
    return build_translation(root=str(tmp_path), layout="tabs", files=["pairs.tsv"], reverse=False, **options)


def test_pairs_adopt_a_vocabulary_that_both_sides_share(tmp_path):
    shared = learn_subwords([TEXT], 290, SPECIAL, sentences=True)
    data = pairs(tmp_path)
    data.adopt(PairSpec(shared, shared, 9))
    data.prepare()
    assert data.spec == PairSpec(shared, shared, 64)
    (source, _), decode = data.splits["val"], shared.decode
    assert all(decode(row[: n - 1]).startswith("sentence ") for row, n in zip(source.numbers.tolist(), source.lengths, strict=True))
    narrow = pairs(tmp_path, vocab_size=280)
    narrow.adopt(PairSpec(shared, shared, 9))
    with pytest.raises(ConfigError, match=r"data\.vocab_size=280: the checkpoint's vocabulary has \d+ subwords"):
        narrow.prepare()


@pytest.mark.parametrize("spec", [TextSpec(SUBWORDS, 9), PairSpec(SUBWORDS, OTHER, 9)])
def test_pairs_adopt_no_other(tmp_path, spec):
    data = pairs(tmp_path)
    data.adopt(spec)
    data.prepare()
    assert data.spec.source == data.spec.target
    assert data.spec.source.tokens[:4] == SPECIAL
