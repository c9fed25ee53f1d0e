"""Change single values of a recipe's text, and keep its comments and order."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import yaml

from lorakit.recipes import yaml_text

_INDENT = 2
_WHERE = "the recipe"


class _Unset:
    def __repr__(self) -> str:
        return "UNSET"


UNSET = _Unset()
"""Instead of a value: the key is removed, so that its default applies."""


@dataclass(frozen=True)
class _Entry:
    """The place of a key and its value in a text; lines count from 0, characters too."""

    line: int
    column: int
    key_end: int
    start: int
    end: int
    last_line: int
    is_flow: bool
    """Whether the value is a section or list in brackets."""
    is_in_flow: bool
    """Whether the key is in such a section."""


def key_lines(text: str) -> dict[str, int]:
    r"""Return the line of each key, from 1, by dotted key.

    >>> key_lines("model: m\nlora:\n  r: 8\n")
    {'model': 1, 'lora': 2, 'lora.r': 3}

    Raises:
        ConfigError: The text is not YAML.
    """
    return {key: entry.line + 1 for key, entry in _entries(text).items()}


def with_values(text: str, changes: Mapping[str, Any]) -> str:
    """Return a recipe's text with new values for some dotted keys.

    A key that is commented out, as in the recipe of `lorakit init`, is set where it stands; one
    that is removed is commented out. Only where no edit of single lines gives the right values is
    the whole text written again, without its comments.

    Args:
        text: YAML text of a mapping, or nothing.
        changes: New values by dotted key, or `UNSET`.

    Raises:
        ConfigError: The text is not YAML.
    """
    for key, value in changes.items():
        text = _with_value(text, key, value)
    return text


def _with_value(text: str, key: str, value: Any) -> str:
    values = yaml_text.parse_mapping(text, _WHERE) if text.strip() else {}
    wanted = _copy_with(values, key, value)
    if wanted == values:
        return text
    if text and not text.endswith("\n"):
        text += "\n"
    for edited in _edits(text, key, value, wanted):
        try:
            if yaml_text.parse(edited, _WHERE) == wanted:
                return edited
        except ValueError:  # the edit is not YAML, such as one of a value with an anchor
            continue
    return yaml_text.to_text(wanted)


def _copy_with(values: dict[str, Any], key: str, value: Any) -> dict[str, Any]:
    """Return a copy of a mapping in which a dotted key has another value."""
    changed = deepcopy(values)
    *sections, last = key.split(".")
    inner = changed
    for section in sections:
        if not isinstance(inner.get(section), dict):
            if value is UNSET:
                return changed
            inner[section] = {}
        inner = inner[section]
    if value is UNSET:
        inner.pop(last, None)
    else:
        inner[last] = value
    return changed


def _edits(text: str, key: str, value: Any, wanted: dict[str, Any]) -> Iterator[str]:
    """Yield texts with the change, the one that keeps most of the text first."""
    entries = _entries(text)
    section = key.rpartition(".")[0]
    entry, parent = entries.get(key), entries.get(section)
    outermost = key.partition(".")[0]
    if entry is not None and value is UNSET and not entry.is_in_flow:
        yield _without(text, entry)
        if section:  # which is empty without it
            whole = wanted
            for part in section.split("."):
                whole = whole.get(part, {})
            if not whole and parent is not None:
                yield _without(text, parent)
    elif entry is not None and value is not UNSET:
        yield _replace_value(text, entry, yaml_text.to_one_line(value))
    elif entry is None and value is not UNSET:
        yield from _additions(text, key, value, parent)
    if section and outermost in entries and outermost in wanted:
        yield _replace_value(text, entries[outermost], yaml_text.to_one_line(wanted[outermost]))


def _additions(text: str, key: str, value: Any, parent: _Entry | None) -> Iterator[str]:
    """Yield texts with a new key: where it is commented out, at the end of its section."""
    section, _, last = key.rpartition(".")
    lines = text.splitlines(keepends=True)
    if section and parent is None:  # the section itself is new
        yield from _additions(text, section, {last: value}, None)
        return
    first, end, indent = 0, len(lines), 0
    if section and parent is not None:
        first = parent.line + 1
        end = next((n for n in range(first, len(lines)) if re.match(r"\S", lines[n])), len(lines))
        indent = parent.column + _child_indent(lines[first:end], parent.column)
    written = f"{' ' * indent}{last}: {yaml_text.to_one_line(value)}"
    commented = re.compile(rf"{' ' * indent}# {re.escape(last)}: .*")
    for number in range(first, end):
        if commented.match(lines[number]):
            comment = _comment_of(lines[number].rstrip("\n"), written)
            yield "".join([*lines[:number], f"{comment}\n", *lines[number + 1 :]])
    entries = _entries(text)
    inside = [e for k, e in entries.items() if k.rpartition(".")[0] == section]
    if not section:
        inside = [e for e in inside if e.line == e.last_line and not e.is_in_flow] or inside
    after = max((e.last_line for e in inside), default=first - 1) + 1
    yield "".join([*lines[:after], f"{written}\n", *lines[after:]])


def _child_indent(lines: list[str], column: int) -> int:
    """Return how far a section's keys stand to the right of its name."""
    for line in lines:
        if line.strip():
            width = len(line) - len(line.lstrip())
            return width - column if width > column else _INDENT
    return _INDENT


