import pytest

from lorakit.runs.run_files import LogTail, as_shown, files_of


@pytest.fixture
def run(tmp_path):
    path = tmp_path / "run"
    for name in ("report.md", "adapter/a.json", "checkpoint-4/w", "tensorboard/e", ".lock", ".x/y"):
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_text("12345")
    return path


def test_results_come_first_and_hidden_files_are_left_out(run):
    names = [file.name for file in files_of(run)]
    assert names == ["report.md", "adapter/a.json", "checkpoint-4/w", "tensorboard/e"]
    assert files_of(run)[0].size_bytes == 5


def test_links_are_left_out(run, tmp_path):
    (tmp_path / "secret").write_text("secret")
    (run / "link").symlink_to(tmp_path / "secret")
    (run / "folder").symlink_to(tmp_path)
    assert not [file for file in files_of(run) if "link" in file.name or "secret" in file.name]


def test_a_log_is_read_when_it_has_grown(tmp_path):
    log = LogTail(tmp_path / "log.txt")
    assert log.read() is None
    log.path.write_bytes(b"one\n")
    assert log.read() == "one\n"
    assert log.read() is None
    log.path.write_bytes(b"one\n\xfftwo\n")
    assert log.read() == "one\n\ufffdtwo\n"
    log.path.unlink()
    assert log.read() == ""
    assert log.read() is None


def test_of_a_long_log_the_end_is_shown_from_a_whole_line(tmp_path):
    log = LogTail(tmp_path / "log.txt")
    log.path.write_text("".join(f"line {number}\n" for number in range(20_000)))
    text = log.read()
    assert text.startswith("line ")
    assert text.endswith("line 19999\n")
    assert len(text) <= 64_000


@pytest.mark.parametrize(
    ("text", "shown"),
    [("a\r\nb", "a\nb"), ("10%\r20%\r", "20%"), ("\x1b[?25h\x1b[2Kx", "x"), ("", "")],
)
def test_what_a_terminal_would_show(text, shown):
    assert as_shown(text) == shown
