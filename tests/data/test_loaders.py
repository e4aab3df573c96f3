"""Laws of the two loaders: order, draws, ranks, beginning anywhere, and leaving the global random state alone."""

import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from itertools import chain, islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
import torchvision.transforms.v2.functional as reference
from torch import Tensor

from refresher_runner.data.loaders import BLOCK, Crops, FileLoader, MemoryLoader, Order, mix, seeded
from refresher_runner.errors import ConfigError, DataError, TrainingError
from refresher_runner.spec import ImageBatch, ImageSpec, Placement

SPEC = ImageSpec(channels=3, size=6, classes=("a", "b"), mean=(0.2, 0.3, 0.4), std=(0.5, 0.6, 0.7))
ROOT = Path(__file__).parents[2]
COUNT, ONE = 50, Placement()
WORKERS = pytest.mark.parametrize("workers", [0, 1, 2, 4])
pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")  # more workers than cores


def memory(placement=ONE, *, batch_size=8, train=True, pad=0, flip=False, count=COUNT):
    """Labels are the samples' numbers."""
    images = torch.randint(256, (count, 3, 6, 6), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    order = Order(count, batch_size, placement, train=train)
    return MemoryLoader(ImageBatch, images, [torch.arange(count)], SPEC, order, pad=pad, flip=flip)


class Draws(NamedTuple):
    """What a sample drew from each generator, and its number."""

    values: Tensor
    labels: Tensor


def draw(index: int) -> tuple[list[float], int]:
    return [random.random(), np.random.rand(), torch.rand((), dtype=torch.float64).item()], index


def collate(samples) -> Draws:
    return Draws(torch.tensor([v for v, _ in samples], dtype=torch.float64), torch.tensor([n for _, n in samples], dtype=torch.int64))


def files(placement=ONE, *, workers=0, batch_size=8, train=True, read=draw, timeout=20, count=COUNT):
    return FileLoader(read, collate, Order(count, batch_size, placement, train=train), workers=workers, timeout=timeout)


def labels(batches):
    return [batch.labels.tolist() for batch in batches]


def same(some, others):
    some, others = list(some), list(others)
    return len(some) == len(others) and all(torch.equal(x, y) for a, b in zip(some, others, strict=True) for x, y in zip(a, b, strict=True))


BOTH = pytest.mark.parametrize("make", [memory, files])


# -------------------------------------------------------------------- order


@BOTH
def test_training_is_a_shuffle_of_full_batches(make):
    seen = labels(make().batches(0))
    flat = [*chain(*seen)]
    assert [len(batch) for batch in seen] == [8] * 6 == [8] * len(make())
    assert len(set(flat)) == 48
    assert set(flat) < set(range(COUNT))
    assert flat != sorted(flat)


@BOTH
def test_evaluation_is_in_order_and_complete(make):
    loader = make(train=False)
    assert labels(loader.batches(0)) == [list(range(i, min(i + 8, COUNT))) for i in range(0, COUNT, 8)]
    assert labels(loader.batches(5)) == labels(loader.batches(0))
    assert len(loader) == 7


@BOTH
def test_order_is_a_function_of_seed_and_epoch(make):
    orders = {(seed, epoch): str(labels(make(Placement(seed=seed)).batches(epoch))) for seed in (0, 1) for epoch in (0, 1, 2)}
    assert len(set(orders.values())) == 6
    assert orders[1, 2] == str(labels(make(Placement(seed=1)).batches(2)))


def test_both_loaders_agree_on_the_order():
    assert labels(memory().batches(3)) == labels(files().batches(3))


def test_the_order_is_the_same_for_ever():
    """Hard-coded: runs that were interrupted resume under a later version."""
    assert mix("order", 0, 0) == 8105155533265743171
    generator = torch.Generator().manual_seed(mix("order", 7, 2))
    assert labels(memory(Placement(seed=7)).batches(2)) == torch.randperm(COUNT, generator=generator)[:48].view(6, 8).tolist()


@BOTH
@pytest.mark.parametrize("start", [0, 1, 3, 5, 6])
def test_beginning_at_a_batch_is_skipping_those_before(make, start):
    loader = make(pad=2, flip=True) if make is memory else make()
    assert same(loader.batches(2, start), islice(loader.batches(2), start, None))


def test_blocks_are_cut_as_batches_are_made_one_by_one():
    """More pictures than one block holds."""
    count = 3 * BLOCK // (4 * 3 * 6 * 6)
    loader = memory(count=count, batch_size=1000, pad=1, flip=True)
    assert 1 < loader.block < len(loader)
    whole = list(loader.batches(1))
    loader.block = 1
    assert same(whole, loader.batches(1))


# -------------------------------------------------------------------- ranks


@BOTH
@pytest.mark.parametrize("world", [2, 4])
@pytest.mark.parametrize("train", [True, False])
def test_the_ranks_together_see_what_one_process_sees(make, world, train):
    one = labels(make(train=train).batches(1))
    shares = [labels(make(Placement(rank=rank, world_size=world), train=train).batches(1)) for rank in range(world)]
    for batch, *parts in zip(one, *shares, strict=True):
        assert sorted([*chain(*parts)]) == sorted(batch)
        if train:
            assert [*chain(*parts)] == batch
            assert {len(part) for part in parts} == {8 // world}


def test_a_rank_draws_what_one_process_draws():
    one = [batch.images for batch in memory(pad=2, flip=True).batches(4)]
    two = [[b.images for b in memory(Placement(rank=r, world_size=2), pad=2, flip=True).batches(4)] for r in (0, 1)]
    for whole, first, second in zip(one, *two, strict=True):
        assert torch.equal(whole, torch.cat([first, second]))


def test_a_short_batch_may_leave_a_rank_without_a_sample():
    last = list(memory(Placement(rank=3, world_size=4), train=False).batches(0))[-1]
    assert last.images.shape == (0, 3, 6, 6)
    assert last.labels.shape == (0,)


def test_a_batch_size_that_cannot_be_had():
    with pytest.raises(ConfigError, match=r"data\.batch_size=51: the training split holds 50") as larger:
        memory(batch_size=51)
    assert "50" in larger.value.cure
    with pytest.raises(ConfigError, match=r"data\.batch_size=9: cannot be shared evenly by 2"):
        memory(Placement(world_size=2), batch_size=9)
    assert len(memory(batch_size=50)) == 1
    assert len(memory(batch_size=51, train=False)) == 1


# -------------------------------------------------------------------- pixels and augmentation


def test_pixels_are_normalised_as_the_spec_says():
    loader = memory(train=False)
    images = torch.cat([batch.images for batch in loader.batches(0)])
    torch.testing.assert_close(images, SPEC.normalise(loader.images.double() / 255).float())
    torch.testing.assert_close(SPEC.pixels(images) * 255, loader.images.float())


@pytest.mark.parametrize(("channels", "size", "pad", "flip"), [(1, 5, 2, False), (3, 4, 3, True), (3, 6, 0, True), (1, 1, 0, True)])
def test_crops_and_flips_are_those_of_torchvision(channels, size, pad, flip):
    images = torch.randint(256, (9, channels, size, size), dtype=torch.uint8)
    index = torch.randint(9, (400,))
    top, left = torch.randint(2 * pad + 1, (2, 400))
    flipped = torch.randint(1 + flip, (400,))
    made = Crops(images, pad, flip).take(index, top, left, flipped)
    for k in range(400):
        one = reference.crop(reference.pad(images[index[k]], [pad] * 4), int(top[k]), int(left[k]), size, size)
        assert torch.equal(made[k], reference.horizontal_flip(one) if flipped[k] else one)


def test_draws_are_uniform_over_all_crops_and_flips():
    """Each of 5 x 5 x 2 outcomes, of 50,000: 1,000 expected, 31 the standard deviation."""
    crops = Crops(torch.arange(9, dtype=torch.uint8).view(1, 1, 3, 3).expand(50_000, 1, 3, 3) + 1, 2, True)
    made = crops.drawn(0)(torch.arange(50_000)).reshape(50_000, 9)
    outcomes, counts = made.unique(dim=0, return_counts=True)
    assert len(outcomes) == 50
    assert counts.min() > 1000 - 6 * 31
    assert counts.max() < 1000 + 6 * 31


def test_memory_draws_differ_between_samples_and_epochs():
    """Sample i and j, epoch e and f: with 2 x 13 x 13 outcomes, two columns of 1,000 draws agree by chance about 3 times."""
    crops = Crops(torch.zeros(1000, 1, 6, 6, dtype=torch.uint8), 6, True)
    crops.take = lambda index, *draws: torch.stack(draws)  # type: ignore[method-assign, assignment]
    epochs = [crops.drawn(mix("crops", 0, epoch))(torch.arange(1000)) for epoch in range(3)]
    for a, b in ((0, 1), (0, 2), (1, 2)):
        assert (epochs[a] == epochs[b]).all(0).sum() < 20
    assert (epochs[0][:, 1:] == epochs[0][:, :-1]).all(0).sum() < 20


@WORKERS
def test_file_draws_differ_between_samples_and_epochs_and_not_with_workers(workers):
    """Promise: python, numpy and torch alike, 1,000 samples, three epochs."""
    wanted = [torch.cat([b.values for b in files(batch_size=100, count=1000).batches(epoch)]) for epoch in range(3)]
    drawn = [torch.cat([b.values for b in files(batch_size=100, count=1000, workers=workers).batches(epoch)]) for epoch in range(3)]
    assert torch.equal(torch.stack(drawn), torch.stack(wanted))
    for generator in torch.cat(drawn).unbind(1):
        assert len(generator.unique()) == 3000


@pytest.mark.parametrize("workers", [0, 2])
def test_a_samples_draws_do_not_depend_on_its_neighbours(workers):
    whole, lone = files(workers=workers, batch_size=10), files(workers=workers, batch_size=1)
    drawn = {label: v.tolist() for b in whole.batches(1) for label, v in zip(b.labels.tolist(), b.values, strict=True)}
    assert drawn == {b.labels.item(): b.values[0].tolist() for b in lone.batches(1)}


# -------------------------------------------------------------------- the global random state


def state():
    return random.getstate(), str(np.random.get_state()), torch.get_rng_state().tolist()


@pytest.mark.parametrize("make", [lambda: memory(pad=1, flip=True), files, lambda: files(workers=2)], ids=["memory", "files", "workers"])
def test_the_global_random_state_is_untouched(make):
    before = state()
    list(make().batches(0))
    assert state() == before


def test_seeded_restores_after_an_error():
    before = state()
    with pytest.raises(ZeroDivisionError), seeded(3):
        draw(1 // 0 if draw(0) else 0)
    assert state() == before


# -------------------------------------------------------------------- workers that fail, die, hang, or are left


def read_damaged(index: int):
    if index == 17:
        raise DataError("not a readable picture", key="17.png", cure="remove it")
    return draw(index)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_data_error_arrives_as_it_was_raised(workers):
    with pytest.raises(DataError) as caught:
        list(files(workers=workers, train=False, read=read_damaged).batches(0))
    assert (str(caught.value), caught.value.key, caught.value.cure) == ("17.png: not a readable picture", "17.png", "remove it")
    assert not multiprocessing.active_children()


def read_and_die(index: int):
    if index == 17:
        os.kill(os.getpid(), signal.SIGKILL)
    return draw(index)


def read_and_hang(index: int):
    if index == 17:
        time.sleep(3600)
    return draw(index)


# torch's handler of SIGCHLD raises wherever Python is, be it in the finalizer that takes leave of the worker
@pytest.mark.filterwarnings("ignore:Exception ignored in. <Finalize object, dead>:pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("read", [read_and_die, read_and_hang])
def test_a_lost_worker_ends_the_run_and_leaves_no_child(read):
    with pytest.raises(TrainingError, match=r"data\.workers=1: a worker died or was silent"):
        list(files(workers=1, train=False, read=read, timeout=2).batches(0))
    assert not multiprocessing.active_children()


def test_a_signal_to_the_group_does_not_take_the_workers():
    batches = files(workers=2, train=False).batches(0)
    first = [next(batches), next(batches)]  # one of each worker: both have begun
    for child in multiprocessing.active_children():
        for signum in (signal.SIGINT, signal.SIGTERM):
            os.kill(child.pid, signum)
    assert labels([*first, *batches]) == labels(memory(train=False).batches(0))


def test_an_epoch_left_in_its_middle_leaves_no_child():
    batches = files(workers=2).batches(0)
    next(batches)
    assert multiprocessing.active_children()
    batches.close()
    assert not multiprocessing.active_children()


def test_workers_that_nobody_closed_do_not_keep_the_process():
    """A traceback may hold the iterator until the interpreter ends; one worker is stuck then."""
    script = (
        "from tests.data.test_loaders import files, read_and_hang\n"
        "kept = files(workers=2, train=False, read=read_and_hang).batches(0)\n"
        "print(len(next(kept).labels))"
    )
    ended = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (ended.stdout, ended.returncode) == ("8\n", 0)
