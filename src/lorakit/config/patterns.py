"""Regular expressions from configurations, matched in bounded time.

Expressions have the syntax and meaning of Python's `re`. They are matched by `regex`, which has a
timeout: a pattern from a file, such as "([a-z.]+)+!", can take exponential time.
"""

import math
import re
import time
import warnings
from functools import lru_cache
from typing import Any

import regex

from lorakit.errors import ConfigError

_MOST_S = 2.0
"""Bound on one match, and on the sum of all slow matches of a pattern."""

_SLOW_S = 0.05
"""Matches below this are not counted: they take microseconds, unless the process has to wait."""

_REPEAT = r"\{([0-9]{0,9})(?:,([0-9]{0,9}))?\}"
_MOST_REPEATS = 10_000
"""Bound on the product of all repeat counts ("{2,3}") of a pattern; compiling may copy as often."""

_MOST_CHARACTERS = 2**19
_SHOWN = 200


class _Pattern:
    """A compiled pattern and the seconds spent in its slow matches."""

    def __init__(self, pattern: str) -> None:
        self.compiled = regex.compile(pattern)
        self.spent_s = 0.0


@lru_cache(maxsize=4096)
def _compile_pattern(pattern: str) -> _Pattern:
    return _Pattern(pattern)


def pattern_problem(pattern: str) -> str | None:
    r"""Return why a text is not a valid regular expression, or None if it is.

    >>> pattern_problem(r"layers\.[0-9]+")
    >>> pattern_problem("(q")
    'missing ), unterminated subpattern at position 0'
    """
    counts = [int(n or 1) for pair in re.findall(_REPEAT, pattern) for n in pair]
    if math.prod(max(1, count) for count in counts) > _MOST_REPEATS:
        return "it repeats too often"
    if len(pattern) > _MOST_CHARACTERS:
        return f"it has {len(pattern):,} characters, more than {_MOST_CHARACTERS:,}"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # FutureWarning: syntax that may change its meaning
            re.compile(pattern)
            _compile_pattern(pattern)
    except (re.error, regex.error) as error:
        return str(error)
    except (RecursionError, OverflowError, MemoryError):
        return "it is nested too deeply or repeats too often"
    return None


def match_pattern(pattern: str, text: str, *, whole: bool = False) -> Any:
    """Match a regular expression at the beginning of a text.

    Args:
        pattern: A regular expression as in `re`.
        text: A module's path.
        whole: Whether the whole text must match.

    Returns: The match, or None.

    Raises:
        ConfigError: The pattern takes too long.
    """
    known = _compile_pattern(pattern)
    function = known.compiled.fullmatch if whole else known.compiled.match
    started_s = time.monotonic()
    try:
        found = function(text, timeout=_MOST_S)
    except TimeoutError:
        raise _too_slow_error(pattern, text) from None
    elapsed_s = time.monotonic() - started_s
    if elapsed_s > _SLOW_S:
        known.spent_s += elapsed_s
        if known.spent_s > _MOST_S:
            raise _too_slow_error(pattern, text)
    return found


def _too_slow_error(pattern: str, text: str) -> ConfigError:
    short_pattern = pattern if len(pattern) <= _SHOWN else f"{pattern[:_SHOWN]}…"
    return ConfigError(
        f"The regular expression {short_pattern!r} takes too long: got more than {_MOST_S:g} s for "
        f"{text!r}, expected one that matches module names at once. Do not repeat a group "
        "that contains a repetition, or list names instead."
    )
