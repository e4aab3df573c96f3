"""Texts with labels: Python's docstrings, one's own folders, and the vocabulary of another run."""

import logging
from collections import Counter

import pytest
import torch

from refresher_runner.data.labelled import KINDS, Labelled, LabelledTextSet, build_docstrings, build_text_folder, kind, read_docstrings
from refresher_runner.data.python_docs import build_python_docs, entries, read_python_docs
from refresher_runner.data.text import Cut
from refresher_runner.errors import ConfigError, DataError
from refresher_runner.spec import LabelledTextSpec, Placement, Spec, TextSpec
from refresher_runner.vocabulary import characters

ONE = Placement()
OPTIONS = {
    "tokens": "characters",
    "vocab_size": 300,
    "block_size": 12,
    "batch_size": 4,
    "eval_batch_size": 4,
    "val_fraction": 0.25,
    "test_fraction": 0.25,
    "split_seed": 0,
}


# -------------------------------------------------------------------- what a set is


def letters(*samples, block_size=6):
    vocabulary = characters("abcdef")
    splits = {"train": samples, "val": samples, "test": samples}
    return LabelledTextSet(lambda known: Labelled(known or vocabulary, ("x", "y"), splits, {"f": "1"}), block_size, 2, 2)


def test_a_batch_is_padded_by_hand(caplog):
    data = letters(("abc", 0), ("f", 1))
    data.prepare()
    (batch,) = data.test_loader(ONE).batches(0)
    rows = {(tuple(row), length, label) for row, length, label in zip(*(part.tolist() for part in batch), strict=True)}
    assert rows == {((0, 1, 2), 3, 0), ((5, 0, 0), 1, 1)}
    assert {part.dtype for part in batch} == {torch.int64}
    assert data.spec == LabelledTextSpec(characters("abcdef"), 6, ("x", "y"))
    assert not caplog.records


def test_a_long_text_is_read_as_far_as_the_block_goes_and_that_is_told(caplog):
    data = letters(("abcdefabc", 0), ("f", 1))
    with caplog.at_level(logging.WARNING):
        data.prepare()
    assert [record.getMessage() for record in caplog.records] == ["3 of 6 texts are read up to data.block_size=6 tokens"]
    (batch,) = data.val_loader(ONE).batches(0)
    assert sorted(batch.lengths.tolist()) == [1, 6]
    assert [0, 1, 2, 3, 4, 5] in batch.tokens.tolist()


def test_a_split_without_a_text_is_refused():
    data = LabelledTextSet(lambda _: Labelled(characters("ab"), ("x", "y"), {"train": [("a", 0)], "val": []}, {}), 4, 1, 1)
    with pytest.raises(DataError, match="its val split holds no text"):
        data.prepare()


def test_labels_stay_with_their_texts_whatever_the_order():
    texts = ["".join("abcdef"[(n + i) % 6] for i in range(1 + n % 5)) for n in range(30)]
    samples = [(text, len(text) % 2) for text in texts]
    for epoch in range(3):
        data = letters(*samples)
        data.prepare()
        for batch in data.train_loader(ONE).batches(epoch):
            assert (batch.lengths % 2).tolist() == batch.labels.tolist()


def test_the_spec_survives_a_checkpoint():
    data = letters(("abc", 0), ("f", 1))
    data.prepare()
    assert Spec.from_dict(data.spec.to_dict()) == data.spec


# -------------------------------------------------------------------- docstrings


@pytest.mark.parametrize(
    ("heading", "expected"),
    [
        ("help('with')", "topic"),
        ("json.decoder", "module"),
        ("class json.decoder.JSONDecoder", "class"),
        ("json.loads(s, *, cls=None)", "function"),
        ("json.decoder.JSONDecoder.decode(self, s)", "method"),
        ("datetime.date.today(cls)", "method"),
        ("os.getcwd()", "function"),
        ("dataclasses.make_dataclass(cls_name, fields)", "function"),
    ],
)
def test_headings_tell_the_kind(heading, expected):
    assert kind(heading) == expected


def test_docstrings_are_cut_where_the_text_of_python_docs_is():
    cut = Cut(0.05, 0.05)
    found, text = read_docstrings("characters", 0, cut), read_python_docs()
    parts = cut(text.content)
    total = 0
    for split, samples in found.splits.items():
        assert all(body in parts[split] for body, _ in samples)
        total += len(samples)
    assert 0 <= len(entries()) - total <= 2, "an entry may lie across a cut"
    counts = Counter(KINDS[label] for _, label in found.splits["train"])
    assert set(counts) == set(KINDS)
    assert counts["method"] > counts["class"] > counts["topic"]
    assert found.vocabulary == characters(text.content), "as python_docs has it"


def test_docstrings_as_a_set():
    options = {key: value for key, value in OPTIONS.items() if key != "split_seed"}
    data = build_docstrings(**{**options, "block_size": 32, "val_fraction": 0.01, "test_fraction": 0.0})
    data.prepare()
    assert data.spec.classes == KINDS
    assert sum(len(batch.labels) for batch in data.test_loader(ONE).batches(0)) == sum(
        len(batch.labels) for batch in data.val_loader(ONE).batches(0)
    ), "without a test of its own it is tested on validation"
    assert [*data.splits] == ["train", "val"], "it is encoded once"
    (digest,) = data.checksums().values()
    assert len(digest) == 64


