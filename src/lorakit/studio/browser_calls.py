"""Small changes of a page, sent together and made in one frame of the browser.

NiceGUI compares all elements of a page when one of them changes, which costs more than drawing a
few points. What changes with each step of a run is therefore changed directly.
"""

from __future__ import annotations

import asyncio
import json
from weakref import WeakKeyDictionary

from nicegui import Client, ui

from lorakit.errors import escaped
from lorakit.studio.blocks import Text

_waiting: WeakKeyDictionary[Client, list[str]] = WeakKeyDictionary()
"""What is to be run in a page when the event loop goes on."""


def call(client: Client, code: str) -> None:
    """Run a statement of JavaScript in a page, with all others of this moment in one message.

    Args:
        client: The page.
        code: The statement; it may use NiceGUI's `getElement` and `getHtmlElement`.
    """
    waiting = _waiting.setdefault(client, [])
    if not waiting:
        asyncio.get_running_loop().call_soon(_send, client)
    waiting.append(code)


def _send(client: Client) -> None:
    statements = _waiting.pop(client, [])
    if statements and not client.is_deleted:
        client.run_javascript(";\n".join(statements))


class LiveText(Text):
    """An element whose text changes with each step of a run."""

    def _handle_text_change(self, text: str) -> None:
        self._text_to_model_text(text)
        _set(self, "nodeValue", text)


class LiveBar(ui.element):
    """A bar that shows how much is done."""

    def __init__(self, description: str):
        """Draw a bar that does not know yet.

        Args:
            description: What it shows, for people who hear the page.
        """
        super().__init__("progress")
        self.props("max=1").props["aria-label"] = escaped(description)

    def show(self, share: float) -> None:
        """Show a share from 0 to 1."""
        value = round(share, 3)
        if self.props.get("value") == value:
            return
        with self.props.suspend_updates():
            self.props["value"] = value
        _set(self, "value", value)


def _set(element: ui.element, name: str, value: str | float) -> None:
    """Set a property in the browser: of an element's text if it has one, else of the element."""
    found = f"getHtmlElement({element.id})"
    values = json.dumps({name: value})
    call(element.client, f"Object.assign({found}?.firstChild ?? {found} ?? {{}}, {values})")
