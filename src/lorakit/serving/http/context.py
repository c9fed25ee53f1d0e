"""What all calls of a server share."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

from lorakit.serving.http.access_log import AccessLog
from lorakit.serving.http.keys import ApiKeys
from lorakit.serving.http.limits import Limits, RequestsPerKey
from lorakit.serving.http.metrics import Metrics
from lorakit.serving.service import Service, ServiceSettings
from lorakit.serving.sources import ServingSource


@dataclass(frozen=True)
class ContextSettings:
    """Everything that a context is made from; it can be sent to other processes.

    Attributes:
        source: What is served.
        settings: Memory and batches.
        keys: Keys that callers need.
        limits: What is refused.
        access_log: File of the access log; "-" is stderr, None keeps no log.
        log_prompts: Whether its lines have prompts and answers.
    """

    source: ServingSource
    settings: ServiceSettings = field(default_factory=ServiceSettings)
    keys: ApiKeys = field(default_factory=ApiKeys)
    limits: Limits = field(default_factory=Limits)
    access_log: Path | None = None
    log_prompts: bool = False

    def build(self) -> Context:
        """Load the base; nothing runs yet.

        Raises:
            MissingFileError, ConfigError, QuantizationError: The base cannot be loaded.
            DiskError: The access log cannot be opened.
        """
        metrics, waiting = Metrics(), self.limits.waiting
        settings = replace(
            self.settings,
            engine=replace(self.settings.engine, max_waiting=waiting),
            most_waiting=waiting,
            hooks=metrics.hooks,
        )
        log = AccessLog(self.access_log, with_prompts=self.log_prompts)
        return Context(Service(self.source, settings), self.keys, self.limits, metrics, log)


@dataclass
class Context:
    """A service, and how it treats those who call it.

    Attributes:
        service: The models.
        keys: Keys that callers need.
        limits: What is refused.
        metrics: Figures.
        log: The access log.
        is_stopping: Whether new requests are refused because the server ends.
        running: Number of requests that are being answered.
    """

    service: Service
    keys: ApiKeys = field(default_factory=ApiKeys)
    limits: Limits = field(default_factory=Limits)
    metrics: Metrics = field(default_factory=Metrics)
    log: AccessLog = field(default_factory=AccessLog)
    is_stopping: bool = False
    running: int = 0

    def __post_init__(self) -> None:
        self.per_key = RequestsPerKey(self.limits.requests_per_key)
        self.metrics.watch(self.service)

    def close(self) -> None:
        """End all threads."""
        self.is_stopping = True
        self.service.stop(finish_running=False)
        self.log.close()
