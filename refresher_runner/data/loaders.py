"""Two loaders, one promise: an epoch's order depends on (seed, epoch) alone, a sample's draws on (seed, epoch, sample) alone.

`MemoryLoader` holds a data set as one tensor and makes many batches at a time; `FileLoader` reads samples one by one, in worker
processes if there are any. Both can begin an epoch at any batch, and neither touches the global random state.
"""

from __future__ import annotations

import hashlib
import os
import random
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Generic, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from refresher_runner.errors import ConfigError, DataError, TrainingError
from refresher_runner.spec import ImageSpec, Placement

BLOCK = 4 * 2**20  # bytes of pictures made at once by a MemoryLoader: enough to amortise every call, few enough for a cache

Sample = TypeVar("Sample")
Batch = TypeVar("Batch", bound=tuple)


def mix(*parts: int | str) -> int:
    """A seed in [0, 2^63) that depends on its parts alone (Python's own `hash` is salted)."""
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=8).digest(), "little") >> 1


class Order:
    """Which samples make which batch, and which of them this rank takes.

    Training: shuffled, full batches only, each rank a contiguous share of every batch. Evaluation: as they come, the last batch
    may be short, each rank every world_size-th sample, which of a short batch may be none. Raises ConfigError on a batch size
    that cannot be had.
    """

    def __init__(self, count: int, batch_size: int, placement: Placement, *, train: bool):
        self.count, self.batch_size, self.placement, self.train = count, batch_size, placement, train
        if not train:
            return
        if batch_size > count:
            raise ConfigError(
                f"the training split holds {count} samples",
                key="data.batch_size",
                value=batch_size,
                cure=f"at most data.batch_size={count}",
            )
        if batch_size % placement.world_size:
            raise ConfigError(
                f"cannot be shared evenly by {placement.world_size} processes",
                key="data.batch_size",
                value=batch_size,
                cure=f"a multiple of {placement.world_size}: the batch size is that of all processes together",
            )

    def __len__(self) -> int:
        return self.count // self.batch_size if self.train else -(-self.count // self.batch_size)

    def batches(self, epoch: int) -> Sequence[Tensor]:
        """The sample numbers of this rank's share of every batch, each (B / world_size,) int64."""
        rank, world = self.placement.rank, self.placement.world_size
        if not self.train:
            return [batch[rank::world] for batch in torch.arange(self.count).split(self.batch_size)]
        generator = torch.Generator().manual_seed(mix("order", self.placement.seed, epoch))
        order = torch.randperm(self.count, generator=generator)[: len(self) * self.batch_size]
        return order.view(len(self), world, -1)[:, rank].unbind()


class Crops:
    """Random crops and flips, cut out of padded pictures (N, C, S, S) by one copy of successive pixels each.

    A crop from a padded picture of width W is the first S columns of S W successive pixels, so to crop is to choose where to
    begin, and to flip is to choose the mirrored copy (kept if `flip`: it doubles the memory).
    """

    def __init__(self, images: Tensor, pad: int, flip: bool):
        self.pad, self.flip = pad, flip
        self.count, self.channels, self.size, _ = images.shape
        self.width = self.size + 2 * pad
        padded = F.pad(images, [pad] * 4)
        both = torch.stack([padded, padded.flip(3)]) if flip else padded
        span = self.size * self.width
        pixels = F.pad(both.view(-1), [0, span])  # the last crop's span ends beyond the last picture
        self.spans = pixels.as_strided((both.numel(), span), (1, 1))

    def drawn(self, seed: int) -> Callable[[Tensor], Tensor]:
        """Sample numbers (B,) -> crops (B, C, S, S), by draws that are made once for every sample of the set."""
        generator = torch.Generator().manual_seed(seed)
        sides = torch.randint(2 * self.pad + 1, (2, self.count), generator=generator)
        flips = torch.randint(1 + self.flip, (1, self.count), generator=generator)
        draws = torch.cat([sides, flips]).to(self.spans.device)
        return lambda index: self.take(index, *draws[:, index])

    def take(self, index: Tensor, top: Tensor, left: Tensor, flipped: Tensor) -> Tensor:
        """Crops of the samples `index`, from `top` and `left` of their padded pictures, then mirrored if `flipped`: each (B,)."""
        left = torch.where(flipped > 0, 2 * self.pad - left, left)
        channel = torch.arange(self.channels, device=index.device)
        plane = (flipped * self.count + index)[:, None] * self.channels + channel  # (B, C)
        begin = (plane * self.width + top[:, None]) * self.width + left[:, None]
        return self.spans.index_select(0, begin.view(-1)).view(-1, self.channels, self.size, self.width)[..., : self.size]


