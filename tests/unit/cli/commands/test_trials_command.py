"""What `lorakit tune` and `lorakit study` share."""

import socket

import pytest


@pytest.mark.parametrize("command", ["tune", "study"])
@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("nowhere", "--address: got 'nowhere', expected host:port"),
        ("{closed}", "No Ray cluster answers at --address 127.0.0.1:"),
        ("ray://{closed}", "an address of Ray Client, expected host:port"),
    ],
)
def test_an_address_without_a_cluster_is_told_at_once(
    cli, cls_recipe, command, address, message, monkeypatch
):
    # Another test may have left a Ray running in this process, which would be used as it is.
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        closed = f"127.0.0.1:{free.getsockname()[1]}"
    result = cli(command, cls_recipe, "--address", address.format(closed=closed))
    assert result.exit_code == 2
    assert message in result.stderr
    assert result.stderr.count("\n") == 1
