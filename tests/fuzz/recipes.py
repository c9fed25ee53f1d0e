"""Damaged recipes: each loads and says the same when it is written again, or is refused at once."""

import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from tests.fuzz.frame import FindingError, attempt

from lorakit.errors import LorakitError
from lorakit.recipes.recipe import Recipe
from lorakit.recipes.template import TASKS, recipe_text

_ODD: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2**31, 2**63, -(2**63), 10**30, 10**60, 0.5, -0.0, 1e308),
    *(float("nan"), float("inf"), "", " ", "a", "1e-3", "no", "~", "(", "([a-z]+)+!", "a" * 300),
    *("a/" * 3000, "\x1b[31m", "a\x00b", "\u202e", "名前", "$x_$", "[red]", "{}", "<<", "=", "*"),
    *([], [[]], [1, "a", None], {}, {"a": 1}, {"str": 1}, {"int": {}}, [{}] * 3, "ab" * 5000),
)
_TEXTS = (
    *(
        "!!timestamp ",
        "!!bool ",
        "!!python/name:os.system ",
        "!!int ",
        "!foo ",
        "&a ",
        "*a",
        "<<: *a",
    ),
    *("[", "]", "{", "}", ": ", "- ", "? ", "| ", "> ", "#", "---\n", "...\n", "%YAML 1.2\n", "\t"),
    *("\x00", "\ufeff", "\x85", "\u2028", "'", '"', '"\\x', '"\\ud800"', "\r\n", "\r", " ", "\n"),
    *("9" * 5000, "0x" + "f" * 300, "1e999", "[" * 60, "a: " * 60, "~", "null: 1\n", "1: 2\n"),
)
_WORDS = ("r", "string", "str", "tuple", "data", "lora.r", "training", "space", "learning_rte", "")


@dataclass(frozen=True)
class RecipeCase:
    """One damaged recipe."""

    path: Path
    content: bytes
    overrides: tuple[str, ...]

    def __repr__(self) -> str:
        content = self.content if len(self.content) < 1500 else self.content[:1500] + b"..."
        return f"overrides={[text[:200] for text in self.overrides]} content={content!r}"


class RecipeFuzzer:
    """Changes valid recipes of every task: their values, their keys, their text, their bytes."""

    name = "recipes"
    most_s = 8.0
    most_bytes = 2**28

    def case(self, rng: random.Random, folder: Path) -> RecipeCase:
        task = rng.choice(sorted(TASKS))
        text = recipe_text(task, "recipe.yaml", "runs/a")
        if rng.random() < 0.3:  # also with what is commented out
            text = "\n".join(_uncommented(line) for line in text.splitlines())
        if rng.random() < 0.6:
            values = yaml.safe_load(text)
            for _ in range(rng.randint(1, 3)):
                _change_value(rng, values)
            text = _dumped(values, rng)
        if rng.random() < 0.5:
            for _ in range(rng.randint(1, 3)):
                text = rng.choice(_CHANGES)(rng, text)
        content = text.encode("utf-8", "surrogatepass")
        if rng.random() < 0.1:
            content = _change_bytes(rng, content)
        overrides = tuple(_override(rng) for _ in range(rng.choice((0, 0, 1, 3))))
        path = folder / "recipe.yaml"
        path.write_bytes(content)
        return RecipeCase(path, content, overrides)

    def check(self, case: RecipeCase) -> None:
        recipe = attempt(lambda: Recipe.load(case.path, case.overrides))
        if isinstance(recipe, LorakitError):
            if recipe.exit_code != 2:
                raise FindingError(f"exit code {recipe.exit_code} for {recipe}")
            return
        written = recipe.to_yaml()
        case.path.write_text(written, encoding="utf-8")
        again = attempt(lambda: Recipe.load(case.path))
        if isinstance(again, LorakitError) or again.to_yaml() != written:
            raise FindingError(f"it is not read back: {again}")


def _uncommented(line: str) -> str:
    return re.sub(r"^( *)# (?=[a-z_]+: )", r"\1", line)


def _dumped(values: Any, rng: random.Random) -> str:
    flow = rng.choice((None, False, True))
    return yaml.safe_dump(values, default_flow_style=flow, allow_unicode=rng.random() < 0.5)


def _change_value(rng: random.Random, values: dict[str, Any]) -> None:
    """Change one key of a section, chosen at random, in place."""
    section = values
    while True:
        inner = [value for value in section.values() if isinstance(value, dict) and value]
        if not inner or rng.random() < 0.3:
            break
        section = rng.choice(inner)
    if not section:
        return
    key = rng.choice(sorted(section, key=str))
    kind = rng.randrange(5)
    if kind == 0:
        del section[key]
    elif kind == 1:
        section[rng.choice((*_WORDS, f"{key}x", str(key)[1:]))] = section.pop(key)
    elif kind == 2:
        section[key] = rng.choice(([section[key]], {"a": section[key]}, {key: section[key]}))
    else:
        section[key] = rng.choice(_ODD)


def _insert(rng: random.Random, text: str) -> str:
    at = rng.randint(0, len(text))
    return text[:at] + rng.choice(_TEXTS) + text[at:]


def _before_value(rng: random.Random, text: str) -> str:
    places = [n for n in range(len(text)) if text.startswith(": ", n)]
    at = rng.choice(places) + 2 if places else 0
    return text[:at] + rng.choice(_TEXTS) + text[at:]


def _cut(rng: random.Random, text: str) -> str:
    first, last = sorted(rng.randint(0, len(text)) for _ in range(2))
    return text[:first] + text[last:]


def _move_lines(rng: random.Random, text: str) -> str:
    lines = text.splitlines()
    line = rng.choice(lines) if lines else ""
    lines.insert(rng.randint(0, len(lines)), " " * rng.randint(0, 3) + line)
    return "\n".join(lines)


_CHANGES: tuple[Callable[[random.Random, str], str], ...] = (
    *(_insert, _before_value, _before_value, _cut, _move_lines),
)


def _change_bytes(rng: random.Random, content: bytes) -> bytes:
    kind = rng.randrange(3)
    if kind == 0:
        return content.decode("utf-8", "replace").encode("utf-16")
    at = rng.randint(0, len(content))
    return content[:at] + bytes(rng.randrange(256) for _ in range(rng.randint(1, 4))) + content[at:]


def _override(rng: random.Random) -> str:
    section = rng.choice(("data.", "lora.", "training.", "search.", "study.", "quantization.", ""))
    known = (
        "r",
        "train",
        "learning_rate",
        "seed",
        "per_device_train_batch_size",
        "space.lora.r.choice",
    )
    key = section + rng.choice((*known, *_WORDS, "rank_pattern.q", "new_tokens", "bits", "optim"))
    if rng.random() < 0.7:
        odd = rng.choice(_ODD)
        value = yaml.safe_dump(odd, default_flow_style=True, width=10**9).removesuffix("\n...\n")
    else:
        value = rng.choice(_TEXTS)
    return f"{key}={value.strip()}" if rng.random() < 0.95 else key
