"""Texts that may be larger than memory, plain or packed, piece by piece."""

from __future__ import annotations

import gzip
import io
import re
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from refresher_runner.errors import DataError

CHARACTERS = 1 << 18  # of a text, read at once


@contextmanager
def readable(name: str) -> Iterator[None]:
    """Raises DataError, naming what is read inside, where it breaks off, or is not what it is packed as."""
    try:
        yield
    except (OSError, EOFError, zipfile.BadZipFile, tarfile.TarError) as error:
        raise DataError(f"cannot be read ({error})", key=name, cure="get the file again") from None


def pieces(file: IO[bytes], name: str) -> Iterator[str]:
    """A file's text, in pieces that end between words. Raises DataError, naming it, where it is not UTF-8 or breaks off."""
    rest, text = "", io.TextIOWrapper(file, "utf-8-sig")
    try:
        with readable(name):
            for piece in iter(lambda: text.read(CHARACTERS), ""):
                end = re.search(r"[^\W\d_]*$", piece)
                assert end is not None
                yield rest + piece[: end.start()] if end.start() else ""
                rest = piece[end.start() :] if end.start() else rest + piece
    except UnicodeDecodeError as error:
        cure = "convert it, say by `iconv -f latin1 -t utf-8`, or take it away"
        raise DataError(f"is not UTF-8 (byte {error.object[error.start]:#04x})", key=name, cure=cure) from None
    finally:
        text.detach()  # who opened the file closes it
    yield rest


def read_files(root: Path, digest: Callable[[bytes], None]) -> Iterator[str]:
    """A text, plain or packed (.gz, .zip, .tar.gz), or all texts below a folder by their names; every file's bytes go to `digest`.

    Raises DataError naming a file.
    """
    cure = "set data.root to a text, plain or packed (.gz, .zip, .tar.gz), or to a folder of such"
    suffixes = {".txt", ".gz", ".zip", ".tgz"}
    files = sorted(f for f in root.rglob("*") if f.is_file() and f.suffix in suffixes) if root.is_dir() else [root]
    if not files:
        raise DataError("holds no text", key=str(root), cure=cure)
    for file in files:
        try:
            with file.open("rb") as raw:
                for block in iter(lambda: raw.read(CHARACTERS), b""):
                    digest(block)
        except OSError as error:
            problem = "no such file" if isinstance(error, FileNotFoundError) else f"cannot be read ({error.strerror})"
            raise DataError(problem, key=str(file), cure=cure) from None
        yield from unpacked(file)


def unpacked(file: Path) -> Iterator[str]:
    """The text of one file, whatever it is packed in. Raises DataError naming it."""
    with readable(str(file)):
        if file.name.endswith((".tar.gz", ".tgz")):
            with tarfile.open(file) as archive:
                for member in archive:
                    if content := archive.extractfile(member):
                        yield from pieces(content, f"{file}:{member.name}")
        elif file.suffix == ".zip":
            with zipfile.ZipFile(file) as archive:
                for name in sorted(entry.filename for entry in archive.infolist() if not entry.is_dir()):
                    with archive.open(name) as content:
                        yield from pieces(content, f"{file}:{name}")
        else:
            with gzip.open(file) if file.suffix == ".gz" else file.open("rb") as content:
                yield from pieces(content, str(file))  # type: ignore[arg-type]
