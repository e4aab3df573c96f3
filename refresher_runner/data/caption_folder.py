"""Pictures of one's own with captions: each named by its caption, or listed with captions and classes in a table.

Pairs that share a picture or a caption are right for one another, and of one split; so are captions that differ only in what `variants`
names: nothing that is tested was nearly seen. Free of numpy and Pillow until `prepare`.
"""

from __future__ import annotations

import csv
import hashlib
import io
import logging
import re
import tarfile
import zipfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Literal, NamedTuple

from refresher_runner.data.captions import Captioned, CaptionedSplits, CaptionSet
from refresher_runner.data.families import connected, cut
from refresher_runner.data.fetch import sha256
from refresher_runner.data.images import check_pad
from refresher_runner.data.learnt import refuse_contradiction
from refresher_runner.data.subwords import learn_subwords
from refresher_runner.data.text import content_of, decoded
from refresher_runner.errors import ConfigError, DataError
from refresher_runner.pictures import SUFFIXES, fit, open_picture, to_tensor
from refresher_runner.registry import DATASETS
from refresher_runner.schema import Fraction, NonNegative, Positive, PositiveFloat, Share
from refresher_runner.spec import CaptionSpec, DataModule, plain
from refresher_runner.vocabulary import SPECIAL, Vocabulary

if TYPE_CHECKING:
    from numpy.typing import NDArray

ANY = "any"  # the class of pictures that are given none
CURE = "set data.root to a folder of pictures, or to a .zip or .tar.gz of one"
Files = Mapping[str, Callable[[], bytes]]  # of all that lies below a root, by its path there, how to read it


class Row(NamedTuple):
    """The path of a picture below the root, one of its captions, and its class, empty where it has none."""

    file: str
    caption: str
    kind: str = ""


@DATASETS.register("captions")
def build_captions(
    *,
    root: str,
    table: str | None,
    channels: Literal[1, 3],
    size: Positive,
    mean: list[Fraction],
    std: list[PositiveFloat],
    templates: list[str],
    variants: list[str],
    val_fraction: Share,
    test_fraction: Share,
    split_seed: NonNegative,
    vocab_size: Positive,
    block_size: Positive,
    batch_size: Positive,
    eval_batch_size: Positive,
    pad: NonNegative,
    flip: bool,
) -> DataModule[CaptionSpec]:
    """Your own pictures, each named by its caption, or listed with captions and classes in a table."""
    for key, values in (("data.mean", mean), ("data.std", std)):
        if len(values) not in (1, channels):
            raise ConfigError(f"needs one value, or one for each of {channels} channels", key=key, value=values)
    if wrong := next((template for template in templates if template.count("{}") != 1), None):
        raise ConfigError("has no one place for a class", key="data.templates", value=wrong, cure="write it like 'a picture of a {}'")
    if val_fraction + test_fraction >= 1:
        problem = f"with data.val_fraction={val_fraction:g} leaves nothing to train on"
        raise ConfigError(problem, key="data.test_fraction", value=test_fraction, cure="shares that add up to less than 1")
    if block_size < 3:
        raise ConfigError(
            "has no room for a token between the first and the last", key="data.block_size", value=block_size, cure="3 or more"
        )
    check_pad(pad, size)
    of_mean, of_std = (tuple(values * channels)[:channels] for values in (mean, std))
    fractions = {"test": test_fraction, "val": val_fraction}

    def read(known: Vocabulary | None) -> CaptionedSplits:
        found = read_pairs(Path(root), table, channels, size, variants)
        splits = {split: found.taken(of) for split, of in cut(found.families, fractions, split_seed).items()}
        if few := next((split for split, part in splits.items() if not part.captions), ""):
            cure = "more pictures, or other data.val_fraction and data.test_fraction"
            raise DataError(f"{len(found.pairs.captions)} pairs are too few for a {few} split", key=root, cure=cure)
        if known:
            refuse_contradiction(known, "subwords", vocab_size)
        vocabulary = known or learn_subwords(map(plain, splits["train"].captions), vocab_size, SPECIAL, sentences=True)
        prompts = tuple(() if kind == ANY else tuple(template.format(kind) for template in templates) for kind in found.kinds)
        spec = CaptionSpec(channels, size, found.kinds, of_mean, of_std, vocabulary, block_size, prompts)
        _warn_of_long(spec, found.pairs.captions)
        return CaptionedSplits(spec, splits, found.checksums)

    return CaptionSet(read, block_size, batch_size, eval_batch_size, pad=pad, flip=flip)


class Pairs(NamedTuple):
    """All pictures with their captions, which of them must not be parted (N,), the names of the classes, and the digest of all files."""

    pairs: Captioned
    families: NDArray
    kinds: tuple[str, ...]
    checksums: dict[str, str]

    def taken(self, of: NDArray) -> Captioned:
        """Those that (N,) bool says."""
        images, captions, labels, truth, meanings = self.pairs
        said = tuple(caption for caption, wanted in zip(captions, of, strict=True) if wanted)
        return Captioned(images[of], said, labels[of], truth[of], meanings[of])


