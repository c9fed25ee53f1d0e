"""How far a run is, and the buttons that act on it."""

from __future__ import annotations

from urllib.parse import urlencode

from nicegui import ui

from lorakit.runs.metric_log import MetricLog, kept_metrics
from lorakit.runs.run_detail import RunDetail
from lorakit.studio.blocks import Text, card


class Progress:
    """The card at the top of a run's page."""

    def __init__(self, path: str, detail: RunDetail):
        self._path, self._detail = path, detail
        with card():
            with ui.element("div").classes("flex-row gap-2"):
                for text in (detail.text("task"), detail.text("model")):
                    if text:
                        Text("span", text).classes("text-soft")
            self._bar = ui.element("progress").props('max=1 aria-label="Share of the steps"')
            self._words = Text("p", "")
            with ui.element("div").classes("flex-row gap-2"):
                self._draw_links()

    def update(self, log: MetricLog) -> None:
        """Show how far the run is."""
        share = self._detail.share_done(log)
        if share is not None and self._bar.props.get("value") != share:
            self._bar.props["value"] = share
        self._words.show(progress_text(log, share, self._detail))

    def _draw_links(self) -> None:
        for name, target in (
            ("Clone", f"/new?{urlencode({'from': self._path})}"),
            ("Continue from it", f"/new?{urlencode({'continue': self._path})}"),
            ("Compare", f"/compare?{urlencode({'runs': self._path})}"),
            ("Try it", f"/playground?{urlencode({'runs': self._path})}"),
        ):
            ui.link(name, target).classes("button button-quiet")


def progress_text(log: MetricLog, share: float | None, detail: RunDetail) -> str:
    """Return in words how far a run is, and what it has reached."""
    if not log.step:
        return "No step is logged yet."
    parts = [f"Step {log.step:,}", f"epoch {log.epoch:,.2f}", duration_text(log.wall_s)]
    if share and share < 1:
        parts.append(f"about {duration_text(log.wall_s * (1 - share) / share)} left")
    metrics = kept_metrics(log, detail.recipe)
    name = next((key for key in ("eval_accuracy", "eval_f1", "eval_loss") if key in metrics), None)
    if name is not None:
        parts.append(f"validation {name.removeprefix('eval_')} {metrics[name]:.4g}")
    return " · ".join(parts)


def duration_text(seconds: float) -> str:
    """Return a duration in readable units.

    >>> duration_text(75.2), duration_text(7300), duration_text(-5)
    ('1 min 15 s', '2 h 1 min', '0 s')
    """
    minutes, rest = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
