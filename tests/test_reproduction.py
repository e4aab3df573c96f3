"""`reproduce`: a run from its own record, a preset against its band; what is warned of, and every exit code."""

from __future__ import annotations

import json
from math import inf, nan
from pathlib import Path
from typing import Any

import pytest
import yaml

from refresher_runner.cli import main
from refresher_runner.engine.rundir import RunDir
from refresher_runner.reproduction import compare, difference
from tests.inside import trained

pytestmark = pytest.mark.usefixtures("as_it_was")

SMALL = ["model=mlp", "model.hidden=[8]", "model.dropout=0.3", "trainer=smoke", "trainer.threads=1", "trainer.loggers=[]"]


def rewrite(run: RunDir, **facts: Any) -> None:
    run.record.write_text(json.dumps({**run.read_record(), **facts}), encoding="utf-8")


def said(capsys: pytest.CaptureFixture[str], *typed: str, code: int = 0) -> tuple[list[str], list[str]]:
    capsys.readouterr()
    assert main(["reproduce", *typed]) == code
    told = capsys.readouterr()
    return told.out.splitlines(), told.err.splitlines()


def test_a_run_from_its_own_record_is_the_same_bits_and_nothing_is_warned_of(capsys: pytest.CaptureFixture[str]) -> None:
    run = trained(*SMALL, "seed=3")
    out, err = said(capsys, str(run), "outputs=again")
    assert (out[-1], err) == (f"reproduced: {len(_numbers(run))} numbers, the same bits", [])
    [again] = RunDir.all("again")
    assert again.read_record()["command"] == ["refresher", "reproduce", str(run.path.resolve()), "outputs=again"]
    assert _numbers(again) == _numbers(run)


def _numbers(run: RunDir) -> dict[tuple[int, str], float]:
    lines = [json.loads(line) for line in run.metrics.read_text(encoding="utf-8").splitlines()]
    return {
        (line["step"], tag): value
        for line in lines
        for tag, value in line.items()
        if isinstance(value, float) and "speed/" not in tag and tag != "time"
    }


def test_whatever_differs_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    run = trained(*SMALL)
    facts = run.read_record()
    versions = {**facts["versions"], "torch": "1.0.0", "gone": "2.0"}
    checksums = dict.fromkeys(facts["checksums"], "0" * 64)
    resumed = [{"command": ["refresher", "resume", "RUN", "trainer.duration=9 steps"], "started": "then"}]
    rewrite(run, versions=versions, checksums=checksums, cpu="an abacus", git={"commit": "c" * 40}, resumed=resumed)
    _, err = said(capsys, str(run))
    words = "\n".join(err)
    for told in ("cpu was an abacus", "torch was 1.0.0, is ", "gone was 2.0, is absent", "the commit was cccccccccccc, is ", "9 steps"):
        assert told in words
    assert all(f"sha256 {name} was 0000" in words for name in checksums)
    assert len(err) == 5 + len(checksums)
    assert all(line.startswith("warning: ") for line in err)


def test_another_run_is_noticed_and_a_tolerance_is_a_share_of_each_number(capsys: pytest.CaptureFixture[str]) -> None:
    run = trained(*SMALL)
    config = yaml.safe_load(run.config.read_text(encoding="utf-8"))
    config["optimizer"]["lr"] *= 1.001  # as if code had changed
    run.config.write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
    out, _ = said(capsys, str(run), code=1)
    assert out[-1].startswith("NOT reproduced bit for bit")
    assert "the first of all to differ: " in out[-2]
    assert said(capsys, str(run), "--tolerance", "0.2")[0][-1] == "reproduced: within 20.00%"
    assert said(capsys, str(run), "--tolerance", "1e-9", code=1)[0][-1].startswith("NOT reproduced: beyond")


