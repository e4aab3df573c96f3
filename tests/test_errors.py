"""What is typed, what it is answered with; and that nothing typed leaves a traceback or a folder behind."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from refresher_runner.cli import main
from refresher_runner.compose import compose, keys_of
from refresher_runner.errors import ConfigError, did_you_mean
from refresher_runner.settings import check


@pytest.fixture(autouse=True)
def _empty_folder(tmp_path: Path, as_it_was: None) -> Iterator[None]:
    """Every command of this file starts in an empty folder, and leaves it empty."""
    yield
    assert list(tmp_path.iterdir()) == []


def answer(capsys: pytest.CaptureFixture[str], *typed: str) -> tuple[int, str]:
    code = main(list(typed))
    return code, capsys.readouterr().err


# typed after `train`, words of the error line, words of the hint
TABLE = [
    ("optimizer=sdg", "optimizer=sdg unknown optimizer", "'sgd'"),
    ("model=cn", "model=cn unknown model", "'cnn'"),
    ("trainer=smokey", "trainer=smokey unknown", "'smoke'"),
    ("model=../../etc/passwd", "unknown model", "cnn"),
    ("model=null", "unknown model", "cnn"),
    ("optimizer.lrr=3", "optimizer.lrr unknown key", "'lr'"),
    ("optimizr.lr=3", "optimizr.lr unknown key", "'optimizer.lr'"),
    ("lr=3", "lr unknown key", "'optimizer.lr'"),
    ("trainer.durration=3", "trainer.durration unknown key", "'duration'"),
    ("modle=cnn", "modle unknown key", "model=cnn"),
    ("optimizer={lrr: 3}", "optimizer.lrr unknown key", "'lr'"),
    ("optimizer.betas.7=3", "optimizer.betas.7 unknown key", "0, 1"),
    ("+optimizer.new=3", "optimizer.new unknown key", ""),
    ("++optimizer.lrr=3", "optimizer.lrr unknown key", "'lr'"),
    ("+new=3", "new unknown key", ""),
    ("+optimizer=sgd", "is chosen already", "write optimizer=sgd"),
    ("~optimizer.lr", "optimizer.lr needs a value", "optimizer.lr="),
    ("~optimizer.lrr", "optimizer.lrr unknown key", "'optimizer.lr'"),
    ("~optimizer", "optimizer", ""),
    ("~model", "model", ""),
    ("optimizer@there=sgd", "optimizer@there", ""),
    ("cnn", "cnn is not of the form key=value", "model=cnn"),
    ("hello", "hello is not of the form key=value", ""),
    ("=3", "unknown key", ""),
    ("seed", "seed is not of the form key=value", ""),
    ("optimizer.lr=", "optimizer.lr", ""),
    ("optimizer.lr=fast", "optimizer.lr=fast should be a valid number", ""),
    ("optimizer.lr=-1", "optimizer.lr=-1 should be greater than 0", ""),
    ("optimizer.lr=nan", "optimizer.lr=nan should be a finite number", ""),
    ("optimizer.lr=inf", "optimizer.lr=inf", ""),
    ("optimizer.lr=null", "optimizer.lr=None", ""),
    ("optimizer.lr=true", "optimizer.lr=True", ""),
    ("optimizer.lr=[1]", "optimizer.lr=[1]", ""),
    ("optimizer.lr=???", "optimizer.lr needs a value", ""),
    ("optimizer=3", "optimizer=3 unknown optimizer", ""),
    ("optimizer.betas=[0.9]", "optimizer.betas", ""),
    ("optimizer.betas=[0.9,1.5]", "optimizer.betas.1", ""),
    ("seed=1.5", "seed=1.5", ""),
    ("seed=-1", "seed=-1", ""),
    ("trainer.duration=5", "trainer.duration=5 number and a unit", ""),
    ("trainer.duration=5 parsecs", "trainer.duration=5 parsecs", ""),
    ("trainer.precision=fp8", "trainer.precision=fp8", ""),
    ("trainer.loggers=[consle]", "trainer.loggers.0", ""),
    ("tags=word", "tags=word should be a valid array", ""),
    ("optimizer.lr=1,2", "several values", "-m"),
    ("seed=range(3)", "several values", "-m"),
    ("model=glob(*)", "several values", "-m"),
    ("seed=int(x)", "seed=int(x)", ""),
    ("seed=nothing(3)", "Unknown function", ""),
    ("tags=[a", "tags=[a cannot be read", "quote"),
    ("a b=3", "cannot be read", ""),
    ("optimizer.lr=${nothing}", "optimizer.lr=${nothing} 'nothing' not found", ""),
    ("optimizer.lr=${sede}", "optimizer.lr=${sede}", "'seed'"),
    ("optimizer.lr=${optimizer.lr}", "optimizer.lr", ""),
    ("optimizer.lr=${oc.env:REFRESHER_NOT_SET}", "REFRESHER_NOT_SET", ""),
    ("optimizer.lr=${nothing:3}", "optimizer.lr", ""),
    ("optimizer.lr=" + "[" * 5000, "optimizer.lr nested", "--config-dir"),
    ("tags=[" + "a," * 20_000 + "]", "tags longer than", "--config-dir"),
    ("modules=[not_a_module_of_mine]", "modules=not_a_module_of_mine cannot be imported", ""),
    ("hydra.run.dir=/x", "hydra.run.dir", "outputs"),
    ("hydra.nothing=3", "hydra.nothing", ""),
    ("hydra.searchpath=[/not/there]", "/not/there", ""),
    ("hydra=3", "hydra", ""),
    ("seed=\x00", "seed", ""),
    ("seed=\udcff", "seed", ""),
    ("--nothing", "No such option", ""),
    ("--config-dir=not_there", "--config-dir=not_there no such folder", ""),
]


@pytest.mark.parametrize(("typed", "problem", "cure"), TABLE, ids=[repr(row[0][:40]) for row in TABLE])
def test_answers(capsys: pytest.CaptureFixture[str], typed: str, problem: str, cure: str) -> None:
    code, said = answer(capsys, "train", typed)
    error, _, hint = said.strip().partition("\n")
    assert code == 2
    assert error.startswith("error: ")
    assert all(word in error for word in problem.split())
    assert cure in hint
    assert "\n" not in hint
    assert "use +" not in said
    assert "Traceback" not in said


VERBS = [
    (["trian"], "trian"),
    (["resume"], "RUN"),
    (["resume", "nowhere"], "not a run"),
    (["resume", "last"], "no run here"),
    (["test", "nowhere"], "not a run"),
    (["predict", "nowhere", "a.png"], "not a run"),
    (["show", "optimizer.lrr"], "optimizer.lrr"),
    (["show", "seed", "tags"], "one key"),
    (["runs", "nowhere"], "no such folder"),
    (["runs", ".", "--filter", "seed"], "key=value"),
    (["compare", "nowhere"], "not a run"),
    (["compare", "nowhere", "nowhere"], "not a run"),
    (["tensorboard", "nowhere"], "no such folder"),
    (["list", "nothing"], "nothing"),
    (["train", "-m", "seed=range(0)"], "no jobs"),
    (["train", "-m", "model=glob(q*)"], "no jobs"),
    (["train", "-m", "optimizer.lr=0.1,-2"], "optimizer.lr=-2"),
    (["train", "-m", "optimizer.lrr=0.1,2"], "optimizer.lrr"),
    (["train", "-m", "optimizr.lr=0.1", "seed=1,2"], "optimizr.lr"),
    (["train", "-m", "optimizer=adam,sdg"], "optimizer=sdg"),
    (["train", "--cfg", "job", "--package", "nothing"], "--package=nothing"),
    (["train", "--cfg", "jobs"], "jobs"),
    (["train", "--info", "nothing"], "nothing"),
]


@pytest.mark.parametrize(("typed", "problem"), VERBS, ids=[" ".join(row[0]) for row in VERBS])
def test_verbs_answer(capsys: pytest.CaptureFixture[str], typed: list[str], problem: str) -> None:
    code, said = answer(capsys, *typed)
    assert code == 2
    assert said.startswith("error: ")
    assert problem in said.splitlines()[0]
    assert len(said.strip().splitlines()) <= 2


@pytest.mark.parametrize("variable", ["HYDRA_FULL_ERROR", "REFRESHER_TRACEBACK"])
def test_the_traceback_is_for_who_asks(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    monkeypatch.setenv(variable, "1")
    code, said = answer(capsys, "train", "optimizer=sdg")
    assert code == 2
    assert "Traceback" in said
    assert "MissingConfigException" in said


BAD = [
    "nan",
    "inf",
    "-inf",
    "-1",
    "word",
    "[word]",
    "null",
    "''",
    "1e400",
    "99999999999999999999",
    "true",
    "{a: 1}",
    "'" + "x" * 3000 + "'",
]


def test_every_field_is_checked_against_bad_values() -> None:
    """Each field refuses most of them, under its own name."""
    config, _ = compose([])
    fields = [key for key, value in keys_of(config).items() if not isinstance(value, dict) and not key.rpartition(".")[2].isdigit()]
    for key in fields:
        group, _, name = key.partition(".")
        values = [OverridesParser.create().parse_override(f"x={text}").value() for text in BAD]
        refusals = [refusal({**config, group: {**config[group], name: value} if name else value}) for value in values]
        refused = [error for error in refusals if error is not None]
        assert len(refused) >= 5, f"{key} takes almost anything"
        assert all(error.key.startswith(key) and "\n" not in str(error) for error in refused)


def refusal(config: dict[str, Any]) -> ConfigError | None:
    try:
        check(config)
    except ConfigError as error:
        return error
    return None


# ---------------------------------------------------------------- overrides that no one would type

SEEDS = [
    "optimizer.lr=1e-3",
    "model=cnn",
    "trainer=smoke",
    "tags=[a,b]",
    "+x.y={a: 1, b: [2, 3]}",
    "~seed",
    "seed=${oc.env:HOME}",
    "data.batch_size=8",
]
PIECES = [
    *"=,.:+~@${}[]()'\"\\/#*%- \n\t\x00\x7f",
    "é",
    "\udcff",
    "\U0001f600",
    "null",
    "1e999",
    "nan",
    "???",
    "${",
    "}}",
    "hydra.",
    "_target_",
    "true",
    "0x1",
    "range(1)",
]


def mutated(random_: random.Random) -> list[str]:
    """One or two overrides, each changed in up to four places."""
    words = []
    for seed in random_.sample(SEEDS, random_.choice((1, 1, 2))):
        text = list(seed)
        for _ in range(random_.randrange(5)):
            at = random_.randrange(len(text) + 1)
            kind = random_.randrange(3)
            if kind == 0:
                text[at:at] = list(random_.choice(PIECES)) * random_.choice((1, 1, 1, 40))
            elif kind == 1 and text:
                del text[at : at + random_.randrange(1, 4)]
            else:
                text[at : at + 1] = chr(random_.randrange(1, 256))
        words.append("".join(text))
    return words


def fuzz(capsys: pytest.CaptureFixture[str], seeds: range) -> None:
    codes = set()
    for seed in seeds:
        typed = mutated(random.Random(seed))
        code, said = answer(capsys, "show", "--", *typed)
        codes.add(code)
        assert code in (0, 2), (seed, typed)
        assert "Traceback" not in said, (seed, typed)
        lines = said.splitlines()
        assert (code == 0 and not lines) or (lines[0].startswith("error: ") and len(lines) <= 2), (seed, typed, said)
    assert codes == {0, 2}, "some are sound, some are not"


def test_mutated_overrides_are_taken_or_refused(capsys: pytest.CaptureFixture[str]) -> None:
    fuzz(capsys, range(150))


@pytest.mark.slow
def test_many_mutated_overrides_are_taken_or_refused(capsys: pytest.CaptureFixture[str]) -> None:
    fuzz(capsys, range(150, 1150))


# ---------------------------------------------------------------- the errors themselves


def test_an_error_is_one_printable_line() -> None:
    error = ConfigError("bad\nthing", key="a.b", value="x\ny\x00" + "z" * 500, cure="do\n  this")
    assert "\n" not in str(error)
    assert str(error).isprintable()
    assert len(str(error)) < 120
    assert error.cure == "do this"


def test_did_you_mean() -> None:
    assert did_you_mean("sdg", ["sgd", "adam"]) == "did you mean 'sgd'?"
    assert did_you_mean("zzz", ["sgd", "adam"]) == "known: adam, sgd"
    assert did_you_mean("zzz", []) == ""
