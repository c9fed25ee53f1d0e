"""A run passes the functions that CONTRIBUTING.md lists, in that order."""

import re
import sys
import threading
from pathlib import Path

import pytest
from typer.testing import CliRunner

from lorakit.cli.main import app

ROOT = Path(__file__).parents[2]
SOURCES = ROOT / "src" / "lorakit"
MOST_STOPS = 15


def stops():
    """Return the listed stops: the file below src/lorakit, and the function."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    section = text.partition("## From a recipe to an adapter\n")[2].partition("\n## ")[0]
    return re.findall(r"^\d+\. `([\w/]+\.py)`: `([\w.]+)`", section, flags=re.MULTILINE)


def test_the_list_is_short():
    assert 10 <= len(stops()) <= MOST_STOPS


@pytest.mark.parametrize(("file", "function"), stops())
def test_every_stop_exists(file, function):
    name = function.rpartition(".")[2]
    assert re.search(rf"^\s*def {name}\(", (SOURCES / file).read_text(encoding="utf-8"), re.M)


def test_a_run_passes_the_stops_in_their_order(recipe, tmp_path):
    file = tmp_path / "recipe.yaml"
    file.write_text(recipe().to_yaml(), encoding="utf-8")
    ahead = [(str(SOURCES / file), function) for file, function in stops()]

    def follow(frame, event, argument):
        if event == "call" and ahead:
            code = frame.f_code
            if (code.co_filename, code.co_qualname) == ahead[0]:
                ahead.pop(0)

    threading.setprofile(follow)
    sys.setprofile(follow)
    try:
        result = CliRunner().invoke(app, ["train", str(file)])
    finally:
        sys.setprofile(None)
        threading.setprofile(None)
    assert result.exit_code == 0, result.output
    assert not ahead, f"the run did not come to {ahead[0]} after the stops before it"
