"""The encoding of a data file, and files that are not text."""

import codecs

import pytest

from lorakit.data.reading.file_text import open_text
from lorakit.errors import DataError


def read(path, content):
    path.write_bytes(content)
    with open_text(path, "data.train") as stream:
        return stream.read()


@pytest.mark.parametrize(
    ("mark", "encoding"),
    [
        (b"", "utf-8"),
        (codecs.BOM_UTF8, "utf-8"),
        (codecs.BOM_UTF16_LE, "utf-16-le"),
        (codecs.BOM_UTF16_BE, "utf-16-be"),
        (codecs.BOM_UTF32_LE, "utf-32-le"),
        (codecs.BOM_UTF32_BE, "utf-32-be"),
    ],
)
def test_the_encoding_is_that_of_the_byte_order_mark_and_line_ends_stay(tmp_path, mark, encoding):
    text = "Grüße\r\n名前\rc\n"
    assert read(tmp_path / "a.csv", mark + text.encode(encoding)) == text


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"\x1f\x8b\x08", "is compressed with gzip, expected text, as its ending says. Unpack it"),
        (b"PK\x03\x04..", "is a zip archive or a spreadsheet, expected text"),
        (b"PAR1....", "is a parquet file, expected text, as its ending says. Rename it"),
        (b"version https://git-lfs.github.com/spec/v1\n", "is a git-lfs pointer, not the data"),
    ],
)
def test_other_formats_are_named_with_what_to_do(tmp_path, content, what):
    path = tmp_path / "a.csv"
    with pytest.raises(DataError) as caught:
        read(path, content)
    assert str(caught.value).startswith(f"Could not read data.train: got '{path}', which {what}")


def test_the_line_of_a_wrong_byte_is_named_with_what_is_before_it(tmp_path):
    with pytest.raises(DataError, match=r"whose line 2 has the byte 0xe9 after '\\x1bcaf', exp"):
        read(tmp_path / "a.csv", b"a,b\n\x1bcaf\xe9,1\n")


def test_a_byte_order_mark_that_is_not_kept_is_said(tmp_path):
    with pytest.raises(DataError, match=r"its byte order mark says, expected UTF-16\. Save"):
        read(tmp_path / "a.csv", codecs.BOM_UTF16_LE + b"a\x00b")


def test_errors_of_the_reader_itself_pass(tmp_path):
    (tmp_path / "a.csv").write_text("a")
    with pytest.raises(UnicodeEncodeError), open_text(tmp_path / "a.csv", "data.train"):
        "\ud800".encode()
