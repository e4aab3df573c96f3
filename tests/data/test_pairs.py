"""Sentences and what each becomes: dates, translations, the splits that share nothing, and the laws of their batches."""

import logging
import os
import random
import re
import subprocess
import sys
import zipfile
from collections import Counter
from datetime import date, datetime
from itertools import chain, islice
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from refresher_runner.data.dates import BLOCK_SIZE, DAYS, TEMPLATES, build_dates, draw_dates, write
from refresher_runner.data.pairs import Corpus, PairSet
from refresher_runner.data.sentences import POOL, SentenceLoader, side
from refresher_runner.data.translation import TATOEBA, build_translation, cut, groups, parallel, read_translation, tabbed
from refresher_runner.errors import ConfigError, DataError
from refresher_runner.registry import DATASETS
from refresher_runner.schema import check_options
from refresher_runner.spec import PairBatch, PairSpec, Placement, Spec
from refresher_runner.vocabulary import BEGIN, END, PAD, SPECIAL, characters

ROOT = Path(__file__).parents[2]
CONF = ROOT / "conf" / "data"
ONE = Placement()
FRACTIONS = {"test": 0.2, "val": 0.1}
OWN = {"reverse": False, "vocab_size": 300, "block_size": 64, "val_fraction": 0.1, "test_fraction": 0.2, "split_seed": 0}
SIZES = {"batch_size": 4, "eval_batch_size": 4}


# -------------------------------------------------------------------- batches


def pairs(count=200, placement=ONE, *, batch_size=8, train=True) -> SentenceLoader[PairBatch]:
    """Sentence n is its number, often; lengths differ."""
    draws = random.Random(0)
    source, target = ([[n + 4] * draws.randrange(1, 30) for n in range(count)] for _ in range(2))
    sides = side(source, count + 4), side(target, count + 4)
    return SentenceLoader(PairBatch, sides, batch_size, placement, train=train)


def names(batches):
    return [(batch.source[:, 0] - 4).tolist() for batch in batches]


def test_a_side_is_padded_by_hand():
    made = side([[5, 6], [7], [8, 9, 4]], 300)
    assert made.numbers.tolist() == [[5, 6, PAD], [7, PAD, PAD], [8, 9, 4]]
    assert made.numbers.dtype == np.int16
    assert made.lengths.tolist() == [2, 1, 3]
    assert side([[255]], 256).numbers.dtype == np.uint8
    assert side([[40000]], 40001).numbers.dtype == np.int32


@pytest.mark.parametrize("train", [True, False])
def test_a_batch_holds_whole_sentences_and_is_as_wide_as_the_longest(train):
    loader = pairs(train=train)
    for batch in loader.batches(1):
        for rows, lengths in zip(batch, loader.lengths, strict=True):
            wanted = lengths[rows[:, 0] - 4]
            assert rows.dtype == torch.int64
            assert rows.ne(PAD).sum(1).tolist() == wanted.tolist()
            assert rows.shape[1] == wanted.max()
            assert torch.equal(rows.ne(PAD), torch.arange(rows.shape[1]) < wanted[:, None])
        assert torch.equal(batch.source[:, 0], batch.target[:, 0])


def test_training_is_a_shuffle_of_full_batches():
    found = names(pairs(205).batches(0))
    assert [len(batch) for batch in found] == [8] * 25 == [8] * len(pairs(205))
    assert len({*chain(*found)}) == 200
    assert {*chain(*found)} < {*range(205)}


def test_evaluation_is_complete_and_always_the_same():
    found = names(pairs(205, train=False).batches(0))
    assert sorted(chain(*found)) == list(range(205))
    assert sorted(len(batch) for batch in found) == [5] + [8] * 25
    assert names(pairs(205, Placement(seed=4), train=False).batches(9)) == found


def test_batches_hold_sentences_of_a_length_in_any_order():
    loader = pairs(8 * POOL * 2, batch_size=8)
    widths = [batch.source.shape[1] for batch in loader.batches(0)]
    assert widths != sorted(widths) and widths != sorted(widths, reverse=True)
    kept = sum(int(lengths.sum()) for lengths in loader.lengths)
    laid = sum(batch.source.numel() + batch.target.numel() for batch in loader.batches(0))
    shuffled = sum(8 * int(lengths[i : i + 8].max()) for lengths in loader.lengths for i in range(0, len(lengths), 8))
    assert laid - kept < 0.35 * (shuffled - kept)  # of lengths that have nothing to do with one another


