"""Documents run: every command in README.md, and every command at the top of a file of YAML."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from PIL import Image

from refresher_runner.cli import main
from refresher_runner.compose import compose, folders
from refresher_runner.registry import MODELS
from refresher_runner.settings import check

ROOT = Path(__file__).parents[1]
CONF = folders()["main"]
NOT_OURS = ("git", "make")  # commands; what is left of `make` is tested by name
HERE = {  # for sets that are downloaded
    **dict.fromkeys(("mnist", "fashion_mnist", "cifar10"), "digits"),
    "voc": "shapes",
    "tiny_shakespeare": "python_docs",
    "translation": "dates",
    "text8": "python_words",
    "movielens": "interactions",
}
EMBEDDED = {"digits", "shapes", "captioned_shapes", "python_docs", "docstrings", "dates", "python_words", "interactions"}
QUICK = ["trainer=smoke", "trainer.duration=2 steps", "trainer.budget=null", "trainer.threads=1", "data.batch_size=8"]
DRAWN = {
    "vae": ["model.width=8", "model.judged=20"],
    "ddpm": ["model.width=8", "model.samples=4", "model.steps=3", "model.judged=20"],
    "latent_diffusion": ["judge=null", "model.width=8", "model.autoencoder_steps=1", "model.samples=4", "model.steps=3", "model.judged=20"],
}
FEW = {
    **{name: ["data.train_count=16", "data.val_count=8", "data.test_count=8"] for name in ("shapes", "captioned_shapes", "dates")},
    "interactions": ["data.users=64", "data.items=40"],
    # a quarter of the time that subwords take to be learnt
    "python_docs": ["data.tokens=characters", "data.block_size=32", "data.val_fraction=0.0002", "data.test_fraction=0.0002"],
}


def blocks(document: str) -> list[list[str]]:
    """The code blocks of a document that name no language."""
    text = (ROOT / document).read_text(encoding="utf-8")
    found = re.findall(r"^```(\w*)\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    return [block.strip().splitlines() for language, block in found if not language]


def typed_in(document: str) -> list[str]:
    """The lines of its code blocks that one types: all of them, or those after `$ ` where a block shows what is answered."""
    found = []
    for lines in blocks(document):
        prompted = [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]
        found += prompted or lines
    return [line for line in found if line.split()[0] not in NOT_OURS]


def typed_in_yaml() -> list[str]:
    """What the first lines of each file in conf/ tell to type; the head of config.yaml is a synopsis."""
    lines = [line for file in sorted(CONF.rglob("*/*.yaml")) for line in file.read_text(encoding="utf-8").splitlines()[:2]]
    return [line.removeprefix("# ").partition(": ")[0] for line in lines if line.startswith("# refresher")]


def lay_out_boxes(root: Path) -> None:
    """Twelve pictures with a cat in the middle of each, in all layouts at once."""
    for folder in ("JPEGImages", "Annotations", "images", "labels", "train", "annotations"):
        (root / folder).mkdir(parents=True)
    for number in range(12):
        for folder in ("JPEGImages", "images", "train"):
            Image.effect_noise((40, 32), 60).save(root / folder / f"{number}.jpg")
        box = "<xmin>11</xmin><ymin>9</ymin><xmax>30</xmax><ymax>24</ymax>"
        xml = f"<annotation><object><name>cat</name><bndbox>{box}</bndbox></object></annotation>"
        (root / "Annotations" / f"{number}.xml").write_text(xml, encoding="utf-8")
        (root / "labels" / f"{number}.txt").write_text("0 0.5 0.5 0.5 0.5\n", encoding="utf-8")
    (root / "data.yaml").write_text("train: images\nnames: [cat]\n", encoding="utf-8")
    images = [{"id": n, "file_name": f"{n}.jpg", "width": 40, "height": 32} for n in range(12)]
    boxes = [{"id": n, "image_id": n, "category_id": 1, "bbox": [10, 8, 20, 16], "iscrowd": 0} for n in range(12)]
    coco = {"images": images, "annotations": boxes, "categories": [{"id": 1, "name": "cat"}]}
    (root / "annotations" / "instances_train.json").write_text(json.dumps(coco), encoding="utf-8")


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the files that the documents speak of, and two runs that were made in it."""
    monkeypatch = pytest.MonkeyPatch()
    desk = tmp_path_factory.mktemp("desk")
    for folder in ("folder", *(f"{root}/{kind}" for root in ("photos", "my_pictures") for kind in ("cat", "dog"))):
        (desk / folder).mkdir(parents=True)
        for number in range(12):
            Image.effect_noise((40, 32), 60).save(desk / folder / f"{number}.jpg")
    Image.effect_noise((8, 8), 60).save(desk / "photo.png")
    (desk / "my_captions").mkdir()
    for number, colour in enumerate(("red", "green", "blue", "black", "white", "grey", "pink", "orange", "brown", "gold", "navy", "tan")):
        Image.new("RGB", (40, 32), colour).save(desk / "my_captions" / f"a_{colour}_card_{number}.png")
    lay_out_boxes(desk / "my_boxes")
    (desk / "my_text.txt").write_text((ROOT / "README.md").read_text(encoding="utf-8") * 9, encoding="utf-8")
    (desk / "my_tables").mkdir()
    visits = [f"{user},{item}" for user in range(12) for item in range(user % 3, 9)]
    (desk / "my_tables" / "events.csv").write_text("\n".join(["user,item", *visits]), encoding="utf-8")
    for name in ("good", "bad"):
        (desk / "my_texts" / name).mkdir(parents=True)
        for number in range(20):
            (desk / "my_texts" / name / f"{number}.txt").write_text(f"This is number {number}, and it is {name}.", encoding="utf-8")
    monkeypatch.chdir(desk)
    for seed in (0, 1):
        typed = ["model=mlp", "trainer=smoke", "trainer.threads=1", "trainer.loggers=[]", f"seed={seed}"]
        assert main(["train", *typed]) == 0
    monkeypatch.undo()
    return desk


