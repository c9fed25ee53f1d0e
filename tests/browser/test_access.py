"""Who gets in: a link that works once, a password, and nobody else."""

import httpx2


def test_a_link_opens_the_first_page_once(studio, page, new_page):
    link = studio.link()
    page.goto(link)
    page.get_by_role("heading", name="Runs").wait_for()
    assert "token" not in page.url
    page.reload()
    page.get_by_role("heading", name="Runs").wait_for()
    other = new_page()
    other.goto(link)
    assert "used already, or is wrong" in other.get_by_role("alert").inner_text()
    other.goto(studio.link())  # the terminal has printed a new one
    other.get_by_role("heading", name="Runs").wait_for()


def test_nobody_else_sees_anything(studio):
    for path in ("/", "/new", "/_nicegui_ws/socket.io/?transport=polling&EIO=4", "/docs", "/run/x"):
        answer = httpx2.get(studio.url + path, follow_redirects=True)
        assert answer.status_code == 401, path
        assert str(studio.root) not in answer.text
    answer = httpx2.get(studio.url + "/access?token=wrong")
    assert answer.status_code == 401 and "set-cookie" not in answer.headers
