"""Sweeps launched for real: what one job does costs the others nothing, and whatever stops a sweep, it goes on where it stood."""

from __future__ import annotations

import csv
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import pytest

from refresher_runner.cli import main
from refresher_runner.engine.rundir import RunDir
from refresher_runner.errors import ConfigError, RunError
from refresher_runner.registry import MODELS
from refresher_runner.sweep import entry
from refresher_runner.sweep.folder import SweepDir
from refresher_runner.sweep.processes import Forked
from refresher_runner.sweep.watch import print_failures
from tests.processes import left
from tests.sweep.commands import HERE, QUICK, TROUBLED, began, only_sweep, refresher, start, states, wait_for

LASTING = ["trainer.duration=1000000 steps", "trainer.validate_every=100 steps", "trainer.log_every=100"]


@pytest.fixture(scope="module")
def troubles(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[SweepDir, str, Forked]]:
    """A sweep whose jobs went wrong in every way but one, what it printed, and where its processes came from."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("troubles"))
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv("PYTHONPATH", os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")]))
        patch.syspath_prepend(str(HERE))
        patch.setattr(MODELS, "_builders", dict(MODELS._builders))  # the model is for us alone
        source = Forked()
        typed = [*TROUBLED[2:], "model.trouble=none,raises,segfaults,killed,starves,finishes", "trainer.duration=5 steps", "sweep.jobs=2"]
        with redirect_stdout(StringIO()) as said:
            sweep = entry.sweep(typed, HERE / "conf", source)
            print_failures(sweep.jobs())
        yield sweep, said.getvalue(), source
        source.close()
        sys.modules.pop("troubled")


def test_what_one_job_does_costs_the_others_nothing(troubles: tuple[SweepDir, str, Forked]) -> None:
    sweep, said, _ = troubles
    assert states(sweep) == ["finished", *["failed"] * 5]
    table = said.partition("log of failure")[2].splitlines()
    rows = {line.split("trouble=")[1].split()[0]: line for line in table if "trouble=" in line}
    expected = {
        "raises": "RuntimeError: a loss that nobody foresaw",
        "segfaults": "ended by SIGSEGV",
        "killed": "ended by SIGKILL, as when memory runs out",
        "starves": "out of memory",
        "finishes": "exit code 0, and the run did not finish",
    }
    assert {name for name, problem in expected.items() if problem in rows[name]} == set(rows) == set(expected)
    logs = {name: Path(line.split()[-1]) for name, line in rows.items()}
    assert all(log.is_file() for log in logs.values())
    assert "in raises" in logs["raises"].read_text(encoding="utf-8")  # the traceback


def test_a_sweep_tells_its_size_and_what_is_left(troubles: tuple[SweepDir, str, Forked]) -> None:
    lines = troubles[1].splitlines()
    assert any(line.endswith(": 6 jobs of 650 parameters, 2 at a time with 1 thread each") for line in lines)
    assert [line for line in lines if " s left" in line] == [line for line in lines if line.startswith("1 of 6")]


def test_the_runs_of_a_sweep_are_runs_as_any(troubles: tuple[SweepDir, str, Forked], capsys: pytest.CaptureFixture[str]) -> None:
    runs = RunDir.all("outputs")
    assert len(runs) == 6
    assert {run.read_record()["threads"] for run in runs} == {1}
    assert main(["runs", "--filter", "model.trouble=none"]) == 0
    assert capsys.readouterr().out.count("finished") == 1


def test_a_job_leaves_what_its_command_leaves_by_itself(troubles: tuple[SweepDir, str, Forked]) -> None:
    [job] = [job for job in troubles[0].jobs() if job.state == "finished"]
    assert main(["train", "--config-dir", str(HERE / "conf"), *job.overrides, "outputs=alone"]) == 0
    assert left(job.run) == left(*RunDir.all("alone"))


def test_nothing_in_the_server_could_be_broken_by_a_fork(troubles: tuple[SweepDir, str, Forked]) -> None:
    assert len(os.listdir(f"/proc/{troubles[2]._server.pid}/task")) == 1


def test_a_bad_value_anywhere_stops_a_sweep_before_it_starts(troubles: tuple[SweepDir, str, Forked]) -> None:
    before = len(SweepDir.all("outputs"))
    for values, said in (
        ("optimizer.lr=1e-2,-1", r"optimizer.lr=-1"),
        ("model.trouble=none,unbuilt", r"model=troubled: cannot be built.*no such width"),
    ):
        with pytest.raises(ConfigError, match=said):
            entry.sweep([*TROUBLED[2:], values], HERE / "conf", troubles[2])
    with pytest.raises(ConfigError, match=r"trainer.device=cuda:7: this machine has no such device"):
        entry.sweep([*TROUBLED[2:], "trainer.device=cpu,cuda:7"], HERE / "conf", troubles[2])
    assert len(SweepDir.all("outputs")) == before


def test_other_values_would_be_other_jobs(troubles: tuple[SweepDir, str, Forked]) -> None:
    with pytest.raises(ConfigError, match=r"optimizer.lr=1: would make other jobs"):
        entry.resume(troubles[0], ["optimizer.lr=1"])


def test_what_failed_is_tried_again_and_what_is_done_is_left_alone(
    troubles: tuple[SweepDir, str, Forked], capsys: pytest.CaptureFixture[str]
) -> None:
    """All begin anew from the checkpoint of their second step, so that no trouble comes at a fourth."""
    sweep, _, source = troubles
    done, failed = sweep.jobs()[0], sweep.jobs()[1:]
    before = {file: file.stat().st_mtime_ns for file in done.run.path.rglob("*")}
    entry.resume(sweep, ["sweep.jobs=1"], source)
    assert [[sitting["state"] for sitting in job.sittings] for job in failed] == [["failed", "finished"]] * 5
    assert {file: file.stat().st_mtime_ns for file in done.run.path.rglob("*")} == before
    said = capsys.readouterr().out
    assert "6 jobs of 650 parameters, 1 done before, 1 at a time" in said
    assert entry.resume(sweep, (), source).path == sweep.path  # nothing is left to do


def test_the_same_command_goes_on_and_so_does_one_with_more_values(
    troubles: tuple[SweepDir, str, Forked], capsys: pytest.CaptureFixture[str]
) -> None:
    _, _, source = troubles
    typed = [*TROUBLED[2:], "trainer.duration=1 steps"]
    with pytest.raises(RunError, match="no sweep in outputs has these jobs and no others"):
        entry.sweep([*typed, "seed=1", "sweep.resume=true"], HERE / "conf", source)
    first = entry.sweep([*typed, "seed=1"], HERE / "conf", source)
    again = entry.sweep([*typed, "sweep.resume=true", "seed=2,1"], HERE / "conf", source)
    assert again.path == first.path
    assert [(job.number, job.overrides[-1], len(job.sittings)) for job in first.jobs()] == [(1, "seed=1", 1), (2, "seed=2", 1)]
    assert "2 jobs of 650 parameters, 1 done before" in capsys.readouterr().out


@pytest.mark.slow
def test_a_job_that_hangs_is_ended_at_its_time_limit(tmp_path: Path) -> None:
    """With all other troubles beside it."""
    kinds, limit = "model.trouble=hangs,raises,segfaults,killed,none", "sweep.time_limit=20 seconds"
    said = refresher("train", "-m", *TROUBLED, kinds, "seed=1,2", "trainer.duration=5 steps", "sweep.jobs=2", limit, cwd=tmp_path, code=1)
    assert states(only_sweep(tmp_path)) == [*["failed"] * 8, "finished", "finished"]
    assert said.partition("log of failure")[2].count("took longer than sweep.time_limit=20 seconds") == 2


@pytest.mark.slow
def test_a_job_over_its_time_limit_has_saved_and_goes_on(tmp_path: Path) -> None:
    typed = ["train", "-m", "model=mlp", *QUICK, *LASTING, "trainer.duration=40 seconds", "sweep.time_limit=15 seconds"]
    refresher(*typed, cwd=tmp_path, code=1)
    [job] = only_sweep(tmp_path).jobs()
    first = job.run.read_status()
    assert (job.state, first["state"]) == ("failed", "interrupted")
    assert first["step"] > 0
    refresher("resume", str(only_sweep(tmp_path)), "sweep.time_limit=2 minutes", cwd=tmp_path)
    assert (job.state, job.run.read_status()["state"]) == ("finished", "finished")
    assert job.run.read_status()["step"] > first["step"]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_a_stopped_sweep_leaves_jobs_to_resume_and_no_orphan(tmp_path: Path, number: signal.Signals) -> None:
    process = start("train", "-m", "seed=1,2,3", "model=mlp", *QUICK, *LASTING, "sweep.jobs=2", cwd=tmp_path)
    wait_for(lambda: len(began(tmp_path)) == 2)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == (-9 if number == signal.SIGKILL else 128 + number)
    sweep = only_sweep(tmp_path)
    wait_for(lambda: not any(job.run.is_locked() for job in sweep.jobs()))
    assert sorted(states(sweep)) == ["interrupted", "interrupted", "pending"]
    assert sum(job.run.read_status().get("step", 0) > 0 for job in sweep.jobs()) == 2
    if number != signal.SIGKILL:
        assert err.splitlines()[-1] == f"hint: refresher resume {sweep.path.relative_to(tmp_path)} goes on with it"


@pytest.mark.slow
def test_a_server_of_processes_that_is_killed_is_replaced(tmp_path: Path) -> None:
    typed = ["train", "-m", "seed=1,2", "model=mlp", *QUICK, "trainer.duration=20 seconds", *LASTING[1:]]
    process = start(*typed, cwd=tmp_path, REFRESHER_MARK=str(tmp_path))
    wait_for(lambda: len(began(tmp_path)) == 1)
    [server] = [pid for pid in marked(tmp_path) if "sweep.server" in command_of(pid) and parent_of(pid) == process.pid]
    os.kill(server, signal.SIGKILL)
    process.communicate(timeout=120)
    assert process.returncode == 1
    assert states(only_sweep(tmp_path)) == ["failed", "finished"]


def marked(folder: Path) -> list[int]:
    """Processes that carry this folder in their environment."""
    found = []
    for pid in (int(name) for name in os.listdir("/proc") if name.isdigit()):
        try:
            if f"REFRESHER_MARK={folder}".encode() in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
                found.append(pid)
        except OSError:
            continue
    return found


def command_of(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_text(encoding="utf-8")


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[1])


def leaderboard(sweep: SweepDir) -> list[dict[str, str]]:
    """But for where the runs lie."""
    with open(sweep.path / "leaderboard.csv", encoding="utf-8", newline="") as file:
        return [{column: value for column, value in row.items() if column != "run"} for row in csv.DictReader(file)]


@pytest.mark.slow
def test_a_grid_that_is_killed_and_resumed_is_as_one_that_was_not(tmp_path: Path) -> None:
    """2 models x 3 learning rates x 4 seeds, killed with all its processes in the middle, twice."""
    grid = ["model=cnn,mlp", "optimizer.lr=3e-2,1e-2,1e-3", "seed=1,2,3,4", "trainer.duration=60 steps", "trainer.validate_every=20 steps"]
    typed = ["train", "-m", *grid, "trainer.loggers=[]", "trainer.save_every=5 steps", "sweep.jobs=2"]
    (tmp_path / "whole").mkdir()
    (tmp_path / "killed").mkdir()
    refresher(*typed, cwd=tmp_path / "whole")
    folder = tmp_path / "killed"
    for count in (6, 15):
        resumed = ["sweep.resume=true"] if count > 6 else []
        process = start(*typed, *resumed, cwd=folder, REFRESHER_MARK=str(folder))
        wait_for(lambda least=count: bool(SweepDir.all(folder / "outputs")) and states(only_sweep(folder)).count("finished") >= least)
        for pid in marked(folder):
            os.kill(pid, signal.SIGKILL)
        process.communicate(timeout=60)
        assert process.returncode == -signal.SIGKILL
    finished = {job.key: job.run.status.stat().st_mtime_ns for job in only_sweep(folder).jobs() if job.state == "finished"}
    assert 15 <= len(finished) < 24
    sweep = only_sweep(folder)
    refresher("resume", str(sweep), cwd=folder)
    assert states(sweep) == ["finished"] * 24
    assert {key: sweep.job(key).run.status.stat().st_mtime_ns for key in finished} == finished  # type: ignore[union-attr]
    assert sum(len(job.sittings) for job in sweep.jobs()) <= 24 + 2 * 2  # those alone that were killed have run twice
    assert leaderboard(sweep) == leaderboard(whole := only_sweep(tmp_path / "whole"))
    assert len(leaderboard(whole)) == 6
    assert [left(job.run) for job in sweep.jobs()] == [left(job.run) for job in whole.jobs()]