@pytest.fixture
def at_the_desk(desk: Path, judges: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Every command finds the desk as it was laid, whatever others have run before it; judges that they trained are kept."""
    for file in desk.iterdir():
        if file.name != "outputs":
            (tmp_path / file.name).symlink_to(file)
    shutil.copytree(desk / "outputs", tmp_path / "outputs", symlinks=True)
    (tmp_path / "outputs" / "judges").symlink_to(judges)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("REFRESHER_DATA", str(desk / "none"))
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)
    torch.autograd.set_detect_anomaly(False)


def quickly(line: str) -> list[str]:
    """A command as it is typed, on data that are here, and short."""
    program, *words = shlex.split(line, comments=True)
    assert program == "refresher", f"not a command of ours: {line}"
    if words[0] == "tune-lr":
        return [*words, "--steps", "20", "trainer.threads=1"]
    if words[0] != "train":
        return words
    choices = [word for word in words if word.partition("=")[0] in ("model", "data", "experiment") and "," not in word]
    config = compose(choices)[0]
    data = config["data"]["name"]
    here = HERE.get(data, data)
    if data in HERE:
        words = [word for word in words if word != f"data={data}"] + [f"data={here}"]
    elif here not in EMBEDDED and not any(word.startswith("data.root=") for word in words):
        words = [*words, f"data.root={'my_captions' if here == 'captions' else 'my_boxes'}"]
    if config["data"].get("binarise") and here != data:
        words = [*words, "~data.binarise"]  # which digits do not have
    words = ["sweep.trials=2" if word.startswith("sweep.trials=") else word for word in words]
    few = [] if "data=python_docs" in words and data == here else FEW.get(here, [])  # which its own file is run without
    if config["model"]["name"] in DRAWN and here != "digits":
        words = [*words, "judge=null"]  # a thousand steps; digits have theirs trained, once
    return [*words, *few, *DRAWN.get(config["model"]["name"], []), *QUICK]


@pytest.mark.usefixtures("at_the_desk")
@pytest.mark.parametrize(
    "line",
    [
        pytest.param(line, marks=pytest.mark.slow if " -m " in line or "reproduce experiment" in line else (), id=line)
        for line in typed_in("README.md")
    ],
)
def test_every_command_of_the_readme(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    if line.startswith("refresher tensorboard"):
        pytest.skip("serves until it is stopped; tests/test_cli.py looks at what it starts")
    answers = [lines[1:] for lines in blocks("README.md") if lines[0] == f"$ {line}"]
    code = main(quickly(line))
    said = capsys.readouterr()
    if answers:
        assert (said.out + said.err).splitlines() == answers[0]
    else:
        assert (code, said.err) == (0, "")


IN_YAML = typed_in_yaml()


@pytest.mark.parametrize("line", [line for line in IN_YAML if " -m " not in line])
def test_every_command_in_a_file_of_yaml_is_understood(line: str) -> None:
    """All its keys, values and choices, by what is checked before a run begins."""
    words = shlex.split(line, comments=True)
    assert words[:2] == ["refresher", "train"]
    assert check(compose(words[2:])[0]).model.name in MODELS.names()


@pytest.mark.usefixtures("at_the_desk")
@pytest.mark.parametrize(
    "line",
    [  # one for each kind of folder that users have is enough for every day
        pytest.param(line, marks=() if "data.root=" in line and line not in IN_YAML[:i] else pytest.mark.slow, id=line)
        for i, line in enumerate(IN_YAML)
    ],
)
def test_every_command_in_a_file_of_yaml(line: str) -> None:
    assert main([*quickly(line), "trainer.loggers=[]"]) == 0


def test_every_file_of_yaml_tells_its_command() -> None:
    assert len(IN_YAML) == len(list(CONF.rglob("*/*.yaml")))


@pytest.mark.parametrize("document", ["README.md", "CONTRIBUTING.md"])
def test_what_is_made_can_be_made(document: str) -> None:
    named = re.findall(r"^make ([a-z -]+?)(?:  |$)|`make ([a-z -]+)`", (ROOT / document).read_text(encoding="utf-8"), re.MULTILINE)
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert named
    assert {word for words in named for word in " ".join(words).split()} <= set(targets)


@pytest.mark.parametrize("document", ["README.md", "CONTRIBUTING.md"])
def test_every_link_leads_somewhere(document: str) -> None:
    links = re.findall(r"\]\(((?!https?://)[^)#]+)", (ROOT / document).read_text(encoding="utf-8"))
    assert [link for link in links if not (ROOT / link).exists()] == []
