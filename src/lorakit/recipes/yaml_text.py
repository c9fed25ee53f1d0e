"""Reading and writing YAML without surprises.

PyYAML follows YAML 1.1, in which `1e-3` is a string, `no` is false, `1:30` is ninety and a repeated
key silently counts once. A recipe follows the core schema of YAML 1.2 instead, and a repeated key
is an error.
"""

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import yaml

from lorakit.config.problems import short_repr
from lorakit.errors import ConfigError, Problem, escaped

# YAML 1.2.2, section 10.3.2 (core schema); the merge key `<<` is kept from 1.1.
_PLAIN_SCALARS = (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", "-+0123456789"),
    (
        "float",
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?"
        r"|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        "-+.0123456789",
    ),
    ("merge", r"<<", "<"),
    ("null", r"~|null|Null|NULL|", "~nN\0"),
)
_TAG = "tag:yaml.org,2002:"
_PATTERNS = {kind: re.compile(pattern) for kind, pattern, _ in _PLAIN_SCALARS}
_FINITE = re.compile(r"[-+]?\.(?:inf|nan)", re.IGNORECASE)
"""Values that are not finite on purpose."""
_HALF_CHARACTER = re.compile("[\ud800-\udfff]")

_MOST_BYTES = 1_000_000
_MOST_VALUES = 20_000
"""Including those that an alias repeats."""
_DEEPEST = 32
_LONGEST_NUMBER = 64
"""Characters."""
_LONGEST_REASON = 200
_MEANINGS = {
    "but found another document": "a second document begins here, expected one. Delete the ---",
    "found character '\\t' that cannot start any token": "YAML does not take tabs here. Use spaces",
}
"""PyYAML's messages, and what lorakit says instead."""


class _Loader(yaml.SafeLoader):
    """Loads plain values only, in bounded time, and rejects surprising syntax."""

    yaml_implicit_resolvers: dict[str, list[Any]] = {}

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self._depth = 0
        self._values = 0
        self._sizes: dict[yaml.Node, int] = {}

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        is_alias = self.check_event(yaml.AliasEvent)
        mark = cast(Any, self).peek_event().start_mark
        self._depth += 1
        if self._depth > _DEEPEST:
            raise _problem(f"got values more than {_DEEPEST} levels deep. Remove levels", mark)
        before = self._values
        node = super().compose_node(parent, index)
        self._depth -= 1
        if node is None:
            return None
        if is_alias and node not in self._sizes:
            raise _problem("a value contains itself. Write it without the *", mark)
        # An alias counts as many values as the node it repeats.
        self._values += self._sizes[node] if is_alias else 1
        if self._values > _MOST_VALUES:
            problem = f"got more than {_MOST_VALUES:,} values, those that * repeats included"
            raise _problem(f"{problem}. Remove some", mark)
        self._sizes.setdefault(node, self._values - before)
        return node

    def compose_scalar_node(self, anchor: Any) -> yaml.ScalarNode:
        node = super().compose_scalar_node(anchor)
        kind = _kind(node)
        pattern = _PATTERNS.get(kind)
        if kind != "str" and (pattern is None or not pattern.fullmatch(node.value)):
            problem = f"got {short_repr(node.value)} with the tag {_short_tag(node)}"
            raise _problem(f"{problem}, expected a plain value. Delete the tag", node.start_mark)
        if kind in ("int", "float") and len(node.value) > _LONGEST_NUMBER:
            digits = f"a number of {len(node.value):,} characters"
            problem = f"got {digits}, expected at most {_LONGEST_NUMBER}. Shorten it"
            raise _problem(problem, node.start_mark)
        if kind == "float" and math.isinf(float(_FINITE.sub("0", node.value))):
            problem = (
                f"got {short_repr(node.value)[1:-1]}, which is too large for a number. Lower it"
            )
            raise _problem(problem, node.start_mark)
        if _HALF_CHARACTER.search(node.value):
            raise _problem("got half of a surrogate pair. Delete it", node.start_mark)
        return node

    def compose_sequence_node(self, anchor: Any) -> yaml.SequenceNode:
        node = super().compose_sequence_node(anchor)
        _require_kind(node, "seq")
        return node

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        _require_kind(node, "map")
        seen: set[str] = set()
        for key, value in node.value:
            kind = _kind(key)
            if kind == "merge":
                _require_mappings(value)
            elif kind != "str":
                got = "a list or a section" if kind in ("seq", "map") else short_repr(key.value)
                problem = f"got {got} as a key, expected a word. Put it in quotes if it is one"
                raise _problem(problem, key.start_mark)
            elif key.value in seen:
                problem = f"the key {short_repr(key.value)} is repeated. Delete one"
                raise _problem(problem, key.start_mark)
            seen.add(key.value)
        return node


def _kind(node: yaml.Node) -> str:
    """Return the kind of a node, such as "int"; the whole tag if it is not one of YAML's."""
    return node.tag.removeprefix(_TAG)


def _short_tag(node: yaml.Node) -> str:
    return short_repr(node.tag.replace(_TAG, "!!"))[1:-1]


def _require_kind(node: yaml.Node, kind: str) -> None:
    if _kind(node) != kind:
        problem = f"got the tag {_short_tag(node)}, expected a plain value. Delete the tag"
        raise _problem(problem, node.start_mark)


