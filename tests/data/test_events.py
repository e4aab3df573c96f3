"""Who came to what: nothing of the future is learnt from, everything is asked for once, and a set says what it holds."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from refresher_runner.data import movielens
from refresher_runner.data.csv import build_csv
from refresher_runner.data.events import Events, InteractionSet, Rows, ordered
from refresher_runner.data.fetch import sha256
from refresher_runner.data.interactions import CHOSEN, Law, build_interactions, draw
from refresher_runner.errors import ConfigError, DataError
from refresher_runner.nn.word_vectors import write_vectors
from refresher_runner.spec import InteractionSpec, Placement, Spec

CUT = {"split": "last", "val_count": 1, "test_count": 1, "cold_fraction": 0.0, "split_seed": 0}
BATCHES = {"block_size": 4, "stride": 3, "batch_size": 8, "eval_batch_size": 7}
DRAWN = {"users": 40, "items": 30, "events": 9, "draw_seed": 0}


def interactions(**options) -> InteractionSet:
    data = build_interactions(**{**DRAWN, **CUT, **BATCHES, **options})
    assert isinstance(data, InteractionSet)
    data.prepare()
    return data


def history_of(data: InteractionSet, user: int, parts: tuple[int, ...]) -> list[int]:
    """The items of a user that are of some parts, in order."""
    begin, end = (0, *data.spec.log.ends.tolist())[user : user + 2]
    return [
        item for item, part in zip(data.spec.log.items[begin:end].tolist(), data.parts[begin:end].tolist(), strict=True) if part in parts
    ]


def rows_of(loader) -> list[tuple[int, list[int], int]]:
    """Of a whole epoch: user, the events before a place, and what is to be foretold there."""
    found = []
    for batch in loader.batches(0):
        for row, place, item in batch.wanted.tolist():
            found.append((int(batch.users[row]), batch.events[row, :place].tolist(), item))
    return found


# -------------------------------------------------------------------- cuts


@pytest.mark.parametrize(("block_size", "stride"), [(0, 1), (1, 1), (4, 1), (4, 3), (4, 4), (20, 3), (20, 20)])
@pytest.mark.parametrize("split", ["last", "random"])
def test_every_event_of_training_is_foretold_once_from_those_just_before(split, stride, block_size):
    data = interactions(split=split, stride=stride, block_size=block_size, batch_size=1, val_count=2)
    rows = rows_of(data.train_loader(Placement()))
    learnt = {user: history_of(data, user, (0,)) for user in range(40)}
    assert sorted((user, item) for user, _, item in rows) == sorted((user, item) for user, items in learnt.items() for item in items)
    for user, before, item in rows:
        place = learnt[user].index(item)
        known = learnt[user][max(0, place - block_size) : place]
        assert before == known[len(known) - len(before) :]
        assert len(before) > len(known) - stride


@pytest.mark.parametrize("split", ["last", "random"])
def test_what_is_asked_is_known_to_nobody_before(split):
    data = interactions(split=split, val_count=2, test_count=3)
    for loader, known_parts, part in ((data.val_loader, (0,), 1), (data.test_loader, (0, 1), 2)):
        asked = set()
        for batch in loader(Placement()).batches(0):
            for row, user in enumerate(batch.users.tolist()):
                known = history_of(data, user, known_parts)
                assert batch.seen[batch.seen[:, 0] == row, 1].tolist() == known
                assert [item for item in batch.events[row].tolist() if item >= 0] == known[-4:]
                wanted = batch.wanted[batch.wanted[:, 0] == row]
                assert wanted[:, 2].tolist() == history_of(data, user, (part,))
                assert set(wanted[:, 1].tolist()) == {min(4, len(known))}
                asked.add(user)
        assert asked == set(range(40))
    if split == "last":
        everything = [history_of(data, user, (0, 1, 2)) for user in range(40)]
        assert all(
            items == [*history_of(data, u, (0,)), *history_of(data, u, (1,)), *history_of(data, u, (2,))]
            for u, items in enumerate(everything)
        )


def test_counts_are_of_what_is_learnt_from():
    data = interactions()
    learnt = [item for user in range(40) for item in history_of(data, user, (0,))]
    assert data.spec.log.counts.tolist() == np.bincount(learnt, minlength=30).tolist()


def test_cold_items_are_asked_for_and_never_learnt_from():
    data = interactions(cold_fraction=0.3, users=200)
    cold = data.spec.log.counts == 0
    assert 0.1 < cold.double().mean() < 0.5
    assert not any(cold[item] or any(cold[event] for event in before) for _, before, item in rows_of(data.train_loader(Placement())))
    asked = [item for _, _, item in rows_of(data.test_loader(Placement()))]
    assert any(cold[item] for item in asked)
    assert data.spec.best_recall is None  # the law's, of what is no longer drawn by it


def test_who_came_too_seldom_is_learnt_from_alone():
    events = Events(torch.tensor([0, 0, 1, 1, 1, 1]), torch.tensor([0, 1, 0, 1, 2, 3]), torch.arange(6))
    from refresher_runner.data.events import Kept, parted

    users, items = ordered(events)
    parts, kept = parted(users, items, Kept("last", 1, 1, 0.0, 0), 4)
    assert parts.tolist() == [0, 0, 0, 0, 1, 2]
    assert kept.all()


def test_events_are_ordered_by_time_then_item_and_repeats_count_once():
    events = Events(torch.tensor([1, 0, 1, 1, 1]), torch.tensor([5, 2, 3, 4, 3]), torch.tensor([9, 1, 7, 7, 8]))
    users, items = ordered(events)
    assert users.tolist() == [0, 1, 1, 1]
    assert items.tolist() == [2, 3, 4, 5]


def test_two_ranks_share_every_batch():
    data = interactions(stride=1)
    whole = [batch.wanted[:, 2].tolist() for batch in data.train_loader(Placement(seed=3)).batches(2)]
    halves = [[b.wanted[:, 2].tolist() for b in data.train_loader(Placement(seed=3, rank=r, world_size=2)).batches(2)] for r in (0, 1)]
    assert whole == [first + second for first, second in zip(*halves, strict=True)]


def test_an_epoch_can_begin_anywhere():
    data = interactions()
    batches = list(data.train_loader(Placement()).batches(1))
    later = list(data.train_loader(Placement()).batches(1, start=3))
    assert all(torch.equal(a, b) for x, y in zip(batches[3:], later, strict=True) for a, b in zip(x, y, strict=True))


def test_a_spec_survives_a_checkpoint(tmp_path: Path):
    spec = interactions().spec
    torch.save(spec.to_dict(), tmp_path / "spec.pt")
    again = Spec.from_dict(torch.load(tmp_path / "spec.pt", weights_only=True))
    assert isinstance(again, InteractionSpec)
    assert again == spec
    assert again != interactions(draw_seed=1).spec
    assert again.log.of(0).tolist() == spec.log.items[:9].tolist()


def test_nothing_left_is_an_error():
    with pytest.raises(ConfigError, match="val_count"):
        interactions(val_count=9)
    with pytest.raises(ConfigError, match=r"data\.stride"):
        interactions(block_size=2)
    with pytest.raises(ConfigError, match=r"data\.events"):
        build_interactions(**{**DRAWN, **CUT, **BATCHES, "events": 30})


# -------------------------------------------------------------------- the law


def test_the_best_recall_is_what_the_law_itself_reaches():
    """Who knows the law recommends the ten likeliest, and is right as often as it says: within 3.5 standard deviations of 3,000 users."""
    users, items, events = 3000, 60, 5
    found = draw(users, items, events, 1)
    chosen = found.events.items.view(users, events).numpy()
    law = Law(users, items, 1)
    known = np.zeros((users, items), bool)
    for place in range(events - 1):
        known[np.arange(users), chosen[:, place]] = True
    p = law.probabilities(known, chosen[:, -2])
    assert np.allclose(p.sum(1), 1)
    assert not p[known].any()
    best = np.argsort(-p, 1)[:, :CHOSEN]
    hits = (best == chosen[:, -1:]).any(1)
    assert found.best_recall is not None
    assert abs(hits.mean() - found.best_recall) < 3.5 * hits.std() / users**0.5
    assert np.isclose(found.best_recall, np.take_along_axis(p, best, 1).sum(1).mean())


def test_features_tell_the_law():
    found, law = draw(50, 20, 5, 0), Law(50, 20, 0)
    group, values = found.users.columns[0], found.users.values[0]
    assert [group.names[v] for v in values[:, 0].tolist()] == [sorted(set(group.names))[g] for g in law.group.tolist()]
    age = found.users.values[1][:, 0]
    assert torch.allclose(age, torch.tensor((law.age - law.age.mean()) / law.age.std()).float(), atol=2e-3)
    assert found.items.names[0] == "amber amber ballads 1"


# -------------------------------------------------------------------- one's own tables


def tables(folder: Path) -> Path:
    (folder / "events.csv").write_text("user,item,when\nann,b,3\nann,a,1\nann,c,2\nbob,a,5\nbob,b,6\nbob,10,7\n", encoding="utf-8")
    (folder / "items.csv").write_text(
        'item,name,kinds,size\na,Apple pie,sweet|baked,1\nb,Bread,baked,2\nc,"Coffee, black",,\n10,Apple pie,sweet,3\n', encoding="utf-8"
    )
    return folder


def own(folder: Path, **options) -> InteractionSet:
    given = {
        "events": "events.csv",
        "user": "user",
        "item": "item",
        "time": "when",
        "users": None,
        "user_columns": {},
        "items": "items.csv",
        "title": "name",
        "item_columns": {"kinds": "category", "size": "number", "name": "text"},
        "separator": ",",
        "listed_by": "|",
        "text_vectors": None,
    }
    data = build_csv(root=str(folder), **{**given, **CUT, **BATCHES, **options})
    assert isinstance(data, InteractionSet)
    data.prepare()
    return data


def test_tables_of_ones_own(tmp_path: Path):
    data = own(tables(tmp_path))
    spec = data.spec
    assert spec.users.names == ("ann", "bob")
    assert spec.items.names == ("Apple pie", "Apple pie [a]", "Bread", "Coffee, black")  # 10, a, b, c
    kinds, size, words = spec.items.columns
    assert (kinds.names, words.names[:2]) == (("baked", "sweet"), ("apple", "pie"))
    assert spec.items.values[0].tolist() == [[1, -1], [1, 0], [0, -1], [-1, -1]]
    known = torch.tensor([3.0, 1.0, 2.0])
    assert torch.allclose(spec.items.values[1][:3, 0], (known - 2) / known.sub(2).square().mean().sqrt())
    assert spec.items.values[1][3] == 0
    assert history_of(data, 0, (0, 1, 2)) == [1, 3, 2]
    assert data.checksums() == {name: sha256((tmp_path / name).read_bytes()) for name in ("events.csv", "items.csv")}
    assert size.names == ()


def test_without_a_time_the_files_order_counts(tmp_path: Path):
    assert history_of(own(tables(tmp_path), time=None), 0, (0, 1, 2)) == [2, 1, 3]


@pytest.mark.parametrize(
    ("file", "text", "options", "said"),
    [
        ("events.csv", None, {}, "no such file"),
        ("events.csv", "user,item,when\n", {}, "holds no rows"),
        ("events.csv", "user,thing,when\nann,a,1\n", {}, "has no column 'item'"),
        ("events.csv", "user,item,when\nann,a\n", {}, "line 2 has 2 parts"),
        ("events.csv", "user,item,when\nann,a,noon\n", {}, "holds 'noon'"),
        ("items.csv", "item,name,kinds,size\na,Apple,sweet,large\n", {}, "is no number"),
        ("items.csv", "item,name\na,Apple\n", {}, "has no column 'kinds'"),
        ("items.csv", "item,name,kinds,size\na,x.png,,\n", {"item_columns": {"name": "picture"}}, "no such file"),
    ],
)
def test_a_table_that_is_not_right_is_named(tmp_path: Path, file, text, options, said):
    tables(tmp_path)
    (tmp_path / file).write_text(text, encoding="utf-8") if text else (tmp_path / file).unlink()
    with pytest.raises(DataError, match=said):
        own(tmp_path, **options)


@pytest.mark.parametrize("suffix", ["txt", "bin"])
def test_words_begin_with_vectors_of_a_file(tmp_path: Path, suffix: str):
    file, vectors = tmp_path / f"vectors.{suffix}", torch.randn(3, 4)
    write_vectors(file, ["bread", "wine", "pie"], vectors)
    [words] = [column for column in own(tables(tmp_path), text_vectors=str(file)).spec.items.columns if column.kind == "text"]
    assert words.vectors is not None
    expected = {"bread": vectors[0], "pie": vectors[2]}
    for word, vector in zip(words.names, words.vectors, strict=True):
        torch.testing.assert_close(vector, expected.get(word, torch.zeros(4)), atol=1e-5, rtol=1e-4)
    write_vectors(file, ["wine"], vectors[:1])
    with pytest.raises(DataError, match="none of the words"):
        own(tables(tmp_path), text_vectors=str(file))


def test_columns_without_a_table(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"data\.user_columns"):
        own(tables(tmp_path), user_columns={"city": "category"})


# -------------------------------------------------------------------- MovieLens

FILMS = 'movieId,title,genres\n1,Toy Story (1995),Adventure|Animation\n2,Heat (1995),Action\n3,"Net, The (1996)",(no genres listed)\n'


def lens(root: Path, version: str, **options) -> InteractionSet:
    data = movielens.build_movielens(
        **{"root": str(root), "version": version, "min_rating": None, "text_vectors": None, **CUT, **BATCHES, **options}
    )
    assert isinstance(data, InteractionSet)
    data.prepare()
    return data


def test_the_layout_of_the_latest(tmp_path: Path):
    folder = tmp_path / "ml-latest-small"
    folder.mkdir()
    (folder / "ratings.csv").write_text("userId,movieId,rating,timestamp\r\n7,2,5.0,30\r\n7,1,4.0,20\r\n7,3,0.5,10\r\n", encoding="utf-8")
    (folder / "movies.csv").write_text(FILMS, encoding="utf-8")
    spec = lens(tmp_path, "ml-latest-small").spec
    assert (spec.users.names, spec.items.names) == (("7",), ("Toy Story (1995)", "Heat (1995)", "Net, The (1996)"))
    assert spec.log.items.tolist() == [2, 0, 1]
    genres, title, _ = spec.items.columns
    assert genres.names == ("Action", "Adventure", "Animation")
    assert spec.items.values[0].tolist() == [[1, 2], [0, -1], [-1, -1]]
    assert set(title.names) == {"toy", "story", "heat", "net", "the"}
    with pytest.raises(ConfigError, match="val_count"):
        lens(tmp_path, "ml-latest-small", min_rating=4.0)


def test_the_layout_of_the_million_out_of_its_archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("ml-1m/ratings.dat", "1::1::5::3\n1::2::4::2\n1::3::3::1\n2::1::5::1\n2::2::1::2\n2::3::2::3\n")
        archive.writestr(
            "ml-1m/movies.dat", "1::Toy Story (1995)::Animation\n2::Été (1990)::Drama\n3::Heat (1995)::Action|Crime\n".encode("latin-1")
        )
        archive.writestr("ml-1m/users.dat", "1::F::1::10::48067\n2::M::56::16::70072\n")
    (tmp_path / "ml-1m.zip").write_bytes(packed.getvalue())
    monkeypatch.setitem(movielens.DIGESTS, "ml-1m", sha256(packed.getvalue()))
    spec = lens(tmp_path, "ml-1m").spec
    assert spec.items.names == ("Toy Story (1995)", "Été (1990)", "Heat (1995)")
    assert [column.name for column in spec.users.columns] == ["gender", "age", "occupation"]
    assert spec.users.columns[2].names == ("K-12 student", "self-employed")
    assert spec.log.items.tolist() == [2, 1, 0, 0, 1, 2]


def test_what_is_no_file_of_ratings_is_named(tmp_path: Path):
    folder = tmp_path / "ml-20m"
    folder.mkdir()
    (folder / "movies.csv").write_text(FILMS, encoding="utf-8")
    for text in ("userId,movieId\n1,2\n", "userId,movieId,rating,timestamp\n1,two,3,4\n"):
        (folder / "ratings.csv").write_text(text, encoding="utf-8")
        with pytest.raises(DataError, match=r"ratings\.csv"):
            lens(tmp_path, "ml-20m")


def test_the_real_one(shared_data: Path):
    spec = lens(shared_data, "ml-latest-small", block_size=50).spec
    assert (len(spec.users), len(spec.items), len(spec.log.items)) == (610, 9724, 100_836)
    assert int(spec.log.counts.sum()) == 100_836 - 2 * 610
    assert spec.items.names[0] == "Toy Story (1995)"


def test_rows_need_no_history():
    log = interactions().spec.log
    rows = Rows.of(log, torch.zeros(len(log.items), dtype=torch.uint8), 0, 1)
    assert isinstance(rows.begin, Tensor)
    assert torch.equal(rows.begin, rows.first)
