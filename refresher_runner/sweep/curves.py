"""Curves of several runs in one picture: a panel for each tag, a colour for each configuration. Free of torch and Hydra."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from refresher_runner.engine.options import configuration
from refresher_runner.errors import UsageError, did_you_mean
from refresher_runner.runs import Summary, show
from refresher_runner.sweep.leaderboard import text_of, typed_for, varying

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FORMATS = (".png", ".svg", ".pdf")
MOST_NAMED = 20  # configurations
Curve = Mapping[int, float]  # by step


def draw_curves(runs: Sequence[Summary], file: Path, tags: Sequence[str] = ()) -> None:
    """`tags`, or the training loss, the goal and the validation loss. Seeds are thin lines, their mean a strong one. Raises UsageError."""
    if file.suffix not in FORMATS:
        raise UsageError("has no format that can be drawn", key="--plot", value=file, cure=f"a name that ends in {' or '.join(FORMATS)}")
    groups = _groups(runs)
    known = dict.fromkeys(tag for curves in groups.values() for run in curves for tag in run)
    if unknown := [tag for tag in tags if tag not in known]:
        raise UsageError("none of these runs has this curve", key="--tag", value=unknown[0], cure=did_you_mean(unknown[0], known))
    goals = [f"val/{run.goal['metric']}" for run in runs if run.goal]
    shown = list(tags) or [tag for tag in dict.fromkeys(["train/loss", *goals, "val/loss"]) if tag in known]
    if not shown:
        raise UsageError("these runs have logged nothing yet", key="compare", value=" ".join(str(run.run) for run in runs))

    import matplotlib
    from matplotlib.figure import Figure  # not pyplot, which keeps every figure for ever

    with matplotlib.rc_context({"text.parse_math": False}):
        columns = min(3, len(shown))
        rows = math.ceil(len(shown) / columns)
        figure = Figure((1.5 + 4.5 * columns, 0.5 + 3.5 * rows), layout="constrained")
        panels: list[Axes] = list(figure.subplots(rows, columns, squeeze=False).flat)
        for panel in panels[len(shown) :]:
            panel.set_axis_off()
        for panel, tag in zip(panels, shown, strict=False):
            for number, (name, curves) in enumerate(groups.items()):
                _draw(panel, name, [run[tag] for run in curves if tag in run], number)
            panel.set(title=tag, xlabel="step")
            panel.grid(alpha=0.3)
        if 1 < len(groups) <= MOST_NAMED:
            drawn = [line for panel in panels for line in panel.get_lines()]
            lines = {str(line.get_label()): line for line in drawn if not str(line.get_label()).startswith("_")}
            figure.legend(lines.values(), lines.keys(), loc="outside right upper", frameon=False, fontsize=9)
        file.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(file, dpi=100)


def mean_curve(curves: Sequence[Curve]) -> dict[int, float]:
    """The mean at every step that all of them have."""
    shared = set.intersection(*(set(curve) for curve in curves)) if curves else set()
    return {step: statistics.fmean(curve[step] for curve in curves) for step in sorted(shared)}


def _groups(runs: Sequence[Summary]) -> dict[str, list[dict[str, dict[int, float]]]]:
    """What each configuration is called, by what varies; and for each of its runs the curve of every tag."""
    configs = [configuration(run.config) for run in runs]
    keys = varying(configs, set().union(*map(typed_for, runs)))
    names: dict[str, str] = {}
    groups: dict[str, list[dict[str, dict[int, float]]]] = {}
    for run, config in zip(runs, configs, strict=True):
        known = {key: show(config[key]) for key in keys if key in config}
        told = [value if key.endswith(".name") else f"{key}={value}" for key, value in known.items()]
        name = names.setdefault(text_of(config), " ".join(told) or str(run.value("model")))
        groups.setdefault(name, []).append(_curves(run))
    return groups


def _curves(run: Summary) -> dict[str, dict[int, float]]:
    found: dict[str, dict[int, float]] = {}
    for line in run.lines():
        for tag, value in line.items():
            if "/" in tag and isinstance(value, (int, float)):
                found.setdefault(tag, {})[line["step"]] = float(value)
    return found


def _draw(panel: Axes, name: str, curves: Sequence[Curve], number: int) -> None:
    style: dict[str, Any] = {"color": f"C{number % 10}", "linestyle": ("-", "--", ":", "-.")[number // 10 % 4]}
    for curve in curves if len(curves) > 1 else []:
        panel.plot(list(curve), list(curve.values()), alpha=0.3, linewidth=0.8, **style)
    if mean := mean_curve(curves):
        label = f"{name} ({len(curves)} seeds)" if len(curves) > 1 else name
        marker = "o" if len(mean) == 1 else None
        panel.plot(list(mean), list(mean.values()), label=label, linewidth=1.6, marker=marker, **style)
