"""`lorakit.serve`: from what is to be served to a server that answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from lorakit.libraries.extras import require_package
from lorakit.serving.service import Service, ServiceSettings
from lorakit.serving.sources import find_source

if TYPE_CHECKING:
    from lorakit.serving.http.limits import Limits
    from lorakit.serving.http.server import Server


def require_server_packages() -> None:
    """Check that the packages of the extra `serve` are installed.

    Raises:
        ConfigError: One is missing.
    """
    for module in ("fastapi", "uvicorn", "prometheus_client", "llguidance"):
        require_package(module, "Serving adapters")


def serve(
    models: str | Path | Sequence[str | Path] = (),
    *,
    adapters: Mapping[str, str | Path] | None = None,
    folder: str | Path | None = None,
    host: str = "127.0.0.1",
    port: int = 8000,
    api_keys: Sequence[str] = (),
    admin_keys: Sequence[str] = (),
    root: str | Path | None = None,
    base_name: str | None = None,
    dtype: str | None = None,
    device: str | None = None,
    unquantized: bool = False,
    trust_remote_code: bool = False,
    allows_anybody: bool = False,
    shutdown_s: float = 30.0,
    access_log: str | Path | None = None,
    log_prompts: bool = False,
    limits: Limits | None = None,
    settings: ServiceSettings | None = None,
) -> Server:
    """Serve adapters on OpenAI's protocol, in threads of this process.

    Args:
        models: A base (a directory or a hub id), or runs and adapter directories on one base,
            which are named after their directories.
        adapters: Further runs, adapter directories or hub ids by name.
        folder: A folder of adapters and runs; those that appear there can be used at once.
        host: Name or address of the interface to listen at.
        port: Port; 0 takes a free one.
        api_keys: Keys that callers need; none lets everybody call who can reach the server.
        admin_keys: Keys that may also load and unload adapters.
        root: Directory below which adapters must lie that are loaded at run time; None is the
            folder.
        base_name: Name of the base alone; None takes the hub id, or the directory's name.
        dtype: dtype of the base's weights; None takes that of the trainings.
        device: None takes the accelerator if there is one, else the CPU.
        unquantized: Whether to load the base as it is saved, even if it was quantised in training.
        trust_remote_code: Whether code that comes with the base or a tokenizer may run.
        allows_anybody: Whether other machines may reach a server without keys.
        shutdown_s: Seconds within which `stop` finishes the requests that run.
        access_log: File for a line about each request, "-" for stderr; None for no log.
        log_prompts: Whether these lines have prompts and answers.
        limits: What is refused.
        settings: Memory and batches.

    Returns: The server, which answers at its `url` until `stop`, or until the end of a `with`
        block; `wait` waits for that.

    Raises:
        ConfigError: There is nothing to serve, the adapters need different bases, the address is
            taken, or a package is not installed.
        MissingFileError: A path does not exist.
        AdapterFileError: An adapter that is named cannot be used.
        QuantizationError: The base cannot be quantised.
    """
    require_server_packages()
    from lorakit.serving.http.access_log import AccessLog
    from lorakit.serving.http.context import Context
    from lorakit.serving.http.keys import ApiKeys
    from lorakit.serving.http.limits import Limits
    from lorakit.serving.http.metrics import Metrics
    from lorakit.serving.http.server import Address, Server

    address, keys = Address(host, port, allows_anybody), ApiKeys(api_keys, admin_keys)
    address.require_safe(keys)
    given = [models] if isinstance(models, str | Path) else list(models)
    source = find_source(
        given,
        adapters=adapters,
        folder=folder,
        root=root,
        base_name=base_name,
        dtype=dtype,
        device=device,
        unquantized=unquantized,
        trust_remote_code=trust_remote_code,
    )
    limits, metrics = limits or Limits(), Metrics()
    settings = settings or ServiceSettings()
    settings = replace(
        settings,
        engine=replace(settings.engine, max_waiting=limits.waiting),
        most_waiting=limits.waiting,
        hooks=metrics.hooks,
    )
    log = AccessLog(None if access_log is None else Path(access_log), with_prompts=log_prompts)
    with ExitStack() as on_failure:
        listening = on_failure.enter_context(address.bind())
        context = Context(Service(source, settings), keys, limits, metrics, log)
        on_failure.callback(context.close)
        context.service.start()
        context.service.require_named()
        server = Server(context, listening, shutdown_s).start()
        on_failure.pop_all()
    return server
