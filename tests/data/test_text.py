"""Running text: what is read, how it is cut, what becomes of it as tokens, and the laws of its windows."""

import ast
import inspect
import os
import random
import subprocess
import sys
import textwrap
from itertools import chain, islice
from pathlib import Path

import pytest
import torch
import yaml

from refresher_runner.data import subwords
from refresher_runner.data.loaders import BLOCK, Order
from refresher_runner.data.python_docs import LONG, build_python_docs, docstrings, read_python_docs, unseen
from refresher_runner.data.subwords import encode_sentences, encode_text, learn_subwords, pieces
from refresher_runner.data.text import Cut, WindowLoader, build_text_file, build_tiny_shakespeare, numbers, read_text, windows
from refresher_runner.errors import ConfigError, DataError
from refresher_runner.registry import DATASETS
from refresher_runner.schema import check_options
from refresher_runner.spec import Placement, Spec, TextSpec
from refresher_runner.vocabulary import SPECIAL, characters

CONF = Path(__file__).parents[2] / "conf" / "data"
ROOT = Path(__file__).parents[2]
PROSE = "It's 9 o'clock.\n\nWe'll meet them, as 2,000 others did;\n\tthat is   all.\n" * 30
ODD = "".join(chr(c) for c in (*range(9, 14), 32, 32, 32, 65, 97, 98, 39, 46, 49, 0xA0, 0xDF, 0x301, 0x2028, 0x3000, 0x4E2D, 0x1F600))
COMMON = {"tokens": "characters", "vocab_size": 300, "block_size": 8, "batch_size": 4, "eval_batch_size": 4}
ONE = Placement()


def odd_texts(count: int, length: int) -> list[str]:
    draws = random.Random(0)
    return ["".join(draws.choice(ODD) for _ in range(draws.randrange(length))) for _ in range(count)]


def text_file(tmp_path, content: str, **options):
    (tmp_path / "text.txt").write_text(content, encoding="utf-8")
    data = build_text_file(root=str(tmp_path / "text.txt"), **{**COMMON, "val_fraction": 0.1, "test_fraction": 0.1, **options})
    data.prepare()
    return data


# -------------------------------------------------------------------- tokens


def test_subwords_begin_with_what_the_paper_merges_first():
    """Sennrich et al., 2016: of low (5 times), lower (2), newest (6), widest (3), first e s, then es t."""
    words = ["low"] * 5 + ["lower"] * 2 + ["newest"] * 6 + ["widest"] * 3
    tokens = learn_subwords([" ".join(words)], 300).tokens
    assert tokens[256:258] == ("es", "est")
    assert {"Ġnewest", "Ġwidest", "Ġlow"} < set(tokens)


@pytest.mark.parametrize("special", [(), SPECIAL])
def test_subwords_are_the_special_tokens_the_bytes_and_merges(special):
    vocabulary = learn_subwords([PROSE], 270, special)
    assert len(vocabulary) == 270 == len(set(vocabulary.tokens))
    assert len(learn_subwords([PROSE], 1000, special)) < 400
    assert vocabulary.tokens[: len(special)] == special
    assert all(len(token) == 1 for token in vocabulary.tokens[len(special) : len(special) + 256])
    assert all(len(token) > 1 for token in vocabulary.tokens[len(special) + 256 :])


@pytest.mark.parametrize("special", [(), SPECIAL])
@pytest.mark.parametrize("text", [PROSE, *odd_texts(40, 60), "[PAD] is [END], not [UNKNOWN]"])
def test_no_text_is_lost_in_subwords(special, text):
    vocabulary = learn_subwords([PROSE], 320, special)
    assert vocabulary.decode(vocabulary.encode(text)) == text
    assert not special or min(vocabulary.encode(text), default=4) >= 4


def test_a_long_text_is_encoded_as_a_whole_would_be(monkeypatch):
    vocabulary = learn_subwords([PROSE], 320)
    monkeypatch.setattr(subwords, "PIECE", 20)
    for text in [PROSE, "one line " * 50, *odd_texts(300, 200)]:
        assert "".join(pieces(text)) == text
        assert encode_text(vocabulary, text).tolist() == vocabulary.encode(text)
    assert len(pieces(PROSE)) == 30


def test_sentences_are_encoded_as_each_would_be():
    vocabulary = learn_subwords([PROSE], 320, SPECIAL, sentences=True)
    sentences = ["", " ", "Is that all?", "[END]", "a  b", *odd_texts(3000, 20)]
    assert encode_sentences(vocabulary, sentences) == [vocabulary.encode(sentence) for sentence in sentences]


