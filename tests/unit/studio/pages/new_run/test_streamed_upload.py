"""Files that are written to the folder while they arrive."""

import errno
from types import SimpleNamespace
from urllib.parse import quote

import pytest
from nicegui import ui

from lorakit.runs import data_files
from lorakit.studio.pages.new_run import streamed_upload

pytestmark = pytest.mark.anyio


@pytest.fixture
async def zone(user, studio):
    """Open a page with a drop zone; return its address and what it was told."""
    from lorakit.studio.pages.new_run.streamed_upload import StreamedUpload

    told = []

    @ui.page("/drop")
    def drop():
        StreamedUpload(studio.root, "Drop", told.append, told.append)

    await user.open("/drop")
    (element,) = user.find(kind=StreamedUpload).elements
    return element.props["url"], told


async def send(user, url, name, content):
    return await user.http_client.post(url, content=content, headers={"X-File-Name": quote(name)})


async def test_a_file_arrives_under_its_name(user, studio, zone):
    url, told = zone
    content = "text,label\nGrüße,x\n".encode() * 100_000
    answer = await send(user, url, "Grüße 💥.csv", content)
    assert answer.status_code == 200 and told == ["data/Grüße 💥.csv"]
    assert (studio.root / told[0]).read_bytes() == content


async def test_a_file_of_another_kind_is_refused_with_the_sentence(user, studio, zone):
    url, told = zone
    answer = await send(user, url, "table.xlsx", b"x")
    assert answer.status_code == 413 and "with the ending '.xlsx'" in answer.json()["problem"]
    assert str(told[0]) == answer.json()["problem"]
    assert not (studio.root / "data").exists()


async def test_a_name_cannot_lead_out_of_the_folder(user, studio, zone):
    url, told = zone
    await send(user, url, "../../etc/passwd.csv", b"a,b\n")
    assert told == ["data/passwd.csv"] and (studio.root / "data" / "passwd.csv").exists()


async def test_a_file_larger_than_the_disk_is_refused_before_a_byte_is_written(
    user, studio, zone, monkeypatch
):
    url, told = zone
    usage = SimpleNamespace(free=60_000_000, total=10**9)
    monkeypatch.setattr(data_files.shutil, "disk_usage", lambda path: usage)
    answer = await send(user, url, "large.csv", b"x" * 20_000_000)
    problem = answer.json()["problem"]
    assert answer.status_code == 413 and str(told[0]) == problem
    assert "got a file of 20.0 MB, but the disk at" in problem and "has 60.0 MB free" in problem
    assert list((studio.root / "data").iterdir()) == []


async def test_a_disk_that_is_full_before_the_file_is_whole_is_said(
    user, studio, zone, monkeypatch
):
    url, told = zone

    async def refuse(write, chunk):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(streamed_upload.asyncio, "to_thread", refuse)
    answer = await send(user, url, "table.csv", b"a,b\n")
    assert answer.status_code == 413 and str(told[0]) == answer.json()["problem"]
    assert "data/table.csv" in str(told[0]) and "Free some space" in str(told[0])
    assert list((studio.root / "data").iterdir()) == []
