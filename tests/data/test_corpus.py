"""Corpora of words: how they are read, counted and cut, and what is asked of them."""

from __future__ import annotations

import gzip
import io
import tarfile
import zipfile
from collections import Counter
from pathlib import Path

import pytest
import torch

from refresher_runner.data import corpus
from refresher_runner.data.corpus import CorpusSet, Questions, build_corpus, build_python_words, count, halves
from refresher_runner.data.streams import CHARACTERS, pieces, unpacked
from refresher_runner.errors import ConfigError, DataError
from refresher_runner.spec import CorpusSpec, Placement

TEXT = "The cat saw the other cat; 2 cats saw naïve Ärzte.\r\nthe_end of the CAT" * 40
COMMON = {"min_count": 1, "block_size": 20, "batch_size": 4, "eval_batch_size": 3, "val_fraction": 0.1, "test_fraction": 0.2}


def own(tmp_path: Path, text: str = TEXT, **changes) -> CorpusSet:
    (tmp_path / "text.txt").write_text(text, encoding="utf-8")
    data = build_corpus(root=str(tmp_path / "text.txt"), questions=None, **{**COMMON, **changes})
    assert isinstance(data, CorpusSet)
    return data


def test_words_are_numbered_by_how_often_they_come():
    texts = ["b a a", "c a b d", "e"]
    words, counts, numbers = count(texts, 1)
    assert (words, counts) == (("a", "b", "c", "d", "e"), (3, 2, 1, 1, 1)), "of equals, the one that came first"
    assert [words[n] for n in numbers] == " ".join(texts).split()


def test_rare_words_are_left_out_of_the_text_too():
    words, counts, numbers = count(["b a a c a b d"], 2)
    assert (words, counts, numbers.tolist()) == (("a", "b"), (3, 2), [1, 0, 0, 0, 1])


def test_known_words_keep_their_numbers():
    words, counts, numbers = count(["d a c d"], 1, CorpusSpec(("c", "d"), (7, 5)))
    assert (words, counts, numbers.tolist()) == (("c", "d"), (7, 5), [1, 0, 1])


def test_words_are_runs_of_letters(tmp_path):
    data = own(tmp_path)
    data.prepare()
    expected = Counter(["the", "cat", "saw", "the", "other", "cat", "cats", "saw", "naïve", "ärzte", "the", "end", "of", "the"] * 40)
    expected["cat"] += 1  # the last; others run into the text's beginning again
    expected["catthe"] = 39
    expected["the"] -= 39
    assert dict(zip(data.spec.words, data.spec.counts, strict=True)) == dict(expected)