class MemoryLoader(Generic[Batch]):
    """Batches of pictures held in memory, images (N, C, S, S) uint8, and of columns (N, ...) beside them: `kind(images, *columns)`."""

    def __init__(
        self,
        kind: Callable[..., Batch],
        images: Tensor,
        columns: Sequence[Tensor],
        spec: ImageSpec,
        order: Order,
        *,
        pad: int = 0,
        flip: bool = False,
    ):
        self.kind, self.order, self.device = kind, order, order.placement.device
        # Other accelerators copy the overlapping view that cropping reads from, which is far larger than memory.
        home = self.device if self.device.startswith("cuda") else "cpu"
        self.images, self.columns = images.to(home), [column.to(home) for column in columns]
        self.crops = Crops(self.images, pad, flip) if pad or flip else None
        mean, std = (torch.tensor(v, device=home).view(-1, 1, 1) for v in (spec.mean, spec.std))
        self.scale, self.shift = 1 / (255 * std), -mean / std
        self.block = max(1, BLOCK // (4 * images[0].numel() * order.batch_size))  # batches

    def __len__(self) -> int:
        return len(self.order)

    def batches(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        order, seed = self.order.batches(epoch), self.order.placement.seed
        take = self.crops.drawn(mix("crops", seed, epoch)) if self.crops else partial(self.images.index_select, 0)
        for first in range(start, len(order), self.block):
            block = order[first : first + self.block]
            index = torch.cat(tuple(block)).to(self.images.device)
            images = take(index).float().mul_(self.scale).add_(self.shift).to(self.device)
            columns = (column[index].to(self.device) for column in self.columns)
            sizes = [len(batch) for batch in block]
            yield from map(self.kind, *(part.split(sizes) for part in (images, *columns)))


class FileLoader(Generic[Sample, Batch]):
    """Batches of samples that are read one by one: `collate([read(i), read(j), ...])`.

    `read` may draw from python's, numpy's and torch's global generators: they are seeded for each sample, so the number of
    `workers` changes no bit. None: no worker where the CPU trains, whose cores it would take (a detector's step with one on two cores
    took 1.35 times as long); beside an accelerator this rank's share of the cores, at most 8. A worker that dies, or gives nothing for
    `timeout` seconds (0: for ever), is a TrainingError.
    """

    def __init__(
        self, read: Callable[[int], Sample], collate: Callable[[list[Sample]], Batch], order: Order, *, workers: int | None, timeout: int
    ):
        self.samples = _Samples(read, collate, order.placement.seed)
        self.order, self.timeout = order, timeout
        share = min(8, (os.cpu_count() or 1) // order.placement.world_size)
        self.workers = workers if workers is not None else 0 if order.placement.device == "cpu" else share

    def __len__(self) -> int:
        return len(self.order)

    def batches(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        device = self.order.placement.device
        loader = DataLoader(
            self.samples,
            sampler=[(epoch, batch.tolist()) for batch in self.order.batches(epoch)[start:]],
            batch_size=None,  # a sample of torch's is a batch of ours
            num_workers=self.workers,
            timeout=self.timeout if self.workers else 0,
            worker_init_fn=_shield,
            generator=torch.Generator(),
            pin_memory=device.startswith("cuda"),
        )
        iterator: Any = iter(loader)
        for worker in iterator._workers if self.workers else ():
            worker._popen.terminate = worker._popen.kill  # SIGTERM is ignored: who ends a stuck worker with it waits for ever
        try:
            for batch in self._received(iterator):
                yield type(batch)(*(tensor.to(device, non_blocking=True) for tensor in batch))
        finally:
            if self.workers:
                # Now, not when the last traceback that knows them is forgotten; and undisturbed by torch's word, at whatever
                # instant the signal comes, that one of them has died: that has been told.
                torchs = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                try:
                    iterator._shutdown_workers()
                finally:
                    signal.signal(signal.SIGCHLD, torchs or signal.SIG_DFL)

    def _received(self, iterator: Iterator[Any]) -> Iterator[Batch]:
        try:
            for batch in iterator:
                if isinstance(batch, DataError):
                    raise batch
                yield batch
        except (RuntimeError, OSError, EOFError) as error:
            if not self.workers or str(error).startswith("Caught"):  # raised by `read`, which torch reports like this
                raise
            problem = f"a worker died or was silent for too long ({str(error) or type(error).__name__})"
            cure = "resume the run; data.timeout allows for slower files, and data.workers=0 reads them without workers"
            raise TrainingError(problem, key="data.workers", value=self.workers, cure=cure) from error


class _Samples(Dataset[Any], Generic[Sample, Batch]):
    """The batches of a FileLoader, read where torch asks for them: here, or in a worker."""

    def __init__(self, read: Callable[[int], Sample], collate: Callable[[list[Sample]], Batch], seed: int):
        self.read, self.collate, self.seed = read, collate, seed

    def __getitem__(self, batch: tuple[int, list[int]]) -> Batch | DataError:
        epoch, indices = batch
        try:
            return self.collate([self._sample(epoch, index) for index in indices])
        except DataError as error:
            return error  # raised in a worker, it would reach the user as a traceback without its cure

    def _sample(self, epoch: int, index: int) -> Sample:
        with seeded(mix("sample", self.seed, epoch, index)):
            return self.read(index)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """python's, numpy's and torch's CPU generators begin at `seed` in here, and go on outside as if nothing had been drawn."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    random.seed(seed)
    np.random.seed((seed & 0xFFFFFFFF, seed >> 32))
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])


def _shield(worker: int) -> None:
    """A signal to the whole group is for the main process to answer: it still needs the batches of its last step."""
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, signal.SIG_IGN)