def test_runs_are_compared_number_by_number(tmp_path: Path) -> None:
    runs = []
    for name, numbers in {"a": [(1, 0.5, 8.0), (2, 0.25, 2.0)], "b": [(1, 0.5, 9.0), (2, 0.2, 2.0)]}.items():
        run = RunDir(tmp_path / name)
        run.path.mkdir()
        lines = [{"step": step, "time": speed, "val/loss": loss, "speed/samples_per_second": speed} for step, loss, speed in numbers]
        run.metrics.write_text("".join(f"{json.dumps(line)}\n" for line in lines), encoding="utf-8")
        runs.append(run)
    found = compare(*runs)
    assert (found.compared, found.parted, found.rows) == (2, (2, "val/loss"), [("val/loss", 0.25, 0.2, pytest.approx(0.2))])
    assert [found.within(tolerance) for tolerance in (0.0, 0.19, 0.21)] == [False, False, True]
    assert compare(runs[0], runs[0]).within(0.0)


@pytest.mark.parametrize(
    ("then", "now", "share"),
    [
        *((2.0, 2.0, 0), (2.0, 1.0, 0.5), (-1.0, 1.0, 2), (0.0, 1e-9, 1)),
        *((None, 1.0, inf), (nan, nan, 0), (nan, 1.0, inf), (inf, inf, 0), (inf, 3.0, inf)),
    ],
)
def test_a_difference_is_a_share_of_the_larger(then: float | None, now: float | None, share: float) -> None:
    assert difference(then, now) == difference(now, then) == share


def test_a_run_with_a_budget_is_reproduced_by_the_numbers_it_chose(capsys: pytest.CaptureFixture[str]) -> None:
    run = trained(*SMALL, "trainer.budget=0.01 seconds")
    out, _ = said(capsys, str(run))
    assert out[-1].endswith("the same bits")


def test_what_cannot_be_reproduced_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    run = trained(*SMALL)
    for typed in ("optimizer.lr=0.1", "seed=1", "trainer.duration=9 steps", "data.batch_size=8", "model.dropout=0"):
        _, err = said(capsys, str(run), typed, code=2)
        assert err[0].startswith("error: this would be another run: ")
    run.write_status("interrupted")
    assert "so nobody knows where it ends" in said(capsys, str(run), code=2)[1][0]
    assert said(capsys, "experiment=nothing", code=2)[1][0].startswith("error: experiment=nothing: unknown experiment")


def test_a_preset_passes_in_its_band_and_fails_outside(capsys: pytest.CaptureFixture[str]) -> None:
    loss = trained(*SMALL).read_status()["test"]["test/loss"]
    folder = Path("mine", "experiment")
    folder.mkdir(parents=True)
    body = {
        "defaults": [{"override /model": "mlp"}, {"override /trainer": "smoke"}],
        "model": {"hidden": [8], "dropout": 0.3},
        "trainer": {"threads": 1, "loggers": []},
    }

    def preset(name: str, values: list[float] | None) -> str:
        measured = {"seeds": [0, 1], "metrics": {"test/loss": values}, "machine": "a machine"}
        text = yaml.safe_dump({**body, "measured": measured if values else None}, sort_keys=False)
        (folder / f"{name}.yaml").write_text(f"# @package _global_\n# mine\n{text}", encoding="utf-8")
        return f"experiment={name}"

    mine = ["--config-dir", "mine"]
    out, _ = said(capsys, preset("right", [loss, loss * 1.01]), *mine)
    assert (out[-1], out[-3]) == ("pass", "measured on a machine")
    out, _ = said(capsys, preset("wrong", [loss * 2, loss * 2.0001]), *mine, code=1)
    assert out[-1].startswith("FAIL")
    _, err = said(capsys, preset("unknown", None), *mine, code=2)
    assert err[0] == "error: measured=null: nothing was measured of this, so there is nothing to compare with"
    _, err = said(capsys, "experiment=right", "model.hidden=[9]", *mine, code=2)
    assert err[0].startswith("error: this would be another run: model.hidden")
    assert "measured" not in RunDir.find("last").config.read_text(encoding="utf-8")
