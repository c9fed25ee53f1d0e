"""Starting the server on Ray Serve, and ending it."""

from __future__ import annotations

import http.client
import logging
import threading
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from ray import serve
from ray.exceptions import RayError
from ray.serve.config import HTTPOptions, ProxyLocation, RequestRouterConfig
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle
from ray.serve.schema import LoggingConfig

from lorakit.errors import ClusterError, LorakitError
from lorakit.libraries.ray_cluster import Machine, ray_cluster, require_resources
from lorakit.serving.http.context import ContextSettings
from lorakit.serving.http.server import Address
from lorakit.serving.http.threaded_server import url_of
from lorakit.serving.ray_deployment.entrance import Entrance
from lorakit.serving.ray_deployment.replica import Replica
from lorakit.serving.ray_deployment.router import STATS_PERIOD_S, AdapterRouter
from lorakit.serving.service import Overview

_log = logging.getLogger(__name__)

APPLICATION = "lorakit"
"""Name of the application on Ray Serve."""

_HEALTH_PERIOD_S = 2.0
_HEALTH_TIMEOUT_S = 30.0
_POLL_S = 0.1
_ANSWER_S = 10.0


@dataclass(frozen=True)
class RayOptions:
    """Where replicas run.

    Attributes:
        replicas: Number of replicas.
        address: "host:port" of a cluster's head, or "auto"; None starts Ray on this machine.
        cpus_per_replica: CPUs of a replica; None takes an equal share of this machine, or 1 on a
            cluster at an address.
    """

    replicas: int = 1
    address: str | None = None
    cpus_per_replica: int | None = None


class RayServer:
    """A server on Ray Serve, which answers until it is told to stop.

    Attributes:
        url: Where requests are sent, without a path.
    """

    def __init__(self, url: str, replicas: DeploymentHandle, at_end: ExitStack):
        """Take a server that runs.

        Args:
            url: Where requests are sent.
            replicas: The way to the replicas.
            at_end: What ends it.
        """
        self.url = url
        self._replicas = replicas
        self._at_end = at_end
        self._has_ended = threading.Event()

    def overview(self) -> Overview:
        """Return what is served now, as one replica knows it."""
        return self._replicas.overview.remote().result()

    def stop(self) -> None:
        """Finish the requests that run, and end; Ray ends too if this server started it."""
        self._at_end.close()
        self._has_ended.set()

    def wait(self) -> None:
        """Wait until the server has been stopped; a signal may interrupt it."""
        self._has_ended.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def serve_on_ray(
    settings: ContextSettings, address: Address, options: RayOptions, shutdown_s: float
) -> RayServer:
    """Start replicas and the entrance to them; return once they answer.

    Args:
        settings: What is served, and how.
        address: Where Ray's HTTP proxy listens.
        options: Where replicas run.
        shutdown_s: Seconds within which requests that run are finished at the end.

    Raises:
        ConfigError: The address is taken.
        ClusterError: The cluster cannot be reached, is too small, or serves something else.
        LorakitError: The replicas cannot start.
    """
    with ExitStack() as on_failure:
        machines = on_failure.enter_context(ray_cluster(options.address))
        resources = _resources(settings, options, machines)
        require_resources(
            machines,
            cpus=resources["num_cpus"],
            gpus=resources["num_gpus"],
            what="--replicas and --cpus-per-replica",
            count=options.replicas,
        )
        with address.bind() as free:
            url, port = url_of(free), free.getsockname()[1]
        _require_free(options)
        logging.getLogger("ray.serve").setLevel(logging.ERROR)
        if not serve.status().proxies:
            on_failure.callback(serve.shutdown)
        serve.start(
            proxy_location=ProxyLocation.HeadOnly,
            http_options=HTTPOptions(host=address.host, port=port),
            logging_config=_logging(),
        )
        on_failure.callback(serve.delete, APPLICATION)
        _run(settings, options.replicas, resources, shutdown_s)
        on_failure.callback(_finish, shutdown_s)
        _require_answer(address.host, port, url)
        replicas = serve.get_deployment_handle("Replica", APPLICATION)
        return RayServer(url, replicas, on_failure.pop_all())