def test_a_pool_is_made_of_the_sentences_that_the_shuffle_put_there():
    loader = pairs(8 * POOL * 2, batch_size=8)
    shuffle = loader.order.batches(3)
    pools = [{*torch.cat(tuple(shuffle[i : i + POOL])).tolist()} for i in (0, POOL)]
    for batch in loader.buckets(3):
        assert any({*batch.tolist()} <= pool for pool in pools)


def test_order_is_a_function_of_seed_and_epoch():
    orders = {(seed, epoch): str(names(pairs(placement=Placement(seed=seed)).batches(epoch))) for seed in (0, 1) for epoch in range(3)}
    assert len(set(orders.values())) == 6
    assert orders[1, 2] == str(names(pairs(placement=Placement(seed=1)).batches(2)))


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("start", [0, 1, 10, 24, 25])
def test_beginning_at_a_batch_is_skipping_those_before(train, start):
    some, others = (list(b) for b in (pairs(train=train).batches(2, start), islice(pairs(train=train).batches(2), start, None)))
    assert len(some) == len(others)
    assert all(torch.equal(x, y) for a, b in zip(some, others, strict=True) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("world", [2, 4])
def test_the_ranks_together_see_what_one_process_sees(train, world):
    one = list(pairs(203, train=train).batches(1))
    shares = [list(pairs(203, Placement(rank=rank, world_size=world), train=train).batches(1)) for rank in range(world)]
    for whole, *parts in zip(one, *shares, strict=True):
        for column in range(2):
            assert sorted(chain(*(part[column].tolist() for part in parts))) == sorted(whole[column].tolist())
        assert not train or {len(part.source) for part in parts} == {8 // world}


def test_a_short_batch_may_leave_a_rank_without_a_sentence():
    found = list(pairs(9, Placement(rank=3, world_size=4), train=False).batches(0))
    assert sorted(len(batch.source) for batch in found) == [0, 2]


def test_a_batch_size_that_cannot_be_had():
    with pytest.raises(ConfigError, match=r"data\.batch_size=201: the training split holds 200"):
        pairs(batch_size=201)
    with pytest.raises(ConfigError, match=r"data\.batch_size=9: cannot be shared evenly by 2"):
        pairs(placement=Placement(world_size=2), batch_size=9)


def test_the_global_random_state_is_untouched():
    before = random.getstate(), str(np.random.get_state()), torch.get_rng_state().tolist()
    list(pairs().batches(0))
    draw_dates(10, 10, 10, 0)
    assert (random.getstate(), str(np.random.get_state()), torch.get_rng_state().tolist()) == before


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_batches_on_a_gpu_are_those_of_the_cpu():
    here, there = (list(pairs(placement=Placement(device=device)).batches(1)) for device in ("cpu", "cuda"))
    assert all(torch.equal(x, y.cpu()) for a, b in zip(here, there, strict=True) for x, y in zip(a, b, strict=True))


# -------------------------------------------------------------------- the set


def letters(*sentences: tuple[str, str], block_size: int = 64, blank: int = 0) -> PairSet:
    vocabulary = characters("abcdefgh", SPECIAL)
    splits = {"train": [*sentences] * 4, "val": sentences, "test": sentences}
    return PairSet(lambda _: Corpus(vocabulary, vocabulary, splits, blank, {"f": "1"}), block_size, 2, 2)


def test_the_source_ends_and_the_target_begins_and_ends():
    data = letters(("ab", "c"), ("a", "fgh"))
    data.prepare()
    (batch,) = data.test_loader(ONE).batches(0)
    rows = {tuple(s): tuple(t) for s, t in zip(batch.source.tolist(), batch.target.tolist(), strict=True)}
    assert rows == {(4, 5, END): (BEGIN, 6, END, PAD, PAD), (4, END, PAD): (BEGIN, 9, 10, 11, END)}
    assert data.spec.target.decode(batch.target[0].tolist()) in ("c", "fgh")


def test_sentences_that_are_too_long_are_left_out_and_counted_once(caplog):
    data = letters(("ab", "abcd"), ("abcdef", "a"), ("abcde", "a"), block_size=6, blank=3)
    with caplog.at_level(logging.WARNING):
        data.prepare()
    assert [record.getMessage() for record in caplog.records] == [
        "9 of 21 pairs left out: 3 have an empty side, 6 are longer than data.block_size=6 tokens"
    ]
    assert {split: len(found[0].lengths) for split, found in data.splits.items()} == {"train": 8, "val": 2, "test": 2}
    assert max(part.numbers.shape[1] for found in data.splits.values() for part in found) == 6


def test_a_block_size_below_every_sentence():
    with pytest.raises(ConfigError, match=r"data\.block_size=5: is less than any sentence of the train split takes") as error:
        letters(("ab", "abcd"), ("abcde", "a"), block_size=5).prepare()
    assert error.value.cure == "6 or more"


def test_nothing_is_logged_where_nothing_is_left_out(caplog):
    letters(("ab", "abcd")).prepare()
    assert not caplog.records


# -------------------------------------------------------------------- dates

UNITS = ["", "first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth", "eleventh", "twelfth"]
UNITS += ["thirteenth", "fourteenth", "fifteenth", "sixteenth", "seventeenth", "eighteenth", "nineteenth", "twentieth"]
NUMBER = {word: n for n, word in enumerate(UNITS) if word} | {f"twenty-{UNITS[n]}": 20 + n for n in range(1, 10)}
NUMBER |= {"thirtieth": 30, "thirty-first": 31}
FORMATS = ["%Y-%m-%d", "%Y/%m/%d", "%Y.%m.%d", "%Y%m%d", "%m/%d/%Y", "%m/%d/%y", "%d.%m.%Y", "%d.%m.%y", "%d %b %Y", "%d %b %y"]
FORMATS += ["%b %d %Y", "%b %d %y", "%Y %b %d", "%d-%b-%Y", "%d-%b-%y"]


def parse(text: str) -> tuple[set[date], str]:
    """All that the text may mean to `strptime`, and its weekday, if it names one."""
    text = text.lower()
    weekday = re.match(r"(mon|tue|wed|thu|fri|sat|sun)[a-z]*\b\.?,? ", text)
    text = text[weekday.end() if weekday else 0 :]
    text = re.sub("|".join(sorted(NUMBER, key=len, reverse=True)), lambda word: str(NUMBER[word[0]]), text)
    text = re.sub(r"(?<=\d)(st|nd|rd|th)\b|\b(the|of)\b|[,']", "", text)
    text = re.sub(r"\b([a-z]{3})[a-z]*\.?", r"\1", text)  # a month by its first three letters
    text = re.sub(r"(?<=\d)\. (?=\d)", ".", " ".join(text.split()))
    found = set()
    for form in FORMATS:
        # What strptime takes for 1 1 98 it takes for 11 98 as well; a year has four digits where it is said to.
        if bool(re.search(r"\d{4}", text)) == ("%Y" in form) and (form == "%Y%m%d") == text.isdecimal():
            try:
                found.add(datetime.strptime(text, form).date())
            except ValueError:
                continue
    return found, weekday[1] if weekday else ""


def check(written: str, iso: str) -> None:
    days, weekday = parse(written)
    assert {day.isoformat() for day in days} == {iso}, written
    assert not weekday or date.fromisoformat(iso).strftime("%a").lower() == weekday, written


@pytest.fixture(scope="module")
def drawn() -> Corpus:
    return draw_dates(3000, 300, 300, 0)


def test_every_date_can_be_read_and_in_one_way_only(drawn):
    for written, iso in chain(*drawn.splits.values()):
        check(written, iso)


@pytest.mark.parametrize("template", range(len(TEMPLATES)))
@pytest.mark.parametrize("case", [0.0, 0.15, 0.9])
def test_every_style_of_every_day_of_a_month(template, case):
    class Draws(random.Random):
        """One style after the other, in one case."""

        def random(self) -> float:
            return next(self.values)  # type: ignore[attr-defined]

    for day in (date(year, month, number) for year in (1969, 2068) for month in (2, 5, 9, 12) for number in range(1, 29)):
        draws = Draws()
        draws.values = iter([(template + 0.5) / len(TEMPLATES), case])  # type: ignore[attr-defined]
        check(write(day, draws), day.isoformat())


def test_years_of_two_digits_are_those_of_posix():
    draws = random.Random(0)
    for _ in range(3000):
        day = date.fromordinal(draws.randrange(date(1800, 1, 1).toordinal(), date(2200, 1, 1).toordinal()))
        if not 1969 <= day.year <= 2068:
            assert str(day.year) in write(day, draws)


def test_styles_are_many_and_all_in_use(drawn):
    assert len(TEMPLATES) == len(set(TEMPLATES)) > 50
    shapes = Counter(re.sub(r"[a-z]+", "a", re.sub(r"\d", "9", written.lower())) for written, _ in drawn.splits["train"])
    assert len(shapes) > 60
    assert max(shapes.values()) < 0.1 * 3000
    assert {written == written.upper() for written, _ in drawn.splits["train"] if re.search("[A-Za-z]{4}", written)} == {True, False}


def test_no_day_is_of_two_splits():
    days = {split: [iso for _, iso in found] for split, found in draw_dates(DAYS, 1000, 2000, 3).splits.items()}
    assert {split: len(found) for split, found in days.items()} == {"train": DAYS, "val": 1000, "test": 2000}
    assert not {*days["train"]} & {*days["val"]} and not {*days["train"]} & {*days["test"]} and not {*days["val"]} & {*days["test"]}
    assert len({*days["val"]}) == 1000 and len({*days["test"]}) == 2000
    assert len({*days["train"]} | {*days["val"]} | {*days["test"]}) == DAYS == 146_097
    assert max(Counter(days["train"]).values()) == 2
    assert min(days["test"])[:2] == "18" and max(days["test"])[:2] == "21"


def test_a_date_depends_on_the_split_seed_and_its_place_alone(drawn):
    longer, other = draw_dates(4000, 300, 300, 0), draw_dates(3000, 300, 300, 1)
    assert longer.splits["train"][:3000] == drawn.splits["train"]
    assert other.splits["train"] != drawn.splits["train"]
    assert {*(iso for _, iso in other.splits["test"])} != {*(iso for _, iso in drawn.splits["test"])}


def test_the_dates_are_the_same_for_ever(drawn):
    """Hard-coded: a run that is resumed or tested under a later version sees what it saw."""
    known = [("2122, Jul 19", "2122-07-19"), ("the 15th of December 2076", "2076-12-15"), ("20-Mar-26", "2026-03-20")]
    assert drawn.splits["test"][:3] == known


def test_dates_as_a_set():
    data = build_dates(train_count=400, val_count=50, test_count=60, split_seed=0, batch_size=16, eval_batch_size=32)
    data.prepare()
    spec = data.spec
    assert spec == PairSpec(spec.source, spec.source, BLOCK_SIZE) == Spec.from_dict(spec.to_dict())
    assert spec.source.tokens[:4] == SPECIAL
    known = {*chain(*(found for found in draw_dates(400, 50, 60, 0).splits.values()))}
    for loader in (data.train_loader(ONE), data.val_loader(ONE), data.test_loader(ONE)):
        for batch in loader.batches(0):
            assert batch.target.shape[1] == 12
            for source, target in zip(batch.source.tolist(), batch.target.tolist(), strict=True):
                assert (spec.source.decode(source), spec.target.decode(target)) in known


def test_no_style_is_longer_than_the_block_nor_has_an_unknown_character():
    widest = max((date(2001, 9, number) for number in range(1, 31)), key=lambda day: len(day.strftime("%A")))
    vocabulary = draw_dates(1, 1, 1, 0).source
    draws = random.Random(0)
    for day in [widest, *(date(2001, 9, number) for number in range(1, 31))] * 100:
        numbers = vocabulary.encode(write(day, draws))
        assert len(numbers) + 1 < BLOCK_SIZE
        assert min(numbers) >= 4


def test_more_days_than_there_are():
    with pytest.raises(ConfigError, match=r"data\.test_count=146000: with data\.val_count=97 leaves no day") as error:
        build_dates(train_count=1, val_count=97, test_count=146000, split_seed=0, **SIZES)
    assert "146097" in error.value.cure


# -------------------------------------------------------------------- translation

LINES = [f"word{i % 97} is here.\tWort{i % 89} ist da{'!' * (i % 3)}" for i in range(0, 4000, 7)]


def tabs(tmp_path, *lines, **options):
    (tmp_path / "pairs.tsv").write_text("\n".join(lines or LINES) + "\n", encoding="utf-8")
    return build_translation(root=str(tmp_path), layout="tabs", files=["pairs.tsv"], **{**OWN, **options}, **SIZES)


def key(sentence: str) -> str:
    return "".join(c for c in sentence.casefold() if c.isalnum())


def assert_apart(splits) -> None:
    """No sentence of either side is in two splits, whatever its capitals and punctuation."""
    for column in (0, 1):
        sides = [{key(pair[column]) for pair in found} for found in splits.values()]
        for i, one in enumerate(sides):
            for other in sides[i + 1 :]:
                assert not one & other


def test_what_hangs_together_is_one_group():
    some = [("Hi!", "Hallo"), ("hi", "Tag"), ("Yes", "Ja"), ("Hello", "hallo!"), ("Ja", "Yes"), ("?", "!"), ("Hello", "Moin")]
    found = groups(some).tolist()
    assert found[0] == found[1] == found[3] == found[6]
    assert len(set(found)) == 4


def test_groups_are_those_of_scipy():
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    draws = np.random.RandomState(0)
    left, right = draws.randint(400, size=(2, 300))
    graph = coo_matrix((np.ones(300), (left, 400 + right)), shape=(800, 800))
    wanted = connected_components(graph, directed=False)[1][left]
    found = groups([(f"a{i}", f"b{j}") for i, j in zip(left, right, strict=True)])
    assert len({*zip(found.tolist(), wanted.tolist(), strict=True)}) == len({*found.tolist()}) == len({*wanted.tolist()})


@pytest.mark.parametrize("seed", range(3))
def test_a_cut_takes_whole_groups_and_about_its_share(seed):
    of = np.random.RandomState(seed).randint(1000, size=5000)
    splits = cut(np.unique(of, return_inverse=True)[1], FRACTIONS, seed)
    assert (sum(part.astype(int) for part in splits.values()) == 1).all()
    for split, share in FRACTIONS.items():
        assert abs(splits[split].mean() - share) < 0.01
        assert not {*of[splits[split]]} & {*of[~splits[split]]}


def test_pairs_of_ones_own(tmp_path):
    data = tabs(tmp_path, *(f"a {w}\tb {w}{w}" for w in map(str, range(200))))
    data.prepare()
    assert {split: len(found[0].lengths) for split, found in data.splits.items()} == {"train": 140, "val": 20, "test": 40}
    (batch, *_) = data.test_loader(ONE).batches(0)
    for source, target in zip(batch.source.tolist(), batch.target.tolist(), strict=True):
        word = data.spec.source.decode(source).removeprefix("a ")
        assert data.spec.target.decode(target) == f"b {word}{word}"
    assert len(data.checksums()["pairs.tsv"]) == 64
    assert Spec.from_dict(data.spec.to_dict()) == data.spec


def test_reversed_is_the_same_turned_round(tmp_path):
    one, two = (
        read_translation(tmp_path, "tabs", ["pairs.tsv"], reverse, 300, FRACTIONS, 0)
        for reverse in (False, True)
        if tabs(tmp_path, *(f"a {w}\tb {w}" for w in map(str, range(200))))
    )
    assert {*one.splits["test"]} == {(a, b) for b, a in two.splits["test"]}
    assert all(source[0] == "b" for source, _ in two.splits["train"])


def test_lines_with_tabs(tmp_path):
    content = b"\xef\xbb\xbfGo. \tGeh.\tCC-BY 2.0 (France)\r\n\r\nHi.\t\r\n"
    assert tabbed(Path("f"), content) == [("Go.", "Geh."), ("Hi.", "")]
    with pytest.raises(DataError, match=r"pairs\.tsv: line 2 has no tab") as error:
        tabs(tmp_path, "a\tb", "no tab").prepare()
    assert "a tab" in error.value.cure


def test_parallel_files(tmp_path):
    (tmp_path / "x.en").write_text("".join(f"a {w}\n" for w in range(50)) + "\n")
    (tmp_path / "x.de").write_text("".join(f"b {w}\n" for w in range(50)) + "b\n")
    corpus = read_translation(tmp_path, "parallel", ["x.en", "x.de"], False, 300, FRACTIONS, 0)
    assert sorted(chain(*corpus.splits.values())) == sorted((f"a {w}", f"b {w}") for w in range(50))
    assert corpus.blank == 1
    assert [*corpus.checksums] == ["x.en", "x.de"]
    with pytest.raises(DataError, match="b: has 2 lines, and a has 1") as error:
        parallel((Path("a"), b"one\n"), (Path("b"), b"eins\nzwei\n"))
    assert "line n" in error.value.cure


def test_subwords_are_learnt_from_the_training_pairs_alone(tmp_path):
    tabs(tmp_path, *(f"{chr(97 + w // 26)}{chr(97 + w % 26)}xyzzy{w}\tb{w}" for w in range(300)))
    corpus = read_translation(tmp_path, "tabs", ["pairs.tsv"], False, 5000, FRACTIONS, 0)
    trained = " ".join(chain(*corpus.splits["train"]))
    merged = [token.removeprefix("Ġ") for token in corpus.source.tokens[4 + 256 :]]
    assert all(token in trained for token in merged)
    assert corpus.source is corpus.target


@pytest.mark.parametrize(
    ("layout", "files", "problem"),
    [("tatoeba", ["a"], "brings its own"), ("tabs", [], "needs one or more"), ("parallel", ["a"], "needs two")],
)
def test_files_that_do_not_fit_the_layout(layout, files, problem):
    with pytest.raises(ConfigError, match=rf"data\.files=.*: data\.layout={layout} {problem}"):
        build_translation(root=".", layout=layout, files=files, **OWN, **SIZES)


def test_other_mistakes(tmp_path):
    with pytest.raises(ConfigError, match=r"data\.test_fraction=0\.2: with data\.val_fraction=0\.8 leaves nothing"):
        tabs(tmp_path, val_fraction=0.8)
    with pytest.raises(DataError, match=r"none\.tsv: no such file") as error:
        build_translation(root=str(tmp_path), layout="tabs", files=["none.tsv"], **OWN, **SIZES).prepare()
    assert "data.root" in error.value.cure
    with pytest.raises(DataError, match=r"2 pairs are too few for a (test|val) split"):
        tabs(tmp_path, "a\tb", "c\td").prepare()
    with pytest.raises(DataError, match="0 pairs are too few"):
        tabs(tmp_path, "a\t", "c\t").prepare()
    with pytest.raises(ConfigError, match=r"data\.vocab_size=200: has no room"):
        tabs(tmp_path, *(f"a {w}\tb {w}" for w in range(50)), vocab_size=200).prepare()


def test_without_a_network_the_archive_is_named(tmp_path, monkeypatch):
    for name in ("https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    with pytest.raises(DataError, match=r"deu-eng\.zip: is absent") as error:
        build_translation(root=str(tmp_path), layout="tatoeba", files=[], **OWN, **SIZES).prepare()
    assert TATOEBA.url in error.value.cure


@pytest.mark.shared
@pytest.mark.slow
def test_tatoeba(shared_data, caplog):
    options = {"vocab_size": 8000, "block_size": 64, "val_fraction": 0.01, "test_fraction": 0.02, "split_seed": 0}
    corpus = read_translation(shared_data, "tatoeba", [], True, 8000, {"test": 0.02, "val": 0.01}, 0)
    with zipfile.ZipFile(shared_data / TATOEBA.path) as archive:
        lines = archive.read("deu.txt").decode().splitlines()
    assert Counter(chain(*corpus.splits.values())) == Counter((b, a) for a, b in (line.split("\t") for line in lines))
    assert abs(len(corpus.splits["test"]) - 0.02 * 169_813) < 5 and abs(len(corpus.splits["val"]) - 0.01 * 169_813) < 5
    assert_apart(corpus.splits)
    assert ("Hallo!", "Hi.") in chain(*corpus.splits.values())
    data = build_translation(
        root=str(shared_data), layout="tatoeba", files=[], reverse=True, **options, batch_size=128, eval_batch_size=256
    )
    data.prepare()
    assert not caplog.records
    known = {*corpus.splits["test"]}
    seen = Counter()
    for batch in data.test_loader(ONE).batches(0):
        for source, target in zip(batch.source.tolist(), batch.target.tolist(), strict=True):
            pair = data.spec.source.decode(source), data.spec.target.decode(target)
            assert pair in known
            seen[pair] += 1
    assert seen.total() == len(corpus.splits["test"])
    batches = list(data.train_loader(ONE).batches(0))
    padding = sum(int(batch.source.eq(PAD).sum() + batch.target.eq(PAD).sum()) for batch in batches)
    places = sum(batch.source.numel() + batch.target.numel() for batch in batches)
    assert padding < 0.08 * places


# -------------------------------------------------------------------- configuration


@pytest.mark.parametrize("name", ["dates", "translation"])
def test_the_keys_of_a_config_are_its_builders_arguments(name):
    options = yaml.safe_load((CONF / f"{name}.yaml").read_text())
    assert options.pop("name") == name
    signature = DATASETS.signature(name)
    assert signature.yields is PairSpec
    assert check_options(options, signature.options, "data") == options


def test_every_process_draws_the_same_dates():
    script = "from refresher_runner.data.dates import draw_dates; print(draw_dates(20, 5, 5, 7).splits)"
    environment = {**os.environ, "PYTHONHASHSEED": "3"}
    told = subprocess.run([sys.executable, "-c", script], cwd=ROOT, env=environment, capture_output=True, text=True, check=True).stdout
    assert told.strip() == str(draw_dates(20, 5, 5, 7).splits)
