"""Slow work behind a page: progress, a way to cancel, and an end that is always shown."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from nicegui import ui

from lorakit.errors import LorakitError, first_line
from lorakit.studio.blocks import Text, note, problem
from lorakit.studio.frame import error_text

Result = TypeVar("Result")

_POLL_S = 0.2
_SHOW_SECONDS_FROM_S = 3.0


class Progress:
    """What a slow function says about itself, and learns from the page; used in its thread."""

    def __init__(self) -> None:
        self._is_cancelled = threading.Event()
        self.share: float | None = None
        """Part that is done, from 0 to 1; None if it cannot be known."""
        self.words = ""
        """What it is doing now."""

    def say(self, words: str, share: float | None = None) -> None:
        """Say what is being done.

        Args:
            words: A short text, such as "Loading the base".
            share: Part that is done, from 0 to 1; None if it cannot be known.
        """
        self.words, self.share = words, share

    @property
    def is_cancelled(self) -> bool:
        """Whether the user has cancelled."""
        return self._is_cancelled.is_set()

    def cancel(self) -> None:
        """Ask the function to end."""
        self._is_cancelled.set()


class LongAction(Generic[Result]):
    """A place on a page where a slow function runs in a thread, one at a time.

    While it runs the place shows what it does, for how long, and a button that cancels it; then its
    error, which is the sentence of the command line, or nothing. It ends when its page is closed.

        action = LongAction()
        result = await action.run("Reading the file", lambda progress: read(path, progress))
        if result is not None:
            show(result)
    """

    def __init__(self) -> None:
        """Create an empty place here."""
        self.place = ui.element("div").classes("long-action").props("aria-live=polite")
        self._progress: Progress | None = None

    @property
    def is_running(self) -> bool:
        """Whether something runs."""
        return self._progress is not None

    def cancel(self) -> None:
        """Ask what runs to end."""
        if self._progress is not None:
            self._progress.cancel()

    def clear(self) -> None:
        """Remove the error that is shown."""
        if not self.is_running:
            self.place.clear()

    async def run(
        self,
        words: str,
        act: Callable[[Progress], Result],
        *,
        end: Callable[[], Any] | None = None,
    ) -> Result | None:
        """Run a function in a thread and return its result.

        Args:
            words: What to show first, such as "Planning".
            act: The function; it may tell what it does with `progress.say`, and should raise an
                error soon after the user has cancelled.
            end: Called when the user cancels, such as a process's `terminate`.

        Returns: The result; None if it failed, was cancelled, or if another one runs here.
        """
        if self._progress is not None:
            return None
        progress = self._progress = Progress()
        progress.words = words
        client = ui.context.client
        work = asyncio.get_running_loop().create_future()
        threading.Thread(
            target=_work, args=(words, act, progress, work), name="long-action", daemon=True
        ).start()
        self.place.clear()
        with self.place:
            view = _View(progress)
        begun_s = time.monotonic()
        was_ended = False
        try:
            while not work.done():
                await asyncio.wait([work], timeout=_POLL_S)
                if client.is_deleted:
                    progress.cancel()
                if progress.is_cancelled and end is not None and not was_ended:
                    was_ended = True
                    end()
                if not client.is_deleted:
                    view.show(time.monotonic() - begun_s)
            error = work.exception()
            if not client.is_deleted:
                self._show_end(error, progress)
            return None if error is not None else work.result()
        finally:
            self._progress = None

    def _show_end(self, error: BaseException | None, progress: Progress) -> None:
        self.place.clear()
        with self.place:
            if progress.is_cancelled and error is not None:
                note("Cancelled.")
            elif isinstance(error, Exception):
                problem(error_text(error))


class _View:
    """What is shown of an action that runs."""

    def __init__(self, progress: Progress):
        self._progress = progress
        with ui.element("div").classes("card action-card"):
            with ui.element("div").classes("flex-row gap-2 action-row"):
                self._words = Text("span", f"{progress.words} …").classes("grow")
                self._button = ui.button("Cancel", on_click=self._cancel)
                self._button.props("flat dense no-caps")
            self._bar = ui.linear_progress(value=0, show_value=False).props(
                'indeterminate aria-label="Progress"'
            )

    def show(self, elapsed_s: float) -> None:
        """Show what the function has said last."""
        share = self._progress.share
        words = "Cancelling" if self._progress.is_cancelled else self._progress.words
        seconds = f" {elapsed_s:.0f} s" if elapsed_s >= _SHOW_SECONDS_FROM_S else ""
        self._words.show(f"{words} …{seconds}")
        if share is not None:
            self._bar.props(remove="indeterminate")
            self._bar.value = round(min(max(share, 0.0), 1.0), 3)

    def _cancel(self) -> None:
        self._progress.cancel()
        self._button.disable()


def _work(
    words: str,
    act: Callable[[Progress], Result],
    progress: Progress,
    work: asyncio.Future[Result],
) -> None:
    """Run the function, and hand its result or error to the loop that waits."""
    result, error = None, None
    try:
        result = act(progress)
    except Exception as caught:
        error = caught
    except BaseException as caught:  # it has called `sys.exit`; somebody waits all the same
        reason = f"{type(caught).__name__}: {first_line(caught)}"
        error = LorakitError(f"{words} ended without an answer ({reason}). Try again.")

    def tell() -> None:
        if work.done():  # nobody waits any more
            return
        if error is not None:
            work.set_exception(error)
        else:
            work.set_result(result)  # type: ignore[arg-type]  # None only with an error

    loop = work.get_loop()
    if not loop.is_closed():
        loop.call_soon_threadsafe(tell)