def _run(
    settings: ContextSettings, replicas: int, resources: dict[str, Any], shutdown_s: float
) -> None:
    limits, engine = settings.limits, settings.settings.engine
    common: dict[str, Any] = {
        "max_ongoing_requests": 2 * limits.connections,  # the entrance itself refuses more
        "max_queued_requests": limits.connections,
        "graceful_shutdown_timeout_s": shutdown_s,
        "graceful_shutdown_wait_loop_s": _POLL_S,
        "health_check_period_s": _HEALTH_PERIOD_S,
        "health_check_timeout_s": _HEALTH_TIMEOUT_S,
        "max_constructor_retry_count": 1,
        "logging_config": _logging(),
    }
    routing: Any = {
        "request_router_class": AdapterRouter,
        "request_router_kwargs": {"full_batch": engine.max_batch_rows},
        "request_routing_stats_period_s": STATS_PERIOD_S,
    }
    deployment: Any = serve.deployment  # its type does not know that it returns a Deployment
    engines = deployment(
        Replica,
        name="Replica",
        num_replicas=replicas,
        ray_actor_options=resources,
        request_router_config=RequestRouterConfig(**routing),
        **common,
    )
    entrance = deployment(
        Entrance, name="Entrance", num_replicas=1, ray_actor_options={"num_cpus": 0}, **common
    )
    application = entrance.bind(
        settings.keys, limits, settings.source.base_name, engines.bind(settings, Path.cwd())
    )
    try:
        serve.run(application, name=APPLICATION)
    except RuntimeError as error:
        raise LorakitError(f"The replicas cannot start: {_reason(_failure_text(error))}") from error


def _finish(within_s: float) -> None:
    """Let the entrance refuse new requests and finish those that run."""
    try:
        finishing = serve.get_app_handle(APPLICATION).finish.remote(within_s)
        unfinished = finishing.result(timeout_s=within_s + _ANSWER_S)
    except (RayError, RayServeException, TimeoutError) as error:
        _log.warning("The entrance did not end in order: %s", error)
        return
    if unfinished:
        _log.warning("%d requests were not finished in time.", unfinished)


def _logging() -> LoggingConfig:
    return LoggingConfig(log_level="WARNING", enable_access_log=False)


def _resources(
    settings: ContextSettings, options: RayOptions, machines: list[Machine]
) -> dict[str, Any]:
    """Return what each replica asks Ray for."""
    device = settings.source.base.device
    on_cpu = device is not None and torch.device(device).type == "cpu"
    cpus = options.cpus_per_replica
    if cpus is None:
        here = sum(machine.cpus for machine in machines) if options.address is None else 1
        cpus = max(1, int(here // options.replicas))
    has_gpus = not on_cpu and any(machine.gpus for machine in machines)
    return {"num_cpus": cpus, "num_gpus": 1 if has_gpus else 0}


def _require_free(options: RayOptions) -> None:
    """Refuse to take the place of another application of the cluster."""
    others = list(serve.status().applications)
    if others:
        raise ClusterError(
            f"The cluster serves something already: got the application '{others[0]}' on Ray "
            f"Serve at {options.address or 'this machine'}, expected none. End it with `serve "
            "shutdown`, or use another cluster."
        )


def _require_answer(host: str, port: int, url: str) -> None:
    """Ask the proxy whether it listens where it should: a Serve that ran before keeps its own."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    connection = http.client.HTTPConnection(host, port, timeout=_ANSWER_S)
    try:
        connection.request("GET", "/health")
        status = connection.getresponse().status
    except OSError as error:
        raise ClusterError(
            f"Ray Serve does not answer at {url} ({error}): it ran before with other options. End "
            "it with `serve shutdown`, and start again on the head of the cluster."
        ) from None
    finally:
        connection.close()
    if status != 200:
        raise ClusterError(
            f"The server is not healthy: got {status} for {url}/health, expected 200. The logs of "
            "Ray have the reason."
        )


def _failure_text(error: RuntimeError) -> str:
    """Return what Ray says about a failed start, with the tracebacks of the processes."""
    application = serve.status().applications.get(APPLICATION)
    deployments = {} if application is None else application.deployments
    return "\n".join([str(error), *(deployment.message for deployment in deployments.values())])


def _reason(told: str) -> str:
    """Return what a replica raised, without Ray's traceback."""
    lines = [line.strip() for line in told.splitlines() if line.strip()]
    raised = [line for line in lines if line.startswith("lorakit.")]
    return raised[-1].partition(": ")[2] if raised else lines[-1]
