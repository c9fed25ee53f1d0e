"""Markdown of reports: foreign text, code, tables."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from typing import Any

from lorakit.errors import escaped


def plain(text: Any) -> str:
    r"""Return foreign text escaped for Markdown, on one line.

    >>> print(plain("a|b *c*"))
    a\|b \*c\*
    """
    return re.sub(r"([\\`*_|<>])", r"\\\1", escaped(str(text)))


def code(text: Any) -> str:
    """Return foreign text as inline code, whatever it contains.

    >>> print(code("runs/a"), code("a`b"))
    `runs/a` `` a`b ``
    """
    safe_text = escaped(str(text))
    longest = max((len(ticks) for ticks in re.findall("`+", safe_text)), default=0)
    if not longest:
        return f"`{safe_text}`"
    return f"{'`' * (longest + 1)} {safe_text} {'`' * (longest + 1)}"


def fence_text(text: str, language: str = "") -> str:
    """Return text as a code block, whatever it contains."""
    safe_text = escaped(text, keep="\n")
    longest = max((len(ticks) for ticks in re.findall("`+", safe_text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{safe_text}\n{fence}"


def table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Return a table; all columns but the first are right-aligned."""
    return _table(header, [map(cell, row) for row in rows], "---:|")


def text_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table of texts from data, in which nothing is read as Markdown."""
    return _table(header, [map(_literal, row) for row in rows], "---|")


def _table(header: Sequence[str], rows: Sequence[Iterable[str]], column: str) -> str:
    lines = [f"| {' | '.join(header)} |", f"|---|{column * (len(header) - 1)}"]
    lines += [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join(lines)


def _literal(text: str) -> str:
    """Return foreign text in which no link or picture begins either."""
    return plain(text).replace("[", "\\[")


def cell(value: Any) -> str:
    r"""Return foreign text for a cell of a table.

    >>> print(cell("a|b"))
    a\|b
    """
    text = escaped(str(value))
    return text.replace("|", "\\|").replace("`", "\\`")


def number(value: float | None) -> str:
    """Return a number with four significant digits.

    >>> number(0.123456), number(None)
    ('0.1235', 'undefined')
    """
    if value is None or math.isnan(value):
        return "undefined"
    return f"{value:.4g}"
