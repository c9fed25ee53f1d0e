"""Charts on the ECharts that NiceGUI brings: they grow by what is new, and follow dark mode.

A chart is an empty `ui.echart`; what it shows is sent to `charts.js`, which holds the points. An
update therefore carries the new points only, and nothing is drawn when nothing has changed. What
the charts of a page send at the same time is one message, so that they are drawn in one frame.
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
from lorakit.runs.thinning import Patch, Point, ThinnedSeries, zoom
from lorakit.studio.browser_calls import call

_SHOWN_NAME = 60
"""Characters of a line's name in the legend."""


_scripted: WeakSet[Client] = WeakSet()
"""Pages that have the scripts already."""


@cache
def _scripts() -> str:
    folder = Path(__file__).parent
    return "".join((folder / n).read_text(encoding="utf-8") for n in ("chart_tail.js", "charts.js"))


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
            client.run_javascript(_scripts())

    def show(self, option: Mapping[str, Any]) -> None:
        """Draw an option of ECharts; its texts are shown as texts."""
        self._send({"option": {"animation": False, **option}})

    def _send(self, message: Mapping[str, Any]) -> None:
        text = json.dumps({**message, "description": self.description}, allow_nan=False)
        call(
            self.element.client, f"lorakitChart({self.element.id}, (id) => getElement(id), {text})"
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
        from_zero: bool = False,
        classes: str = "chart",
    ) -> None:
        """Create an empty chart.

        Args:
            description: What is shown, for people who hear the page.
            title: Heading of the chart; a single line of this name needs no legend.
            scale: Factor from a series' values to those that are drawn.
            x_name: Name of the horizontal axis.
            from_zero: Whether the vertical axis begins at 0, for amounts to compare.
            classes: CSS classes that give its size.
        """
        super().__init__(description, classes)
        self._scale, self._title = scale, title
        self._lines: dict[str, ThinnedSeries] = {}
        self._levels: dict[str, tuple[float, float]] = {}
        self._range: tuple[float, float] | None = None
        self._series: Mapping[str, Series] = {}
        self.element.on("range", self._zoom)
        self.show(_line_option(x_name, from_zero=from_zero))

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
            {
                **_looks(name),
                "count": len(one),
                "kept": patch.kept,
                "points": self._scale_points(patch),
            }
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
        return Patch(0, zoom(series, *self._range))

    def _scale_points(self, patch: Patch) -> Sequence[Point]:
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


def _line_option(x_name: str, *, from_zero: bool) -> dict[str, Any]:
    return {
        "grid": {"left": 8, "right": 16, "top": 16, "bottom": 28, "containLabel": True},
        "legend": {
            "type": "scroll",
            "top": 0,
            "left": 0,
            "icon": "roundRect",
            "itemHeight": 3,
            "textStyle": {"lineHeight": 18},  # a legend in pages is cut to this height
        },
        "tooltip": {"trigger": "axis", "order": "valueDesc"},
        "xAxis": {
            "type": "value",
            "name": x_name,
            "nameLocation": "middle",
            "nameGap": 26,
            "min": "dataMin",
            "max": "dataMax",
            "splitLine": {"show": False},
            "axisLabel": {"hideOverlap": True, "alignMaxLabel": "right"},
        },
        "yAxis": {"type": "value", "scale": not from_zero, "splitNumber": 4},
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
