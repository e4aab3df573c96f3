"""What a person is told, on a terminal, in a pipe, and when nobody listens."""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from refresher_runner.engine.console import Console, evaluation_line, tables_of_test, time_left, training_line
from refresher_runner.engine.tables import table
from refresher_runner.report import Matrix, Report, Text
from tests.engine.toy import Toy

TRAINING: Report = {
    "train/loss": 1.23456,
    "train/kl": 0.5,
    "optim/lr": 0.001,
    "speed/samples_per_second": 5321.4,
    "progress/epoch": 0.25,
    "progress/fraction": 0.025,
}
EVALUATION: Report = {
    "val/loss": 0.0921,
    "val/accuracy": 0.97123,
    "val/recall/cat": 0.5,
    "val/confusion_matrix": Matrix(torch.zeros(2, 2), ("a", "b"), ("a", "b")),
    "val/best": 0.97123,
}


class Terminal(io.StringIO):
    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


def console(folder: Path, out: Any, goal: str = "accuracy") -> Console:
    return Console(folder / "log.txt", out, goal)


def test_a_line_of_training() -> None:
    line = training_line(TRAINING, 50, "1m02s left")
    assert line == "step     50  epoch 0.25  loss 1.235  kl 0.5  lr 0.001  5321 samples/s  1m02s left"


def test_a_line_of_an_evaluation_says_where_the_best_is() -> None:
    assert evaluation_line(EVALUATION, 400, "accuracy") == "val  step    400  accuracy 0.9712 (best)  loss 0.0921"
    worse = {**EVALUATION, "val/accuracy": 0.5}
    assert evaluation_line(worse, 800, "accuracy") == "val  step    800  accuracy 0.5 (best 0.9712)  loss 0.0921"
    assert evaluation_line({"val/loss": float("nan")}, 5, "loss") == "val  step      5  loss nan"
    assert "best" not in evaluation_line(EVALUATION, 400, "")


@pytest.mark.parametrize(
    ("seconds", "done", "fraction", "text"),
    [
        (0, 0, 0.3, ""),
        (30, 0.5, 0.5, "30s left"),
        (62, 0.5, 0.5, "1m02s left"),
        (30, 0.1, 0.6, "2m00s left"),
        (3900, 0.5, 0.5, "1h05m left"),
        (100_000, 0.5, 0.5, "1d03h left"),
        (10, 0.5, 1.0, "0s left"),
    ],
)
def test_time_left_at_the_pace_of_this_sitting(seconds: float, done: float, fraction: float, text: str) -> None:
    assert time_left(seconds, done, fraction) == text


def test_classes_are_listed_if_they_are_few() -> None:
    few = {"test/loss": 0.5} | {f"test/{metric}/{name}": 0.25 for metric in ("precision", "recall") for name in ("cat", "T-shirt/top")}
    rows = [line.split("|")[1].strip() for line in tables_of_test(few).splitlines() if line]
    assert [row for row in rows if not row.startswith("-")] == ["test", "loss", "class", "cat", "T-shirt/top"]
    many = {"test/loss": 0.5} | {f"test/recall/{name}": 0.25 for name in range(21)}
    assert "class" not in tables_of_test(many)


def test_tables_are_aligned_markdown() -> None:
    assert table(["a", "number"], [["x|y", "5"]], right=["number"]).splitlines() == [
        "| a    | number |",
        "|------|-------:|",
        "| x\\|y |      5 |",
    ]


