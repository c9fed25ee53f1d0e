"""What replicas ask Ray for, and what is told when they cannot start; Ray itself does not run."""

import socket
from types import SimpleNamespace

import pytest

from lorakit.errors import ClusterError
from lorakit.libraries.ray_cluster import Machine

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Ray's, of pydantic


def settings(device=None):
    return SimpleNamespace(source=SimpleNamespace(base=SimpleNamespace(device=device)))


@pytest.mark.parametrize(
    ("device", "options", "machine", "cpus", "gpus"),
    [
        (None, {"replicas": 2}, Machine("a", 8, 0), 4, 0),
        (None, {"replicas": 3}, Machine("a", 2, 0), 1, 0),
        (None, {"replicas": 2, "cpus_per_replica": 3}, Machine("a", 8, 0), 3, 0),
        (None, {"replicas": 2, "address": "auto"}, Machine("a", 8, 2), 1, 1),
        ("cpu", {"replicas": 2}, Machine("a", 8, 2), 4, 0),
        ("cuda", {"replicas": 2}, Machine("a", 8, 2), 4, 1),
    ],
)
def test_cpus_are_shared_and_each_replica_has_a_gpu_if_there_are_some(
    device, options, machine, cpus, gpus
):
    from lorakit.serving.ray_deployment.server import RayOptions, _resources

    found = _resources(settings(device), RayOptions(**options), [machine])
    assert found == {"num_cpus": cpus, "num_gpus": gpus}


def test_what_a_replica_raised_is_told_without_rays_traceback():
    from lorakit.serving.ray_deployment.server import _reason

    traceback = "\n".join(
        [
            "Deploying application lorakit failed: Failed to update ...",
            "ray::ServeReplica:lorakit:Replica.initialize_and_get_metadata()",
            "  File 'x.py', line 3, in build",
            "lorakit.errors.AdapterFileError: The adapter in x is damaged: got y, expected z.",
            "",
        ]
    )
    assert _reason(traceback) == ("The adapter in x is damaged: got y, expected z.")
    assert _reason("one\ntwo") == "two"


def test_a_proxy_that_listens_elsewhere_is_an_error():
    from lorakit.serving.ray_deployment.server import _require_answer

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(ClusterError, match="does not answer at http://x"):
        _require_answer("0.0.0.0", port, "http://x")
