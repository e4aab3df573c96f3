"""Captioned shapes: pictures of one or two coloured shapes, drawn here, and what they show, in words. Nothing is downloaded.

No scene, however told, is of two splits: what a caption of validation or test says has been said by none that was trained on, and each of
its words by many. A picture is a function of (split_seed, split, index, counts, size) alone.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from refresher_runner.data.captions import Captioned, CaptionedSplits, CaptionSet
from refresher_runner.data.learnt import refuse_contradiction
from refresher_runner.data.scenes import ASPECTS, COLOURS, SHAPES, Scene, alone, caption, draw, pairs, truth, turned
from refresher_runner.data.subwords import learn_subwords
from refresher_runner.errors import ConfigError
from refresher_runner.registry import DATASETS
from refresher_runner.schema import Fraction, NonNegative, Positive, Share
from refresher_runner.spec import CaptionSpec, DataModule
from refresher_runner.vocabulary import SPECIAL, Vocabulary

if TYPE_CHECKING:
    from numpy.random import RandomState
    from torch import Tensor

SIZES = 24, 256  # pixels: in less a small cross is none, and more would not be seen
MEAN, STD = (0.2, 0.2, 0.2), (0.2, 0.2, 0.2)
SEVERAL = "two things"  # the class of pictures that are of no other
SPLITS = "train", "val", "test"


@DATASETS.register("captioned_shapes")
def build_captioned_shapes(
    *,
    size: Positive,
    train_count: Positive,
    val_count: Positive,
    test_count: Positive,
    single: Fraction,
    val_fraction: Share,
    test_fraction: Share,
    split_seed: NonNegative,
    vocab_size: Positive,
    block_size: Positive,
    batch_size: Positive,
    eval_batch_size: Positive,
) -> DataModule[CaptionSpec]:
    """One or two coloured shapes and what is where, in words: drawn on the spot, nothing to download."""
    if not SIZES[0] <= size <= SIZES[1]:
        raise ConfigError("cannot be drawn", key="data.size", value=size, cure=f"from {SIZES[0]} to {SIZES[1]} pixels")
    if val_fraction + test_fraction >= 1:
        problem = f"with data.val_fraction={val_fraction:g} leaves nothing to train on"
        raise ConfigError(problem, key="data.test_fraction", value=test_fraction, cure="shares that add up to less than 1")
    counts, fractions = (train_count, val_count, test_count), {"test": test_fraction, "val": val_fraction}
    return CaptionSet(
        lambda known: read_captioned_shapes(size, counts, single, fractions, split_seed, vocab_size, block_size, known),
        block_size,
        batch_size,
        eval_batch_size,
        pad=0,
        flip=False,  # left would be right
        reader=_read,
    )


def read_captioned_shapes(
    size: int,
    counts: tuple[int, int, int],
    single: float,
    fractions: dict[str, float],
    split_seed: int,
    vocab_size: int,
    block_size: int,
    known: Vocabulary | None = None,
) -> CaptionedSplits:
    """So many pictures of each split, `single` of them with one thing; subwords are learnt from the training captions if none are known."""
    import numpy as np

    random, number = np.random.RandomState(0), {scene: i for i, scene in enumerate([*alone(), *pairs()])}
    seed, splits, digest = [split_seed & 0xFFFFFFFF, split_seed >> 32], {}, hashlib.sha256()
    parts = cut(fractions, np.random.RandomState(seed))
    if not all(parts["train"]):
        raise ConfigError("leaves no scene to train on", key="data.test_fraction", value=fractions["test"], cure="smaller shares")
    for place, (split, count) in enumerate(zip(SPLITS, counts, strict=True)):
        try:
            images = np.empty((count, 3, size, size), np.uint8)
        except (MemoryError, ValueError):
            raise ConfigError("more pictures than memory can hold", key=f"data.{split}_count", value=count) from None
        told = []
        for index, scene in enumerate(chosen(*parts[split], count, single)):
            random.seed([*seed, place, index])
            told.append((scene, turned(scene) if random.randint(2) else scene))
            images[index] = draw(told[-1][1], size, random)
        columns = [label(scene) for scene, _ in told], [truth(as_told) for _, as_told in told], [number[scene] for scene, _ in told]
        splits[split] = Captioned(
            images, tuple(caption(as_told) for _, as_told in told), *(np.array(column, np.int64) for column in columns)
        )
        digest.update(images.data)
    if known:
        refuse_contradiction(known, "subwords", vocab_size)
    vocabulary = known or learn_subwords(splits["train"].captions, vocab_size, SPECIAL, sentences=True)
    classes, prompts = zip(*prompted().items(), strict=True)
    spec = CaptionSpec(3, size, classes, MEAN, STD, vocabulary, block_size, prompts, ASPECTS)
    if (longest := max(len(vocabulary.encode(said)) for said in {*splits["train"].captions}) + 2) > block_size:
        problem = f"captions have up to {longest} tokens, the first and the last included"
        raise ConfigError(problem, key="data.block_size", value=block_size, cure=f"at least {longest}, or a larger data.vocab_size")
    return CaptionedSplits(spec, splits, {"pixels": digest.hexdigest()})


def cut(fractions: dict[str, float], random: RandomState) -> dict[str, tuple[list[Scene], list[Scene]]]:
    """The scenes of one thing and of two of each split, in random order. Of the former each class gives the same shares."""
    parts: dict[str, tuple[list[Scene], list[Scene]]] = {split: ([], []) for split in SPLITS}
    of_class = defaultdict(list)
    for scene in alone():
        of_class[label(scene)].append(scene)
    for kind, scenes in [*((0, scenes) for scenes in of_class.values()), (1, pairs())]:
        shuffled, begin = [scenes[i] for i in random.permutation(len(scenes))], 0
        for split, fraction in fractions.items():
            end = begin + max(1, round(fraction * len(scenes)))
            parts[split][kind].extend(shuffled[begin:end])
            begin = end
        parts["train"][kind].extend(shuffled[begin:])
    return {split: tuple([some[i] for i in random.permutation(len(some))] for some in both) for split, both in parts.items()}  # type: ignore[misc]


def chosen(single: Sequence[Scene], double: Sequence[Scene], count: int, share: float) -> Iterator[Scene]:
    """The scenes of so many pictures, `share` of them of one thing: each scene before any comes again."""
    for index in range(count):
        before, after = int(index * share), int((index + 1) * share)
        yield single[before % len(single)] if after > before else double[(index - before) % len(double)]


def _read(pixels: Tensor, asked: Tensor) -> Tensor:
    from refresher_runner.data.reading import read  # imports torch

    return read(pixels, asked)


def label(scene: Scene) -> int:
    """Colour and shape of the one thing; all scenes of two are of the last class."""
    return (
        len(COLOURS) * len(SHAPES) if scene.other else [*COLOURS].index(scene.thing.colour) * len(SHAPES) + SHAPES.index(scene.thing.shape)
    )


def prompted() -> dict[str, tuple[str, ...]]:
    """The classes, and what the captions of each may say: every size and place. No caption says "two things"."""
    found = defaultdict(list)
    for scene in sorted(alone(), key=label):
        found[f"{scene.thing.colour} {scene.thing.shape}"].append(caption(scene))
    return {**{name: tuple(said) for name, said in found.items()}, SEVERAL: ()}
