"""Charts on the ECharts that NiceGUI brings: they grow by what is new, and follow dark mode.

A chart is an empty `ui.echart`; what it shows is sent to `charts.js`, which holds the points. An
update therefore carries the new points only, and nothing is drawn when nothing has changed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any
from weakref import WeakSet

from nicegui import Client, ui
from nicegui.events import GenericEventArguments

from lorakit.errors import escaped
from lorakit.runs.metric_log import Series
from lorakit.runs.thinning import Patch, Point, ThinnedSeries, zoomed

_SHOWN_NAME = 60
"""Characters of a line's name in the legend."""


_scripted: WeakSet[Client] = WeakSet()
"""Pages that have the script already."""


@cache
def _script() -> str:
    return Path(__file__).with_name("charts.js").read_text(encoding="utf-8")


class Chart:
    """An ECharts picture with a text alternative."""

    def __init__(self, description: str, classes: str = "chart") -> None:
        """Create an empty chart at the current place of the page.

        Args:
            description: What is shown, for people who hear the page.
            classes: CSS classes that give its size.
        """
        self.description = description
        self.element = ui.echart({}).classes(classes).props('role="img"')
        client = self.element.client
        if client not in _scripted:
            _scripted.add(client)
            client.run_javascript(_script())

    def show(self, option: Mapping[str, Any]) -> None:
        """Draw an option of ECharts; its texts are shown as texts."""
        self._send({"option": {"animation": False, **option}})

    def _send(self, message: Mapping[str, Any]) -> None:
        number = self.element.id
        text = json.dumps({**message, "description": self.description}, allow_nan=False)
        self.element.client.run_javascript(
            f"window.lorakitChart({number}, () => getElement({number}), {text})"
        )


class LineChart(Chart):
    """Lines over the optimizer steps, each with the whole of its series."""

    def __init__(
        self,
        description: str,
        *,
        title: str = "",
        scale: float = 1,
        x_name: str = "step",
        classes: str = "chart",
    ) -> None:
        """Create an empty chart.

        Args:
            description: What is shown, for people who hear the page.
            title: Heading of the chart; a single line of this name needs no legend.
            scale: Factor from a series' values to those that are drawn.
            x_name: Name of the horizontal axis.
            classes: CSS classes that give its size.
        """
        super().__init__(description, classes)
        self._scale, self._title = scale, title
        self._lines: dict[str, ThinnedSeries] = {}
        self._levels: dict[str, tuple[float, float]] = {}
        self._range: tuple[float, float] | None = None
        self._series: Mapping[str, Series] = {}
        self.element.on("range", self._zoom)
        self.show(_line_option(x_name))

    def update(
        self, series: Mapping[str, Series], levels: Mapping[str, float] | None = None
    ) -> None:
        """Draw what is new.

        Args:
            series: The lines by name; a line that is missing is removed.
            levels: Values to draw as horizontal lines, by name.
        """
        series = {name: one for name, one in series.items() if len(one)}
        removed = [name for name in self._lines if name not in series]
        for name in removed:
            del self._lines[name]
        self._series = series
        lines = [
            {**_looks(name), "count": len(one), "kept": patch.kept, "points": self._scaled(patch)}
            for name, one in series.items()
            if (patch := self._patch(name, one)) is not None
        ]
        drawn_levels = self._level_lines(levels or {})
        if not lines and not removed and not drawn_levels:
            return
        order = [*series, *(self._levels if series else ())]
        lines += drawn_levels
        shown = [line for line in lines if line["id"] in order]
        self._send({"order": order, "lines": shown, "title": self._title})

    def _patch(self, name: str, series: Series) -> Patch | None:
        thinned = self._lines.setdefault(name, ThinnedSeries())
        patch = thinned.patch(series)
        if patch is None or self._range is None:
            return patch
        return Patch(0, zoomed(series, *self._range))

    def _scaled(self, patch: Patch) -> Sequence[Point]:
        if self._scale == 1:
            return patch.points
        return [(x, None if y is None else y * self._scale) for x, y in patch.points]

    def _level_lines(self, levels: Mapping[str, float]) -> list[dict[str, Any]]:
        """Return the levels whose ends have moved, as lines of two points."""
        ends = [end for one in self._series.values() for end in (one.steps[0], one.steps[-1])]
        if not ends:
            return []
        before, self._levels = self._levels, {name: (min(ends), max(ends)) for name in levels}
        return [
            {
                **_looks(name),
                "isLevel": True,
                "kept": 0,
                "points": [(end, level * self._scale) for end in self._levels[name]],
            }
            for name, level in levels.items()
            if before.get(name) != self._levels[name]
        ]

    def _zoom(self, event: GenericEventArguments) -> None:
        """Send the points of the range that the reader looks at, or of the whole run."""
        chosen = event.args
        self._range = (float(chosen[0]), float(chosen[1])) if chosen else None
        self._lines.clear()
        self.update(self._series)


def _looks(name: str) -> dict[str, Any]:
    shown = escaped(name)
    short = shown if len(shown) <= _SHOWN_NAME else f"{shown[: _SHOWN_NAME - 1]}…"
    return {"id": name, "name": short}