def test_the_first_word_of_a_sentence_is_as_any_other():
    vocabulary = learn_subwords([PROSE], 320, SPECIAL, sentences=True)
    assert vocabulary.encode("that that") == [*vocabulary.encode("that")] * 2
    assert vocabulary.decode(vocabulary.encode("that that")) == "that that"


def test_every_process_learns_the_same_subwords():
    """Ranks of one run each learn their own."""
    script = (
        "import sys, hashlib; from refresher_runner.data.subwords import learn_subwords\n"
        "made = learn_subwords(sys.argv[1].splitlines() * 50, 330, ('[PAD]', '[END]'))\n"
        "print(hashlib.sha256(repr(made).encode()).hexdigest())"
    )
    told = set()
    for salt, threads in (("1", "1"), ("2", "3")):
        environment = {**os.environ, "PYTHONHASHSEED": salt, "RAYON_NUM_THREADS": threads}
        told.add(subprocess.run([sys.executable, "-c", script, PROSE], cwd=ROOT, env=environment, capture_output=True, check=True).stdout)
    assert len(told) == 1


def test_a_vocabulary_without_room_for_the_bytes():
    with pytest.raises(ConfigError, match=r"data\.vocab_size=255: has no room for 256 bytes") as error:
        learn_subwords([PROSE], 255)
    assert "256" in error.value.cure
    with pytest.raises(ConfigError, match="4 special tokens"):
        learn_subwords([PROSE], 259, SPECIAL)


@pytest.mark.parametrize(("text", "kind"), [("héllo\n", "uint8"), ("".join(map(chr, range(256, 700))), "int16"), (PROSE, "uint8")])
def test_characters_are_numbered_by_their_code_points(text, kind):
    vocabulary = characters(text)
    found = numbers(vocabulary, text)
    assert found.dtype == kind
    assert found.tolist() == vocabulary.encode(text) == [sorted(set(text)).index(c) for c in text]
    assert vocabulary.decode(found.tolist()) == text


# -------------------------------------------------------------------- windows

T = 8


def loader(count=400, placement=ONE, *, batch_size=4, train=True):
    """Tokens are their places in the text."""
    order = Order(windows(count, T, train), batch_size, placement, train=train)
    return WindowLoader(torch.arange(count, dtype=torch.int16), T, order)


def starts(batches):
    return [batch.tokens[:, 0].tolist() for batch in batches]


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("epoch", range(4))
def test_a_target_is_the_token_after(train, epoch):
    for batch in loader(train=train).batches(epoch):
        assert batch.tokens.dtype == batch.targets.dtype == torch.int64
        assert batch.tokens.shape == batch.targets.shape == (len(batch.tokens), T)
        assert batch.tokens.is_contiguous() and batch.targets.is_contiguous()
        assert torch.equal(batch.targets, batch.tokens + 1)
        assert torch.equal(batch.tokens - batch.tokens[:, :1], torch.arange(T).expand_as(batch.tokens))


def test_an_epoch_is_a_shuffle_of_windows_end_to_end():
    whole = loader(401, batch_size=1)
    begins = set()
    for epoch in range(40):
        found = [*chain(*starts(whole.batches(epoch)))]
        assert found != sorted(found)
        first = min(found)
        assert sorted(found) == list(range(first, first + T * len(found), T))
        begins.add(first)
    assert len(found) == len(whole) == (401 - T) // T
    assert begins == set(range(T))


def test_evaluation_is_all_windows_in_order():
    found = [*chain(*starts(loader(402, train=False).batches(3)))]
    assert found == list(range(0, 400, T))
    assert [len(batch) for batch in starts(loader(402, train=False).batches(0))] == [4] * 12 + [2]


@pytest.mark.parametrize(("count", "train", "expected"), [(8, False, 0), (9, False, 1), (16, False, 1), (17, False, 2)])
def test_the_last_token_is_but_a_target(count, train, expected):
    assert windows(count, T, train) == expected
    assert len([*chain(*starts(loader(count, train=train).batches(0)))] if expected else []) == expected


@pytest.mark.parametrize(("count", "expected"), [(0, 0), (8, 0), (15, 0), (16, 1), (23, 1), (24, 2)])
def test_training_windows_fit_wherever_they_begin(count, expected):
    assert windows(count, T, train=True) == expected
    assert all(shift + expected * T + 1 <= count for shift in range(T)) or not expected
    assert any(shift + (expected + 1) * T + 1 > count for shift in range(T))


