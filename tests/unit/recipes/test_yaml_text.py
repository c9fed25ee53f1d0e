"""Whatever a recipe file holds is read, or refused in a sentence at once."""

import os
import time

import pytest

from lorakit.errors import ConfigError, LorakitError
from lorakit.recipes import yaml_text
from lorakit.recipes.recipe import Recipe

RECIPE = "model: m\ntask: SEQ_CLS\ndata: {train: a.csv}\noutput: runs/a\n"


def _bomb(first, line):
    lines = [f"a: &a {first}"]
    for before, name in zip("abcdefgh", "bcdefghi", strict=True):
        lines.append(f"{name}: &{name} {line.format(','.join([f'*{before}'] * 9))}")
    return "\n".join(lines)


REFUSED = {
    "timestamp": ("a: !!timestamp abc", "the tag !!timestamp, expected a plain value"),
    "real timestamp": ("a: !!timestamp 2001-01-01", "the tag !!timestamp"),
    "bool": ("a: !!bool abc", "got 'abc' with the tag !!bool"),
    "int": ("a: !!int abc", "the tag !!int"),
    "int of a section": ("a: !!int {}", "the tag !!int"),
    "float": ("a: !!float 1:30", "the tag !!float"),
    "null": ("a: !!null x", "the tag !!null"),
    "binary": ("a: !!binary aGk=", "the tag !!binary"),
    "set": ("a: !!set {x}", "the tag !!set"),
    "object": ("a: !!python/object/apply:os.system [ls]", "!!python/object/apply:os.system"),
    "renamed tag": ("%TAG ! tag:yaml.org,2002:python/\n---\na: !name:os.system x", "!!python/name"),
    "own tag": ("a: !foo bar", "the tag !foo"),
    "alias bomb": (_bomb("[x,x,x,x,x,x,x,x,x]", "[{}]"), "more than 20,000 values"),
    "merge bomb": (_bomb("{x: 1, y: 2}", "{{<<: [{}]}}"), "more than 20,000 values"),
    "itself": ("a: &a [*a]", "a value contains itself"),
    "merges itself": ("a: &a {<<: *a}", "a value contains itself"),
    "list as key": ("? [a]\n: b", "got a list or a section as a key"),
    "section as key": ("? {a: b}\n: c", "got a list or a section as a key"),
    "number as key": ("1: a", "got '1' as a key, expected a word"),
    "null as key": ("~: a", "got '~' as a key"),
    "twice": ("a: 1\n'a': 2", "line 2, column 1: the key 'a' is repeated"),
    "deep lists": ("a: " + "[" * 5000, "more than 32 levels deep"),
    "deep sections": ("\n".join(" " * n + "a:" for n in range(900)), "more than 32 levels"),
    "digits": ("a: " + "9" * 5000, "a number of 5,000 characters"),
    "hexadecimal digits": ("a: 0x" + "f" * 5000, "a number of 5,002 characters"),
    "infinite by size": ("a: 1e400", "got 1e400, which is too large"),
    "NUL": ("a: b\nc: d\x00e", "line 2, column 5: the character \\x00"),
    "second document": ("a: 1\n---\nb: 2", "a second document begins here"),
    "tab": ("a:\n\t- b", "YAML does not take tabs here. Use spaces."),
    "no character": ('a: "\\U00110000"', "is not a character"),
    "no character at all": ('a: "\\UFFFFFFFF"', "is not a character"),
    "half a character": ('a: "\\ud800"', "half of a surrogate pair"),
    "many": ("- a\n" * 30_000, "more than 20,000 values"),
    "long name": ("a: *" + "b" * 9000, "found undefined alias"),
    "merge of a number": ("a: {<<: 3}", "<< takes sections"),
    "version": ("%YAML 99.9\n---\na: 1", "incompatible YAML document"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_it_is_refused_in_a_sentence(name):
    text, message = REFUSED[name]
    began = time.process_time()
    with pytest.raises(ConfigError) as caught:
        yaml_text.parse(text, "f.yaml")
    assert time.process_time() - began < 5  # a busy machine's; a bomb would take years
    assert message in str(caught.value)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("\ufeffa: 1", {"a": 1}),
        ("a: .inf\nb: -.INF", {"a": float("inf"), "b": float("-inf")}),
        ("a: !!str 5", {"a": "5"}),
        ("b: &b {x: 1, y: 2}\nc: {<<: *b, x: 3}", {"b": {"x": 1, "y": 2}, "c": {"y": 2, "x": 3}}),
        ("t: {d: &d {<<: {x: 1}, x: 3}}\nb: {<<: *d}", {"t": {"d": {"x": 3}}, "b": {"x": 3}}),
        ("a: 2026-01-01", {"a": "2026-01-01"}),
        ("a: é你", {"a": "é你"}),
    ],
)
def test_it_is_read(text, value, tmp_path):
    path = tmp_path / "f.yaml"
    path.write_text(text, encoding="utf-8")
    assert yaml_text.read_mapping(path) == value


