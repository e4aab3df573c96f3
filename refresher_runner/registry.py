"""Names -> builders. The builder's signature is the schema of its config.

    @MODELS.register("cnn")
    def build_cnn(spec: ImageSpec, *, channels: list[Positive], dropout: Fraction = 0.0) -> CNN: ...

Shipped builders are found by reading their files, not by importing them, so a mistyped option is refused before torch is
loaded. A builder from outside comes in by an entry point (group `refresher.models`, `refresher.data` or `refresher.optimizers`)
or by a module named in `modules=[...]`.
"""

from __future__ import annotations

import ast
import importlib
import importlib.metadata
import importlib.util
import inspect
import typing
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any, TypeVar

from refresher_runner import schema, spec
from refresher_runner.errors import ConfigError, did_you_mean
from refresher_runner.schema import REQUIRED, Option

Builder = TypeVar("Builder", bound=Callable[..., Any])

# The words an annotation of a builder may use; anything else is for the reader alone.
_WORDS = {**vars(typing), **vars(spec), **vars(schema)}


@dataclass(frozen=True)
class Signature:
    """What a builder takes and gives, as far as the configuration is concerned."""

    summary: str  # first line of the docstring
    options: dict[str, Option]  # keyword-only arguments
    spec: type | None  # type of the argument called `spec`: what a model learns from
    yields: type | None  # S of a return annotation DataModule[S]: what a data set promises


class Registry:
    """Builders of one kind, by name."""

    def __init__(self, variable: str, *, kind: str, package: str, group: str):
        self.variable, self.kind, self.package, self.group = variable, kind, package, group
        self._builders: dict[str, Callable[..., Any]] = {}

    def register(self, name: str) -> Callable[[Builder], Builder]:
        def add(builder: Builder) -> Builder:
            known = self._builders.get(name)
            assert known is None or known.__module__ == builder.__module__, f"two builders are called {name}"
            self._builders[name] = builder
            return builder

        return add

    def names(self) -> list[str]:
        return sorted({*self._builders, *self._shipped, *self._entry_points})

    def builder(self, name: str) -> Callable[..., Any]:
        """The builder, its module imported now. Raises ConfigError with the nearest name."""
        if name not in self._builders:
            if name in self._shipped:
                importlib.import_module(self._shipped[name][0])
            elif name in self._entry_points:
                loaded = self._entry_points[name].load()
                if callable(loaded):
                    self._builders.setdefault(name, loaded)
            else:
                raise ConfigError(f"unknown {self.kind}", key=self.kind, value=name, cure=did_you_mean(name, self.names()))
        if name not in self._builders:
            raise ConfigError(f"the entry point registers no {self.kind} of this name", key=self.kind, value=name)
        return self._builders[name]

    def module(self, name: str) -> str | None:
        """Where a builder of ours lives; None for anyone else's."""
        return self._shipped[name][0] if name in self._shipped else None

    def signature(self, name: str) -> Signature:
        """What the builder takes, read from its file when it is ours and not yet imported."""
        if name in self._shipped and name not in self._builders:
            return _read_signature(self._shipped[name][1])
        return _inspect_signature(self.builder(name))

    @cached_property
    def _shipped(self) -> dict[str, tuple[str, ast.FunctionDef]]:
        """Name -> (module, definition) of every `@<REGISTRY>.register("name")` in the package's files."""
        mark = f"{self.variable}.register"
        found = {}
        for file in sorted(_folder(self.package).rglob("*.py")):
            text = file.read_text(encoding="utf-8")
            if f"@{mark}(" not in text:
                continue
            module = ".".join([self.package, *file.relative_to(_folder(self.package)).with_suffix("").parts]).removesuffix(".__init__")
            for node in ast.parse(text).body:
                for call in node.decorator_list if isinstance(node, ast.FunctionDef) else ():
                    if isinstance(call, ast.Call) and ast.unparse(call.func) == mark:
                        found[ast.literal_eval(call.args[0])] = (module, node)
        return found

    @cached_property
    def _entry_points(self) -> dict[str, importlib.metadata.EntryPoint]:
        return {point.name: point for point in importlib.metadata.entry_points(group=self.group)}


MODELS = Registry("MODELS", kind="model", package="refresher_runner.models", group="refresher.models")
DATASETS = Registry("DATASETS", kind="data", package="refresher_runner.data", group="refresher.data")
OPTIMIZERS = Registry("OPTIMIZERS", kind="optimizer", package="refresher_runner.engine", group="refresher.optimizers")


@cache
def _folder(package: str) -> Path:
    found = importlib.util.find_spec(package)
    assert found is not None and found.submodule_search_locations, package
    return Path(found.submodule_search_locations[0])


def _read_signature(node: ast.FunctionDef) -> Signature:
    keywords = zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True)
    texts = {arg.arg: ast.unparse(arg.annotation) for arg in node.args.kwonlyargs if arg.annotation}
    hints = _evaluate(texts)
    options = {arg.arg: Option(hints[arg.arg], REQUIRED if default is None else ast.literal_eval(default)) for arg, default in keywords}
    first = next((a for a in node.args.args if a.arg == "spec" and a.annotation), None)
    wants = _evaluate({"spec": ast.unparse(first.annotation)})["spec"] if first and first.annotation else None
    returns = ast.unparse(node.returns) if node.returns else ""
    yields = _evaluate({"yields": returns})["yields"] if returns.startswith("DataModule[") else None
    return Signature(_first_line(ast.get_docstring(node)), options, wants, _yielded(yields))


def _inspect_signature(builder: Callable[..., Any]) -> Signature:
    hints = typing.get_type_hints(builder, include_extras=True, localns=_WORDS)
    parameters = inspect.signature(builder).parameters
    options = {
        name: Option(hints[name], REQUIRED if p.default is p.empty else p.default)
        for name, p in parameters.items()
        if p.kind is p.KEYWORD_ONLY
    }
    wants = hints.get("spec") if "spec" in parameters else None
    return Signature(_first_line(inspect.getdoc(builder)), options, wants, _yielded(hints.get("return")))


def _evaluate(texts: dict[str, str]) -> dict[str, Any]:
    """Annotations, written as text, as types."""

    def holder() -> None: ...

    holder.__annotations__ = dict(texts)
    return typing.get_type_hints(holder, globalns=_WORDS, include_extras=True)


def _yielded(returned: Any) -> type | None:
    return typing.get_args(returned)[0] if typing.get_origin(returned) is spec.DataModule else None


def _first_line(doc: str | None) -> str:
    return doc.strip().splitlines()[0] if doc else ""