def test_subwords_of_docstrings_are_those_of_python_docs():
    """What was pre-trained on the one reads the other."""
    sizes = {"vocab_size": 400, "block_size": 16, "batch_size": 4, "eval_batch_size": 4, "val_fraction": 0.4, "test_fraction": 0.4}
    cut = Cut(0.4, 0.4)
    data = build_python_docs(tokens="subwords", **sizes)
    data.prepare()
    assert len(data.spec.vocabulary) == 400
    assert read_docstrings("subwords", 400, cut).vocabulary == data.spec.vocabulary


def test_docstrings_with_a_character_that_the_checkpoint_lacks():
    with pytest.raises(DataError, match=r"documentation of Python .*: holds '.*', a character that the vocabulary of the checkpoint lacks"):
        read_docstrings("characters", 0, Cut(0.1, 0.1), characters("abc"))


# -------------------------------------------------------------------- one's own


def lay_out(root, names=("good", "bad"), count=8):
    for name in names:
        (root / name).mkdir(parents=True)
        for n in range(count):
            (root / name / f"{n}.txt").write_text(f"{name} {n}\n", encoding="utf-8")


def folder(root, **changes):
    data = build_text_folder(root=str(root), **{**OPTIONS, **changes})
    data.prepare()
    return data


def texts(data, split):
    loader = {"train": data.train_loader, "val": data.val_loader, "test": data.test_loader}[split](ONE)
    decode = data.spec.vocabulary.decode
    return {
        (decode(row[:n]), data.spec.classes[label])
        for batch in loader.batches(0)
        for row, n, label in zip(*(part.tolist() for part in batch), strict=True)
    }


@pytest.mark.parametrize("tokens", ["characters", "subwords"])
def test_a_folder_for_each_class(tmp_path, tokens):
    lay_out(tmp_path)
    data = folder(tmp_path, tokens=tokens)
    assert data.spec.classes == ("bad", "good")
    found = {split: texts(data, split) for split in ("train", "val", "test")}
    assert {split: len(those) for split, those in found.items()} == {"train": 8, "val": 4, "test": 4}
    assert set().union(*found.values()) == {(f"{name} {n}", name) for name in ("good", "bad") for n in range(8)}


def test_a_record_of_texts_has_one_digest_of_names_and_contents(tmp_path):
    """A thousand texts are not a thousand lines of run.json."""
    lay_out(tmp_path)

    def digest() -> str:
        (found,) = folder(tmp_path).checksums().values()
        return found

    before = digest()
    (tmp_path / "good" / "0.txt").write_text("good 0!", encoding="utf-8")
    changed = digest()
    (tmp_path / "good" / "0.txt").rename(tmp_path / "good" / "zero.txt")
    assert len({before, changed, digest()}) == 3


def test_a_folder_is_no_text(tmp_path):
    lay_out(tmp_path)
    (tmp_path / "good" / "more.txt").mkdir()
    (tmp_path / "good" / "more.txt" / "8.txt").write_text("good 8", encoding="utf-8")
    data = folder(tmp_path)
    assert sum(len(labels) for _, labels in data.splits.values()) == 17


def test_folders_of_splits_are_kept(tmp_path):
    for split, count in (("train", 8), ("test", 3)):
        lay_out(tmp_path / split, count=count)
    data = folder(tmp_path)
    assert texts(data, "test") == {(f"{name} {n}", name) for name in ("good", "bad") for n in range(3)}
    assert len(texts(data, "val")) == 4


def test_the_vocabulary_of_another_run_is_kept(tmp_path):
    lay_out(tmp_path)
    known = characters("abcdefghijklmnopqrstuvwxyz 0123456789")
    data = build_text_folder(root=str(tmp_path), **OPTIONS)
    data.adopt(TextSpec(known, 99))
    data.prepare()
    assert data.spec.vocabulary == known
    assert data.spec.block_size == 12
    (tmp_path / "good" / "new.txt").write_text("Ö", encoding="utf-8")
    data = build_text_folder(root=str(tmp_path), **OPTIONS)
    data.adopt(TextSpec(known, 99))
    with pytest.raises(DataError, match="'Ö', a character that the vocabulary of the checkpoint lacks"):
        data.prepare()


def test_folders_that_cannot_be_read(tmp_path):
    with pytest.raises(ConfigError, match="no such folder"):
        folder(tmp_path / "none")
    lay_out(tmp_path / "one", names=("good",))
    with pytest.raises(ConfigError, match="holds but one folder of texts"):
        folder(tmp_path / "one")
    lay_out(tmp_path / "two")
    (tmp_path / "two" / "bad" / "3.txt").write_bytes(b"\xff")
    with pytest.raises(DataError, match=r"3\.txt.*not UTF-8"):
        folder(tmp_path / "two")
    (tmp_path / "two" / "bad" / "3.txt").write_text(" \n", encoding="utf-8")
    with pytest.raises(DataError, match=r"3\.txt.*is empty"):
        folder(tmp_path / "two")
    lay_out(tmp_path / "three", count=0)
    with pytest.raises(DataError, match="holds no texts"):
        folder(tmp_path / "three")
