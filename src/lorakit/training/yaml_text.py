"""Reading and writing YAML as people mean it.

PyYAML follows YAML 1.1, in which `1e-3` is a string, `no` is false, `1:30` is ninety and a key
that stands twice silently counts once. A recipe follows the core schema of YAML 1.2 instead, and
a key that stands twice is an error.
"""

import re
from pathlib import Path
from typing import Any

import yaml

from lorakit.errors import ConfigError

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


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers: dict[str, list[Any]] = {}

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if key.value in seen:
                problem = f"the key '{key.value}' stands twice; delete one"
                raise yaml.MarkedYAMLError(problem=problem, problem_mark=key.start_mark)
            if key.tag != "tag:yaml.org,2002:merge":
                seen.add(str(key.value))
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """Quotes whatever either version of YAML would read as something else than a string."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


for _tag, _pattern, _first in _PLAIN_SCALARS:
    # PyYAML looks resolvers up by the first character; "" stands for the empty scalar.
    _characters = ["" if character == "\0" else character for character in _first]
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(
            f"tag:yaml.org,2002:{_tag}", re.compile(rf"^(?:{_pattern})$"), _characters
        )


def _construct_integer(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> int:
    text = loader.construct_scalar(node)
    return int(text, 0) if re.match("0[ox]", text) else int(text)


_Loader.add_constructor("tag:yaml.org,2002:int", _construct_integer)


def read_mapping(path: Path) -> dict[str, Any]:
    """Read a YAML file that holds one mapping.

    Raises:
        ConfigError: The file is not UTF-8, not YAML (names line and column), or not a mapping.
    """
    try:
        values = parse(path.read_text(encoding="utf-8"), str(path))
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"Cannot read {path}: byte {error.start} is not UTF-8. Save the file as UTF-8."
        ) from None
    if not isinstance(values, dict):
        got = "an empty file" if values is None else f"a {type(values).__name__}"
        raise ConfigError(
            f"Cannot read {path}: got {got}, expected `key: value` lines. "
            "`lorakit init` writes a recipe to start from."
        )
    return values


def parse(text: str, where: str) -> Any:
    """Parse YAML text.

    Args:
        text: The text.
        where: What to call its origin in an error.

    Raises:
        ConfigError: The text is not YAML; names line and column.
    """
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise ConfigError(
            f"Cannot read {where}{place}: {error.problem or error.context}. "
            "Check the indentation and quotes there."
        ) from None
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError(f"Cannot read {where}: {error}. Check the text there.") from None


def to_text(values: dict[str, Any]) -> str:
    """Return a mapping as YAML, in its own order."""
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)
