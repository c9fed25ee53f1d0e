import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lorakit.data.reading.csv_files import read_csv
from lorakit.errors import DataError


def read(tmp_path, content, delimiter=None, name="rows.csv"):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_csv(path, "data.train", delimiter)


def error_of(tmp_path, content, **options):
    with pytest.raises(DataError) as caught:
        read(tmp_path, content, **options)
    return str(caught.value)


AS_WRITTEN = ["01", "1", "007", "1e3", "true", "TRUE", "NA", "null", "None", "nan", "2024-01-02"]
AS_WRITTEN += ["123456789012345678901234567890", " spaced ", "0x10", "1,5", "-0", "1_000", "+7"]


def test_every_cell_is_the_text_that_is_written(tmp_path):
    content = "text,label\n" + "".join(f'a text,"{label}"\n' for label in AS_WRITTEN)

    made = read(tmp_path, content)

    assert made.dataset["label"][:] == AS_WRITTEN
    assert made.lines.tolist() == list(range(2, 2 + len(AS_WRITTEN)))
    assert made.notes == ()


def test_types_do_not_depend_on_the_first_rows(tmp_path):
    early = "".join(f"text {i},,0\n" for i in range(25_000))
    made = read(tmp_path, f"text,note,label\n{early}last,a note,spam\n")

    assert made.dataset[0] == {"text": "text 0", "note": None, "label": "0"}
    assert made.dataset[25_000] == {"text": "last", "note": "a note", "label": "spam"}


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_line_ends_and_byte_order_marks_are_no_data(tmp_path, end, mark):
    lines = ["text,label", 'one,"a"', "", '"two', 'lines",b', "three,c", ""]
    made = read(tmp_path, mark + end.join(lines).encode())

    assert made.dataset.column_names == ["text", "label"]
    assert made.dataset["text"][:] == ["one", f"two{end}lines", "three"]
    assert made.dataset["label"][:] == ["a", "b", "c"]
    assert made.lines.tolist() == [2, 4, 6]


def test_utf_16_is_read_by_its_mark(tmp_path):
    made = read(tmp_path, "text\tlabel\nGrüße\ta\n".encode("utf-16"), name="rows.csv")

    assert made.dataset.to_list() == [{"text": "Grüße", "label": "a"}]


@pytest.mark.parametrize(
    ("mark", "name"), [(";", "semicolons"), ("\t", "tabs"), ("|", "vertical bars")]
)
def test_other_delimiters_are_recognized_and_said(tmp_path, mark, name):
    made = read(tmp_path, f'text{mark}label\nWell, yes{mark}1\n"a {mark} b, c"{mark}2\n')

    assert made.dataset["text"][:] == ["Well, yes", f"a {mark} b, c"]
    assert made.notes == (
        f"'{tmp_path}/rows.csv' is read as separated by {name} (data.delimiter).",
    )
    assert read(tmp_path, f"text{mark}label\nx{mark}y\n", delimiter=mark).notes == ()


@pytest.mark.parametrize(
    "content", ["text,label\na; b,1\nc; d,2\n", "text\na text; or two\n", "a|b,c\n1|2,3\n"]
)
def test_commas_stay_the_delimiter(tmp_path, content):
    made = read(tmp_path, content)

    assert made.dataset.column_names == content.partition("\n")[0].split(",")


def test_tsv_files_have_tabs(tmp_path):
    made = read(tmp_path, "text, or more\nx\n", name="rows.tsv")

    assert made.dataset.column_names == ["text, or more"]


def test_an_index_without_a_name_gets_one_and_spaces_in_the_header_are_said(tmp_path):
    made = read(tmp_path, ",text, label\n0,x, y\n")

    assert made.dataset.to_list() == [{"Unnamed: 0": "0", "text": "x", "label": " y"}]
    assert made.notes == (f"Spaces around the column names of '{tmp_path}/rows.csv' were removed.",)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("a,b\n1,2\n1,2,3\n", "whose line 3 has 3 cells, expected 2 as the header has"),
        ("a,b\n1,2\n1\n\n1\n", "whose lines 3, 5 have 1 cell, expected 2 as the header has"),
        ('a,b\n"x\ny",2\n1,2,\n', "whose line 4 has 3 cells"),
        ("text\none\ntwo, three\n", "whose line 3 has 2 cells, expected 1"),
        ("a,b,a\n1,2,3\n", "which has several columns called 'a', expected each name once"),
        ("a,a \n1,2\n", "which has several columns called 'a'"),
        ("a\0b,c\n1,2\n", "which has a column called 'a\\x00b'"),
        ('a,b\n"x,2\ny,3\n', "a quote opened in the record of line 2 is never closed"),
        ('a,b\n1,2\n"x"y,2\n', "in whose line 3 text follows the quote that closes a cell"),
        (b"a,b\n1,2\ncaf\xe9,3\n", "whose line 3 has the byte 0xe9 after 'caf', expected UTF-8"),
        (b"\xef\xbb\xbfa,b\n\xff,2\n", "whose line 2 has the byte 0xff"),
        (b"a\n1\n2\n\0\0\0", "whose record of line 4 has a NUL character, expected text"),
        (b"\xff\xfea", "which does not hold what its byte order mark says"),
        (b"\x1f\x8b\x08", "which is compressed with gzip"),
        (b"PK\x03\x04..", "which is a zip archive or a spreadsheet"),
        (b"PAR1....", "which is a parquet file"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "which is a git-lfs pointer"),
    ],
)
def test_what_is_wrong_is_said_with_its_line(tmp_path, content, problem):
    message = error_of(tmp_path, content)

    assert message.startswith(f"Could not read data.train: got '{tmp_path}/rows.csv', ")
    assert problem in message


def test_long_cells_are_read(tmp_path):
    assert len(read(tmp_path, f"text,label\n{'x' * 200_000},a\n").dataset[0]["text"]) == 200_000


CELLS = st.text(st.characters(codec="utf-8", exclude_characters="\x00"), max_size=6)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(CELLS, CELLS), min_size=1, max_size=5))
def test_what_a_csv_writer_writes_is_read_back(tmp_path_factory, rows):
    import csv
    import io

    written = io.StringIO()
    writer = csv.writer(written, quoting=csv.QUOTE_ALL)
    writer.writerows([("text", "label"), *rows])
    made = read(tmp_path_factory.mktemp("csv"), written.getvalue())

    assert [tuple(row.values()) for row in made.dataset] == [
        (text or None, label or None) for text, label in rows
    ]