FILES = {
    "huge": (lambda path: os.truncate(path, 2**40), "more than 1,000,000 bytes"),
    "latin-1": (lambda path: path.write_bytes(b"a: caf\xe9"), "byte 6 is not UTF-8"),
    "UTF-16": (lambda path: path.write_text(RECIPE, encoding="utf-16"), "byte 0 is not UTF-8"),
    "empty": (lambda path: path.write_text(""), "got an empty file"),
    "a list": (lambda path: path.write_text("- a"), "got a list, expected `key: value` lines"),
    "a word": (lambda path: path.write_text("a"), "got a str"),
}


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_is_no_recipe_is_refused(tmp_path, name):
    path = tmp_path / "recipe.yaml"
    path.touch()
    make, message = FILES[name]
    make(path)
    with pytest.raises(ConfigError) as caught:
        Recipe.load(path)
    assert message in str(caught.value)


@pytest.mark.parametrize("name", ["a" * 300 + ".yaml", "a/" * 3000, "a\x00b", "\x1b[31m.yaml"])
def test_a_name_that_no_file_has_is_refused(name):
    with pytest.raises(ConfigError, match="Cannot read the recipe"):
        Recipe.load(name)


def test_a_pipe_is_no_recipe(tmp_path):
    os.mkfifo(tmp_path / "recipe.yaml")
    with pytest.raises(ConfigError, match="it is not a file"):
        Recipe.load(tmp_path / "recipe.yaml")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.stream=true", "unknown key 'data.stream'"),
        ("data.int=1", "unknown key 'data.int'"),
        ("lora.string.deep=1", "unknown key 'lora.string'"),
        ("lora.rank_pattern.str=0", "lora.rank_pattern.str: got 0"),
        ("search.space.lora.r.choise=[1]", "unknown key 'search.space.lora.r.choise'"),
        ("training.tuple=1", "unknown key 'training.tuple'"),
        ("output=" + "a" * 300, "output: got 'aaa"),
        ("model=" + "a/" * 3000, "expected at most 4,095 bytes"),
        ('data.train="a\\nb"', "expected a name without control characters"),
        ("data.text={a: " + "[" * 99, "more than 32 levels deep"),
        (".".join("a" * 500) + "=1", "expected key=value"),
        ("lora.r=" + "9" * 5000, "a number of 5,000 characters"),
        ("lora.r=" + "9" * 50, "lora.r"),
        ("a" * 100_000 + "=1", "unknown key 'aaa"),
        ("lora.target_modules=" + "(" * 90_000, "lora.target_modules: got '((("),
    ],
)
def test_an_override_is_refused_by_its_full_key_and_in_few_words(tmp_path, override, message):
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE)
    with pytest.raises(LorakitError) as caught:
        Recipe.load(path, [override])
    assert message in str(caught.value)
    assert len(str(caught.value)) < 1500


def test_only_the_first_of_a_thousand_problems_are_reported(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE + "".join(f"key{n}: 1\n" for n in range(1000)))
    with pytest.raises(ConfigError) as caught:
        Recipe.load(path)
    assert "has 1000 problems" in str(caught.value)
    assert str(caught.value).endswith("more. Fix these first.")
    assert len(str(caught.value)) < 3000
