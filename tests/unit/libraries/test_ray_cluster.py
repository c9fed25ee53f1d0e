"""Addresses of clusters, and requests that no machine can satisfy."""

import socket
import sys

import pytest

from lorakit.errors import ClusterError, ConfigError
from lorakit.libraries.ray_cluster import Machine, import_ray, ray_cluster, require_resources

SMALL, LARGE = Machine("a", 2, 0), Machine("b", 8, 2)


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("nowhere", "--address: got 'nowhere', expected host:port"),
        ("host:port", "--address: got 'host:port', expected host:port or auto"),
        ("{closed}", "No Ray cluster answers at --address 127.0.0.1:"),
        ("127.0.0.1:99999999", "No Ray cluster answers at --address 127.0.0.1:"),
        ("ray://{closed}", "an address of Ray Client, expected host:port"),
    ],
)
def test_an_address_without_a_cluster_is_refused_immediately(address, message, monkeypatch):
    # Another test may have left a Ray running in this process, which would be used as it is.
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        closed = f"127.0.0.1:{free.getsockname()[1]}"
    with (
        pytest.raises(ClusterError) as caught,
        ray_cluster(address.format(closed=closed)),
    ):
        pass
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("cpus", "gpus", "count", "fits"),
    [
        (2, 0, 5, True),  # 1 on a, 4 on b
        (2, 0, 6, False),
        (9, 0, 1, False),  # 10 CPUs in all, but a process runs on one machine
        (1, 1, 2, True),
        (1, 1, 3, False),
        (1, 0.5, 4, True),
        (1, 0.6, 3, False),  # one of 0.6 on each GPU
        (0, 0.25, 8, True),
    ],
)
def test_processes_fit_on_single_machines(cpus, gpus, count, fits):
    request = {"cpus": cpus, "gpus": gpus, "what": "the test", "count": count}
    if fits:
        require_resources([SMALL, LARGE], **request)
        return
    with pytest.raises(ClusterError) as caught:
        require_resources([SMALL, LARGE], **request)
    assert str(caught.value).startswith(
        f"Too few resources for the test: got {count} x ({cpus} CPUs and {gpus} GPUs), expected at "
        "most those of the cluster: 2 CPUs and 0 GPUs at a; 8 CPUs and 2 GPUs at b."
    )


def test_without_ray_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError, match=r"Install it with: pip install 'lorakit\[tune\]'"):
        import_ray()
