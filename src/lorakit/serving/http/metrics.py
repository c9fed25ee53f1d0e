"""Figures for Prometheus."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import TYPE_CHECKING, Any

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from lorakit.serving.engine import EngineHooks

if TYPE_CHECKING:
    from lorakit.serving.service import Service

UNKNOWN = "unknown"
"""Label of requests whose model does not exist, so that clients cannot add labels."""

_SECONDS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 60)
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128)

_STATE: dict[str, tuple[Any, str]] = {
    "waiting": (GaugeMetricFamily, "Requests or texts that wait for a model."),
    "running": (GaugeMetricFamily, "Requests that an engine reads or decodes."),
    "kv_bytes": (GaugeMetricFamily, "Memory of keys and values of answers."),
    "prefix_cache_bytes": (GaugeMetricFamily, "Memory of cached prefixes."),
    "adapter_bytes": (GaugeMetricFamily, "Memory of the adapters that a model carries."),
    "engine_steps": (CounterMetricFamily, "Steps of decoding."),
    "engine_cached_tokens": (CounterMetricFamily, "Tokens of prompts that the prefix cache had."),
    "engine_preemptions": (
        CounterMetricFamily,
        "Times that an answer gave its place to older ones.",
    ),
}
"""Kind and description of what each model reports."""


class Metrics:
    """All figures of a server; each server has its own registry."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        counter = partial(Counter, registry=self._registry)
        histogram = partial(Histogram, registry=self._registry)
        self._requests = counter(
            "lorakit_requests",
            "Requests that ended, by model, path and status.",
            ("model", "path", "status"),
        )
        self._tokens = counter(
            "lorakit_tokens",
            "Tokens of prompts (input) and answers (output).",
            ("model", "direction"),
        )
        self._duration = histogram(
            "lorakit_request_seconds",
            "Time of a request from its arrival to its end.",
            ("path",),
            buckets=_SECONDS,
        )
        self._first_token = histogram(
            "lorakit_first_token_seconds",
            "Time from a request in the engine's queue to its first token.",
            buckets=_SECONDS,
        )
        self._next_token = histogram(
            "lorakit_next_token_seconds",
            "Time between two tokens of an answer.",
            buckets=_SECONDS,
        )
        self._step_rows = histogram(
            "lorakit_step_rows",
            "Answers that one step of decoding continues.",
            buckets=_ROWS,
        )

    @property
    def hooks(self) -> EngineHooks:
        """What an engine calls."""
        return EngineHooks(
            first_token=self._first_token.observe,
            next_token=self._next_token.observe,
            step=lambda rows, s: self._step_rows.observe(rows),
        )

    def watch(self, service: Service) -> None:
        """Report the state of a service too."""
        self._registry.register(_State(service))

    def count(
        self,
        model: str | None,
        path: str,
        status: int,
        duration_s: float,
        input_tokens: int,
        output_tokens: int,
    ) -> None:
        """Count a request that has ended.

        Args:
            model: The model, None if it does not exist or the request names none.
            path: Path of the call.
            status: HTTP status.
            duration_s: Seconds that it took.
            input_tokens: Tokens of its prompts.
            output_tokens: Tokens of its answers.
        """
        model = model or UNKNOWN
        self._requests.labels(model, path, str(status)).inc()
        self._duration.labels(path).observe(duration_s)
        if input_tokens:
            self._tokens.labels(model, "input").inc(input_tokens)
        if output_tokens:
            self._tokens.labels(model, "output").inc(output_tokens)

    def text(self) -> bytes:
        """Return all figures in Prometheus' format."""
        return generate_latest(self._registry)


class _State:
    """Reads what models and stores report of themselves when Prometheus asks."""

    def __init__(self, service: Service):
        self._service = service

    def collect(self) -> Iterable[Metric]:
        families = {
            name: kind(f"lorakit_{name}", text, labels=["task"])
            for name, (kind, text) in _STATE.items()
        }
        events = CounterMetricFamily(
            "lorakit_adapter_events",
            "Loads, evictions and refusals of adapters.",
            labels=["adapter", "event"],
        )
        for model in self._service.models:
            task = str(model.kind)
            families["adapter_bytes"].add_metric([task], model.store.bytes_in_memory)
            stats = None if model.engine is None else model.engine.stats
            waiting = model.batches.waiting + (0 if stats is None else stats.waiting)
            families["waiting"].add_metric([task], waiting)
            if stats is not None:
                for name in families.keys() - {"waiting", "adapter_bytes"}:
                    value = getattr(stats, name.removeprefix("engine_"))
                    families[name].add_metric([task], value)
            for name, counts in model.store.counts().items():
                for event in ("loads", "evictions", "refusals"):
                    events.add_metric([name, event], getattr(counts, event))
        yield from (*families.values(), events)
