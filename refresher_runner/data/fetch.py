"""Files of public data sets: verified before a byte is trusted, and downloaded once however many processes ask."""

from __future__ import annotations

import hashlib
import http.client
import logging
import os
import shutil
import urllib.request
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from refresher_runner.errors import DataError


@dataclass(frozen=True)
class Published:
    """A file as its authors published it: `path` is its place below a data folder; its bytes must have the digest that is known."""

    path: str
    url: str
    sha256: str = ""
    sha1: str = ""

    def is_whole(self, content: bytes) -> bool:
        return sha256(content) == self.sha256 if self.sha256 else hashlib.sha1(content).hexdigest() == self.sha1


def open_https(url: str) -> IO[Any]:
    """The body of an answer. Redirects are followed, and nothing is ever asked over plain http: no handler here speaks it."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler,
        urllib.request.UnknownHandler,
        urllib.request.HTTPSHandler,
        urllib.request.HTTPDefaultErrorHandler,
        urllib.request.HTTPRedirectHandler,
        urllib.request.HTTPErrorProcessor,
    ):
        opener.add_handler(handler())
    return opener.open(url, timeout=30)


def fetch(root: str, file: Published, open_url: Callable[[str], IO[Any]] = open_https) -> bytes:
    """The content of a file below `root`, verified; downloaded first where it is absent or damaged.

    A file that is whole is only read: its folder may be read-only. Raises DataError naming the file, when there is no way to
    get it.
    """
    from filelock import FileLock

    path = Path(root, file.path)
    content = _content(path)
    if file.is_whole(content):
        return content
    state = "is damaged" if content else "is absent"
    cure = f"download {file.url} to {path}, or set data.root to the folder that has it"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{path}.lock"):
            if not file.is_whole(_content(path)):  # nobody was quicker
                _download(file.url, path, open_url)
        content = _content(path)
    except (OSError, http.client.HTTPException) as error:
        raise DataError(f"{state}, and cannot be downloaded ({error})", key=str(path), cure=cure) from None
    if not file.is_whole(content):
        raise DataError(f"is not the published file, though just downloaded from {file.url}", key=str(path), cure=cure)
    return content


def sha256(content: bytes) -> str:
    """In hexadecimal digits."""
    return hashlib.sha256(content).hexdigest()


def _content(path: Path) -> bytes:
    """Empty where there is no file."""
    try:
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return b""


def _download(url: str, path: Path, open_url: Callable[[str], IO[Any]]) -> None:
    """Written beside, then renamed: the file's own name never holds a part of it."""
    logging.getLogger(__name__).info("downloading %s to %s", url, path)
    part = path.with_name(f"{path.name}.part")
    with closing(open_url(url)) as answer, part.open("wb") as file:
        shutil.copyfileobj(answer, file, 1 << 20)
    os.replace(part, path)
