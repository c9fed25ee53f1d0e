"""Code that comes with a model runs only where that is said, and nobody is asked on stdin."""

import ast
import io
import json
import shutil
from pathlib import Path

import pytest
import yaml

from tiny_models import randomize_

ROOT = Path(__file__).parents[3]
SOURCES = sorted((ROOT / "src" / "lorakit").rglob("*.py"))
LOADERS = {"from_pretrained", "from_config", "_from_config"}
GATE = ROOT / "src" / "lorakit" / "libraries" / "foreign_code.py"
NOT_FOREIGN = {"AutoHfQuantizer"}  # builds a quantizer of our own settings


def _calls(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr in LOADERS:
            owner = node.value.id if isinstance(node.value, ast.Name) else ""
            if owner not in NOT_FOREIGN:
                yield node


def _faults(path):
    """Yield the lines that load something and do not say whether its code may run."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    if path != GATE:
        yield from (node.lineno for node in _calls(tree))
    for node in ast.walk(tree):
        name = getattr(node.func, "id", "") if isinstance(node, ast.Call) else ""
        if name in ("load_pretrained", "build_from_config"):
            words = [keyword.arg for keyword in node.keywords]  # None stands for **options
            if "trust_remote_code" not in words and None not in words:
                yield node.lineno


def test_everything_is_loaded_through_the_one_place_that_says_whether_code_may_run():
    faults = {path.name: lines for path in SOURCES if (lines := list(_faults(path)))}
    assert faults == {}


CODE = """
from pathlib import Path
Path({marker!r}).write_text("it ran")
from transformers import DistilBertConfig, DistilBertModel, PreTrainedTokenizerFast
class Own{what}({base}):
    pass
"""
NEEDS_CODE = pytest.mark.parametrize("folder", ["config"], indirect=True)
BASES = {
    "Config": "DistilBertConfig",
    "Model": "DistilBertModel",
    "Tokenizer": "PreTrainedTokenizerFast",
}


@pytest.fixture
def marker(tmp_path):
    return tmp_path / "it-ran"


@pytest.fixture(params=["config", "tokenizer"])
def folder(request, tmp_path, tiny_distilbert_dir, marker):
    """A model whose configuration or tokenizer brings code that writes the marker."""
    made = tmp_path / "model"
    shutil.copytree(tiny_distilbert_dir, made)
    for what, base in BASES.items():
        text = CODE.format(marker=str(marker), what=what, base=base)
        (made / f"own_{what.lower()}.py").write_text(text)
    if request.param == "config":
        changes = {
            "model_type": "own",
            "auto_map": {
                "AutoConfig": "own_config.OwnConfig",
                "AutoModel": "own_model.OwnModel",
                "AutoModelForSequenceClassification": "own_model.OwnModel",
            },
        }
        _change(made / "config.json", changes)
        (made / "processor_config.json").write_text(
            json.dumps({"auto_map": {"AutoProcessor": "own_config.OwnConfig"}})
        )
    else:
        _change(made / "config.json", {"model_type": "distilbert"})
        auto_map = {"AutoTokenizer": [None, "own_tokenizer.OwnTokenizer"]}
        changes = {"tokenizer_class": "OwnTokenizer", "auto_map": auto_map}
        _change(made / "tokenizer_config.json", changes)
    return made


def _change(path, values):
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


@pytest.fixture
def recipe(folder, tmp_path, cls_csv):
    path = tmp_path / "recipe.yaml"
    values = {"model": str(folder), "task": "SEQ_CLS", "data": {"train": str(cls_csv)}}
    path.write_text(yaml.safe_dump({**values, "output": str(tmp_path / "run")}))
    return path


@pytest.fixture
def adapter(folder, tmp_path, tiny_distilbert_dir):
    """An adapter whose base is the folder, and which may have its tokenizer beside it."""
    from transformers import AutoModelForSequenceClassification

    import lorakit

    model = AutoModelForSequenceClassification.from_pretrained(tiny_distilbert_dir)
    lorakit.add_adapter(model, lorakit.LoraConfig(task_type="SEQ_CLS", target_modules=["q_lin"]))
    randomize_(model)
    lorakit.save_adapter(model, tmp_path / "adapter")
    _change(tmp_path / "adapter" / "adapter_config.json", {"base_model_name_or_path": str(folder)})
    labels = {"labels": ["negative", "positive"]}
    (tmp_path / "adapter" / "lorakit.json").write_text(json.dumps(labels))
    for name in ("tokenizer.json", "tokenizer_config.json", "own_tokenizer.py"):
        if "auto_map" in (folder / "tokenizer_config.json").read_text():
            shutil.copy(folder / name, tmp_path / "adapter" / name)
    return tmp_path / "adapter"


@pytest.fixture
def call(monkeypatch):
    """Runs a command whose user would answer "y" to whatever is asked."""
    from typer.testing import CliRunner

    from lorakit.cli.main import app

    def asked(*_):
        raise AssertionError("asked on the terminal")

    monkeypatch.setattr("builtins.input", asked)

    def run(*words):
        monkeypatch.setattr("sys.stdin", io.StringIO("y\n" * 9))
        return CliRunner().invoke(app, [str(word) for word in words], input="y\n" * 9)

    return run


def _refused(result, marker):
    assert not marker.exists()
    assert result.exit_code == 2, result.output
    assert "code" in result.stderr and "trust_remote_code" in result.stderr
    assert len(result.stderr.splitlines()) == 1


def _needs_code(folder):
    """A known model has its tokenizer in transformers itself."""
    return "auto_map" in (folder / "config.json").read_text()


@pytest.mark.parametrize("command", ["train", "plan"])
def test_commands_with_a_recipe_refuse_it(call, recipe, folder, marker, command):
    if _needs_code(folder):
        _refused(call(command, recipe), marker)
    elif command == "plan":
        result = call(command, recipe)
        assert not marker.exists()
        assert result.exit_code == 0, result.output


@pytest.mark.parametrize("command", ["generate", "merge", "evaluate"])
def test_commands_with_an_adapter_refuse_it(
    call, adapter, recipe, folder, marker, tmp_path, command
):
    rest = {"generate": ["good"], "merge": [tmp_path / "merged"], "evaluate": ["--recipe", recipe]}
    result = call(command, adapter, *rest[command])
    if _needs_code(folder) or command != "evaluate":
        _refused(result, marker)
    else:
        assert not marker.exists()


@NEEDS_CODE
def test_analyze_says_why_it_leaves_out_the_base(call, adapter, marker, folder):
    result = call("analyze", adapter)
    assert not marker.exists()
    assert result.exit_code == 0, result.output
    assert "comes with custom code" in result.stderr


@NEEDS_CODE
def test_inspect_and_extract_refuse_it(call, folder, marker, tmp_path):
    _refused(call("inspect", folder, "--quantization"), marker)
    result = call("extract", folder, folder, tmp_path / "made")
    assert not marker.exists()
    assert result.exit_code == 2
    assert "needs code from the checkpoint" in result.stderr


def test_the_flag_lets_it_run(call, adapter, marker, monkeypatch, tmp_path):
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "hf"))
    call("generate", adapter, "good", "--trust-remote-code")
    assert marker.exists()
