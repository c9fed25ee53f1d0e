"""What the pages say is true of the code: quotes, links, commands, keys, names and messages."""

import ast
import doctest
import re
import shlex
from functools import cache
from pathlib import Path

import pytest
import typer
from tools import recipe_reference, terminal_picture
from typer.exceptions import TyperException

import lorakit
from lorakit.cli.main import app
from lorakit.config import StrictConfig, TaskType
from lorakit.recipes.recipe import Recipe
from lorakit.recipes.training_section import OWNED_KEYS, training_section

ROOT = Path(__file__).parents[2]
PAGES = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("examples/*.md")]
MADE_BY_THE_BUILD = [ROOT / "docs" / recipe_reference.PLACE]
QUOTE = re.compile(r"```python\n# from (\S+)\n(.*?)```", re.DOTALL)
QUOTES = [
    (page.name, source, block)
    for page in sorted((ROOT / "docs").glob("*.md"))
    for source, block in QUOTE.findall(page.read_text(encoding="utf-8"))
]


def test_there_are_quotes_to_check():
    assert len(QUOTES) >= 7


@pytest.mark.parametrize(("page", "source", "block"), QUOTES)
def test_quoted_lines_stand_in_the_file(page, source, block):
    lines = iter((ROOT / source).read_text(encoding="utf-8").splitlines())
    for quoted in block.splitlines():
        assert quoted in lines, f"{page} quotes a line that {source} does not have: {quoted!r}"


def test_links_between_pages_lead_somewhere():
    for page in PAGES:
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text(encoding="utf-8")):
            place = (page.parent / target).resolve()
            assert place.exists() or place in MADE_BY_THE_BUILD, f"{page.name} links to {target}"


def test_the_examples_about_quantization_give_what_the_page_says():
    page = ROOT / "docs" / "quantization.md"
    results = doctest.testfile(str(page), module_relative=False)
    assert results.attempted >= 15 and results.failed == 0


def shown_commands():
    """Return the words after `lorakit` of every command in a block of shell, with its page."""
    found = []
    for page in PAGES:
        for block in re.findall(r"```bash\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL):
            for line in block.splitlines():
                words = shlex.split(line, comments=True)
                if "lorakit" in words and words[0] not in ("pip", "source"):
                    found.append((page.name, words[words.index("lorakit") + 1 :]))
    return found


def test_every_command_shown_exists_with_its_options():
    commands = shown_commands()
    assert len(commands) > 60
    group = typer.main.get_command(app)
    for page, words in commands:
        words = [word for word in words if word != "--debug"]
        command = group.commands.get(words[0])
        assert command is not None, f"{page} shows `lorakit {words[0]}`"
        try:
            command.make_context(words[0], words[1:])
        except TyperException as error:
            pytest.fail(f"{page} shows `lorakit {shlex.join(words)}`: {error}")


def model_of(hint):
    """Return the model in a type such as `SearchConfig | None`, or None."""
    candidates = (hint, *getattr(hint, "__args__", ()))
    return next(
        (one for one in candidates if isinstance(one, type) and issubclass(one, StrictConfig)), None
    )


@cache
def recipe_keys():
    """Return every dotted key of a recipe."""

    def keys(model, prefix=""):
        for name, field in model.model_fields.items():
            yield prefix + name
            inner = model_of(field.annotation)
            if inner is not None:
                yield from keys(inner, f"{prefix}{name}.")

    fields = {name for task in TaskType for name in training_section(task).model_fields}
    return {*keys(Recipe), *(f"training.{name}" for name in fields - OWNED_KEYS.keys())}


SECTION_KEY = re.compile(
    r"`((?:data|lora|quantization|training|search|study)\.[a-z_0-9]+(?:\.[a-z_0-9]+)?)\b"
)


def test_every_recipe_key_that_a_page_names_exists():
    known = recipe_keys() | {"search.space"}
    named = [
        (page.name, key)
        for page in PAGES
        if page.name != "CHANGELOG.md" and page.parent.name != "adr"  # they speak of their time
        for key in SECTION_KEY.findall(page.read_text(encoding="utf-8"))
    ]
    assert len(named) > 60
    files = ("study.md", "study.png")
    unknown = {(page, key) for page, key in named if key not in known and key not in files}
    assert not unknown


def test_the_table_of_other_tools_names_keys_and_commands_of_ours_alone():
    page = ROOT / "docs" / "coming-from-llama-factory-and-axolotl.md"
    cells = [
        line.split("|")[3]
        for line in page.read_text(encoding="utf-8").splitlines()
        if line.startswith("| ") and "lorakit |" not in line
    ]
    assert len(cells) > 35
    for cell in cells:
        for key in re.findall(r"`([a-z_0-9.]+)`", cell):
            assert key in recipe_keys(), key


def test_every_example_recipe_in_a_page_is_valid():
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for block in re.findall(r"```yaml\n(model: .*?)```", text, re.DOTALL):
            recipe = recipe_from(block)
            assert recipe.output, page.name


def recipe_from(text):
    from lorakit.recipes import yaml_text

    return Recipe.check(yaml_text.parse(text, "a page"), "a page")


def test_the_api_page_lists_every_public_name_once():
    page = (ROOT / "docs" / "reference" / "api.md").read_text(encoding="utf-8")
    assert sorted(re.findall(r"^::: lorakit\.(\w+)$", page, re.MULTILINE)) == lorakit.__all__


@cache
def fixed_texts():
    """Return the fixed text of every string in the sources, in which values stand for a gap."""
    texts = []
    for path in (ROOT / "src" / "lorakit").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                texts.append(node.value)
    return texts


def test_every_message_of_the_troubleshooting_page_is_one_of_the_code():
    page = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    headings = re.findall(r"^### (.*)$", page, re.MULTILINE)
    assert len(headings) >= 18
    for heading in headings:
        for words in re.findall(r'"([^"]+)"', heading):
            assert any(words in text for text in fixed_texts()), words


def test_the_recipe_reference_has_every_key_with_a_meaning():
    page = recipe_reference.reference_text()
    for title, model in recipe_reference.SECTIONS.items():
        meanings = recipe_reference.field_meanings(model)
        for name in model.model_fields:
            assert meanings.get(name), f"{title}.{name} has no docstring"
            assert f"| `{name}` |" in page
    for key in ("learning_rate", "packing", "generation_num_beams", "lora_plus_ratio"):
        assert f"| `{key}` |" in page
    rows = [line for line in page.splitlines() if line.startswith("| `")]
    assert all(re.split(r"(?<!\\)\|", row)[2].strip() for row in rows if "memory_mapped" not in row)


@pytest.mark.parametrize("module", [recipe_reference, terminal_picture])
def test_the_examples_of_the_tools_are_right(module):
    results = doctest.testmod(module)
    assert results.attempted and not results.failed


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 100
