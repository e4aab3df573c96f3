"""Imports point one way, what takes time is imported late, and nothing opens a door that is shut."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import refresher_runner

PACKAGE = Path(refresher_runner.__file__).parent
LAYERS = [
    {"errors"},
    {"schema", "registry", "report", "spec", "vocabulary", "features", "pictures"},
    {"nn", "metrics", "task"},
    {"models", "data", "engine"},
    {"settings", "bands", "restore", "judges", "parts", "budget", "tuning", "run", "runs", "reproduction"},
    {"cli", "compose", "blame", "catalogue", "console", "predictions", "sweep", "__main__"},
]
STRANGERS = LAYERS[3]  # these do not know one another
FREE_OF_TORCH = [
    *sorted(LAYERS[0] | LAYERS[1] | LAYERS[4] | LAYERS[5] - {"__main__", "sweep"}),
    "sweep.boards",
    "sweep.columns",
    "sweep.curves",
    "sweep.folder",
    "sweep.entry",
    "sweep.plugins",
    "sweep.search",
    "sweep.server",
    "engine.options",
    "engine.rundir",
]

FILES = sorted(PACKAGE.rglob("*.py"))
NAMES = [str(file.relative_to(PACKAGE)) for file in FILES]


def layer(room: str) -> int:
    return next(number for number, rooms in enumerate(LAYERS) if room in rooms)


def room_of(file: Path) -> str:
    return file.relative_to(PACKAGE).with_suffix("").parts[0]


def imports(tree: ast.AST) -> list[str]:
    """Every module that is imported anywhere in a file, dotted."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "an absolute import says where things live"
            found += [f"{node.module}.{alias.name}" for alias in node.names]
    return found


def test_every_room_has_a_layer() -> None:
    assert {room_of(file) for file in FILES} - {"__init__"} == set().union(*LAYERS)


@pytest.mark.parametrize("file", FILES, ids=NAMES)
def test_imports_point_down(file: Path) -> None:
    room = room_of(file)
    if room == "__init__":
        return
    for name in imports(ast.parse(file.read_text(encoding="utf-8"))):
        top, _, rest = name.partition(".")
        if top == "hydra":
            assert layer(room) == len(LAYERS) - 1, f"{room} imports {name}: only the last layer knows Hydra"
        if top != "refresher_runner" or rest == "__version__":
            continue
        target = rest.partition(".")[0]
        if target == room:
            continue
        assert layer(target) <= layer(room), f"{room} imports {name}, from a layer above"
        assert not {room, target} <= STRANGERS, f"{room} imports {name}, a stranger"


def test_the_parts_before_a_run_are_free_of_torch() -> None:
    code = "import sys\n" + "".join(f"import refresher_runner.{name}\n" for name in FREE_OF_TORCH)
    done = subprocess.run([sys.executable, "-c", f"{code}sys.exit('torch' in sys.modules)"], check=False)
    assert done.returncode == 0


def hatches(tree: ast.AST) -> list[str]:
    """What would run code, or write files, that a stranger chose: pickles, eval, shells, archives that name their own paths."""
    found = [name for name in imports(tree) if name.partition(".")[0] in ("pickle", "marshal", "shelve", "dill", "cloudpickle")]
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        given = {word.arg: ast.unparse(word.value) for word in node.keywords if word.arg}
        if called in ("eval", "exec", "compile", "os.system", "os.popen", "yaml.unsafe_load", "yaml.full_load"):
            found.append(called)
        if called.endswith(("extractall", ".extract", "load_state_dict_from_url", "hub.load")):
            found.append(called)
        if called == "torch.load" and given.get("weights_only") != "True":
            found.append("torch.load without weights_only=True")
        if called == "yaml.load" and "SafeLoader" not in given.get("Loader", ""):
            found.append("yaml.load without SafeLoader")
        if given.get("shell") == "True" or given.get("allow_pickle") == "True" or given.get("weights_only") == "False":
            found.append(ast.unparse(node))
    return found


@pytest.mark.parametrize("file", FILES, ids=NAMES)
def test_no_escape_hatch(file: Path) -> None:
    assert hatches(ast.parse(file.read_text(encoding="utf-8"))) == []


@pytest.mark.parametrize(
    "line",
    [
        "import pickle",
        "from pickle import load",
        "eval('1')",
        "torch.load(f)",
        "torch.load(f, weights_only=False)",
        "subprocess.run('ls', shell=True)",
        "archive.extractall()",
        "yaml.load(text)",
        "yaml.load(text, Loader=yaml.Loader)",
        "np.load(f, allow_pickle=True)",
    ],
)
def test_an_escape_hatch_is_seen(line: str) -> None:
    assert hatches(ast.parse(line))
