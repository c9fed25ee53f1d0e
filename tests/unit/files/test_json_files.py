import json

import pytest

from lorakit.files.json_files import read_json_object

DEEP = 100_000

REFUSED = {
    "empty": (b"", "Expecting value"),
    "cut short": (b'{"r": 8', "Expecting"),
    "a list": (b"[1]", "got a list"),
    "a number": (b"7", "got a int"),
    "not UTF-8": (b'{"a": "\xff"}', "byte 7 is not UTF-8"),
    "UTF-16": ('{"a": 1}'.encode("utf-16"), "not UTF-8"),
    "zeros": (b"\0" * 4096, "Expecting value"),
    "many digits": (b'{"r": ' + b"9" * 5000 + b"}", "a number in it has thousands of digits"),
    "deep lists": (b'{"a": ' + b"[" * DEEP + b"]" * DEEP + b"}", "nested too deeply"),
    "deep objects": (b'{"a":' * DEEP + b"1" + b"}" * DEEP, "nested too deeply"),
    "twice": (b'{"r": 8, "r": 16}', "the key 'r' is repeated"),
    "twice inside": (b'{"a": {"q": 1, "q": 1}}', "the key 'q' is repeated"),
    "a null character": (b'{"base": "a\\u0000b"}', "the text 'a\\x00b' at 'base' has control"),
    "an escape": (b'{"a": {"\\u001b[2J": 1}}', "has control characters"),
    "a newline": (b'{"a": "b\\nc"}', "the text 'b\\nc' at 'a' has control"),
    "delete, not escaped": (b'{"a": "\x7f"}', "has control characters"),
    "half a character": (b'{"a": ["\\ud800"]}', "the text '\\ud800' at 'a' has control"),
    "a long text": (b'{"a": "' + b"x" * 9000 + b'\\u0007"}', "xxx…' at 'a' has control"),
    "a pointer": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n",
        "it is a git-lfs pointer and not the file itself (run `git lfs pull`",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused_and_why(tmp_path, case):
    data, reason = REFUSED[case]
    (tmp_path / "x.json").write_bytes(data)
    with pytest.raises(ValueError) as caught:
        read_json_object(tmp_path / "x.json")
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300


def test_a_sparse_file_is_not_read_into_memory(tmp_path):
    with (tmp_path / "x.json").open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(ValueError, match="it has 1,099,511,627,776 bytes, more than the 16,777"):
        read_json_object(tmp_path / "x.json")


def test_what_cannot_be_opened(tmp_path):
    with pytest.raises(ValueError, match="Is a directory"):
        read_json_object(tmp_path)


def test_ordinary_objects_are_read(tmp_path):
    values = {"ä": [1, 2.5, None, True, "one two\u200c"], "b": {"r": 8}}
    (tmp_path / "x.json").write_text(json.dumps(values), encoding="utf-8")
    assert read_json_object(tmp_path / "x.json") == values
