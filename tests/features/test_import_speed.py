"""Light imports stay light: what they load is checked, not how long they take."""

import json
import subprocess
import sys

HEAVY = ("torch", "transformers", "datasets", "trl", "accelerate", "matplotlib", "sklearn", "numpy")


def modules_after(code: str) -> set[str]:
    """Return the top-level modules that are loaded after running `code` in a new Python."""
    report = "; import json, sys; print('\\n' + json.dumps(sorted(sys.modules)))"
    run = subprocess.run(
        [sys.executable, "-c", code + report], capture_output=True, text=True, check=True
    )
    return set(json.loads(run.stdout.splitlines()[-1]))


def test_import_lorakit_loads_nothing_heavy():
    loaded = modules_after("import lorakit")
    assert "lorakit" in loaded
    assert loaded.isdisjoint({*HEAVY, "pydantic", "typer", "rich"})


def test_help_loads_neither_torch_nor_transformers():
    code = (
        "import contextlib, sys; sys.argv = ['lorakit', '--help']\n"
        "from lorakit.cli.main import main\n"
        "with contextlib.suppress(SystemExit): main()\n"
        "0"
    )
    loaded = modules_after(code)
    assert "lorakit.cli.commands.train" in loaded
    assert loaded.isdisjoint({*HEAVY, "pydantic"})