def test_order_is_a_function_of_seed_and_epoch():
    orders = {(seed, epoch): str(starts(loader(placement=Placement(seed=seed)).batches(epoch))) for seed in (0, 1) for epoch in range(3)}
    assert len(set(orders.values())) == 6
    assert orders[1, 2] == str(starts(loader(placement=Placement(seed=1)).batches(2)))


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("start", [0, 1, 5, 11, 12])
def test_beginning_at_a_batch_is_skipping_those_before(train, start):
    some, others = (list(b) for b in (loader(train=train).batches(2, start), islice(loader(train=train).batches(2), start, None)))
    assert len(some) == len(others)
    assert all(torch.equal(x, y) for a, b in zip(some, others, strict=True) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("train", [True, False])
def test_the_ranks_together_see_what_one_process_sees(train):
    one = starts(loader(train=train).batches(1))
    shares = [starts(loader(placement=Placement(rank=rank, world_size=2), train=train).batches(1)) for rank in (0, 1)]
    for batch, *parts in zip(one, *shares, strict=True):
        assert sorted([*chain(*parts)]) == sorted(batch)
        assert not train or [len(part) for part in parts] == [2, 2]


def test_blocks_are_cut_as_batches_are_made_one_by_one():
    many = loader(30000, batch_size=1000)
    many.block = 2
    whole = starts(many.batches(1))
    many.block = 1
    assert starts(many.batches(1)) == whole
    assert loader(batch_size=1).block == BLOCK // (16 * T)


def test_the_global_random_state_is_untouched():
    before = random.getstate(), torch.get_rng_state().tolist()
    list(loader().batches(0))
    assert (random.getstate(), torch.get_rng_state().tolist()) == before


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_windows_on_a_gpu_are_those_of_the_cpu():
    here, there = (list(loader(placement=Placement(device=device)).batches(1)) for device in ("cpu", "cuda"))
    assert all(torch.equal(a.tokens, b.tokens.cpu()) and torch.equal(a.targets, b.targets.cpu()) for a, b in zip(here, there, strict=True))


# -------------------------------------------------------------------- cuts


@pytest.mark.parametrize(("val", "test"), [(0.1, 0.1), (0.05, 0.3), (0.5, 0.25)])
def test_a_cut_is_complete_and_in_order(val, test):
    content = "".join(chr(i) for i in range(1000))
    splits = Cut(val, test)(content)
    assert [*splits] == ["train", "val", "test"]
    assert "".join(splits.values()) == content
    assert abs(len(splits["val"]) - 1000 * val) <= 1 and abs(len(splits["test"]) - 1000 * test) <= 1


def test_without_a_test_the_validation_part_is_tested(tmp_path):
    assert Cut(0.1, 0.0)("x" * 90 + "abcdefghij") == {"train": "x" * 90, "val": "abcdefghij"}
    data = text_file(tmp_path, PROSE, test_fraction=0.0)
    assert [*data.splits] == ["train", "val"], "it is encoded once"
    tested, validated = (list(loader.batches(0)) for loader in (data.test_loader(ONE), data.val_loader(ONE)))
    assert tested
    assert all(torch.equal(a.tokens, b.tokens) for a, b in zip(tested, validated, strict=True))
    with pytest.raises(ConfigError, match=r"data\.test_fraction=0.5: with data\.val_fraction=0.5 leaves nothing"):
        Cut(0.5, 0.5)


def test_subwords_are_learnt_from_the_training_part_alone(tmp_path):
    training, rest = "abcd " * 200, "wxyz " * 20
    data = text_file(tmp_path, training + rest, tokens="subwords", val_fraction=0.05, test_fraction=0.05)
    assert data.spec.vocabulary.encode(" abcd") != data.spec.vocabulary.encode("abcd")
    assert len(data.spec.vocabulary.encode(" abcd")) == 1
    assert len(data.spec.vocabulary.encode(" wxyz")) == 5
    assert data.spec.vocabulary.decode(data.splits["test"].tolist()) == (training + rest)[int(1100 * 0.95) :]


def test_the_spec_is_learnt_once_and_survives_a_checkpoint(tmp_path):
    data = text_file(tmp_path, PROSE, tokens="subwords")
    before = data.spec
    data.prepare()
    assert data.spec is before
    assert type(data).learnt
    assert Spec.from_dict(data.spec.to_dict()) == data.spec == TextSpec(before.vocabulary, 8)


def test_batches_are_the_text(tmp_path):
    data = text_file(tmp_path, PROSE)
    first = next(iter(data.test_loader(ONE).batches(0)))
    text = Cut(0.1, 0.1)(PROSE)["test"]
    assert [data.spec.vocabulary.decode(row) for row in first.tokens.tolist()] == [text[i : i + 8] for i in range(0, 32, 8)]
    assert [data.spec.vocabulary.decode(row) for row in first.targets.tolist()] == [text[i + 1 : i + 9] for i in range(0, 32, 8)]
    assert len(data.train_loader(ONE)) == (int(len(PROSE) * 0.8) - 8) // 8 // 4


# -------------------------------------------------------------------- files of one's own


def test_a_folder_is_read_by_its_names(tmp_path):
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "two.txt").write_bytes("zwölf\r\nBoxkämpfer\r\n".encode("utf-8-sig"))
    (tmp_path / "a.txt").write_text("one\n\n")
    (tmp_path / "c.md").write_text("no text")
    found = read_text(tmp_path)
    assert found.content == "one\n\nzwölf\nBoxkämpfer\n"
    assert [*found.checksums] == ["a.txt", os.path.join("b", "two.txt")]
    assert read_text(tmp_path / "c.md").content == "no text"