def _line_option(x_name: str) -> dict[str, Any]:
    return {
        "grid": {"left": 8, "right": 16, "top": 16, "bottom": 28, "containLabel": True},
        "legend": {"type": "scroll", "top": 0, "left": 0, "icon": "roundRect", "itemHeight": 3},
        "tooltip": {"trigger": "axis", "order": "valueDesc"},
        "xAxis": {
            "type": "value",
            "name": x_name,
            "nameLocation": "middle",
            "nameGap": 26,
            "min": "dataMin",
            "max": "dataMax",
            "splitLine": {"show": False},
            "axisLabel": {"hideOverlap": True},
        },
        "yAxis": {"type": "value", "scale": True, "splitNumber": 4},
        "dataZoom": [
            {
                "type": "inside",
                "filterMode": "none",
                "zoomOnMouseWheel": "ctrl",
                "moveOnMouseWheel": False,
            }
        ],
        "series": [],
    }


_Y_NAME: dict[str, Any] = {"nameTextStyle": {"align": "left"}}
_ROOM: dict[str, Any] = {"scale": True, "boundaryGap": ["8%", "8%"]}


def scatter_option(
    points: Sequence[tuple[str, float | str, float]], x_name: str, y_name: str
) -> dict[str, Any]:
    """Return the option of a scatter of named points.

    Args:
        points: Name, position and value; positions are all numbers or all texts.
        x_name: Name of the horizontal axis.
        y_name: Name of the vertical axis.
    """
    is_text = any(isinstance(x, str) for _, x, _ in points)
    positions: list[Any] = [x for _, x, _ in points]
    axis: dict[str, Any] = {
        "name": escaped(x_name),
        "nameLocation": "middle",
        "nameGap": 28,
        "splitLine": {"show": False},
    }
    if is_text:
        labels = [escaped(str(x)) for x in dict.fromkeys(positions)]
        axis |= {
            "type": "category",
            "data": labels,
            "axisLabel": {"width": 90, "overflow": "truncate"},
        }
    else:
        axis |= {"type": "log" if is_logarithmic(positions) else "value", **_ROOM}
    return {
        "grid": {"left": 8, "right": 24, "top": 32, "bottom": 32, "containLabel": True},
        "tooltip": {"trigger": "item", "formatter": "{b}\n{c}"},
        "xAxis": axis,
        "yAxis": {"type": "value", "name": escaped(y_name), **_Y_NAME, **_ROOM, "splitNumber": 4},
        "series": [
            {
                "type": "scatter",
                "symbolSize": 10,
                "data": [
                    {"name": escaped(name), "value": [escaped(x) if isinstance(x, str) else x, y]}
                    for name, x, y in points
                ],
            }
        ],
    }


def parallel_option(
    columns: Sequence[tuple[str, Sequence[float | str]]],
    metric: tuple[str, Sequence[float]],
    best: int,
    *,
    is_minimized: bool,
) -> dict[str, Any]:
    """Return the option of parallel coordinates, in which each trial is a line.

    Args:
        columns: Name and values of each parameter, one value for each trial.
        metric: Name and values of the metric, the last axis.
        best: Place of the best trial, whose line is drawn thick.
        is_minimized: Whether low values of the metric are better.
    """
    axes: list[dict[str, Any]] = []
    for place, (name, values) in enumerate([*columns, metric]):
        axis: dict[str, Any] = {"dim": place, "name": escaped(name.rpartition(".")[2])}
        if any(isinstance(value, str) for value in values):
            labels = dict.fromkeys(escaped(str(value)) for value in values)
            axis |= {"type": "category", "data": list(labels)}
        else:
            axis |= {"type": "log" if is_logarithmic(values) else "value", "scale": True}
        axes.append(axis)
    texts = [axis["type"] == "category" for axis in axes]
    lines = [
        [
            escaped(str(value)) if is_text else value
            for value, is_text in zip(row, texts, strict=True)
        ]
        for row in zip(*(values for _, values in columns), metric[1], strict=True)
    ]
    colours = ["#0e7490", "#c9d4e0"] if is_minimized else ["#c9d4e0", "#0e7490"]
    return {
        "parallel": {"left": 40, "right": 64, "top": 36, "bottom": 24},
        "parallelAxis": axes,
        "tooltip": {"trigger": "item"},
        "visualMap": {
            "show": False,
            "dimension": len(columns),
            "min": min(metric[1]),
            "max": max(metric[1]),
            "inRange": {"color": colours},
        },
        "series": [
            {
                "type": "parallel",
                "lineStyle": {"width": 1.6, "opacity": 0.9},
                "data": [
                    {"value": line, "lineStyle": {"width": 4, "color": "#c2410c"}}
                    if place == best
                    else {"value": line}
                    for place, line in enumerate(lines)
                ],
            }
        ],
    }


def is_logarithmic(values: Sequence[Any]) -> bool:
    """Whether numbers are drawn on a log scale: all above 0, and twenty times apart."""
    return bool(values) and min(values) > 0 and max(values) / min(values) >= 20