@pytest.mark.parametrize("length", [CHARACTERS - 3, CHARACTERS, CHARACTERS + 5, 2 * CHARACTERS + 1])
def test_pieces_cut_no_word(length):
    text = ("several words of some length " * (length // 29 + 1))[:length]
    found = list(pieces(io.BytesIO(text.encode()), "text"))
    assert "".join(found) == text
    assert [word for piece in found for word in corpus.WORD.findall(piece)] == corpus.WORD.findall(text)


def test_a_word_longer_than_a_piece_is_one():
    text = "x" * (2 * CHARACTERS + 7) + " y"
    assert corpus.WORD.findall("".join(pieces(io.BytesIO(text.encode()), "text"))) == text.split()


@pytest.mark.parametrize("name", ["t.txt", "t.gz", "t.zip", "t.tar.gz"])
def test_a_text_is_the_same_however_it_is_packed(name, tmp_path):
    file, content = tmp_path / name, TEXT.encode()
    if name == "t.zip":
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr("a.txt", content)
    elif name == "t.tar.gz":
        with tarfile.open(file, "w:gz") as archive:
            entry = tarfile.TarInfo("a.txt")
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    else:
        file.write_bytes(gzip.compress(content) if name == "t.gz" else content)
    assert corpus.WORD.findall("".join(unpacked(file))) == corpus.WORD.findall(TEXT)


@pytest.mark.parametrize("name", ["t.gz", "t.zip", "t.tar.gz", "t.txt"])
def test_what_cannot_be_read_is_named(name, tmp_path):
    (tmp_path / name).write_bytes(b"\xff\xfe\x00 neither packed nor UTF-8")
    data = build_corpus(root=str(tmp_path / name), questions=None, **COMMON)
    with pytest.raises(DataError, match="t\\."):
        data.prepare()


def test_an_absent_text_is_named(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        build_corpus(root=str(tmp_path / "absent"), questions=None, **COMMON).prepare()
    with pytest.raises(DataError, match="holds no text"):
        build_corpus(root=str(tmp_path), questions=None, **COMMON).prepare()


def test_splits_share_no_sentence_and_leave_none_out(tmp_path):
    data = own(tmp_path)
    data.prepare()
    rows = sorted(row for split in ("train", "val", "test") for row in data.splits[split].tolist())
    assert data.numbers is not None
    assert rows == list(range(len(data.numbers)))
    assert len(data.splits["test"]) == round(0.2 * len(rows))


@pytest.mark.parametrize(("changes", "key"), [({"min_count": 10**6}, "min_count"), ({"block_size": 400}, "block_size")])
def test_too_little_text_is_refused(changes, key, tmp_path):
    with pytest.raises(ConfigError, match=key):
        own(tmp_path, **changes).prepare()
    with pytest.raises(ConfigError, match="leaves nothing"):
        own(tmp_path, val_fraction=0.5, test_fraction=0.5)


def test_an_epoch_gives_every_sentence_once_and_starts_anywhere(tmp_path):
    data = own(tmp_path)
    data.prepare()
    loader = data.train_loader(Placement(seed=3))
    epoch = list(loader.batches(1))
    words = torch.cat([batch.words for batch in epoch])
    assert data.numbers is not None
    expected = torch.from_numpy(data.numbers[data.splits["train"]])[: len(words)].long()
    whole = {tuple(row) for row in torch.from_numpy(data.numbers[data.splits["train"]]).tolist()}
    assert {tuple(row) for row in words.tolist()} <= whole
    assert words.shape == expected.shape
    later = list(loader.batches(1, 2))
    assert all(torch.equal(a.words, b.words) for a, b in zip(epoch[2:], later, strict=True))


def test_every_question_is_asked_once_whatever_the_ranks(tmp_path):
    data = own(tmp_path)
    data.prepare()
    questions = Questions(*(torch.arange(n).view(-1, *shape).numpy() for n, shape in ((14, (2,)), (7, ()), (44, (4,)), (11, ()))))
    data.questions = {"val": questions}
    batches = [b for rank in range(2) for b in data.val_loader(Placement(rank=rank, world_size=2)).batches(0)]
    for name in ("ratings", "sections"):
        assert sorted(torch.cat([getattr(batch, name) for batch in batches]).tolist()) == list(range(len(getattr(questions, name))))
    assert all(len(batch.pairs) == len(batch.ratings) and len(batch.analogies) == len(batch.sections) for batch in batches)


def test_one_half_of_the_questions_is_kept_for_the_test():
    columns = Questions(*(torch.arange(n).numpy() for n in (9, 9, 20, 20)))
    split = halves(columns)
    for number, column in enumerate(columns):
        assert sorted([*split["val"][number], *split["test"][number]]) == list(column)
    assert (split["val"].pairs == split["val"].ratings).all(), "a pair keeps its rating"
    assert (split["test"].analogies == split["test"].sections).all()


def test_the_documentation_of_python_has_words():
    data = build_python_words(**{**COMMON, "min_count": 5, "block_size": 1000})
    data.prepare()
    assert {"function", "list", "returns"} < set(data.spec.words[:200])  # type: ignore[union-attr]
    assert data.spec.sections == ()
