"""What is installed is what is here: the wheel holds every module and every file of YAML, and works from anywhere."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_the_wheel_is_whole_and_works_from_anywhere(tmp_path: Path) -> None:
    pytest.importorskip("hatchling", reason="hatchling builds the wheel")
    subprocess.run([sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)], cwd=ROOT, check=True)
    [wheel] = tmp_path.glob("*.whl")
    tracked = subprocess.run(
        ["git", "ls-files", "conf", "refresher_runner", "hydra_plugins"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    expected = {f"refresher_runner/{name}" if name.startswith("conf/") else name for name in tracked.stdout.split()}
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert {name for name in expected if not name.endswith(".gitkeep")} <= held
    assert {name.partition("/")[0] for name in held} == {"refresher_runner", "hydra_plugins"}

    venv, elsewhere = tmp_path / "venv", tmp_path / "elsewhere"
    elsewhere.mkdir()
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(venv)], check=True)
    python = str(venv / "bin" / "python")
    install = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", "--no-index", str(wheel)]
    subprocess.run(install, check=True)
    environment = {**os.environ, "PYTHONPATH": sysconfig.get_path("purelib")}  # the dependencies: a .pth file in there counts for nothing

    def say(*command: str) -> str:
        done = subprocess.run(command, cwd=elsewhere, env=environment, capture_output=True, text=True, check=True)
        return done.stdout

    assert say(python, "-c", "import refresher_runner; print(refresher_runner.__file__)").startswith(str(venv))
    refresher = str(venv / "bin" / "refresher")
    assert {"cnn", "mlp", "resnet"} <= set(say(refresher, "list", "models", "--names").split())
    assert say(refresher, "show", "trainer.duration", "trainer=smoke").startswith("trainer.duration: 4 steps")
    assert "run: outputs/mlp/digits/" in say(refresher, "train", "model=mlp", "trainer=smoke", "trainer.loggers=[]", "trainer.threads=1")
