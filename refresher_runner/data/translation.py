"""Sentences and their translations: Tatoeba's German and English, or files of one's own, as subwords that both languages share.

A sentence may have several translations, and a translation several sources. All that hang together so, but for capitals and punctuation,
are of one split: nothing that is tested was learnt from, whichever way one translates.
"""

from __future__ import annotations

import io
import re
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from refresher_runner.data.families import connected, cut
from refresher_runner.data.fetch import Published, fetch, sha256
from refresher_runner.data.learnt import refuse_contradiction
from refresher_runner.data.pairs import Corpus, Pair, PairSet
from refresher_runner.data.subwords import learn_subwords
from refresher_runner.data.text import content_of, decoded
from refresher_runner.errors import ConfigError, DataError
from refresher_runner.registry import DATASETS
from refresher_runner.schema import NonNegative, Positive, Share
from refresher_runner.spec import DataModule, PairSpec
from refresher_runner.vocabulary import SPECIAL, Vocabulary

if TYPE_CHECKING:
    from numpy.typing import NDArray

TATOEBA = Published(  # as manythings.org/anki served it on 2018-05-13: what it serves changes with every year
    "tatoeba-deu-eng/deu-eng.zip",
    "https://raw.githubusercontent.com/rioyshky/translation/de48b7027f7318d77010a6e08ed928c10748c23d/deu-eng.zip",
    "b7688f84f99fa33c17397c14d8bd9cef1fdeb2ee0bf50074767023aee8926e28",
)
Layout = Literal["tatoeba", "tabs", "parallel"]


@DATASETS.register("translation")
def build_translation(
    *,
    root: str,
    layout: Literal["tatoeba", "tabs", "parallel"],
    files: list[str],
    reverse: bool,
    vocab_size: Positive,
    block_size: Positive,
    val_fraction: Share,
    test_fraction: Share,
    split_seed: NonNegative,
    batch_size: Positive,
    eval_batch_size: Positive,
) -> DataModule[PairSpec]:
    """German and English sentences of Tatoeba, 169,813 pairs; or pairs of your own, split by tabs or in two parallel files."""
    fitting = {"tatoeba": range(1), "tabs": range(1, 1 + len(files)), "parallel": range(2, 3)}[layout]
    if len(files) not in fitting:
        takes = {"tatoeba": "brings its own", "tabs": "needs one or more, with a tab in every line", "parallel": "needs two, line by line"}
        raise ConfigError(
            f"data.layout={layout} {takes[layout]}", key="data.files", value=files, cure="tatoeba, tabs and parallel are the layouts"
        )
    if val_fraction + test_fraction >= 1:
        problem = f"with data.val_fraction={val_fraction:g} leaves nothing to train on"
        raise ConfigError(problem, key="data.test_fraction", value=test_fraction, cure="shares that add up to less than 1")
    fractions = {"test": test_fraction, "val": val_fraction}
    return PairSet(
        lambda known: read_translation(Path(root), layout, files, reverse, vocab_size, fractions, split_seed, known),
        block_size,
        batch_size,
        eval_batch_size,
    )


def read_translation(
    root: Path,
    layout: Layout,
    files: Sequence[str],
    reverse: bool,
    vocab_size: int,
    fractions: dict[str, float],
    split_seed: int,
    known: Vocabulary | None = None,
) -> Corpus:
    """The pairs of every split, turned round if `reverse`; subwords are learnt from the training pairs, if none are `known`.

    Raises DataError naming a file.
    """
    import numpy as np

    if layout == "tatoeba":
        content = fetch(str(root), TATOEBA)
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            pairs = tabbed(Path("deu.txt"), archive.read("deu.txt"))
        digests = {TATOEBA.path: TATOEBA.sha256}
    else:
        cure = "set data.root to the folder that has data.files"
        contents = {file: content_of(root / file, cure) for file in files}
        parts = [(root / file, content) for file, content in contents.items()]
        pairs = parallel(*parts) if layout == "parallel" else [pair for part in parts for pair in tabbed(*part)]
        digests = {file: sha256(content) for file, content in contents.items()}
    sound = [(b, a) if reverse else (a, b) for a, b in pairs if a and b]
    splits = {split: [sound[i] for i in np.flatnonzero(of)] for split, of in cut(groups(sound), fractions, split_seed).items()}
    if few := next((split for split, pairs in splits.items() if not pairs), ""):
        problem = f"{len(sound)} pairs are too few for a {few} split"
        raise DataError(problem, key=str(root), cure="more pairs, or other data.val_fraction and data.test_fraction")
    if known:
        refuse_contradiction(known, "subwords", vocab_size)
    vocabulary = known or learn_subwords((sentence for pair in splits["train"] for sentence in pair), vocab_size, SPECIAL, sentences=True)
    return Corpus(vocabulary, vocabulary, splits, len(pairs) - len(sound), digests)


def tabbed(file: Path, content: bytes) -> list[Pair]:
    """A pair a line, a tab between; further columns are attributions. Empty lines are none."""
    pairs = []
    for number, line in enumerate(decoded(file, content).split("\n"), 1):
        first, tab, rest = line.partition("\t")
        if tab:
            pairs.append((first.strip(), rest.partition("\t")[0].strip()))
        elif line.strip():
            raise DataError(f"line {number} has no tab", key=str(file), cure="write a sentence, a tab, and its translation on every line")
    return pairs


def parallel(first: tuple[Path, bytes], second: tuple[Path, bytes]) -> list[Pair]:
    """Line by line of two files."""
    sides = [[line.strip() for line in decoded(*side).removesuffix("\n").split("\n")] for side in (first, second)]
    if len(sides[0]) != len(sides[1]):
        problem = f"has {len(sides[1])} lines, and {first[0]} has {len(sides[0])}"
        raise DataError(problem, key=str(second[0]), cure="line n of one file is the translation of line n of the other")
    return list(zip(*sides, strict=True))


def groups(pairs: Sequence[Pair]) -> NDArray:
    """A number (N,) for each pair, the same for all that hang together by a sentence of either side, letters and digits alone compared."""
    words = [tuple("".join(re.findall(r"\w+", sentence.casefold())) or sentence for sentence in pair) for pair in pairs]
    return connected(*zip(*words, strict=True))