def _require_mappings(node: yaml.Node) -> None:
    items = node.value if isinstance(node, yaml.SequenceNode) else [node]
    for part in items:
        if not isinstance(part, yaml.MappingNode):
            problem = "<< takes sections, and this is not one. Name one by *"
            raise _problem(problem, part.start_mark)


class _RejectedError(yaml.MarkedYAMLError):
    """Valid YAML that a recipe may not use; the problem says what to do."""


def _problem(problem: str, mark: Any) -> _RejectedError:
    return _RejectedError(problem=problem, problem_mark=mark)


class _Dumper(yaml.SafeDumper):
    """Quotes strings that either version of YAML would read as another type."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


for _tag, _pattern, _first in _PLAIN_SCALARS:
    # PyYAML looks resolvers up by the first character; "" stands for the empty scalar.
    _characters = ["" if character == "\0" else character for character in _first]
    for _class in (_Loader, _Dumper):
        _untyped_class: Any = _class  # types-PyYAML leaves the method's parameters untyped
        _untyped_class.add_implicit_resolver(
            f"tag:yaml.org,2002:{_tag}", re.compile(rf"^(?:{_pattern})$"), _characters
        )


def _construct_integer(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> int:
    text = loader.construct_scalar(node)
    return int(text, 0) if re.match("0[ox]", text) else int(text)


_Loader.add_constructor("tag:yaml.org,2002:int", _construct_integer)


def read_mapping(path: Path) -> dict[str, Any]:
    """Read a YAML file that holds one mapping.

    Raises:
        ConfigError: The file cannot be read, is too large, is not UTF-8, not YAML (names line and
            column), or not a mapping.
    """
    return parse_mapping(_text_of(path), str(path))


def parse_mapping(text: str, where: str) -> dict[str, Any]:
    """Parse YAML text that holds one mapping.

    Args:
        text: The text.
        where: Its origin for error messages.

    Raises:
        ConfigError: As `parse`, or the text is not a mapping.
    """
    values = parse(text, where)
    if not isinstance(values, dict):
        got = "an empty file" if values is None else f"a {type(values).__name__}"
        raise ConfigError(
            f"Cannot read {where}: got {got}, expected `key: value` lines. "
            "`lorakit init` writes a recipe to start from."
        )
    return cast(dict[str, Any], values)


def _text_of(path: Path) -> str:
    try:
        if not path.is_file():
            raise ConfigError(f"Cannot read {path}: it is not a file. Name a YAML file.")
        with path.open("rb") as file:  # the size that a file system reports may be wrong
            content = file.read(_MOST_BYTES + 1)
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise ConfigError(
            f"Cannot read {short_repr(str(path), 200)}: {reason}. Check the file."
        ) from None
    if len(content) > _MOST_BYTES:
        raise ConfigError(
            f"Cannot read {path}: it has more than {_MOST_BYTES:,} bytes, expected a recipe of a "
            "few kilobytes. Check the name of the file."
        )
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"Cannot read {path}: byte {error.start} is not UTF-8. Save the file as UTF-8."
        ) from None


def parse(text: str, where: str) -> Any:
    """Parse YAML text.

    Args:
        text: The text.
        where: Its origin for error messages.

    Raises:
        ConfigError: The text is not YAML, or holds what a recipe may not (tags of objects, values
            that contain themselves, thousands of values by aliases); names line and column.
    """
    return _read(yaml.load, text, where)


def compose(text: str, where: str) -> yaml.Node | None:
    """Parse YAML text into nodes, which know their places in it; takes the arguments of `parse`."""
    return _read(yaml.compose, text, where)


def _read(reading: Callable[..., Any], text: str, where: str) -> Any:
    place, line = "", None
    advice = "Check the indentation and quotes there."
    try:
        return reading(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        line = mark.line + 1 if mark else None
        place = f", line {line}, column {mark.column + 1}" if mark else ""
        reason = error.problem or error.context or "it is not YAML"
        if isinstance(error, _RejectedError) or reason in _MEANINGS:
            advice = ""
        reason = _MEANINGS.get(reason, reason)
    except yaml.reader.ReaderError as error:
        before = text[: error.position]
        line = before.count("\n") + 1
        place = f", line {line}, column {len(before) - before.rfind(chr(10))}"
        reason = f"the character {escaped(text[error.position])} is not allowed in YAML"
        advice = "Delete it."
    except (ValueError, OverflowError):
        reason = "an escape in double quotes is not a character"
        advice = "Look for \\x, \\u and \\U."
    reason = reason if len(reason) <= _LONGEST_REASON else f"{reason[:_LONGEST_REASON]}…"
    sentence = f"Cannot read {where}{place}: {reason}. {advice}".rstrip()
    raise ConfigError(sentence, [Problem(sentence, line=line)])


def to_text(values: dict[str, Any]) -> str:
    """Return a mapping as YAML, in the mapping's order."""
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)


def to_one_line(value: Any) -> str:
    """Return a value as YAML on one line, quoted where it has to be.

    >>> [to_one_line(value) for value in ("a: b", True, 0.0005, ["q"], "all-linear", "no", None)]
    ["'a: b'", 'true', '0.0005', '[q]', 'all-linear', "'no'", 'null']
    """
    dumped = yaml.dump(
        [value], Dumper=_Dumper, default_flow_style=True, width=float("inf"), allow_unicode=True
    )
    return dumped.strip()[1:-1]
