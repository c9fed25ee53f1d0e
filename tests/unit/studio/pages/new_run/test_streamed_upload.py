"""Files that are written to the folder while they arrive."""

from urllib.parse import quote

import pytest
from nicegui import ui

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