@pytest.mark.parametrize(
    ("content", "problem", "cure"),
    [
        (None, "no such file", "data.root"),
        (b"", "is empty", "put a text there"),
        (b" \n\n", "is empty", "put a text there"),
        ("a\nGr\xfc\xdfe".encode("latin1"), "is not UTF-8: byte 0xfc at 4", "iconv"),
    ],
)
def test_a_file_that_cannot_be_read(tmp_path, content, problem, cure):
    file = tmp_path / "text.txt"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(DataError) as error:
        build_text_file(root=str(file), **COMMON, val_fraction=0.1, test_fraction=0.1).prepare()
    assert str(error.value) == f"{file}: {problem}"
    assert cure in error.value.cure
    if content is not None:
        with pytest.raises(DataError, match=problem):
            read_text(tmp_path)


def test_a_folder_without_a_text(tmp_path):
    with pytest.raises(DataError, match=r"holds no \.txt file"):
        read_text(tmp_path)


@pytest.mark.parametrize(("length", "split"), [(12, "training"), (80, "validation"), (60, "validation")])
def test_a_text_that_is_too_short(tmp_path, length, split):
    with pytest.raises(ConfigError, match=rf"data\.block_size=8: the {split} split, \d+ tokens, holds no window") as error:
        text_file(tmp_path, "abcdefghij" * (length // 10) + "k" * (length % 10))
    assert "smaller data.block_size" in error.value.cure


def test_a_batch_that_is_larger_than_an_epoch(tmp_path):
    data = text_file(tmp_path, PROSE, batch_size=10_000)
    with pytest.raises(ConfigError, match=r"data\.batch_size=10000: the training split holds \d+ samples"):
        data.train_loader(ONE)


# -------------------------------------------------------------------- Tiny Shakespeare


@pytest.mark.shared
def test_shakespeare_is_nanogpts(shared_data):
    """The numbers that its prepare.py prints, and how the text begins in them."""
    data = build_tiny_shakespeare(root=str(shared_data), **COMMON, val_fraction=0.1, test_fraction=0.0)
    data.prepare()
    assert {split: len(found) for split, found in data.splits.items()} == {"train": 1_003_854, "val": 111_540}
    tested, validated = (list(loader.batches(0)) for loader in (data.test_loader(ONE), data.val_loader(ONE)))
    assert all(torch.equal(a.targets, b.targets) for a, b in zip(tested, validated, strict=True)), "it is tested on its validation part"
    assert "".join(data.spec.vocabulary.tokens) == "\n !$&',-.3:;?ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
    assert data.splits["train"][:14].tolist() == [18, 47, 56, 57, 58, 1, 15, 47, 58, 47, 64, 43, 52, 10]
    assert data.checksums() == {"tinyshakespeare/input.txt": "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"}


def test_without_a_network_the_file_is_named(tmp_path, monkeypatch):
    for name in ("https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    with pytest.raises(DataError, match=r"tinyshakespeare.input\.txt: is absent") as error:
        build_tiny_shakespeare(root=str(tmp_path), **COMMON, val_fraction=0.1, test_fraction=0.0).prepare()
    assert "https://raw.githubusercontent.com/karpathy/char-rnn" in error.value.cure


# -------------------------------------------------------------------- Python's documentation


@pytest.fixture(scope="module")
def docs():
    return read_python_docs()


def test_some_megabytes_come_out(docs):
    assert 2_000_000 < len(docs.content) < 10_000_000
    assert len(set(docs.content)) < 300
    docs.content.encode()


def test_docstrings_are_those_that_python_shows(docs):
    for thing in (textwrap.wrap, textwrap.TextWrapper, random.Random.shuffle, inspect.cleandoc):
        doc = inspect.getdoc(thing)
        assert f"textwrap.{thing.__qualname__}" in docs.content or thing.__module__ != "textwrap"
        assert doc and doc.split("\n\n")[0] in docs.content
    assert "textwrap.wrap(text, width=70, **kwargs)\n\nWrap a single paragraph" in docs.content


def test_topics_are_those_that_help_shows(docs):
    from pydoc_data.topics import topics

    for word in ("assert", "numbers", "with"):
        assert f"help({word!r})\n\n{topics[word].strip().splitlines()[0]}" in docs.content
    assert sum(f"help({word!r})" in docs.content for word in topics) > 0.8 * len(topics)


@pytest.mark.parametrize("shares", [(0.05, 0.05), (0.2, 0.1)])
def test_no_long_paragraph_is_both_learnt_from_and_tested(docs, shares):
    parts = [{" ".join(p.split()) for p in part.split("\n\n")} for part in Cut(*shares)(docs.content).values()]
    for i, part in enumerate(parts):
        for other in parts[i + 1 :]:
            assert not {paragraph for paragraph in part & other if len(paragraph) >= LONG}


def test_every_process_reads_the_same_and_imports_nothing(docs):
    script = (
        "import sys; from refresher_runner.data.python_docs import read_python_docs\n"
        "read = read_python_docs(); print(*read.checksums.values(), {'torch', 'tkinter', 'turtle', 'this'} & {*sys.modules})"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "7"}
    told = subprocess.run([sys.executable, "-c", script], cwd=ROOT, env=environment, capture_output=True, text=True, check=True).stdout
    assert told.split() == [*docs.checksums.values(), "set()"]


def test_definitions_are_told_wherever_they_stand():
    source = '''
"""Of the module."""
class A(B):
    """Of A."""
    async def f(self, x: int = 1, *, y) -> int:
        """Of f.

          More.
        """
        def g(): "Of g."
try:
    import fast
except ImportError:
    if True:
        def h(*args, **kwargs):
            """Of h."""
class C:
    def silent(self): pass
'''
    assert list(docstrings(ast.parse(source), "m", "m")) == [
        ("m", "Of the module."),
        ("class m.A", "Of A."),
        ("m.A.f(self, x: int=1, *, y)", "Of f.\n\nMore."),
        ("m.A.f.g()", "Of g."),
        ("m.h(*args, **kwargs)", "Of h."),
    ]


def test_what_was_there_before_is_left_out():
    long, seen = "word " * 20, set()
    assert unseen(f"Title\n\n{long}\n\nend", seen) == f"Title\n\n{long}\n\nend"
    assert unseen(f"Title\n\n{long}\n\nnew", seen) == "Title\n\nnew"
    assert unseen(f"Title\n\n   {long}\n\nend", seen) == ""


def test_python_docs_train(docs, monkeypatch):
    monkeypatch.setattr("refresher_runner.data.python_docs.read_python_docs", lambda: docs)
    data = build_python_docs(**COMMON, val_fraction=0.05, test_fraction=0.05)
    data.prepare()
    assert data.checksums() == docs.checksums
    assert sum(len(found) for found in data.splits.values()) == len(docs.content)
    assert next(iter(data.train_loader(ONE).batches(0))).tokens.max() < len(data.spec.vocabulary)


# -------------------------------------------------------------------- configuration


@pytest.mark.parametrize("name", ["python_docs", "tiny_shakespeare", "text_file"])
def test_the_keys_of_a_config_are_its_builders_arguments(name):
    options = yaml.safe_load((CONF / f"{name}.yaml").read_text())
    assert options.pop("name") == name
    signature = DATASETS.signature(name)
    assert signature.yields is TextSpec
    assert check_options(options, signature.options, "data") == options


def test_naming_a_set_loads_neither_torch_nor_tokenizers():
    script = (
        "import sys; import refresher_runner.data.python_docs, refresher_runner.data.translation, refresher_runner.data.dates\n"
        "print([m for m in ('torch', 'numpy', 'tokenizers') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True).stdout == "[]\n"
