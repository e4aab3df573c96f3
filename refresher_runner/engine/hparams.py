"""What TensorBoard's HPARAMS tab reads: of a run its configuration and how it ended, of a folder of runs which columns to show.

TensorBoard puts sessions of one group into one row, with the mean of their metrics: runs that differ in their seed alone. No run says
which columns to show, for that would hide what only others have. Free of torch.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tensorboard.compat.proto.event_pb2 import Event  # type: ignore[attr-defined]
from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata  # type: ignore[attr-defined]
from tensorboard.plugins.hparams import metadata
from tensorboard.plugins.hparams.api_pb2 import DataType, Experiment, HParamInfo, MetricInfo, MetricName, Status  # type: ignore[attr-defined]
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData, SessionEndInfo, SessionStartInfo  # type: ignore[attr-defined]
from tensorboard.summary.writer.record_writer import RecordWriter

from refresher_runner.engine.options import configuration

COLUMNS = "events.out.tfevents.0000000000.columns"  # a folder's; TensorBoard takes any file with `tfevents` in its name


def session_start(config: Mapping[str, Any]) -> Any:
    """A run's configuration, with dotted keys: what tells it from others but its seed."""
    values = configuration(config)
    said = json.dumps(values, sort_keys=True, default=str)
    group = f"{config.get('model.name', '')} on {config.get('data.name', '')} {hashlib.sha256(said.encode()).hexdigest()[:6]}"
    start = SessionStartInfo(group_name=group)
    for key, value in values.items():
        shown = plain(value)
        if isinstance(shown, str):
            start.hparams[key].string_value = shown
        elif shown is not None:
            start.hparams[key].number_value = shown
    return _value(metadata.SESSION_START_INFO_TAG, HParamsPluginData(session_start_info=start))


def session_end() -> Any:
    """That a run has finished, now."""
    end = SessionEndInfo(status=Status.STATUS_SUCCESS, end_time_secs=time.time())
    return _value(metadata.SESSION_END_INFO_TAG, HParamsPluginData(session_end_info=end))


def plain(value: Any) -> float | str | None:
    """A value of the configuration as TensorBoard can hold it: null is no value."""
    return value if isinstance(value, (int, float)) and not isinstance(value, bool) else None if value is None else str(value)


def columns(keys: Mapping[str, Sequence[Any]], metrics: Sequence[str]) -> Any:
    """Columns in the order in which they are wanted; each key with all values that runs have of it, either all numbers or none."""
    infos = []
    for key, values in keys.items():
        shown = [value for value in map(plain, values) if value is not None]
        if not shown or len({isinstance(value, str) for value in shown}) > 1:
            continue  # a filter of TensorBoard's would hide rows
        info = HParamInfo(name=key, display_name=key.removesuffix(".name"), differs=len(set(shown)) > 1)
        if isinstance(shown[0], str):
            info.type = DataType.DATA_TYPE_STRING
            info.domain_discrete.extend(sorted({str(value) for value in shown}))
        else:
            info.type = DataType.DATA_TYPE_FLOAT64
            info.domain_interval.min_value, info.domain_interval.max_value = min(map(float, shown)), max(map(float, shown))
        infos.append(info)
    told = Experiment(hparam_infos=infos, metric_infos=[MetricInfo(name=MetricName(tag=tag)) for tag in metrics])
    return _value(metadata.EXPERIMENT_TAG, HParamsPluginData(experiment=told))


def write_columns(folder: Path, value: Any) -> Path:
    """The file by which a folder of runs has these columns."""
    path = folder / COLUMNS
    with open(path, "wb") as file:
        records = RecordWriter(file)
        for event in (
            Event(wall_time=time.time(), file_version="brain.Event:2"),
            Event(wall_time=time.time(), summary=Summary(value=[value])),
        ):
            records.write(event.SerializeToString())
    return path


def _value(tag: str, content: HParamsPluginData) -> Any:
    content.version = metadata.PLUGIN_DATA_VERSION
    plugin = SummaryMetadata.PluginData(plugin_name=metadata.PLUGIN_NAME, content=content.SerializeToString())
    return Summary.Value(tag=tag, metadata=SummaryMetadata(plugin_data=plugin), tensor=metadata.NULL_TENSOR)
