"""The HPARAMS tab of a folder of runs, as TensorBoard's own plugin answers the browser."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tensorboard import context
from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
from tensorboard.plugins.base_plugin import TBContext
from tensorboard.plugins.hparams import api_pb2, get_experiment, list_session_groups
from tensorboard.plugins.hparams.backend_context import Context
from tensorboard.plugins.hparams.metadata import parse_experiment_plugin_data
from torch import nn

from refresher_runner.engine.figures import Gallery
from refresher_runner.engine.hparams import COLUMNS, columns
from refresher_runner.engine.rundir import RunDir
from refresher_runner.engine.tensorboard import TensorBoard
from refresher_runner.runs import summarise
from refresher_runner.sweep.columns import columns_of, metrics_of
from tests.sweep.written import chosen, write_run

TASK: Any = nn.Module()


def log(run: RunDir, ended: bool = True) -> None:
    """The run's curves, as its TensorBoard logger writes them."""
    summary = summarise(run)
    board = TensorBoard(run.tensorboard, Gallery(), print)
    board.begin(TASK, None, config=summary.config, graph=False)
    for line in summary.lines():
        board.log({tag: value for tag, value in line.items() if "/" in tag}, line["step"])
    if ended:
        board.log({"test/accuracy": summary.tested or 0.0}, 20)
        board.finish({})
    board.close()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two models, the second at two learning rates, two seeds each; and one that has not finished."""
    for model, lr, options in (("cnn", 0.1, {"channels": [8]}), ("mlp", 0.1, {"hidden": [9]}), ("mlp", 0.01, {"hidden": [9]})):
        for seed in (0, 1):
            reached = {10: 0.1, 20: 0.5 + lr + seed / 4}
            typed = (f"model={model}", f"optimizer.lr={lr}")
            config = chosen(model, lr, seed, dropout=None, **options)
            log(write_run(tmp_path, f"{model}_{lr}_{seed}", config, reached, typed=typed, tested=0.25 + seed, more={"val/loss": 2.0}))
    log(write_run(tmp_path, "slow", chosen("mlp", 1.0, hidden=[9]), {10: 0.1}, state="running", more={"val/loss": 2.0}), ended=False)
    return tmp_path


def asked(folder: Path) -> tuple[Any, dict[str, Any]]:
    """What the tab would show: the experiment, and its rows by name."""
    runs = EventMultiplexer().AddRunsFromDirectory(str(folder))
    runs.Reload()
    source = MultiplexerDataProvider(runs, str(folder))
    request, shown = context.RequestContext(), Context(TBContext(data_provider=source, logdir=str(folder)))
    experiment = get_experiment.Handler(request, shown, "", api_pb2.GetExperimentRequest()).run()
    statuses = [api_pb2.STATUS_UNKNOWN, api_pb2.STATUS_SUCCESS, api_pb2.STATUS_FAILURE, api_pb2.STATUS_RUNNING]
    named = [api_pb2.ColParams(hparam=info.name) for info in experiment.hparam_infos]
    wanted = api_pb2.ListSessionGroupsRequest(
        start_index=0, slice_size=100, allowed_statuses=statuses, col_params=named, aggregation_type=api_pb2.AGGREGATION_AVG
    )
    found = list_session_groups.Handler(request, shown, "", wanted).run()
    return experiment, {group.name: group for group in found.session_groups}


def test_a_row_for_each_configuration_whose_metrics_are_means_over_seeds(folder: Path) -> None:
    with columns_of(folder):
        experiment, rows = asked(folder)
    assert [info.name for info in experiment.hparam_infos] == ["model.name", "optimizer.lr"]
    assert [info.name.tag for info in experiment.metric_infos] == ["val/accuracy", "val/loss", "train/loss"]
    assert all(info.differs for info in experiment.hparam_infos)
    lrs = experiment.hparam_infos[1].domain_interval
    assert (lrs.min_value, lrs.max_value) == (0.01, 1.0)
    assert set(experiment.hparam_infos[0].domain_discrete) == {"cnn", "mlp"}
    assert len(rows) == 4
    cells = {
        (row.hparams["model.name"].string_value, row.hparams["optimizer.lr"].number_value): (
            len(row.sessions),
            {value.name.tag: value.value for value in row.metric_values},
        )
        for row in rows.values()
    }
    sessions, metrics = cells["mlp", 0.01]
    assert sessions == 2
    assert metrics["val/accuracy"] == pytest.approx((0.51 + 0.76) / 2)
    assert cells["mlp", 1.0] == (1, {"val/accuracy": pytest.approx(0.1), "val/loss": 2.0, "train/loss": pytest.approx(1 / 11)})


def test_nothing_stays_behind_and_nothing_lies_below(folder: Path) -> None:
    (folder / "below").mkdir()
    (folder / "below" / COLUMNS).write_bytes(b"of an earlier look")
    with columns_of(folder):
        assert [path.parent for path in folder.rglob(COLUMNS)] == [folder]
    assert list(folder.rglob(COLUMNS)) == []


def test_without_our_command_every_key_of_every_run_is_there(folder: Path) -> None:
    """`tensorboard --logdir` alone: what differs is told by TensorBoard itself."""
    experiment, rows = asked(folder)
    differing = {info.name for info in experiment.hparam_infos if info.differs}
    assert differing == {"model.name", "optimizer.lr"}
    assert {"model.channels", "model.hidden"} <= {info.name for info in experiment.hparam_infos}
    assert len(rows) == 4


def test_runs_of_one_configuration_need_no_columns(tmp_path: Path) -> None:
    write_run(tmp_path, "a", chosen(), {10: 0.5})
    with columns_of(tmp_path):
        assert list(tmp_path.rglob(COLUMNS)) == []


def test_what_every_run_has_comes_before_what_some_have(folder: Path) -> None:
    runs = [summarise(RunDir(path.parent)) for path in folder.rglob("config.yaml")]
    assert metrics_of(runs) == ["val/accuracy", "val/loss", "train/loss"]
    more = write_run(folder, "more", chosen(), {10: 0.5}, more={"val/best": 0.5, "test/accuracy": 0.5, "val/recall/cat": 0.1})
    assert metrics_of([*runs, summarise(more)]) == ["val/accuracy", "train/loss", "val/best", "test/accuracy", "val/loss"]


def test_a_key_of_numbers_and_words_is_left_to_the_leaderboard() -> None:
    said = columns({"a": [1, "x"], "b": [None, 2], "c": [None], "d": [True, False]}, [])
    told = parse_experiment_plugin_data(said.metadata.plugin_data.content)
    assert [(info.name, info.type) for info in told.hparam_infos] == [("b", api_pb2.DATA_TYPE_FLOAT64), ("d", api_pb2.DATA_TYPE_STRING)]