def test_a_pipe_gets_plain_lines_and_the_log_the_same_with_times(tmp_path: Path) -> None:
    out = io.StringIO()
    told = console(tmp_path, out, "")
    told.begin(Toy(), None, config={}, graph=False)
    told.log({"config": Text("seed: 0"), "summary": Text("| layer |")}, 0)
    told.log(TRAINING, 50)
    told.log(EVALUATION, 50)
    told.finish({"test/loss": 0.25})
    told.say("done [bold] é")
    told.close()
    lines = out.getvalue().splitlines()
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f]", out.getvalue())
    assert [line.split()[0] for line in lines] == ["|", "step", "val", "|", "|------|------:|", "|", "done"]
    assert "loss 0.0921 (best 0.9712)" in lines[2]  # the toy's goal is its loss
    logged = (tmp_path / "log.txt").read_text(encoding="utf-8").splitlines()
    assert [line.split("  ", 1)[1] for line in logged] == lines
    assert all(re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d[+-]\d\d:\d\d  ", line) for line in logged)


def test_a_warning_goes_to_stderr_and_the_log(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = console(tmp_path, None)
    told.say("not shown")
    told.warn("careful")
    told.close()
    assert capsys.readouterr() == ("", "warning: careful\n")
    assert (tmp_path / "log.txt").read_text().count("\n") == 2


def screen(written: str) -> list[str]:
    """The lines that a terminal shows after this was written to it."""
    lines, row, column = [""], 0, 0
    for part in re.findall(r"\x1b\[[0-9;?]*[A-Za-z]|.|\n", written):
        if part == "\n":
            row, column = row + 1, 0
            lines += [""] * (row + 1 - len(lines))
        elif part == "\r":
            column = 0
        elif part == "\x1b[2K":
            lines[row] = ""
        elif part == "\x1b[1A":
            row -= 1
        elif not part.startswith("\x1b"):
            lines[row] = lines[row][:column].ljust(column) + part + lines[row][column + 1 :]
            column += 1
    return [line.rstrip() for line in lines if line.strip()]


def test_a_terminal_keeps_evaluations_and_moves_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "200")
    out = Terminal()
    told = console(tmp_path, out)
    told.say("cnn on digits")
    for step in (1, 2, 3):
        told.log({**TRAINING, "progress/fraction": step / 4}, step)
        shown = screen(out.getvalue())
        assert len(shown) == 2
        assert f"{25 * step}% step      {step}" in shown[1]
    told.log(EVALUATION, 3)
    evaluation = "val  step      3  accuracy 0.9712 (best)  loss 0.0921"
    assert screen(out.getvalue())[:2] == ["cnn on digits", evaluation]
    assert "75% step" in screen(out.getvalue())[2]
    told.close()
    assert screen(out.getvalue()) == ["cnn on digits", evaluation]
    assert (tmp_path / "log.txt").read_text().count("step ") == 4


@pytest.mark.parametrize("out", [io.StringIO(), Terminal()])
def test_a_stream_that_was_closed_is_silence(tmp_path: Path, out: io.StringIO) -> None:
    out.close()
    told = console(tmp_path, out)
    told.log(TRAINING, 1)
    told.say("more")
    told.close()
    assert "more" in (tmp_path / "log.txt").read_text()


CHILD = """
import sys
from pathlib import Path
from refresher_runner.engine.console import Console
told = Console(Path(sys.argv[1]), sys.stdout)
for k in range(2000):
    told.say(f"line {k} " + 100 * "x")
told.close()
print("the end")
"""


def test_a_reader_that_leaves_is_no_error(tmp_path: Path) -> None:
    """As `refresher train | head -1`: all is in the log, and the exit code is 0."""
    process = subprocess.Popen([sys.executable, "-c", CHILD, str(tmp_path / "log.txt")], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline().startswith(b"line 0 ")
    process.stdout.close()
    assert process.stderr is not None
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait() == 0
    assert len((tmp_path / "log.txt").read_text().splitlines()) == 2000


def test_an_encoding_that_lacks_a_letter_is_no_error(tmp_path: Path) -> None:
    script = "import sys; from pathlib import Path; from refresher_runner.engine.console import Console\n"
    script += "told = Console(Path(sys.argv[1]), sys.stdout); told.say('\\u6570 caf\\xe9'); told.say('more')"
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path / "log.txt")], capture_output=True, env=environment, check=True)
    assert done.stdout == b"\\u6570 caf\\xe9\nmore\n"
    assert "数 café" in (tmp_path / "log.txt").read_text(encoding="utf-8")
