import inspect
import pickle

import pytest

from lorakit import errors
from lorakit.errors import DataError, LorakitError, did_you_mean, escaped

CLASSES = [c for _, c in inspect.getmembers(errors, inspect.isclass) if issubclass(c, LorakitError)]
BUILTIN = {
    "ConfigError": ValueError,
    "TargetError": ValueError,
    "ShapeError": ValueError,
    "DtypeError": TypeError,
    "AdapterNameError": KeyError,
    "AdapterStateError": RuntimeError,
    "AdapterMemoryError": RuntimeError,
    "AdapterFileError": ValueError,
    "AdapterMismatchError": ValueError,
    "MissingFileError": FileNotFoundError,
    "OutputExistsError": FileExistsError,
    "QuantizationError": RuntimeError,
    "DataError": ValueError,
    "ClusterError": RuntimeError,
    "PlanError": RuntimeError,
    "CheckpointError": RuntimeError,
    "DiskError": OSError,
    "TrainingError": RuntimeError,
    "RequirementError": RuntimeError,
    "GenerationError": RuntimeError,
    "QueueFullError": RuntimeError,
    "EngineStoppedError": RuntimeError,
    "ServerError": RuntimeError,
    "StoppedError": RuntimeError,
}
WHILE_RUNNING = {
    "LorakitError",
    "DtypeError",
    "AdapterStateError",
    "AdapterMemoryError",
    "CheckpointError",
    "DiskError",
    "TrainingError",
    "RequirementError",
    "GenerationError",
    "QueueFullError",
    "EngineStoppedError",
    "ServerError",
    "StoppedError",
}


@pytest.mark.parametrize("error", CLASSES, ids=lambda c: c.__name__)
def test_each_error_is_a_lorakit_error_and_the_fitting_builtin(error):
    if error is not LorakitError:
        assert issubclass(error, BUILTIN[error.__name__])
    assert error.exit_code == (1 if error.__name__ in WHILE_RUNNING else 2)
    assert error.__doc__


def test_the_tree_at_the_top_of_the_file_is_complete():
    assert {c.__name__ for c in CLASSES} == {*BUILTIN, "LorakitError"}
    for name, builtin in BUILTIN.items():
        line = next(line for line in errors.__doc__.splitlines() if f" {name} " in line)
        if name != "AdapterMismatchError":
            assert f"({builtin.__name__})" in line


@pytest.mark.parametrize("error", CLASSES, ids=lambda c: c.__name__)
def test_the_text_is_the_message_and_survives_pickling(error):
    raised = error("No such 'thing'.")
    assert str(raised) == "No such 'thing'."
    again = pickle.loads(pickle.dumps(raised))
    assert type(again) is error and str(again) == "No such 'thing'."
    assert str(error()) == ""


@pytest.mark.parametrize(
    "got,known,expected",
    [
        ("q_porj", ["q_proj", "k_proj"], " Did you mean 'q_proj'?"),
        ("zzz", ["q_proj"], ""),
        ("q", [], ""),
        ("R", ["r", "lora_alpha"], " Did you mean 'r'?"),
        ("q_proj", iter(["q_proj", "v_proj"]), " Did you mean 'q_proj'?"),
    ],
)
def test_did_you_mean(got, known, expected):
    assert did_you_mean(got, known) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a\x1b[31mb\x00\x7f\x9b", "a\\x1b[31mb\\x00\\x7f\\x9b"),
        ("one\ntwo\r\tthree", "one\\ntwo\\r\\tthree"),
        ("\u202eabc\u2066\u2028\ufeff", "\\u202eabc\\u2066\\u2028\\ufeff"),
        ("half \ud800", "half \\ud800"),
        ("\U000e0041", "\\U000e0041"),
        ("Grüße, 你好, नमस्\u200dते, 👩\u200d🔬", "Grüße, 你好, नमस्\u200dते, 👩\u200d🔬"),
    ],
)
def test_foreign_text_is_shown_without_control_characters(text, expected):
    assert escaped(text) == expected
    assert escaped(expected) == expected


def test_messages_keep_their_lines_and_nothing_else():
    error = DataError("Two problems:\n  got '\x1b]0;title\x07'")

    assert str(error) == "Two problems:\n  got '\\x1b]0;title\\x07'"