def _comment_of(line: str, written: str) -> str:
    """Return a key with the comment of the line that it replaces, in the same column."""
    found = re.search(r"  # ", line.lstrip().removeprefix("# "))
    if found is None:
        return written
    at = len(line) - len(line.lstrip().removeprefix("# ")) + found.start()
    return f"{written:<{at}}{line[at:]}"


def _replace_value(text: str, entry: _Entry, value: str) -> str:
    before, after = text[: entry.start], text[entry.end :]
    if entry.start == entry.end:  # nothing is written behind the colon
        before = f"{before.rstrip(' ')} "
    if entry.line != entry.last_line and not entry.is_flow:
        before = f"{text[: text.index(':', entry.key_end) + 1]} "  # the block began below the name
    comment = re.match(r"( {2,})#", after)
    if comment:  # stays in its column
        width = max(len(comment[1]) + (entry.end - entry.start) - len(value), 2)
        after = " " * width + after[len(comment[1]) :]
    return before + value + after


def _without(text: str, entry: _Entry) -> str:
    """Return the text with a key commented out, or without it if it takes several lines."""
    lines = text.splitlines(keepends=True)
    if entry.line != entry.last_line:
        return "".join([*lines[: entry.line], *lines[entry.last_line + 1 :]])
    line = lines[entry.line]
    shown = f"{line[: entry.column]}# {line[entry.column :]}"
    end = entry.end - sum(map(len, lines[: entry.line])) + len("# ")
    if re.match(" {4,}#", shown[end:]):  # stays in its column
        shown = shown[:end] + shown[end + 2 :]
    return "".join([*lines[: entry.line], shown, *lines[entry.line + 1 :]])


def _entries(text: str) -> dict[str, _Entry]:
    root = yaml_text.compose(text, _WHERE)
    found: dict[str, _Entry] = {}
    if isinstance(root, yaml.MappingNode):
        _collect(root, "", bool(root.flow_style), found)
    return found


def _collect(
    node: yaml.MappingNode, prefix: str, is_in_flow: bool, found: dict[str, _Entry]
) -> None:
    for key, value in node.value:
        end = _end(value)
        name = f"{prefix}{key.value}"
        is_flow = not isinstance(value, yaml.ScalarNode) and bool(value.flow_style)
        found[name] = _Entry(
            line=key.start_mark.line,
            column=key.start_mark.column,
            key_end=key.end_mark.index,
            start=value.start_mark.index,
            end=end.index,
            last_line=max(end.line - (end.column == 0 and end.line > key.start_mark.line), 0),
            is_flow=is_flow,
            is_in_flow=is_in_flow,
        )
        if isinstance(value, yaml.MappingNode):
            _collect(value, f"{name}.", is_in_flow or is_flow, found)


def _end(node: Any) -> Any:
    """Return the mark behind a node's last value; that of a block is behind later comments."""
    if isinstance(node, yaml.ScalarNode) or node.flow_style or not node.value:
        return node.end_mark
    last = node.value[-1]
    return _end(last[1] if isinstance(last, tuple) else last)
