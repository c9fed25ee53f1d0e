"""How far a run is, and the buttons that act on it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from urllib.parse import urlencode

from nicegui import ui

from lorakit.errors import LorakitError
from lorakit.quickstart.model_files import base_name
from lorakit.runs.metric_log import MetricLog, kept_metrics
from lorakit.runs.paths import join_paths
from lorakit.runs.process import stop_run
from lorakit.runs.queue import RunQueue
from lorakit.runs.run_detail import RunDetail
from lorakit.runs.watch import RunWatch
from lorakit.studio.blocks import Text, badge, card, duration_text, notify_problem, problem
from lorakit.studio.browser_calls import LiveBar, LiveText

_METRICS = ("eval_accuracy", "eval_f1", "eval_perplexity", "eval_loss")


class Progress:
    """The card at the top of a run's page."""

    def __init__(self, watch: RunWatch):
        self._watch = watch
        with card():
            self._head = ui.element("div").classes("flex-row gap-2")
            self._bar = LiveBar("Share of the steps")
            self._words = LiveText("p", "")
            self._verdict = Text("p", "").classes("verdict")
            self._problem = ui.element("div")
            with ui.element("div").classes("flex-row gap-2"):
                self._stop = self._button("Stop", self._stop_run)
                self._stop.tooltip("The run saves a checkpoint first, and can be resumed.")
                self._resume = self._button("Resume", self._resume_run)
                self._cancel = self._button("Remove from the queue", self._cancel_job)
                self._draw_links()

    def update(self) -> None:
        """Show the state, and how far the run is."""
        watch = self._watch
        share = watch.detail.share_done(watch.log)
        if share is not None:
            self._bar.show(share)
        self._words.show(progress_text(watch.log, share, watch.detail, watch.state))
        self._show_verdict()

    def _show_verdict(self) -> None:
        found = self._watch.detail.verdict
        self._verdict.set_visibility(found is not None)
        if found is not None:
            self._verdict.show(found.sentence)
            self._verdict.classes(replace=f"verdict verdict-{found.outcome.partition(' ')[0]}")

    def show_state(self) -> None:
        """Show what the run is doing, and the buttons that make sense now."""
        watch = self._watch
        self._head.clear()
        with self._head:
            badge(watch.state)
            for text in (watch.detail.text("task"), base_name(watch.detail.text("model"))):
                if text:
                    Text("span", text).classes("text-soft")
        self._problem.clear()
        if watch.problem is not None and watch.state != "damaged":
            with self._problem:
                problem(watch.problem)
        self._stop.set_visibility(watch.state == "running")
        self._resume.set_visibility(watch.state in ("interrupted", "failed"))
        self._cancel.set_visibility(watch.state == "queued")
        self._links["Try it"].set_visibility(watch.state == "finished")
        self._links["Continue from it"].set_visibility(not watch.is_active)

    def _button(self, name: str, act: Callable[[], None]) -> ui.button:
        async def press() -> None:
            button.disable()
            try:
                await asyncio.to_thread(act)
            except LorakitError as error:
                notify_problem(str(error))
            finally:
                button.enable()

        button = ui.button(name, on_click=press).props("unelevated no-caps")
        return button

    def _stop_run(self) -> None:
        stop_run(self._watch.root, self._watch.path)

    def _resume_run(self) -> None:
        RunQueue(self._watch.root).add_resume(self._watch.path)

    def _cancel_job(self) -> None:
        if self._watch.job is not None:
            RunQueue(self._watch.root).cancel(self._watch.job.number)

    def _draw_links(self) -> None:
        path = self._watch.path
        self._links = {
            name: ui.link(name, target).classes("button button-quiet")
            for name, target in (
                ("Try it", f"/playground?{urlencode({'runs': join_paths([path])})}"),
                ("Clone", f"/new?{urlencode({'from': path})}"),
                ("Continue from it", f"/new?{urlencode({'continue': path})}"),
                ("Compare", f"/compare?{urlencode({'runs': join_paths([path])})}"),
            )
        }


def progress_text(log: MetricLog, share: float | None, detail: RunDetail, state: str) -> str:
    """Return in words how far a run is, and what it has reached."""
    if state == "queued":
        return "It waits in the queue, and starts when the runs before it have ended."
    if not log.step:
        return "No step is logged yet."
    parts = [f"Step {log.step:,}", f"epoch {log.epoch:,.2f}", duration_text(log.wall_s)]
    if share and share < 1 and state == "running":
        parts.append(f"about {duration_text(log.wall_s * (1 - share) / share)} left")
    metrics = kept_metrics(log, detail.recipe)
    name = next((key for key in _METRICS if key in metrics), None)
    if name is not None:
        parts.append(f"validation {name.removeprefix('eval_')} {metrics[name]:.4g}")
    return " · ".join(parts)
