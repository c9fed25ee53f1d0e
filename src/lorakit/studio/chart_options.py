"""Options of ECharts for pictures of many runs or trials; all their texts are escaped."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lorakit.errors import escaped

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
        if not is_logarithmic(positions) and 0 <= min(positions, default=-1) < _near_zero(
            positions
        ):
            axis["min"] = 0  # the room beside the points would begin below
    return {
        "grid": {"left": 8, "right": 24, "top": 32, "bottom": 32, "containLabel": True},
        "tooltip": {"trigger": "item", "formatter": "{b}\n{c}"},
        "xAxis": axis,
        "yAxis": {"type": "value", "name": escaped(y_name), **_Y_NAME, **_ROOM, "splitNumber": 4}
        | {"axisLine": {"onZero": False}},  # it stands at the left
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


def _near_zero(positions: Sequence[float]) -> float:
    """Return below which value the lowest of some positions is drawn with the zero."""
    return (max(positions) - min(positions)) / 4


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
