"""Python's own documentation, as it is installed with every Python: nothing to download.

What `help()` tells of the language, and of every class and function of the standard library that is written in Python. Its modules are
read, never imported.
"""

from __future__ import annotations

import ast
import hashlib
import platform
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Literal

from refresher_runner.data.fetch import sha256
from refresher_runner.data.text import Cut, Text, TextSet, parts_of
from refresher_runner.errors import DataError
from refresher_runner.registry import DATASETS
from refresher_runner.schema import Fraction, Positive, Share
from refresher_runner.spec import DataModule, TextSpec

TESTS = {"test", "tests", "idle_test"}  # folders, if they are installed at all, that document nothing
LONG = 60  # characters: of paragraphs as long only the first of its kind is kept

Entry = tuple[str, str]  # a heading, and what stands below it


@DATASETS.register("python_docs")
def build_python_docs(
    *,
    tokens: Literal["characters", "subwords"],
    vocab_size: Positive,
    block_size: Positive,
    batch_size: Positive,
    eval_batch_size: Positive,
    val_fraction: Share,
    test_fraction: Fraction,
) -> DataModule[TextSpec]:
    """Python's own documentation, as it is installed: the language's topics, the standard library's docstrings; 2 MB."""
    cut = Cut(val_fraction, test_fraction)
    return TextSet(lambda known: parts_of(read_python_docs(), cut, tokens, vocab_size, known), block_size, batch_size, eval_batch_size)


def read_python_docs() -> Text:
    """One text, a function of the Python installed. Raises DataError where its library is not whole."""
    return joined(entries())


def joined(found: Iterable[Entry]) -> Text:
    """Entries as one text."""
    content = "".join(map(written, found))
    return Text(content, {f"documentation of Python {platform.python_version()}": sha256(content.encode())})


@cache  # it is the same as long as this Python runs
def entries() -> tuple[Entry, ...]:
    """All that is documented.

    Topics and modules come in an order drawn once and for all from their names, so that every split holds some of each. A long paragraph
    that was there before is left out: none is both learnt from and tested on.
    """
    library = Path(sysconfig.get_path("stdlib"))
    documents = [*topics(library), *modules(library)]
    documents.sort(key=lambda document: hashlib.blake2b(document[0].encode()).digest())
    seen: set[str] = set()
    found = ((heading, unseen(body, seen)) for _, entries in documents for heading, body in entries)
    # without the lone surrogates that a string's escapes can write, and no file can hold
    return tuple((heading, body.encode("utf-8", "ignore").decode()) for heading, body in found if body)


def written(entry: Entry) -> str:
    """An entry as it stands in the text."""
    heading, body = entry
    return f"{heading}\n\n{body}\n\n\n"


def topics(library: Path) -> Iterator[tuple[str, list[Entry]]]:
    """What the language reference says under each word that `help` knows."""
    file = library / "pydoc_data" / "topics.py"
    for node in _parsed(file).body:
        if isinstance(node, (ast.Assign, ast.AnnAssign)) and node.value:
            for word, text in ast.literal_eval(node.value).items():
                yield f"help({word!r})", [(f"help({word!r})", text.strip())]


def modules(library: Path) -> Iterator[tuple[str, list[Entry]]]:
    """The docstrings of every module that has any, by its name."""
    for top in sorted(sys.stdlib_module_names):
        for file in [library / f"{top}.py", *sorted((library / top).rglob("*.py"))]:
            place = file.relative_to(library).with_suffix("").parts
            if file.is_file() and not TESTS & {*place}:
                name = ".".join(place).removesuffix(".__init__")
                yield name, list(docstrings(_parsed(file), name, name))


def docstrings(node: ast.AST, name: str, heading: str) -> Iterator[Entry]:
    """Of a module, a class or a function, then of what it defines, in the order of the file."""
    if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)) and (text := ast.get_docstring(node)):
        yield heading, text.strip()
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.ClassDef):
            yield from docstrings(child, f"{name}.{child.name}", f"class {name}.{child.name}")
        elif isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield from docstrings(child, f"{name}.{child.name}", f"{name}.{child.name}({ast.unparse(child.args)})")
        elif isinstance(child, (ast.stmt, ast.ExceptHandler)):  # definitions under an `if` or a `try`
            yield from docstrings(child, name, "")


def unseen(text: str, seen: set[str]) -> str:
    """The paragraphs that are short or new, which are then seen; empty where none is new."""
    kept, new = [], False
    for paragraph in text.split("\n\n"):
        words = " ".join(paragraph.split())
        if len(words) < LONG or words not in seen:
            new |= words not in seen
            seen.add(words)
            kept.append(paragraph)
    return "\n\n".join(kept).strip("\n") if new else ""


def _parsed(file: Path) -> ast.Module:
    try:
        return ast.parse(file.read_bytes())
    except (OSError, SyntaxError, ValueError) as error:
        cure = "install Python's standard library whole, or use data=text_file"
        raise DataError(f"cannot be read ({error})", key=str(file), cure=cure) from None
