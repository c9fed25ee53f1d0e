"""What all calls of a server share."""

from __future__ import annotations

from dataclasses import dataclass, field

from lorakit.serving.http.access_log import AccessLog
from lorakit.serving.http.keys import ApiKeys
from lorakit.serving.http.limits import Limits, RequestsPerKey
from lorakit.serving.http.metrics import Metrics
from lorakit.serving.service import Service


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