def read_pairs(root: Path, table: str | None, channels: int, size: int, variants: Sequence[str]) -> Pairs:
    """Raises DataError naming a file or what is wrong with it, and ConfigError where memory cannot hold the pictures."""
    import numpy as np

    files = files_of(root)
    rows = listed(root, files, table) if table else [Row(file, PurePosixPath(file).stem.replace("_", " ")) for file in pictures(files)]
    if not rows:
        raise DataError("holds no picture", key=str(root), cure=f"looked for {', '.join(sorted(SUFFIXES))}; {CURE}")
    try:
        images = np.empty((len(rows), channels, size, size), np.uint8)
    except (MemoryError, ValueError):
        raise ConfigError(f"{len(rows)} such pictures are more than memory can hold", key="data.size", value=size) from None
    seen: dict[str, tuple[int, str]] = {}  # the first row of each picture, and its digest
    digest = hashlib.sha256()
    for i, row in enumerate(rows):
        if row.file not in seen:
            content = files[row.file]()
            digest.update(f"{row.file} {sha256(content)}\n".encode())
            images[i] = to_tensor(fit(open_picture(root / row.file, channels, io.BytesIO(content)), size)).numpy()
            seen[row.file] = i, sha256(images[i].tobytes())
        images[i] = images[seen[row.file][0]]
    said = [plain(row.caption) for row in rows]
    meanings = connected([seen[row.file][1] for row in rows], said)
    families = connected(meanings.tolist(), [family(caption, variants) for caption in said])
    named = sorted({row.kind for row in rows if row.kind})
    kinds = (*named, ANY) if not all(row.kind for row in rows) else tuple(named)
    labels = np.array([kinds.index(row.kind or ANY) for row in rows], np.int64)
    pairs = Captioned(images, tuple(row.caption for row in rows), labels, np.empty((len(rows), 0), np.int64), meanings)
    return Pairs(pairs, families, kinds, {"names and contents of the pictures": digest.hexdigest()})


def family(caption: str, variants: Sequence[str]) -> str:
    """What is left of a caption without its variants, the longest first, and without all but letters and digits."""
    every = "|".join(re.escape(plain(variant)) for variant in sorted(variants, key=len, reverse=True))
    left = re.sub(rf"\b(?:{every})\b", " ", caption) if every else caption
    return " ".join(re.findall(r"\w+", left))


# -------------------------------------------------------------------- files


def files_of(root: Path) -> Files:
    """What lies below a folder, or in an archive, which is read whole. Raises DataError where there is neither."""
    if root.is_dir():
        found = sorted(file for file in root.rglob("*") if file.is_file())
        return {file.relative_to(root).as_posix(): partial(content_of, file, CURE) for file in found}
    content = content_of(root, CURE)
    try:
        if zipfile.is_zipfile(io.BytesIO(content)):
            with zipfile.ZipFile(io.BytesIO(content)) as packed:
                inside = {info.filename: packed.read(info) for info in packed.infolist() if not info.is_dir()}
        else:
            with tarfile.open(fileobj=io.BytesIO(content)) as packed:
                streams = {member.name: packed.extractfile(member) for member in packed if member.isfile()}
                inside = {name: stream.read() for name, stream in streams.items() if stream}
    except (tarfile.TarError, zipfile.BadZipFile, EOFError, OSError, ValueError, NotImplementedError, RuntimeError) as error:
        raise DataError(f"is no archive that can be read ({error})", key=str(root), cure=CURE) from None
    return {name: partial(bytes, inside[name]) for name in sorted(inside)}


def pictures(files: Files) -> list[str]:
    """Those with the suffix of one; not what an operating system hides beside them."""
    paths = map(PurePosixPath, files)
    hidden = ("__MACOSX",)
    return [str(p) for p in paths if p.suffix.lower() in SUFFIXES and not any(part.startswith(".") or part in hidden for part in p.parts)]


def listed(root: Path, files: Files, table: str) -> list[Row]:
    """The rows of a table with the columns file and caption, and class if it likes; a picture may have several rows."""
    where = f"{root / table}"
    if table not in files:
        raise DataError("no such file", key=where, cure="set data.table to a .csv or .tsv file below data.root, or to null")
    text = decoded(root / table, files[table]())
    reader = csv.DictReader(io.StringIO(text), delimiter="\t" if table.endswith(".tsv") else ",")
    if missing := {"file", "caption"}.difference(reader.fieldnames or ()):
        cure = "its first line should be file,caption or file,caption,class"
        raise DataError(f"has no column {min(missing)!r}", key=where, cure=cure)
    rows = []
    for line in reader:
        row = Row(*((line.get(column) or "").strip() for column in ("file", "caption", "class")))
        if row.file not in files:
            problem = f"line {reader.line_num} names {row.file!r}, which is not there"
            raise DataError(problem, key=where, cure="write paths as they are below data.root")
        if not row.caption:
            raise DataError(f"line {reader.line_num} has no caption", key=where, cure="write one, or take the line away")
        rows.append(row)
    return rows


def _warn_of_long(spec: CaptionSpec, captions: Sequence[str]) -> None:
    long = sum(len(spec.vocabulary.encode(plain(caption))) > spec.block_size - 2 for caption in captions)
    if long:
        log = logging.getLogger(__name__)
        log.warning("%d of %d captions are read up to data.block_size=%d tokens", long, len(captions), spec.block_size)
